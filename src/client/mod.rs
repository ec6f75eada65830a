//! The Rust client.

pub mod connect;
