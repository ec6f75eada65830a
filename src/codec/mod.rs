//! Bytes <-> model: the wire messages in protobuf and JSON, and the stored record.

#[cfg(feature = "server")]
pub mod body;
#[cfg(feature = "server")]
mod compress;
pub mod json;
pub mod message;
#[cfg(feature = "server")]
pub mod project;
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

impl Encoding {
    /// Bytes a document takes in a reply.
    pub fn value_len(self, value: &crate::model::Value) -> usize {
        match self {
            Self::Protobuf => value::encoded_len(value),
            Self::Json { exact } => json::value_len(value, exact),
        }
    }

    /// Bytes a record takes as part of a larger reply, what separates it from its neighbours included.
    pub fn record_len(self, record: &crate::model::Record) -> usize {
        /// A comma, or the field's tag and the record's length.
        const BETWEEN: usize = 6;
        BETWEEN
            + match self {
                Self::Protobuf => message::record_len(record),
                Self::Json { exact } => json::record_len(record, exact),
            }
    }
}
