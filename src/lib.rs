//! `datastore`: one storage API on a NATS bus over the stores a team already runs.

pub mod client;
pub mod codec;
pub mod model;

#[cfg(feature = "server")]
pub mod app;
#[cfg(feature = "server")]
pub mod backend;
#[cfg(feature = "server")]
pub mod cli;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
pub mod control;
#[cfg(feature = "server")]
pub mod http;
#[cfg(feature = "server")]
pub mod placement;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
pub mod store;
#[cfg(feature = "server")]
pub mod telemetry;
