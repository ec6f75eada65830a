//! Bytes <-> model: the wire messages in protobuf and JSON, and the stored record.

pub mod json;
pub mod message;
#[cfg(feature = "server")]
pub mod stored;
pub mod value;

/// How a request was encoded, and so how its reply will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Protobuf, package `datastore.v1`.
    Protobuf,
    /// JSON; `exact` marks numbers that a reader whose numbers are doubles would change.
    Json {
        /// `Ds-Json: exact` was asked for.
        exact: bool,
    },
}
