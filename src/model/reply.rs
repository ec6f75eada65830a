//! Replies, as every encoding of them says the same.

use super::{Error, Outcome, Record, Version};

/// One reply of any operation.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// To a get.
    Get(GetReply),
    /// To a put, delete, update or touch.
    Write(WriteReply),
    /// To a batch.
    Batch(BatchReply),
    /// To a scan, or (with nothing but an error) to a request of no known operation.
    Scan(ScanReply),
}

/// Where the returned bytes came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(i32)]
pub enum Source {
    /// The store itself.
    #[default]
    Backend = 0,
    /// The worker's memory.
    Memory = 1,
    /// The shared cache.
    Redis = 2,
    /// A read replica.
    Replica = 3,
    /// A write that is queued and not applied yet.
    Pending = 4,
}

/// What keeps an acknowledged write.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(i32)]
pub enum Durability {
    /// Nothing: the write did not happen, or nobody knows, or the backend may forget it.
    #[default]
    None = 0,
    /// The backend, as durable as its kind and its settings are.
    Backend = 1,
    /// The write-behind queue.
    Queue = 2,
}

/// Reply to a get.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GetReply {
    /// Why there is no answer.
    pub error: Option<Error>,
    /// Whether the record is there.
    pub found: bool,
    /// The record.
    pub record: Option<Record>,
    /// Where it came from.
    pub source: Source,
    /// At most how long ago this was the present state.
    pub age_ms: i64,
    /// Older than the level allows, served because the backend is down.
    pub stale: bool,
    /// A queued write outranks the store.
    pub pending: bool,
}

/// Reply to a put, delete, update or touch.
#[derive(Debug, Clone, PartialEq)]
pub struct WriteReply {
    /// Why it was not applied or queued.
    pub error: Option<Error>,
    /// What became of it.
    pub outcome: Outcome,
    /// The version it got.
    pub version: Option<Version>,
    /// What keeps it.
    pub durability: Durability,
    /// An earlier attempt with the same `op_id` had taken effect.
    pub duplicate: bool,
    /// Whether a read that follows sees it.
    pub read_your_write: bool,
    /// The record after the write, where asked for.
    pub record: Option<Record>,
    /// Of an applied delete: whether there was a record.
    pub existed: Option<bool>,
}

/// One result of a batch.
#[derive(Debug, Clone, PartialEq)]
pub enum BatchResult {
    /// Of a get.
    Get(GetReply),
    /// Of a write.
    Write(WriteReply),
}

/// Reply to a batch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BatchReply {
    /// Why nothing was done.
    pub error: Option<Error>,
    /// One for each operation, in order.
    pub results: Vec<BatchResult>,
}

/// Reply to a scan.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ScanReply {
    /// Why there is no page, or why it ends here.
    pub error: Option<Error>,
    /// The page.
    pub records: Vec<Record>,
    /// Where the next page starts; "" = done.
    pub cursor: String,
    /// Where the records came from.
    pub source: Source,
    /// At most how long ago this was the present state.
    pub age_ms: i64,
    /// See [`GetReply::stale`].
    pub stale: bool,
    /// See [`GetReply::pending`].
    pub pending: bool,
}

impl Reply {
    /// The top-level error.
    pub fn error(&self) -> Option<&Error> {
        match self {
            Self::Get(reply) => reply.error.as_ref(),
            Self::Write(reply) => reply.error.as_ref(),
            Self::Batch(reply) => reply.error.as_ref(),
            Self::Scan(reply) => reply.error.as_ref(),
        }
    }
}

impl From<Error> for GetReply {
    fn from(error: Error) -> Self {
        Self { error: Some(error), ..Self::default() }
    }
}

impl From<Error> for WriteReply {
    /// The outcome follows from the error's code.
    fn from(error: Error) -> Self {
        Self {
            outcome: error.code.outcome(),
            error: Some(error),
            version: None,
            durability: Durability::None,
            duplicate: false,
            read_your_write: false,
            record: None,
            existed: None,
        }
    }
}

impl From<Error> for BatchReply {
    fn from(error: Error) -> Self {
        Self { error: Some(error), results: Vec::new() }
    }
}

impl From<Error> for ScanReply {
    fn from(error: Error) -> Self {
        Self { error: Some(error), ..Self::default() }
    }
}

impl Source {
    /// The word used in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Backend => "backend",
            Self::Memory => "memory",
            Self::Redis => "redis",
            Self::Replica => "replica",
            Self::Pending => "pending",
        }
    }

    /// The source with this wire number.
    pub fn from_number(number: i32) -> Option<Self> {
        [Self::Backend, Self::Memory, Self::Redis, Self::Replica, Self::Pending]
            .into_iter()
            .find(|source| *source as i32 == number)
    }
}

impl Durability {
    /// The word used in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Backend => "backend",
            Self::Queue => "queue",
        }
    }

    /// The durability with this wire number.
    pub fn from_number(number: i32) -> Option<Self> {
        [Self::None, Self::Backend, Self::Queue].into_iter().find(|kept| *kept as i32 == number)
    }
}
