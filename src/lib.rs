//! `datastore`: one storage API on a NATS bus over the stores a team already runs.
//!
//! The road of a request is the list of folders: `server` takes a NATS message, `codec` decodes it, `store`
//! applies the namespace's policy, `placement` gives the slot, `backend` keeps the rows. `ARCHITECTURE.md`
//! is the map; imports point downward only:
//!
//! ```text
//! 8  main > cli > app > config     the process
//! 7  server | http                 NATS in, reply out | health
//! 6  store | control               operations on records | background jobs
//! 5  queue                         writes that wait for their store
//! 4  cache                         copies in front of a backend
//! 3  layer                         what wraps a backend
//! 2  backend                       the stores
//! 1  codec | placement | link | client    bytes | which slot | connections | the Rust client
//! 0  model | telemetry             words and names
//! ```
//!
//! Read `model`, then `backend::decide` (what a store does with a write), then follow one request from
//! `server::handle`. Users of the client start at [`client`].

pub mod client;
pub mod codec;
pub mod model;

#[cfg(feature = "server")]
pub mod app;
#[cfg(feature = "server")]
pub mod backend;
#[cfg(feature = "server")]
pub mod cache;
#[cfg(feature = "server")]
pub mod cli;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
pub mod control;
#[cfg(feature = "server")]
pub mod http;
#[cfg(feature = "server")]
pub mod layer;
#[cfg(feature = "server")]
pub mod link;
#[cfg(feature = "server")]
pub mod placement;
#[cfg(feature = "server")]
pub mod queue;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
pub mod store;
#[cfg(feature = "server")]
pub mod telemetry;

/// The examples of the README compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
