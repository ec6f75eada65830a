//! Typed operations on one namespace: each is a small builder that ends in `send`.

use std::time::Duration;

use super::attempts::unexpected;
use super::session::{Session, writes_of};
use super::{Client, RequestOptions};
use crate::model::reply::{BatchResult, Durability, GetReply, Reply, ScanReply, Source, WriteReply};
use crate::model::request::{
    BatchRequest, ChangeKind, ChangeRequest, Consistency, DeleteRequest, GetRequest, PreconditionRequest,
    PutRequest, Request, ScanRequest, TouchRequest, UpdateRequest,
};
use crate::model::{Error, Namespace, Outcome, Record, Result, Value, Version};

/// The operations on a namespace. Clones share the connection.
#[derive(Clone)]
pub struct NamespaceClient {
    client: Client,
    name: Namespace,
    options: RequestOptions,
    session: Option<Session>,
}

/// What a get found.
#[derive(Debug, Clone, PartialEq)]
pub struct Fetched {
    /// The record, if there is one.
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

/// What a write came to: `applied` or `queued`. Anything else is an error.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// Applied or queued.
    pub outcome: Outcome,
    /// The version it got; `None` for a duplicate whose record was overwritten since.
    pub version: Option<Version>,
    /// What keeps it.
    pub durability: Durability,
    /// An earlier attempt had taken effect.
    pub duplicate: bool,
    /// Whether a read that follows sees it.
    pub read_your_write: bool,
    /// The record after the write, where asked for.
    pub record: Option<Record>,
    /// Of a delete: whether there was a record.
    pub existed: Option<bool>,
}

/// A page of a scan.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// In the order of their keys. May be empty before the end.
    pub records: Vec<Record>,
    /// Where the next page starts; "" = this was the last.
    pub cursor: String,
    /// Where the records came from.
    pub source: Source,
    /// At most how long ago this was the present state.
    pub age_ms: i64,
    /// See [`Fetched::stale`].
    pub stale: bool,
    /// See [`Fetched::pending`].
    pub pending: bool,
}

// === impl NamespaceClient ===

impl NamespaceClient {
    pub(super) fn new(client: Client, name: Namespace) -> Self {
        Self { client, name, options: RequestOptions::default(), session: None }
    }

    /// The same with other waits for what is sent from here.
    #[must_use]
    pub fn with_options(mut self, options: RequestOptions) -> Self {
        self.options = options;
        self
    }

    /// The same for a reader who must see what was written under this session.
    #[must_use]
    pub fn with_session(mut self, session: &Session) -> Self {
        self.session = Some(session.clone());
        self
    }

    /// The namespace's name.
    pub fn name(&self) -> &Namespace {
        &self.name
    }

    /// Sends a request as it stands (writes get an op id if they have none), and gives the reply as it came, the
    /// worker's errors included. `Err` is what this client has to say where no worker has.
    pub async fn request(&self, request: Request) -> Result<Reply> {
        self.request_with(request, &self.options).await
    }

    /// The same with other waits.
    pub async fn request_with(&self, mut request: Request, options: &RequestOptions) -> Result<Reply> {
        let Some(session) = &self.session else {
            return self.client.call(&self.name, request, options).await;
        };
        session.demand(&self.name, &mut request);
        let wrote = writes_of(&request);
        let reply = self.client.call(&self.name, request, options).await?;
        session.note(&self.name, wrote, &reply);
        Ok(reply)
    }

    /// Reads one record.
    pub fn get(&self, key: impl Into<String>) -> Get<'_> {
        Get { namespace: self, request: GetRequest { key: key.into(), ..GetRequest::default() } }
    }

    /// Stores a document.
    pub fn put(&self, key: impl Into<String>, value: impl Into<Value>) -> Put<'_> {
        let value = Some(Ok(value.into()));
        Put { namespace: self, request: PutRequest { key: key.into(), value, ..PutRequest::default() } }
    }

    /// Removes a record.
    pub fn delete(&self, key: impl Into<String>) -> Delete<'_> {
        Delete { namespace: self, request: DeleteRequest { key: key.into(), ..DeleteRequest::default() } }
    }

    /// Changes a record in place.
    pub fn update(&self, key: impl Into<String>) -> Update<'_> {
        Update { namespace: self, request: UpdateRequest { key: key.into(), ..UpdateRequest::default() } }
    }

    /// Changes a record's lifetime to the namespace's default, unless told otherwise.
    pub fn touch(&self, key: impl Into<String>) -> Touch<'_> {
        Touch { namespace: self, request: TouchRequest { key: key.into(), ..TouchRequest::default() } }
    }

    /// Many operations in one request.
    pub fn batch(&self) -> Batch<'_> {
        Batch { namespace: self, request: BatchRequest::default() }
    }

    /// A page of records in the order of their keys.
    pub fn scan(&self) -> Scan<'_> {
        Scan { namespace: self, request: ScanRequest::default() }
    }

    async fn write(&self, request: Request) -> Result<Written> {
        let op = request.op_name();
        match self.request(request).await? {
            Reply::Write(reply) => reply.try_into(),
            _ => Err(unexpected(op)),
        }
    }
}

/// The preconditions of a builder whose request has one.
macro_rules! preconditions {
    () => {
        /// Only if the key is absent.
        #[must_use]
        pub fn if_absent(mut self) -> Self {
            let absent = PreconditionRequest { absent: Some(true), ..PreconditionRequest::default() };
            self.request.precondition = Some(absent);
            self
        }

        /// Only if the key is there.
        #[must_use]
        pub fn if_exists(mut self) -> Self {
            let exists = PreconditionRequest { exists: Some(true), ..PreconditionRequest::default() };
            self.request.precondition = Some(exists);
            self
        }

        /// Only if the key is at this version.
        #[must_use]
        pub fn if_version(mut self, version: Version) -> Self {
            let at = PreconditionRequest { version: Some(version.to_string()), ..PreconditionRequest::default() };
            self.request.precondition = Some(at);
            self
        }
    };
}

/// The operation id of a builder whose request is a write.
macro_rules! op_id {
    () => {
        /// The write's identity, for one that outlives this process. Without it one is made.
        #[must_use]
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
        #[must_use]
        pub fn ttl(mut self, ttl: Duration) -> Self {
            self.request.ttl_ms = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX).max(1);
            self
        }

        /// The record never ends.
        #[must_use]
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
    namespace: &'n NamespaceClient,
    request: GetRequest,
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
    namespace: &'n NamespaceClient,
    request: PutRequest,
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
    namespace: &'n NamespaceClient,
    request: DeleteRequest,
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
    namespace: &'n NamespaceClient,
    request: UpdateRequest,
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
    namespace: &'n NamespaceClient,
    request: TouchRequest,
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
    namespace: &'n NamespaceClient,
    request: BatchRequest,
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
    namespace: &'n NamespaceClient,
    request: ScanRequest,
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

// === replies ===

impl TryFrom<GetReply> for Fetched {
    type Error = Error;

    fn try_from(reply: GetReply) -> Result<Self> {
        let GetReply { error, found, record, source, age_ms, stale, pending } = reply;
        match error {
            Some(error) => Err(error),
            None => Ok(Self { record: record.filter(|_| found), source, age_ms, stale, pending }),
        }
    }
}

impl TryFrom<WriteReply> for Written {
    type Error = Error;

    fn try_from(reply: WriteReply) -> Result<Self> {
        let WriteReply { error, outcome, version, durability, duplicate, read_your_write, record, existed } = reply;
        match error {
            Some(error) => Err(error),
            None => Ok(Self { outcome, version, durability, duplicate, read_your_write, record, existed }),
        }
    }
}

impl TryFrom<ScanReply> for Page {
    type Error = Error;

    fn try_from(reply: ScanReply) -> Result<Self> {
        let ScanReply { error, records, cursor, source, age_ms, stale, pending } = reply;
        match error {
            Some(error) => Err(error),
            None => Ok(Self { records, cursor, source, age_ms, stale, pending }),
        }
    }
}
