//! One builder for each operation. What a worker would refuse is sent all the same: it is the one to judge.

use std::time::Duration;

use super::{Fetched, NamespaceClient, Page, Written};
use crate::client::attempts::unexpected;
use crate::model::reply::{BatchResult, Reply};
use crate::model::request::{
    BatchRequest, ChangeKind, ChangeRequest, Consistency, DeleteRequest, GetRequest, PreconditionRequest,
    PutRequest, Request, ScanRequest, TouchRequest, UpdateRequest,
};
use crate::model::{Result, Value, Version};

/// The preconditions of a builder whose request has one.
macro_rules! preconditions {
    () => {
        /// Only if the key is absent.
        pub fn if_absent(mut self) -> Self {
            let absent = PreconditionRequest { absent: Some(true), ..PreconditionRequest::default() };
            self.request.precondition = Some(absent);
            self
        }

        /// Only if the key is there.
        pub fn if_exists(mut self) -> Self {
            let exists = PreconditionRequest { exists: Some(true), ..PreconditionRequest::default() };
            self.request.precondition = Some(exists);
            self
        }

        /// Only if the key is at this version.
        pub fn if_version(mut self, version: Version) -> Self {
            let at =
                PreconditionRequest { version: Some(version.to_string()), ..PreconditionRequest::default() };
            self.request.precondition = Some(at);
            self
        }
    };
}

/// The operation id of a builder whose request is a write.
macro_rules! op_id {
    () => {
        /// The write's identity, for one that outlives this process. Without it one is made.
        pub fn op_id(mut self, op_id: impl Into<String>) -> Self {
            self.request.op_id = op_id.into();
            self
        }
    };
}

/// The lifetime of a builder whose request names one.
macro_rules! lifetime {
    () => {
        /// The record ends after this long; at least a millisecond.
        pub fn ttl(mut self, ttl: Duration) -> Self {
            self.request.ttl_ms = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX).max(1);
            self
        }

        /// The record never ends.
        pub fn forever(mut self) -> Self {
            self.request.ttl_ms = -1;
            self
        }
    };
}

// === impl Get ===

/// A get to be sent.
#[must_use]
pub struct Get<'n> {
    pub(super) namespace: &'n NamespaceClient,
    pub(super) request: GetRequest,
}

impl Get<'_> {
    /// The level to read at.
    pub fn consistency(mut self, level: Consistency) -> Self {
        self.request.consistency = level;
        self
    }

    /// The bound of a `bounded` read.
    pub fn max_staleness(mut self, bound: Duration) -> Self {
        self.request.max_staleness_ms = i64::try_from(bound.as_millis()).unwrap_or(i64::MAX);
        self
    }

    /// Nothing older than this.
    pub fn min_version(mut self, version: Version) -> Self {
        self.request.min_version = version.to_string();
        self
    }

    /// Without the value.
    pub fn head_only(mut self) -> Self {
        self.request.head_only = true;
        self
    }

    /// These parts of the value alone.
    pub fn fields<P: Into<String>>(mut self, paths: impl IntoIterator<Item = P>) -> Self {
        self.request.fields = paths.into_iter().map(Into::into).collect();
        self
    }

    /// Sends it.
    pub async fn send(self) -> Result<Fetched> {
        match self.namespace.request(Request::Get(self.request)).await? {
            Reply::Get(reply) => reply.try_into(),
            _ => Err(unexpected("get")),
        }
    }
}

// === impl Put ===

/// A put to be sent.
#[must_use]
pub struct Put<'n> {
    pub(super) namespace: &'n NamespaceClient,
    pub(super) request: PutRequest,
}

impl Put<'_> {
    preconditions!();
    op_id!();
    lifetime!();

    /// The present expiry stays.
    pub fn keep_ttl(mut self) -> Self {
        self.request.keep_ttl = true;
        self
    }

    /// What the value is, e.g. `image/png`.
    pub fn content_type(mut self, content_type: impl Into<String>) -> Self {
        self.request.content_type = content_type.into();
        self
    }

    /// Sends it.
    pub async fn send(self) -> Result<Written> {
        self.namespace.write(Request::Put(self.request)).await
    }
}

// === impl Delete ===

/// A delete to be sent.
#[must_use]
pub struct Delete<'n> {
    pub(super) namespace: &'n NamespaceClient,
    pub(super) request: DeleteRequest,
}

impl Delete<'_> {
    preconditions!();
    op_id!();

    /// Sends it.
    pub async fn send(self) -> Result<Written> {
        self.namespace.write(Request::Delete(self.request)).await
    }
}

// === impl Update ===

/// An update to be sent.
#[must_use]
pub struct Update<'n> {
    pub(super) namespace: &'n NamespaceClient,
    pub(super) request: UpdateRequest,
}

impl Update<'_> {
    preconditions!();
    op_id!();
    lifetime!();

    /// One change more; they happen in order.
    pub fn change(mut self, path: impl Into<String>, kind: ChangeKind) -> Self {
        self.request.changes.push(ChangeRequest { path: path.into(), kind: Ok(kind) });
        self
    }

    /// Puts a value at a path.
    pub fn set(self, path: impl Into<String>, value: impl Into<Value>) -> Self {
        self.change(path, ChangeKind::Set(value.into()))
    }

    /// Adds to the number at a path.
    pub fn increment(self, path: impl Into<String>, by: impl Into<Value>) -> Self {
        self.change(path, ChangeKind::Increment(by.into()))
    }

    /// Takes away what stands at a path.
    pub fn unset(self, path: impl Into<String>) -> Self {
        self.change(path, ChangeKind::Unset)
    }

    /// Starts from an empty map where there is no record.
    pub fn create(mut self) -> Self {
        self.request.create = true;
        self
    }

    /// Asks for the record after the update.
    pub fn return_record(mut self) -> Self {
        self.request.return_record = true;
        self
    }

    /// Sends it.
    pub async fn send(self) -> Result<Written> {
        self.namespace.write(Request::Update(self.request)).await
    }
}

// === impl Touch ===

/// A touch to be sent.
#[must_use]
pub struct Touch<'n> {
    pub(super) namespace: &'n NamespaceClient,
    pub(super) request: TouchRequest,
}

impl Touch<'_> {
    op_id!();
    lifetime!();

    /// Sends it.
    pub async fn send(self) -> Result<Written> {
        self.namespace.write(Request::Touch(self.request)).await
    }
}

// === impl Batch ===

/// A batch to be sent.
#[must_use]
pub struct Batch<'n> {
    pub(super) namespace: &'n NamespaceClient,
    pub(super) request: BatchRequest,
}

impl Batch<'_> {
    /// One operation more: `Get`, `Put`, `Delete`, `Update` or `Touch`.
    pub fn op(mut self, op: Request) -> Self {
        self.request.ops.push(op);
        self
    }

    /// One get more.
    pub fn get(self, key: impl Into<String>) -> Self {
        self.op(Request::Get(GetRequest { key: key.into(), ..GetRequest::default() }))
    }

    /// One put more.
    pub fn put(self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        let value = Some(Ok(value.into()));
        self.op(Request::Put(PutRequest { key: key.into(), value, ..PutRequest::default() }))
    }

    /// One delete more.
    pub fn delete(self, key: impl Into<String>) -> Self {
        self.op(Request::Delete(DeleteRequest { key: key.into(), ..DeleteRequest::default() }))
    }

    /// All or nothing.
    pub fn atomic(mut self) -> Self {
        self.request.atomic = true;
        self
    }

    /// Sends it. One result for each operation, in order; each may hold its own error, and those are not
    /// repeated (a later operation on the same key may have taken effect meanwhile).
    pub async fn send(self) -> Result<Vec<BatchResult>> {
        let ops = self.request.ops.len();
        match self.namespace.request(Request::Batch(self.request)).await? {
            Reply::Batch(reply) => match reply.error {
                Some(error) => Err(error),
                None if reply.results.len() == ops => Ok(reply.results),
                None => Err(unexpected("batch")),
            },
            _ => Err(unexpected("batch")),
        }
    }
}

// === impl Scan ===

/// A page to be asked for.
#[must_use]
pub struct Scan<'n> {
    pub(super) namespace: &'n NamespaceClient,
    pub(super) request: ScanRequest,
}

impl Scan<'_> {
    /// Keys that start with this.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.request.prefix = prefix.into();
        self
    }

    /// The first key, inclusive.
    pub fn start(mut self, start: impl Into<String>) -> Self {
        self.request.start = start.into();
        self
    }

    /// The last key, exclusive.
    pub fn end(mut self, end: impl Into<String>) -> Self {
        self.request.end = end.into();
        self
    }

    /// Most records of the page.
    pub fn limit(mut self, limit: u32) -> Self {
        self.request.limit = limit;
        self
    }

    /// Where the page before ended.
    pub fn cursor(mut self, cursor: impl Into<String>) -> Self {
        self.request.cursor = cursor.into();
        self
    }

    /// From the end of the range to its start.
    pub fn reverse(mut self) -> Self {
        self.request.reverse = true;
        self
    }

    /// Without the values.
    pub fn keys_only(mut self) -> Self {
        self.request.keys_only = true;
        self
    }

    /// The level to read at.
    pub fn consistency(mut self, level: Consistency) -> Self {
        self.request.consistency = level;
        self
    }

    /// Sends it.
    pub async fn send(self) -> Result<Page> {
        match self.namespace.request(Request::Scan(self.request)).await? {
            Reply::Scan(reply) => reply.try_into(),
            _ => Err(unexpected("scan")),
        }
    }
}
