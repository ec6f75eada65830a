//! Requests as they come in: well formed, but nothing about them is checked yet.
//!
//! Both wire encodings decode into these; `server/validate` turns them into the operations of
//! [`super::op`]. A part whose fault belongs to its operation alone (and not to the whole batch around it)
//! is kept as a `Result`.

use super::{Result, Value};

/// A document of a request: absent, there, or malformed in a way that fails its operation alone.
pub type MaybeValue = Option<Result<Value>>;

/// One request of any operation.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// Read one record.
    Get(GetRequest),
    /// Write one record.
    Put(PutRequest),
    /// Remove one record.
    Delete(DeleteRequest),
    /// Change a record in place.
    Update(UpdateRequest),
    /// Change a record's lifetime.
    Touch(TouchRequest),
    /// Many operations.
    Batch(BatchRequest),
    /// A page of records in key order.
    Scan(ScanRequest),
}

/// What must hold for a write to happen. Exactly one, or the request is at fault.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PreconditionRequest {
    /// The key must be absent.
    pub absent: Option<bool>,
    /// The key must be there.
    pub exists: Option<bool>,
    /// The key must be at this version.
    pub version: Option<String>,
}

/// The consistency level a read asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(i32)]
pub enum Consistency {
    /// The namespace's.
    #[default]
    Default = 0,
    /// As new as every write acknowledged before the read began.
    Strong = 1,
    /// At most `max_staleness` old.
    Bounded = 2,
    /// Any copy within its lifetime.
    Eventual = 3,
}

/// See `GetRequest` in `proto/datastore/v1/datastore.proto`; the same holds for the structs below.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GetRequest {
    /// Key.
    pub key: String,
    /// Level asked for.
    pub consistency: Consistency,
    /// Bound for `bounded`; 0 = not given.
    pub max_staleness_ms: i64,
    /// "" = none.
    pub min_version: String,
    /// Leave the value out.
    pub head_only: bool,
    /// Paths to keep of the value.
    pub fields: Vec<String>,
}

/// A put.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PutRequest {
    /// Key.
    pub key: String,
    /// Document.
    pub value: MaybeValue,
    /// Content type, "" = unset.
    pub content_type: String,
    /// Precondition.
    pub precondition: Option<PreconditionRequest>,
    /// Lifetime.
    pub ttl_ms: i64,
    /// Keep the present expiry.
    pub keep_ttl: bool,
    /// Operation id, "" = none.
    pub op_id: String,
    /// Age of the operation at its client, 0 = first attempt.
    pub op_age_ms: i64,
}

/// A delete.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DeleteRequest {
    /// Key.
    pub key: String,
    /// Precondition.
    pub precondition: Option<PreconditionRequest>,
    /// Operation id, "" = none.
    pub op_id: String,
    /// Age of the operation at its client.
    pub op_age_ms: i64,
}

/// One change of an update.
#[derive(Debug, Clone, PartialEq)]
pub struct ChangeRequest {
    /// Where.
    pub path: String,
    /// What; `Err` where the request named no kind or several.
    pub kind: Result<ChangeKind>,
}

/// What a change does at its path.
#[derive(Debug, Clone, PartialEq)]
pub enum ChangeKind {
    /// Put a value there.
    Set(Value),
    /// Take it away.
    Unset,
    /// Add a number.
    Increment(Value),
    /// Add one element at a list's end.
    Append(Value),
    /// Keep the smaller.
    Min(Value),
    /// Keep the larger.
    Max(Value),
    /// Add one element unless it is there.
    AddToSet(Value),
    /// Take every equal element away.
    RemoveFromSet(Value),
}

/// An update.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct UpdateRequest {
    /// Key.
    pub key: String,
    /// Changes in order.
    pub changes: Vec<ChangeRequest>,
    /// Precondition.
    pub precondition: Option<PreconditionRequest>,
    /// Start from an empty map where there is no record.
    pub create: bool,
    /// Answer the changed record.
    pub return_record: bool,
    /// Lifetime; 0 = keep.
    pub ttl_ms: i64,
    /// Operation id, "" = none.
    pub op_id: String,
    /// Age of the operation at its client.
    pub op_age_ms: i64,
}

/// A touch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TouchRequest {
    /// Key.
    pub key: String,
    /// New lifetime; 0 = the namespace's default, -1 = never ends.
    pub ttl_ms: i64,
    /// Operation id, "" = none.
    pub op_id: String,
    /// Age of the operation at its client.
    pub op_age_ms: i64,
}

/// A batch. The operations are `Get`, `Put`, `Delete`, `Update` or `Touch`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BatchRequest {
    /// Operations in order.
    pub ops: Vec<Request>,
    /// All or nothing.
    pub atomic: bool,
}

/// A scan.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ScanRequest {
    /// Keys that start with this.
    pub prefix: String,
    /// First key, inclusive; "" = none.
    pub start: String,
    /// Last key, exclusive; "" = none.
    pub end: String,
    /// Records of the page, 0 = default.
    pub limit: u32,
    /// Encoded bytes of the page, 0 = default.
    pub max_bytes: u32,
    /// Where the page before this one ended.
    pub cursor: String,
    /// From the end of the range to its start.
    pub reverse: bool,
    /// Leave the values out.
    pub keys_only: bool,
    /// Level asked for.
    pub consistency: Consistency,
}

impl Request {
    /// The operation's name, as in subjects.
    pub fn op_name(&self) -> &'static str {
        match self {
            Self::Get(_) => "get",
            Self::Put(_) => "put",
            Self::Delete(_) => "delete",
            Self::Update(_) => "update",
            Self::Touch(_) => "touch",
            Self::Batch(_) => "batch",
            Self::Scan(_) => "scan",
        }
    }
}

impl ChangeKind {
    /// The change's name on the wire.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Set(_) => "set",
            Self::Unset => "unset",
            Self::Increment(_) => "increment",
            Self::Append(_) => "append",
            Self::Min(_) => "min",
            Self::Max(_) => "max",
            Self::AddToSet(_) => "add_to_set",
            Self::RemoveFromSet(_) => "remove_from_set",
        }
    }

    /// The operand, if the change has one.
    pub fn operand(&self) -> Option<&Value> {
        match self {
            Self::Unset => None,
            Self::Set(value)
            | Self::Increment(value)
            | Self::Append(value)
            | Self::Min(value)
            | Self::Max(value)
            | Self::AddToSet(value)
            | Self::RemoveFromSet(value) => Some(value),
        }
    }
}
