//! `{prefix}.ctl.warm`: every worker fills its tiers with the records of a namespace, and tells how far it is.
//!
//! The request is `{"namespace", "prefix"}`; each worker answers it with several messages on the reply subject:
//! `{"worker", "read", "kept", "done"}`, and `error` where it gave up. It goes page by page, as any reader would, so that it
//! keeps nothing that a reader might not have kept; one job at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::{Message, Subject};
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::{Value as Json, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::codec::Encoding;
use crate::model::clock::wall_ms;
use crate::model::{Error, Namespace, Result};
use crate::store::Call;

use super::{Shared, bounded, discovery};

/// The operator command.
pub(super) const COMMAND: &str = "warm";
/// Bound on one page.
const PAGE_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    namespace: String,
    #[serde(default)]
    prefix: String,
}

/// Answers until stopped.
pub(super) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let busy = Arc::new(AtomicBool::new(false));
    let asked = async {
        let subject = format!("{}.ctl.{COMMAND}", shared.prefix());
        let mut requests = discovery::subscribe(&shared.client, subject, None).await;
        shared.listens();
        while let Some(message) = requests.next().await {
            let Some(to) = message.reply.clone() else { continue };
            if busy.swap(true, Ordering::AcqRel) {
                let error = Error::overloaded("this worker is warming its cache already", 1000);
                tell(&shared, &to, 0, 0, true, Some(&error)).await;
                continue;
            }
            let (shared, busy, stop) = (shared.clone(), busy.clone(), stop.clone());
            tokio::spawn(async move {
                let _free = Free(busy);
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = job(&shared, &message, &to) => {}
                }
            });
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = asked => {}
    }
}

/// Lets the next job begin, however this one ended.
struct Free(Arc<AtomicBool>);

impl Drop for Free {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

async fn job(shared: &Shared, message: &Message, to: &Subject) {
    let (mut read, mut kept) = (0, 0);
    let mut cursor = String::new();
    let asked = match parse(shared, message) {
        Ok(asked) => asked,
        Err(error) => return tell(shared, to, 0, 0, true, Some(&error)).await,
    };
    tracing::info!(namespace = asked.0.as_str(), prefix = asked.1, "warming the cache");
    tell(shared, to, 0, 0, false, None).await;
    loop {
        let warmed = match call(shared, &asked.0) {
            Ok(call) => shared.store.warm(&call, &asked.1, cursor).await,
            Err(error) => Err(error),
        };
        match warmed {
            Ok(warmed) => {
                read += warmed.read;
                kept += warmed.kept;
                cursor = warmed.cursor;
            }
            Err(error) => return tell(shared, to, read, kept, true, Some(&error)).await,
        }
        let done = cursor.is_empty();
        tell(shared, to, read, kept, done, None).await;
        if done {
            tracing::info!(namespace = asked.0.as_str(), read, kept, "the cache is warm");
            return;
        }
    }
}

fn parse(shared: &Shared, message: &Message) -> Result<(Namespace, String)> {
    let asked: Asked = super::operate::read(&message.payload)?;
    let namespace = Namespace::parse(&asked.namespace)?;
    shared.store.policy(&namespace)?;
    Ok((namespace, asked.prefix))
}

fn call(shared: &Shared, namespace: &Namespace) -> Result<Call> {
    Ok(Call {
        namespace: namespace.clone(),
        policy: shared.store.policy(namespace)?,
        deadline: Instant::now() + PAGE_TIMEOUT,
        timeout_ms: i64::try_from(PAGE_TIMEOUT.as_millis()).expect("seconds"),
        now_ms: wall_ms(),
        encoding: Encoding::Protobuf,
        reply_bytes_max: shared.reply_bytes_max(),
    })
}

async fn tell(shared: &Shared, to: &Subject, read: u64, kept: u64, done: bool, error: Option<&Error>) {
    let mut reply = json!({"worker": shared.id, "read": read, "kept": kept, "done": done});
    if let Some(error) = error {
        reply["error"] = json!({"code": error.code.word(), "message": error.message});
    }
    let body = Json::to_string(&reply);
    if let Err(error) = bounded("reply", shared.client.publish(to.clone(), body.into())).await {
        tracing::debug!(%error, "the progress of warming could not be told");
    }
}
