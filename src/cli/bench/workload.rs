//! What is sent to the workers: the requests of a workload, and what each came to.
//!
//! Gets go as bare messages and their documents are not decoded, alone or in batches: this is the load of the workers, not of a
//! client. What writes goes through the client, with its op ids, and is sent once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use tokio::time::Instant;

use super::load::Sent;
use super::mix::{Mix, Shares, Step};
use super::records::Records;
use crate::cli::args::{Bench, Level, Workload};
use crate::cli::output::Fault;
use crate::client::{Client, NamespaceClient, RequestOptions, Unanswered};
use crate::codec::message;
use crate::model::reply::{BatchResult, Reply, WriteReply};
use crate::model::request::{
    BatchRequest, GetRequest, PreconditionRequest, PutRequest, Request, ScanRequest,
};
use crate::model::{Code, Error, Record, Version};

/// Bytes of documents in one request that seeds.
const SEED_BYTES_MAX: usize = 256 * 1024;
/// Operations of one request that seeds.
const SEED_OPS_MAX: usize = 100;
/// Requests that seed at a time.
const SEEDS_IN_FLIGHT: usize = 8;
/// Answers in a row that show a write before it is taken for seen by every worker: they are asked at random.
const NEW_IN_A_ROW: u32 = 10;
/// Times that a read-modify-write is tried before somebody else's writes win.
const MODIFY_TRIES_MAX: u32 = 16;

/// The records, and how they are asked for.
pub(super) struct Target {
    client: Client,
    timeout: Duration,
    namespace: NamespaceClient,
    records: Arc<Records>,
    mix: Mix,
    workload: Workload,
    batch_size: u32,
    /// A get of no key, at the level asked for.
    get: GetRequest,
    /// Counts the writes that are watched: no two of them at a time are of one record.
    turn: AtomicUsize,
}

impl Target {
    /// Stores the records where the workload reads.
    pub(super) async fn prepare(
        client: &Client,
        namespace: NamespaceClient,
        bench: &Bench,
        records: Arc<Records>,
        timeout: Duration,
    ) -> Result<Self, Fault> {
        let get = GetRequest {
            consistency: Level::request(bench.consistency),
            max_staleness_ms: bench.max_staleness.unwrap_or(0),
            ..GetRequest::default()
        };
        let mut target = Self {
            client: client.clone(),
            timeout,
            namespace,
            mix: Mix::new(bench, records.count()),
            records,
            workload: bench.workload,
            batch_size: bench.batch_size,
            get,
            turn: AtomicUsize::new(0),
        };
        let reads = Shares::of(bench.workload).read_something();
        // A peer's table is filled too: replacing a record costs both of them something else than a first write.
        if !bench.no_load && (reads || bench.peer_postgres.is_some() || bench.peer_kv) {
            target.seed(client.max_payload() / 4).await?;
        }
        target.namespace = target.namespace.with_options(RequestOptions::once(timeout));
        Ok(target)
    }

    async fn seed(&self, bytes_max: usize) -> Result<(), Fault> {
        let mut in_flight = tokio::task::JoinSet::new();
        let mut ops = Vec::new();
        let mut bytes = 0;
        for at in 0..self.records.count() {
            let put = self.put(at);
            bytes += message::encode_request(&put).len();
            ops.push(put);
            let full = ops.len() >= SEED_OPS_MAX || bytes >= SEED_BYTES_MAX.min(bytes_max);
            if !full && at + 1 < self.records.count() {
                continue;
            }
            if in_flight.len() >= SEEDS_IN_FLIGHT {
                seeded(in_flight.join_next().await)?;
            }
            let namespace = self.namespace.clone();
            let request = Request::Batch(BatchRequest { ops: std::mem::take(&mut ops), atomic: false });
            bytes = 0;
            in_flight.spawn(async move { succeeded(namespace.request(request).await) });
        }
        while !in_flight.is_empty() {
            seeded(in_flight.join_next().await)?;
        }
        Ok(())
    }

    /// One request of the workload; its error by its code.
    pub(super) async fn send(&self) -> Result<Sent, String> {
        let sent = match self.workload {
            Workload::Batch => self.write_batch().await,
            Workload::BatchGet => self.read_batch().await,
            Workload::Staleness => self.watch_write().await,
            Workload::Outage => self.put_or_queue().await,
            _ => {
                let step = self.mix.next();
                let sent = self.step(step).await;
                self.mix.ended(step, sent.is_ok());
                sent
            }
        };
        sent.map_err(|error| error.code.word().to_owned())
    }

    async fn step(&self, step: Step) -> Result<Sent, Error> {
        let name = step.name();
        match step {
            Step::Read(at) => self.read(name, at).await,
            Step::Update(at) | Step::Insert(at) => self.request(name, self.put(at)).await,
            Step::Scan { from, records } => {
                let (start, consistency) = (self.records.key(from), self.get.consistency);
                let scan = ScanRequest { start, limit: records, consistency, ..ScanRequest::default() };
                self.request(name, Request::Scan(scan)).await
            }
            Step::ReadModifyWrite(at) => self.modify(name, at).await,
        }
    }

    async fn request(&self, name: &'static str, request: Request) -> Result<Sent, Error> {
        succeeded(self.namespace.request(request).await).map(|items| Sent::items(name, items))
    }

    /// A put that counts by what became of it.
    async fn put_or_queue(&self) -> Result<Sent, Error> {
        match self.namespace.request(self.put(self.mix.pick())).await? {
            Reply::Write(WriteReply { error: Some(error), .. }) => Err(error),
            Reply::Write(write) => Ok(Sent::items(write.outcome.word(), 1)),
            _ => Err(Error::internal("the reply is not one to put")),
        }
    }

    async fn read(&self, name: &'static str, at: usize) -> Result<Sent, Error> {
        let reply = self.bare(Request::Get(self.get(at))).await?;
        let source = message::glance_get(&reply)?.ok_or_else(gone)?;
        Ok(Sent::items(name, 1).from(source))
    }

    async fn read_batch(&self) -> Result<Sent, Error> {
        let ops = (0..self.batch_size).map(|_| Request::Get(self.get(self.mix.pick()))).collect();
        let reply = self.bare(Request::Batch(BatchRequest { ops, atomic: false })).await?;
        let mut sent = Sent::items("read", u64::from(self.batch_size));
        let mut missing = self.batch_size;
        for source in message::glance_batch(&reply)? {
            sent = sent.from(source?.ok_or_else(gone)?);
            missing = missing.saturating_sub(1);
        }
        if missing > 0 {
            return Err(Error::internal("a reply with fewer results than operations"));
        }
        Ok(sent)
    }

    async fn write_batch(&self) -> Result<Sent, Error> {
        let ops = (0..self.batch_size).map(|_| self.put(self.mix.pick())).collect();
        self.request("update", Request::Batch(BatchRequest { ops, atomic: false })).await
    }

    /// Reads a record and puts it back if nobody wrote it meanwhile; else once more, from what he wrote on.
    async fn modify(&self, name: &'static str, at: usize) -> Result<Sent, Error> {
        let mut newest = None;
        for _ in 0..MODIFY_TRIES_MAX {
            let Record { value, version, .. } = self.read_whole(at, newest).await?;
            let put = PutRequest {
                key: self.records.key(at),
                value: value.map(Ok),
                precondition: Some(PreconditionRequest {
                    version: Some(version.to_string()),
                    ..PreconditionRequest::default()
                }),
                ..PutRequest::default()
            };
            match succeeded(self.namespace.request(Request::Put(put)).await) {
                Ok(_) => return Ok(Sent::items(name, 1)),
                Err(error) if error.code == Code::Conflict => newest = error.version,
                Err(error) => return Err(error),
            }
        }
        Err(Error::conflict("others were quicker each time", newest))
    }

    /// Puts a record and reads it until [`NEW_IN_A_ROW`] answers show it: what it measures is the time from the acknowledgement to
    /// the sending of the last read that was answered with an older record; 0 if there was none.
    async fn watch_write(&self) -> Result<Sent, Error> {
        let at = self.turn.fetch_add(1, Ordering::Relaxed) % self.records.count();
        let written = match self.namespace.request(self.put(at)).await? {
            Reply::Write(reply) => match (reply.error, reply.version) {
                (Some(error), _) => return Err(error),
                (None, Some(version)) => version,
                (None, None) => return Err(Error::internal("a write without a version")),
            },
            _ => return Err(Error::internal("the reply is not one to put")),
        };
        let acknowledged = Instant::now();
        let (mut last_old, mut new) = (acknowledged, 0);
        while new < NEW_IN_A_ROW {
            if acknowledged.elapsed() > self.timeout {
                return Err(Error::deadline("an old record is still answered"));
            }
            let asked = Instant::now();
            match self.read_whole(at, None).await {
                Ok(record) if record.version >= written => new += 1,
                Ok(_) => (last_old, new) = (asked, 0),
                Err(error) if error.code == Code::NotFound => (last_old, new) = (asked, 0),
                Err(error) => return Err(error),
            }
        }
        Ok(Sent::items("write", 1).measured(last_old - acknowledged))
    }

    async fn read_whole(&self, at: usize, min_version: Option<Version>) -> Result<Record, Error> {
        let min_version = min_version.map(|version| version.to_string()).unwrap_or_default();
        let get = GetRequest { min_version, ..self.get(at) };
        match self.namespace.request(Request::Get(get)).await? {
            Reply::Get(reply) => match reply.error {
                Some(error) => Err(error),
                None => reply.record.ok_or_else(gone),
            },
            _ => Err(Error::internal("the reply is not one to get")),
        }
    }

    /// Sends a message as the peers on NATS send theirs: without headers, and once.
    async fn bare(&self, request: Request) -> Result<Bytes, Error> {
        let op = request.op_name();
        let subject = format!("{}.v1.{}.{op}", self.client.subject_prefix(), self.namespace.name());
        let payload = message::encode_request(&request).into();
        let reply = self.client.exchange(subject, HeaderMap::new(), payload, self.timeout).await;
        reply.map(|reply| reply.payload).map_err(|unanswered: Unanswered| unanswered.into_error(op))
    }

    fn get(&self, at: usize) -> GetRequest {
        GetRequest { key: self.records.key(at), ..self.get.clone() }
    }

    fn put(&self, at: usize) -> Request {
        let value = Some(Ok(self.records.value(at).clone()));
        Request::Put(PutRequest { key: self.records.key(at), value, ..PutRequest::default() })
    }
}

fn gone() -> Error {
    Error::new(Code::NotFound, "a record of the bench is gone")
}

fn seeded(joined: Option<Result<Result<u64, Error>, tokio::task::JoinError>>) -> Result<(), Fault> {
    match joined {
        None | Some(Ok(Ok(_))) => Ok(()),
        Some(Ok(Err(error))) => Err(Fault::Failed(error.at("storing the records of the bench"))),
        Some(Err(panic)) => Err(Fault::input(format!("storing the records of the bench failed: {panic}"))),
    }
}

/// How many items a reply carries, or its error: a single failed operation fails its batch.
fn succeeded(reply: Result<Reply, Error>) -> Result<u64, Error> {
    let reply = reply?;
    if let Some(error) = reply.error() {
        return Err(error.clone());
    }
    match reply {
        Reply::Get(get) if get.found => Ok(1),
        Reply::Get(_) => Err(gone()),
        Reply::Write(_) => Ok(1),
        Reply::Scan(scan) => Ok(scan.records.len() as u64),
        Reply::Batch(batch) => {
            for result in &batch.results {
                let (BatchResult::Get(crate::model::reply::GetReply { error, .. })
                | BatchResult::Write(WriteReply { error, .. })) = result;
                if let Some(error) = error {
                    return Err(error.clone());
                }
            }
            Ok(batch.results.len() as u64)
        }
    }
}
