//! Looks after the servers: whether each is there and fit to be a store, what its clock says and whether it keeps what it
//! answers, and where the slots lie. Requests fail fast while it says that a server is not there.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use redis::Value;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::classify::Stage;
use super::scripts::{self, SCRIPTS, SHARD_KEY};
use super::shard::Shard;
use super::{CALL_MAX, Server, Shared, slots};
use crate::backend::remote::{Fault, RETRY_AFTER_MS, Remedy};
use crate::link;
use crate::model::Error;

/// Between two looks at a server that is there.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Between two tries at one that is not; also how long a restart goes unnoticed at most.
const TRY_EVERY: Duration = Duration::from_millis(100);
/// The first version that has what the scripts need.
const VERSION_MIN: u32 = 7;

/// What the keeper remembers of a server from look to look.
#[derive(Default)]
struct Known {
    /// Connections made when the scripts were loaded.
    taught: u64,
    /// It was told of that its log is not synced.
    warned: bool,
}

/// Runs until it is told to stop.
pub(super) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let mut known: Vec<Known> = shared.shards.iter().map(|_| Known::default()).collect();
    loop {
        let looks = shared.shards.iter().zip(&mut known).map(|(Server { shard, .. }, known)| async {
            let fault = match timeout(CALL_MAX, look(shard, known)).await {
                Ok(looked) => looked.err().map(|fault| fault.error.message),
                Err(_) => Some(format!("Redis {:?} does not answer", shard.name)),
            };
            shard.note(fault.clone());
            fault.is_none()
        });
        let there = futures_util::future::join_all(looks).await;
        settle(&shared, &there).await;
        let every = if there.iter().all(|there| *there) { LOOK_EVERY } else { TRY_EVERY };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
    }
}

/// Finds out where the slots lie, unless that is known and still so.
async fn settle(shared: &Shared, there: &[bool]) {
    let lost = shared.shards.iter().zip(there).any(|(server, there)| *there && server.shard.mark().is_none());
    let placed = shared.unplaced.lock().unwrap_or_else(PoisonError::into_inner).is_none();
    if placed && !lost {
        return;
    }
    let found = match timeout(CALL_MAX, slots::place(shared, there)).await {
        Ok(found) => found,
        Err(_) => {
            Err(Error::unavailable("the servers do not say in time which slots they own", RETRY_AFTER_MS))
        }
    };
    let mut unplaced = shared.unplaced.lock().unwrap_or_else(PoisonError::into_inner);
    match found {
        Ok(()) => *unplaced = None,
        Err(error) => {
            if unplaced.as_ref() != Some(&error.message) {
                tracing::warn!("placement: {}", error.message);
            }
            *unplaced = Some(error.message);
        }
    }
}

/// Whether a server answers and may be used as a store; notes what else it says.
async fn look(shard: &Shard, known: &mut Known) -> Result<(), Fault> {
    let link = shard.link();
    let deadline = Instant::now() + CALL_MAX;
    let connections = *link.connections().borrow();
    let ask = async |command: &redis::Cmd| {
        link.call(command, deadline).await.map_err(|fault| shard.judge(Stage::Read, &fault))
    };
    let asked = Instant::now();
    let time = ask(&redis::cmd("TIME")).await?;
    let server_ms = millis(&time).ok_or_else(|| shard.odd("no time"))?;
    shard.clock.sample(asked, server_ms);

    let info = ask(&redis::cmd("INFO")).await?;
    let info = shard.text(&info)?;
    if let Some(why) = unfit(&info) {
        let error = Error::unavailable(format!("Redis {:?} {why}", shard.name), RETRY_AFTER_MS);
        return Err(Fault { error, remedy: Remedy::None });
    }
    // What may not be asked counts as not promised.
    let setting =
        async |name: &str| ask(redis::cmd("CONFIG").arg("GET").arg(name)).await.ok().and_then(second);
    let synced = setting("appendfsync").await;
    let synced_on_rewrite = setting("no-appendfsync-on-rewrite").await.as_deref() == Some("no");
    let durable = log_is_whole(&info) && synced.as_deref() == Some("always") && synced_on_rewrite;
    shard.durable.store(durable, Ordering::Relaxed);
    let never_synced = field(&info, "aof_enabled") == Some("1") && synced.as_deref() == Some("no");
    if never_synced && !known.warned {
        tracing::warn!(
            shard = shard.name,
            "appendfsync is no: what Redis acknowledged may be lost when its machine goes"
        );
    }
    known.warned = never_synced;

    if known.taught != connections {
        for script in SCRIPTS.all() {
            ask(&scripts::load(script)).await?;
        }
        known.taught = connections;
    }
    // A restart cuts all connections, and each may learn of it late: until then what is sent over it is lost. One that is not
    // there at all is passed by.
    let pings = shard.links().iter().map(|link| async {
        match link.call(&redis::cmd("PING"), deadline).await {
            Err(fault @ link::redis::Fault::Silent(_)) => Err(shard.judge(Stage::Read, &fault)),
            _ => Ok(()),
        }
    });
    futures_util::future::try_join_all(pings).await?;
    // One that has lost what it was, or was changed for another, is not asked before it is placed again.
    let mark = ask(redis::cmd("HGET").arg(SHARD_KEY).arg("mark")).await?;
    let mark = match &mark {
        Value::Nil => "".into(),
        mark => shard.text(mark)?,
    };
    if shard.mark().is_some_and(|known| known != mark) {
        tracing::error!(shard = shard.name, "Redis has lost the slots it owned, and with them its records");
        shard.set_mark(None);
    }
    Ok(())
}

/// Whether the append-only file holds all that the server does. One that was switched on does not before it is written anew, and
/// syncs nothing until then; nothing tells that rewrite from a later one, so during those nothing is promised either.
fn log_is_whole(info: &str) -> bool {
    let says = |name, value| field(info, name) == Some(value);
    says("aof_enabled", "1")
        && says("aof_rewrite_in_progress", "0")
        && says("aof_rewrite_scheduled", "0")
        && says("aof_last_bgrewrite_status", "ok")
}

/// Why a server must not be used as a store, by what it tells of itself.
fn unfit(info: &str) -> Option<String> {
    let major =
        field(info, "redis_version").and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    if major.is_some_and(|major| major < VERSION_MIN) {
        let version = field(info, "redis_version").unwrap_or_default();
        return Some(format!("is version {version}; {VERSION_MIN}.0 or later is needed"));
    }
    match field(info, "redis_mode") {
        None | Some("standalone") => {}
        Some("cluster") => {
            return Some("is part of a Redis Cluster; a shard is one server by itself".to_owned());
        }
        Some(mode) => return Some(format!("is no store but runs in mode {mode}")),
    }
    if field(info, "loading") == Some("1") {
        return Some("loads its data".to_owned());
    }
    if field(info, "role") == Some("slave") {
        return Some("is read-only, as a replica is: is this the primary?".to_owned());
    }
    match field(info, "maxmemory_policy") {
        None | Some("noeviction") => None,
        Some(policy) => Some(format!(
            "has maxmemory-policy {policy} and would throw away records that were acknowledged; set it to noeviction"
        )),
    }
}

/// A field of `INFO`.
pub(super) fn field<'i>(info: &'i str, name: &str) -> Option<&'i str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim_end)
}

/// The answer to `TIME` in milliseconds.
pub(super) fn millis(time: &Value) -> Option<i64> {
    let Value::Array(parts) = time else { return None };
    let part = |at: usize| match parts.get(at)? {
        Value::BulkString(text) => std::str::from_utf8(text).ok()?.parse::<i64>().ok(),
        _ => None,
    };
    Some(part(0)? * 1000 + part(1)? / 1000)
}

/// The value in the answer to a `CONFIG GET` of one name.
fn second(answer: Value) -> Option<String> {
    let text = |value: &Value| match value {
        Value::BulkString(text) => Some(String::from_utf8_lossy(text).into_owned()),
        _ => None,
    };
    match answer {
        Value::Array(parts) => text(parts.get(1)?),
        Value::Map(pairs) => text(&pairs.first()?.1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_store_is_told_by_what_it_says_of_itself() {
        let good = "# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\nloading:0\r\nrole:master\r\n\
                    maxmemory_policy:noeviction\r\n";
        assert_eq!(unfit(good), None);
        for (from, to, words) in [
            ("7.0.15", "6.2.7", "7.0 or later"),
            ("standalone", "cluster", "Redis Cluster"),
            ("standalone", "sentinel", "mode sentinel"),
            ("loading:0", "loading:1", "loads its data"),
            ("role:master", "role:slave", "is this the primary?"),
            ("noeviction", "allkeys-lru", "maxmemory-policy allkeys-lru"),
        ] {
            let why = unfit(&good.replace(from, to)).unwrap();
            assert!(why.contains(words), "{why}");
        }
    }
}
