//! JetStream KV, by the very requests that a KV client sends: a stream of files with the settings of a bucket, a message to put,
//! a direct get to get, over the connection and inbox that our own requests use.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{HeaderMap, Message, StatusCode};
use bytes::Bytes;
use serde_json::{Value as Json, json};
use tokio::task::JoinSet;

use super::unknown;
use crate::cli::bench::mix::Step;
use crate::cli::bench::records::Records;
use crate::cli::output::Fault;
use crate::client::Client;
use crate::model::Code;

const BUCKET: &str = "datastore_bench_peer";
/// Puts that fill the bucket at a time.
const FILL_IN_FLIGHT: usize = 64;

/// A bucket that holds the records. Its keys are their places, because a bucket does not take every key.
pub(in crate::cli::bench) struct Kv {
    bucket: Bucket,
    documents: Vec<Bytes>,
}

#[derive(Clone)]
struct Bucket {
    client: Client,
    timeout: Duration,
}

impl Kv {
    /// Makes the bucket and fills it: a put costs the same there whether the key stands or not, a get needs it.
    pub(super) async fn start(
        client: &Client,
        records: Arc<Records>,
        timeout: Duration,
    ) -> Result<Self, Fault> {
        let documents = records.documents().into_iter().map(Bytes::from).collect();
        let kv = Self { bucket: Bucket { client: client.clone(), timeout }, documents };
        let settings = json!({
            "name": format!("KV_{BUCKET}"), "subjects": [format!("$KV.{BUCKET}.>")], "retention": "limits",
            "max_consumers": -1, "max_msgs": -1, "max_bytes": -1, "max_age": 0, "max_msgs_per_subject": 1,
            "max_msg_size": -1, "storage": "file", "discard": "new", "num_replicas": 1,
            "duplicate_window": 120_000_000_000_u64, "allow_rollup_hdrs": true, "deny_delete": true, "allow_direct": true,
        });
        // What a bench left that was stopped in its middle.
        drop(kv.bucket.api("DELETE", &json!({})).await);
        kv.bucket.api("CREATE", &settings).await.map_err(told)?;
        let mut in_flight = JoinSet::new();
        for at in 0..kv.documents.len() {
            if in_flight.len() >= FILL_IN_FLIGHT {
                filled(in_flight.join_next().await)?;
            }
            let (bucket, document) = (kv.bucket.clone(), kv.documents[at].clone());
            in_flight.spawn(async move { bucket.put(at, document).await });
        }
        while !in_flight.is_empty() {
            filled(in_flight.join_next().await)?;
        }
        Ok(kv)
    }

    pub(super) async fn send(&self, step: Step) -> Result<u64, String> {
        match step {
            Step::Read(at) => self.bucket.get(at).await,
            Step::Update(at) | Step::Insert(at) => {
                let document = &self.documents[at % self.documents.len()];
                self.bucket.put(at, document.clone()).await
            }
            Step::Scan { .. } | Step::ReadModifyWrite(_) => Err(unknown(step)),
        }
    }

    /// Takes the bucket away.
    pub(super) async fn end(&self) -> Result<(), Fault> {
        self.bucket.api("DELETE", &json!({})).await.map_err(told)
    }
}

impl Bucket {
    async fn api(&self, verb: &str, request: &Json) -> Result<(), String> {
        let subject = format!("$JS.API.STREAM.{verb}.KV_{BUCKET}");
        let reply = self.exchange(subject, request.to_string().into()).await?;
        said_well(&reply.payload)
    }

    async fn get(&self, at: usize) -> Result<u64, String> {
        let subject = format!("$JS.API.DIRECT.GET.KV_{BUCKET}.$KV.{BUCKET}.{at}");
        let reply = self.exchange(subject, Bytes::new()).await?;
        match reply.status {
            None => Ok(1),
            Some(StatusCode::NOT_FOUND) => Err(Code::NotFound.word().to_owned()),
            Some(status) => Err(format!("status {status}")),
        }
    }

    async fn put(&self, at: usize, document: Bytes) -> Result<u64, String> {
        let reply = self.exchange(format!("$KV.{BUCKET}.{at}"), document).await?;
        said_well(&reply.payload).map(|()| 1)
    }

    async fn exchange(&self, subject: String, payload: Bytes) -> Result<Message, String> {
        let reply = self.client.exchange(subject, HeaderMap::new(), payload, self.timeout).await;
        reply.map_err(|unanswered| {
            let error = unanswered.into_error("a request to JetStream");
            match error.code {
                Code::Unavailable => format!("{} (is JetStream enabled?)", error.message),
                code => code.word().to_owned(),
            }
        })
    }
}

/// JetStream answers JSON, with an `error` where it did not.
fn said_well(payload: &[u8]) -> Result<(), String> {
    let reply: Json = serde_json::from_slice(payload).map_err(|error| format!("not understood: {error}"))?;
    match &reply["error"] {
        Json::Null => Ok(()),
        error => Err(error["description"].as_str().unwrap_or("an error without a word").to_owned()),
    }
}

fn filled(joined: Option<Result<Result<u64, String>, tokio::task::JoinError>>) -> Result<(), Fault> {
    match joined {
        None | Some(Ok(Ok(_))) => Ok(()),
        Some(Ok(Err(error))) => Err(told(error)),
        Some(Err(panic)) => Err(told(panic.to_string())),
    }
}

fn told(error: String) -> Fault {
    Fault::input(format!("the peer JetStream KV: {error}"))
}
