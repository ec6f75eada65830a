//! The stores.

use std::path::PathBuf;

/// One configured backend.
#[derive(Debug, Clone)]
pub enum Settings {
    /// In the worker's memory; gone when it stops.
    Memory,
    /// On this machine's disk.
    Local {
        /// Directory, made if missing.
        path: PathBuf,
    },
}
