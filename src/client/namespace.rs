//! Typed operations on one namespace: each is a small builder ([`builders`]) that ends in `send`.

mod builders;

use super::attempts::unexpected;
use super::session::{Session, writes_of};
use super::{Client, RequestOptions};
use crate::model::reply::{Durability, GetReply, Reply, ScanReply, Source, WriteReply};
use crate::model::request::{
    BatchRequest, DeleteRequest, GetRequest, PutRequest, Request, ScanRequest, TouchRequest, UpdateRequest,
};
use crate::model::{Error, Namespace, Outcome, Record, Result, Value, Version};

pub use builders::{Batch, Delete, Get, Put, Scan, Touch, Update};

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
        let WriteReply { error, outcome, version, durability, duplicate, read_your_write, record, existed } =
            reply;
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
