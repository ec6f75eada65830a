//! Operators' commands on the write-behind queue, and receipts: `{prefix}.ctl.queue_*` and `{prefix}.ctl.receipt`.
//!
//! A command is one JSON request and one JSON reply, answered by any one worker. Whatever may take long is done in steps, each a
//! request of its own that does a bounded part and says what it did; any step may be the last. Every command that changes
//! something is logged.
//!
//! ```text
//! queue_status  {}                            {lanes: [{name, depth, ready, in_hand, bytes, oldest_age_ms, rate, drain_ms}],
//!                                             dead_letters}; what nobody knows is null
//! queue_list    {limit, values, stay}         {letters: [...]}: from the front of the queue; they move to its end, or stay
//! queue_show    {id, limit}                   {letter, looked_at}: with its value and what a replay would come to
//! queue_replay  {limit, force, namespace, prefix, id, reason}
//!                                             {looked_at, applied, superseded, skipped, failed: [{id, reason}], ended_early}
//! queue_purge   {ids, limit}                  {looked_at, removed, ended_early}
//! queue_switch  {namespace, durability}       {state, left_ms, keys, queued}: closing, draining, opening or done
//! receipt       {namespace, key, version}     {state, version, reason}
//! ```
//!
//! A reply is bounded by what NATS takes in one message. A list ends where the next letter does not fit; of a letter that would
//! not fit alone the value is left out, and `left_out: "too_large"` says so. `ended_early` says why a step that had begun was cut off.

use std::collections::HashSet;
use std::sync::Arc;

use async_nats::{HeaderMap, Message, Subject};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};

use crate::codec::{json as wire, stored};
use crate::model::key::shorten;
use crate::model::{Error, Key, Namespace, Record, Result, Version};
use crate::queue::{Act, DeadLetter, Fate, Foreseen, Queue, STEP_MAX};
use crate::store::Switched;
use crate::store::policy::Durability;

use super::{Shared, bounded};

/// The commands.
pub(super) const COMMANDS: [&str; 7] =
    ["queue_status", "queue_list", "queue_show", "queue_replay", "queue_purge", "queue_switch", "receipt"];
/// Letters that one reply lists at most.
const LISTED_MAX: usize = 100;
/// What a reply has around its letters: names, brackets, numbers.
const FRAME_BYTES: usize = 128;
/// Bytes of the reasons of one replay; of what fails beyond that the reply names the ids, and the letters tell why.
const REASONS_BYTES_MAX: usize = 64 * 1024;

const _: () = assert!(LISTED_MAX <= STEP_MAX, "a list is one step");

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    limit: usize,
    #[serde(default)]
    values: bool,
    /// They stay at the front: whoever removes them next finds them there.
    #[serde(default)]
    stay: bool,
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
struct Switch {
    namespace: String,
    durability: String,
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
        let (done, room) = (run(&shared, &command, &message.payload).await, shared.reply_bytes_max());
        let done = done.map(|body| body.to_string()).and_then(|body| match body.len() {
            bytes if bytes > room => {
                Err(Error::too_large(format!("{command}: a reply of {bytes} bytes, the limit is {room}")))
            }
            _ => Ok(body),
        });
        let mut headers = HeaderMap::new();
        let body = done.unwrap_or_else(|error| {
            super::reply::note_error(Some(&error), &mut headers);
            told_error(&error).to_string()
        });
        let sending = shared.client.publish_with_headers(to, headers, body.into());
        if let Err(error) = bounded("reply", sending).await {
            tracing::warn!(%error, command, "an operator reply could not be sent");
        }
    });
}

/// An error as every reply has it.
fn told_error(error: &Error) -> Json {
    json!({"error": {
        "code": error.code.word(), "message": error.message, "retry": error.retry().word(),
        "retry_after_ms": error.retry_after_ms,
        "version": error.version.map(|version| version.to_string()).unwrap_or_default(), "details": error.details,
    }})
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
        "queue_list" => list(shared, queue, &read(payload)?).await,
        "queue_show" => show(shared, queue, &read(payload)?).await,
        "queue_replay" => replay(shared, queue, &read(payload)?).await,
        "queue_purge" => purge(queue, &read(payload)?).await,
        "queue_switch" => switch(shared, &read(payload)?).await,
        _ => receipt(queue, &read(payload)?).await,
    }
}

/// The request of an operator's command.
pub(super) fn read<T: DeserializeOwned>(payload: &[u8]) -> Result<T> {
    let payload = if payload.is_empty() { b"{}" } else { payload };
    let bad = |error: serde_json::Error| Error::invalid(format!("bad request: {error}"));
    if payload[0] != b'{' {
        return Err(Error::invalid("bad request: it is no JSON object"));
    }
    // Refuses what any other request must not hold: a field twice, say.
    wire::parse_value(payload)?;
    let mut asked: serde_json::Map<String, Json> = serde_json::from_slice(payload).map_err(bad)?;
    // As everywhere: null is absent.
    asked.retain(|_, value| !value.is_null());
    T::deserialize(Json::Object(asked)).map_err(bad)
}

async fn status(queue: &Queue) -> Result<Json> {
    let (lanes, dead_letters) = queue.status().await?;
    let lane = |lane: &crate::queue::LaneStatus| {
        json!({
            "name": lane.name, "depth": lane.depth, "ready": lane.ready, "in_hand": lane.in_hand, "bytes": lane.bytes,
            "oldest_age_ms": lane.oldest_age_ms, "rate": lane.rate.map(|rate| (rate * 10.0).round() / 10.0),
            "drain_ms": lane.drain_ms,
        })
    };
    Ok(json!({"lanes": lanes.iter().map(lane).collect::<Vec<_>>(), "dead_letters": dead_letters}))
}

async fn list(shared: &Shared, queue: &Queue, asked: &List) -> Result<Json> {
    let room = shared.reply_bytes_max().saturating_sub(FRAME_BYTES);
    let (mut letters, mut bytes) = (Vec::new(), 0);
    let act = |letter: &DeadLetter| {
        let (told, size) = listed(letter, asked.values, room);
        if bytes + size > room {
            return Act::End;
        }
        bytes += size;
        letters.push(told);
        if asked.stay { Act::Stay } else { Act::Keep }
    };
    queue.walk(asked.limit.min(LISTED_MAX), act).await?;
    Ok(json!({"letters": letters}))
}

/// A letter for a list and its bytes there: whole where a reply has room for it, or without its value, or but for its name.
fn listed(letter: &DeadLetter, with_value: bool, room: usize) -> (Json, usize) {
    let sized = |told: Json| {
        let bytes = told.to_string().len() + 1;
        (told, bytes)
    };
    let whole = sized(told(letter, with_value));
    if whole.1 <= room {
        return whole;
    }
    let left_out = |mut told: Json| {
        told["left_out"] = "too_large".into();
        sized(told)
    };
    let without = left_out(told(letter, false));
    if without.1 <= room { without } else { left_out(json!({"id": letter.id, "bytes": letter.bytes})) }
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
        .looked_at;
    let Some(letter) = found else { return Ok(json!({"looked_at": looked_at})) };
    let foreseen = queue.foresee(&*shared.store, &letter).await;
    let mut body = told(&letter, true);
    body["predicted"] = foreseen.word().into();
    if let Foreseen::Failing(why) = foreseen {
        body["predicted_reason"] = why.into();
    }
    let (bytes, room) = (body.to_string().len() + FRAME_BYTES, shared.reply_bytes_max());
    if bytes > room {
        let id = &letter.id;
        return Err(Error::too_large(format!(
            "dead letter {id} takes {bytes} bytes of JSON with its value, a reply has room for {room}"
        )));
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
        namespace = asked.namespace,
        prefix = shorten(&asked.prefix),
        id = shorten(&asked.id),
        reason = shorten(&asked.reason),
        ended_early = done.ended_early,
        "an operator replays dead letters"
    );
    let mut reasons = REASONS_BYTES_MAX;
    let told_of = |(id, reason): &(String, String)| match reasons.checked_sub(reason.len()) {
        Some(left) => {
            reasons = left;
            json!({"id": id, "reason": reason})
        }
        None => json!({"id": id, "reason": ""}),
    };
    let failed: Vec<Json> = done.failed.iter().map(told_of).collect();
    Ok(json!({
        "looked_at": done.looked_at, "applied": done.applied, "superseded": done.superseded,
        "skipped": done.skipped, "failed": failed, "ended_early": done.ended_early,
    }))
}

async fn purge(queue: &Queue, asked: &Purge) -> Result<Json> {
    let done = queue.purge(asked.limit, &asked.ids).await?;
    tracing::warn!(
        removed = done.removed,
        asked = asked.ids.len(),
        looked_at = done.looked_at,
        ended_early = done.ended_early,
        "an operator purges dead letters"
    );
    Ok(json!({"looked_at": done.looked_at, "removed": done.removed, "ended_early": done.ended_early}))
}

async fn switch(shared: &Shared, asked: &Switch) -> Result<Json> {
    let namespace = Namespace::parse(&asked.namespace)?;
    let durability = Durability::of(&asked.durability)?;
    // What a step changes is logged where it does.
    let step = shared.store.switch(&namespace, durability).await?;
    Ok(match step {
        Switched::Closing { left_ms } => json!({"state": "closing", "left_ms": left_ms}),
        Switched::Draining { keys, queued } => json!({"state": "draining", "keys": keys, "queued": queued}),
        Switched::Opening { left_ms } => json!({"state": "opening", "left_ms": left_ms}),
        Switched::Done => json!({"state": "done"}),
    })
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
            body["body"] = hex(&letter.body).into();
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
            Err(fault) => {
                body["damaged"] = fault.to_string().into();
                body["body"] = hex(document).into();
            }
        }
    }
    body
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
