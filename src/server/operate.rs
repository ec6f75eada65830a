//! Operators' commands on the write-behind queue, and receipts: `{prefix}.ctl.queue_*` and `{prefix}.ctl.receipt`.
//!
//! A command is one JSON request and one JSON reply, answered by any one worker. Whatever may take long is done in steps, each a
//! request of its own that does a bounded part and says what it did; any step may be the last. Every command that changes
//! something is logged.
//!
//! ```text
//! queue_status  {}                                        {lanes: [{name, depth, bytes, oldest_age_ms, rate, drain_ms}], dead_letters}
//! queue_list    {limit, values}                           {letters: [...]}: from the front of the queue; they move to its end
//! queue_show    {id, looked_at}                           {letter, looked_at}: the letter with its value and what a replay would come to
//! queue_replay  {limit, force, namespace, prefix, id, reason}   {looked_at, applied, superseded, skipped, failed: [{id, reason}]}
//! queue_purge   {ids}                                     {looked_at, removed}
//! receipt       {namespace, key, version}                 {state, version, reason}
//! ```

use std::collections::HashSet;
use std::sync::Arc;

use async_nats::{Message, Subject};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};

use crate::codec::{json as wire, stored};
use crate::model::{Error, Key, Namespace, Record, Result, Version};
use crate::queue::{Act, DeadLetter, Fate, Foreseen, Queue};

use super::{Shared, bounded};

/// The commands.
pub(super) const COMMANDS: [&str; 6] =
    ["queue_status", "queue_list", "queue_show", "queue_replay", "queue_purge", "receipt"];
/// Letters that one reply lists at most.
const LISTED_MAX: usize = 100;
/// Bytes of values in one reply, beyond which it ends.
const VALUES_BYTES_MAX: usize = 256 * 1024;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    limit: usize,
    #[serde(default)]
    values: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Show {
    id: String,
    limit: usize,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Replay {
    limit: usize,
    force: bool,
    namespace: String,
    prefix: String,
    id: String,
    reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Purge {
    ids: HashSet<String>,
    limit: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Receipt {
    namespace: String,
    key: String,
    version: String,
}

/// Answers a command, on a task of its own.
pub(super) fn answer(shared: &Arc<Shared>, command: &str, message: Message, to: Subject) {
    let (shared, command) = (shared.clone(), command.to_owned());
    shared.clone().handlers.spawn(async move {
        let body = match run(&shared, &command, &message.payload).await {
            Ok(body) => body,
            Err(error) => json!({"error": {
                "code": error.code.word(), "message": error.message, "retry": error.retry().word(),
                "retry_after_ms": error.retry_after_ms,
            }}),
        };
        if let Err(error) = bounded("reply", shared.client.publish(to, body.to_string().into())).await {
            tracing::debug!(%error, "an operator reply could not be sent");
        }
    });
}

async fn run(shared: &Shared, command: &str, payload: &[u8]) -> Result<Json> {
    let queue = shared.store.queue().ok_or_else(|| {
        Error::unsupported("this worker has no write-behind queue: [queue] and cache.redis_url name none")
    })?;
    match command {
        "queue_status" => {
            read::<Nothing>(payload)?;
            status(queue).await
        }
        "queue_list" => list(queue, &read(payload)?).await,
        "queue_show" => show(shared, queue, &read(payload)?).await,
        "queue_replay" => replay(shared, queue, &read(payload)?).await,
        "queue_purge" => purge(queue, &read(payload)?).await,
        _ => receipt(queue, &read(payload)?).await,
    }
}

fn read<T: DeserializeOwned>(payload: &[u8]) -> Result<T> {
    let payload = if payload.is_empty() { b"{}" } else { payload };
    serde_json::from_slice(payload).map_err(|error| Error::invalid(format!("bad request: {error}")))
}

async fn status(queue: &Queue) -> Result<Json> {
    let (lanes, dead_letters) = queue.status().await?;
    let lane = |lane: &crate::queue::LaneStatus| {
        json!({
            "name": lane.name, "depth": lane.depth, "bytes": lane.bytes, "oldest_age_ms": lane.oldest_age_ms,
            "rate": (lane.rate * 10.0).round() / 10.0, "drain_ms": lane.drain_ms,
        })
    };
    Ok(json!({"lanes": lanes.iter().map(lane).collect::<Vec<_>>(), "dead_letters": dead_letters}))
}

async fn list(queue: &Queue, asked: &List) -> Result<Json> {
    let mut bytes = 0;
    let letters = queue
        .walk(asked.limit.min(LISTED_MAX), |letter| {
            bytes += letter.bytes;
            if asked.values && bytes > VALUES_BYTES_MAX { Act::KeepAndEnd } else { Act::Keep }
        })
        .await?;
    let letters: Vec<Json> = letters.iter().map(|letter| told(letter, asked.values)).collect();
    Ok(json!({"letters": letters}))
}

async fn show(shared: &Shared, queue: &Queue, asked: &Show) -> Result<Json> {
    let mut found = None;
    let looked_at = queue
        .walk(asked.limit, |letter| {
            if letter.id != asked.id {
                return Act::Keep;
            }
            found = Some(letter.clone());
            Act::KeepAndEnd
        })
        .await?
        .len();
    let Some(letter) = found else { return Ok(json!({"looked_at": looked_at})) };
    let foreseen = queue.foresee(&*shared.store, &letter).await;
    let mut body = told(&letter, true);
    body["predicted"] = foreseen.word().into();
    if let Foreseen::Failing(why) = foreseen {
        body["predicted_reason"] = why.into();
    }
    Ok(json!({"letter": body, "looked_at": looked_at}))
}

async fn replay(shared: &Shared, queue: &Queue, asked: &Replay) -> Result<Json> {
    let wanted = |letter: &DeadLetter| {
        let at = letter.write.as_ref().map(|write| &write.entry.at);
        let in_namespace = at.is_some_and(|at| at.namespace.as_str() == asked.namespace);
        let has_prefix = at.is_some_and(|at| at.key.as_str().starts_with(&asked.prefix));
        (asked.namespace.is_empty() || in_namespace)
            && (asked.prefix.is_empty() || has_prefix)
            && (asked.id.is_empty() || letter.id == asked.id)
            && letter.notes.reason.contains(&asked.reason)
    };
    let done = queue.replay(&*shared.store, asked.limit, asked.force, wanted).await?;
    tracing::info!(
        applied = done.applied,
        superseded = done.superseded,
        failed = done.failed.len(),
        skipped = done.skipped,
        force = asked.force,
        "an operator replays dead letters"
    );
    let failed: Vec<Json> =
        done.failed.iter().map(|(id, reason)| json!({"id": id, "reason": reason})).collect();
    Ok(json!({
        "looked_at": done.looked_at, "applied": done.applied, "superseded": done.superseded,
        "skipped": done.skipped, "failed": failed,
    }))
}

async fn purge(queue: &Queue, asked: &Purge) -> Result<Json> {
    let mut removed = 0;
    let looked_at = queue
        .walk(asked.limit, |letter| {
            if !asked.ids.contains(&letter.id) {
                return Act::Keep;
            }
            removed += 1;
            Act::Remove
        })
        .await?
        .len();
    tracing::warn!(removed, "an operator purges dead letters");
    Ok(json!({"looked_at": looked_at, "removed": removed}))
}

async fn receipt(queue: &Queue, asked: &Receipt) -> Result<Json> {
    let (namespace, key) = (Namespace::parse(&asked.namespace)?, Key::parse(&asked.key)?);
    let version: Version = asked.version.parse()?;
    let fate = queue.overlay().fate(&namespace, &key, version).await;
    let fate = fate.map_err(|away| Error::unavailable(format!("Redis: {}", away.0), 500))?;
    let reason = match &fate {
        Fate::Dead(reason) => reason.as_str(),
        _ => "",
    };
    Ok(json!({"state": fate.word(), "version": version.to_string(), "reason": reason}))
}

/// A letter as operators see it.
fn told(letter: &DeadLetter, with_value: bool) -> Json {
    let notes = &letter.notes;
    let mut body = json!({
        "id": letter.id, "reason": notes.reason, "lane": notes.lane, "dead_at_ms": notes.dead_at_ms, "bytes": letter.bytes,
    });
    let Some(write) = &letter.write else {
        body["unreadable"] = true.into();
        if with_value {
            body["body"] = letter.body.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into();
        }
        return body;
    };
    let row = &write.entry.row;
    body["namespace"] = write.entry.at.namespace.as_str().into();
    body["key"] = write.entry.at.key.as_str().into();
    body["kind"] = if row.body.is_some() { "put" } else { "delete" }.into();
    body["version"] = row.version.to_string().into();
    body["taken_at_ms"] = write.taken_at_ms.into();
    if let (true, Some(document)) = (with_value, &row.body) {
        let read = stored::open(document).and_then(|stored| stored.document());
        match read {
            Ok(document) => {
                let record =
                    Record::new(write.entry.at.key.clone(), row.version, row.expires_at_ms, document);
                let text = wire::encode_record(&record, true);
                body["record"] = serde_json::from_slice(&text).unwrap_or(Json::Null);
            }
            Err(fault) => body["damaged"] = fault.to_string().into(),
        }
    }
    body
}
