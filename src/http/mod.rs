//! Health over HTTP.

use std::net::SocketAddr;

/// Where the worker answers HTTP.
#[derive(Clone)]
pub struct Settings {
    /// Address to listen at; `None` turns it off.
    pub listen: Option<SocketAddr>,
    /// Bearer token that details ask for, "" = none; required when `listen` is not loopback.
    pub token: String,
}
