//! What is sent to the workers: the records of a bench, and requests on them.

use std::time::Duration;

use async_nats::HeaderMap;

use crate::cli::args::{Bench, Workload};
use crate::cli::output::Fault;
use crate::cli::record_file::Lines;
use crate::client::{Client, NamespaceClient, RequestOptions};
use crate::codec::message;
use crate::model::reply::{BatchResult, Reply};
use crate::model::request::{BatchRequest, GetRequest, PutRequest, Request, ScanRequest};
use crate::model::{Code, Error, Value};

/// Bytes of documents in one request that seeds.
const SEED_BYTES_MAX: usize = 256 * 1024;
/// Operations of one request that seeds.
const SEED_OPS_MAX: usize = 100;
/// Requests that seed at a time.
const SEEDS_IN_FLIGHT: usize = 8;

/// The records, and how they are asked for.
pub(super) struct Target {
    client: Client,
    timeout: Duration,
    namespace: NamespaceClient,
    pub(super) records: Vec<(String, Value)>,
    pub(super) workload: Workload,
    batch_size: u32,
    zipf: Option<Zipf>,
}

impl Target {
    /// Makes or reads the records, and stores them where the workload reads.
    pub(super) async fn prepare(
        client: &Client,
        namespace: NamespaceClient,
        bench: &Bench,
        timeout: Duration,
    ) -> Result<Self, Fault> {
        let records = match &bench.data {
            Some(file) => read(file, bench.keys as usize)?,
            None => made_up(bench.keys, bench.value_bytes as usize),
        };
        let zipf = bench.zipf.map(|exponent| Zipf::new(records.len(), exponent));
        let mut target = Self {
            client: client.clone(),
            timeout,
            namespace,
            records,
            workload: bench.workload,
            batch_size: bench.batch_size,
            zipf,
        };
        let reads = matches!(bench.workload, Workload::Get | Workload::Scan);
        // The peer's table is filled too: replacing a record costs both of them something else than a first write.
        if !bench.no_load && (reads || bench.peer_postgres.is_some()) {
            target.seed(client.max_payload() / 4).await?;
        }
        target.namespace = target.namespace.with_options(RequestOptions::once(timeout));
        Ok(target)
    }

    async fn seed(&self, bytes_max: usize) -> Result<(), Fault> {
        let mut in_flight = tokio::task::JoinSet::new();
        let mut ops = Vec::new();
        let mut bytes = 0;
        for at in 0..self.records.len() {
            let put = self.put(at);
            bytes += message::encode_request(&put).len();
            ops.push(put);
            let full = ops.len() >= SEED_OPS_MAX || bytes >= SEED_BYTES_MAX.min(bytes_max);
            if !full && at + 1 < self.records.len() {
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

    /// One request of the workload.
    pub(super) async fn send(&self) -> Result<u64, String> {
        let request = match self.workload {
            Workload::Get => return self.get(self.records[self.pick()].0.clone()).await,
            Workload::Put => self.put(self.pick()),
            Workload::Batch => {
                let ops = (0..self.batch_size).map(|_| self.put(self.pick())).collect();
                Request::Batch(BatchRequest { ops, atomic: false })
            }
            Workload::Scan => {
                let start = self.records[self.pick()].0.clone();
                Request::Scan(ScanRequest { start, limit: self.batch_size, ..ScanRequest::default() })
            }
        };
        succeeded(self.namespace.request(request).await).map_err(|error| error.code.word().to_owned())
    }

    /// A get as the echo beside it is sent: a bare message. Whether the record came is looked at, its document
    /// is not decoded: this is the load of the worker, not of the client.
    async fn get(&self, key: String) -> Result<u64, String> {
        let request = Request::Get(GetRequest { key, ..GetRequest::default() });
        let subject = format!("{}.v1.{}.get", self.client.subject_prefix(), self.namespace.name());
        let payload = message::encode_request(&request).into();
        let reply = self.client.exchange(subject, HeaderMap::new(), payload, self.timeout).await;
        let reply = reply.map_err(|unanswered| unanswered.into_error("get").code.word().to_owned())?;
        match message::decode_found(&reply.payload) {
            Ok(true) => Ok(1),
            Ok(false) => Err(Code::NotFound.word().to_owned()),
            Err(error) => Err(error.code.word().to_owned()),
        }
    }

    fn put(&self, at: usize) -> Request {
        let (key, value) = &self.records[at];
        Request::Put(PutRequest { key: key.clone(), value: Some(Ok(value.clone())), ..PutRequest::default() })
    }

    /// The place of a record, by the distribution asked for.
    pub(super) fn pick(&self) -> usize {
        match &self.zipf {
            None => fastrand::usize(..self.records.len()),
            Some(zipf) => zipf.pick(fastrand::f64()),
        }
    }
}

fn seeded(joined: Option<Result<Result<u64, Error>, tokio::task::JoinError>>) -> Result<(), Fault> {
    match joined {
        None | Some(Ok(Ok(_))) => Ok(()),
        Some(Ok(Err(error))) => Err(Fault::Failed(error.at("storing the records of the bench"))),
        Some(Err(panic)) => Err(Fault::input(format!("storing the records of the bench failed: {panic}"))),
    }
}

/// How many items a reply carries, or its error: a single failed operation fails its batch, a missing record its get.
fn succeeded(reply: Result<Reply, Error>) -> Result<u64, Error> {
    let reply = reply?;
    if let Some(error) = reply.error() {
        return Err(error.clone());
    }
    match reply {
        Reply::Get(get) if get.found => Ok(1),
        Reply::Get(_) => Err(Error::new(Code::NotFound, "a record of the bench is gone")),
        Reply::Write(_) => Ok(1),
        Reply::Scan(scan) => Ok(scan.records.len() as u64),
        Reply::Batch(batch) => {
            for result in &batch.results {
                let (BatchResult::Get(crate::model::reply::GetReply { error, .. })
                | BatchResult::Write(crate::model::reply::WriteReply { error, .. })) = result;
                if let Some(error) = error {
                    return Err(error.clone());
                }
            }
            Ok(batch.results.len() as u64)
        }
    }
}

fn made_up(count: u32, bytes: usize) -> Vec<(String, Value)> {
    let text = |_| char::from(fastrand::alphanumeric() as u8);
    (0..count)
        .map(|at| {
            let data: String = (0..bytes).map(text).collect();
            (format!("bench/{at:08}"), Value::Text(data))
        })
        .collect()
}

fn read(file: &str, count: usize) -> Result<Vec<(String, Value)>, Fault> {
    let told = |error: String| Fault::input(format!("{file}: {error}"));
    let mut lines = Lines::open(file).map_err(|error| told(error.to_string()))?;
    let mut records = Vec::new();
    while records.len() < count {
        match lines.next_entry().map_err(told)? {
            Some(entry) => records.push((entry.key.as_str().to_owned(), entry.value)),
            None => break,
        }
    }
    if records.is_empty() { Err(told("holds no records".to_owned())) } else { Ok(records) }
}

/// Ranks, the first ones more often: rank r as 1/r^s.
struct Zipf {
    /// Of each rank, the share of it and all before it.
    shares: Vec<f64>,
}

impl Zipf {
    fn new(count: usize, exponent: f64) -> Self {
        let mut sum = 0.0;
        let mut shares: Vec<f64> = (1..=count)
            .map(|rank| {
                sum += (rank as f64).powf(-exponent);
                sum
            })
            .collect();
        shares.iter_mut().for_each(|share| *share /= sum);
        Self { shares }
    }

    /// The rank, from 0, at a point of [0, 1).
    fn pick(&self, point: f64) -> usize {
        self.shares.partition_point(|share| *share <= point).min(self.shares.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_come_as_often_as_they_should() {
        let zipf = Zipf::new(4, 1.0);
        // 1 + 1/2 + 1/3 + 1/4 = 25/12
        for (point, rank) in
            [(0.0, 0), (0.479, 0), (0.481, 1), (0.719, 1), (0.721, 2), (0.881, 3), (0.9999, 3), (1.0, 3)]
        {
            assert_eq!(zipf.pick(point), rank, "{point}");
        }
    }
}
