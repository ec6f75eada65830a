//! Looks after the nodes: whether the bucket type can hold records, and which nodes answer.
//!
//! A look is a get of a fixed key and no ping, because a node that starts answers pings long before it has a store. Until the
//! bucket type has been found fit nothing is served: a type that lets the last writer win would lose writes without a sign.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::classify::{Fault, Remedy};
use super::node::{Line, Node};
use super::place::{OWN_BUCKET, Place};
use super::scan::{KEY_INDEX, Query};
use super::settings::{OfType, Quorum};
use super::siblings::Present;
use super::wire::{BucketProps, GetBucketTypeReq, GetReq, GetServerInfoReq};
use crate::model::clock::wall_ms;
use crate::model::{Code, Error, Result};

/// Between two looks at a node that answers, and the first pause at one that does not.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Between two looks at a node that does not answer, at most: each failed one doubles it.
const LOOK_PAUSE_MAX: Duration = Duration::from_secs(5);
/// One look takes no longer.
const LOOK_MAX: Duration = Duration::from_secs(2);
/// Between two looks at the bucket type, once it is fit; until then each round.
const FIT_EVERY: Duration = Duration::from_secs(30);
/// Between two rounds until it is fit.
const UNFIT_PAUSE: Duration = Duration::from_millis(100);

/// Runs until it is told to stop.
pub(super) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let work = async {
        let looks = shared.pool.nodes.iter().map(|node| look_after(&shared, node));
        futures_util::future::join(judge(&shared), join_all(looks)).await;
    };
    tokio::select! {
        () = stop.cancelled() => {}
        _ = work => {}
    }
}

/// Judges the bucket type, again and again: it may be changed.
async fn judge(shared: &Arc<Shared>) {
    loop {
        let was_fit = shared.fit().is_ok();
        let pause = note(shared, fitness(shared).await);
        if !was_fit && shared.fit().is_ok() {
            introduce(shared).await;
        }
        tokio::time::sleep(pause).await;
    }
}

/// Tells the log which Riak it is.
async fn introduce(shared: &Shared) {
    let deadline = Instant::now() + LOOK_MAX;
    if let Ok(info) = shared.pool.ask(GetServerInfoReq {}, deadline).await {
        let version =
            String::from_utf8_lossy(info.server_version.as_deref().unwrap_or(b"unknown")).into_owned();
        tracing::info!(version, bucket_type = shared.settings.bucket_type, "Riak: the bucket type is fit");
    }
}

/// Notes what was found; gives the pause until the next look.
fn note(shared: &Shared, found: Result<(), Unfit>) -> Duration {
    let mut unfit = shared.unfit.lock().unwrap_or_else(PoisonError::into_inner);
    match found {
        Ok(()) => {
            *unfit = None;
            FIT_EVERY
        }
        // A cluster that does not answer says nothing about a type that was fit.
        Err(Unfit::Unknown(_)) if unfit.is_none() => FIT_EVERY,
        Err(Unfit::Unknown(why) | Unfit::Wrong(why)) => {
            if unfit.as_ref() != Some(&why) {
                tracing::warn!("{why}");
            }
            *unfit = Some(why);
            UNFIT_PAUSE
        }
    }
}

/// Why a bucket type is not used.
enum Unfit {
    /// It was not to be seen.
    Unknown(String),
    /// It cannot hold records.
    Wrong(String),
}

/// Looks at the properties of the type, and makes an index query and a read as requests do. Of these only what is wrong for
/// good counts: that too few replicas are up just now is nothing that the type could help.
async fn fitness(shared: &Arc<Shared>) -> Result<(), Unfit> {
    let deadline = Instant::now() + LOOK_MAX;
    let bucket_type = &shared.settings.bucket_type;
    let judged = |fault: Fault| match fault.remedy {
        Remedy::None if !fault.blames_node && fault.error.code == Code::Unavailable => {
            Unfit::Wrong(format!("bucket type {bucket_type:?}: {}", fault.error.message))
        }
        _ => Unfit::Unknown(fault.error.message),
    };
    let request = GetBucketTypeReq { r#type: Bytes::copy_from_slice(bucket_type.as_bytes()) };
    let props = shared.pool.ask(request, deadline).await.map_err(judged)?.props;
    if let Some(why) = misfit(&props) {
        return Err(Unfit::Wrong(format!("Riak bucket type {bucket_type:?} {why}")));
    }
    *shared.of_type.lock().unwrap_or_else(PoisonError::into_inner) = of_type(&props);
    let query = Query { index: KEY_INDEX, low: Bytes::from_static(b"a"), high: Bytes::from_static(b"b") };
    let bucket = Bytes::from_static(OWN_BUCKET.as_bytes());
    let indexed = shared.index(&bucket, &query, 1, None, deadline).await.map(drop);
    let read = shared.read_floor(deadline).await.map(drop);
    for fault in [indexed, read].into_iter().filter_map(Result::err) {
        if let wrong @ Unfit::Wrong(_) = judged(fault) {
            return Err(wrong);
        }
    }
    Ok(())
}

/// What the properties say of replicas.
fn of_type(props: &BucketProps) -> OfType {
    let known = OfType::default();
    OfType {
        n_val: props.n_val.unwrap_or(known.n_val),
        pr: props.pr.map_or(known.pr, Quorum),
        pw: props.pw.map_or(known.pw, Quorum),
    }
}

/// What is wrong with a bucket type's properties, and what they should be.
fn misfit(props: &BucketProps) -> Option<String> {
    let create =
        "create one with '{\"props\":{\"allow_mult\":true,\"last_write_wins\":false,\"dvv_enabled\":true}}'";
    let why = if props.consistent() {
        "is of the strongly consistent kind (consistent = true), which has no siblings and no indexes"
    } else if let Some(datatype) = &props.datatype {
        return Some(format!("holds {}s, not records; {create}", String::from_utf8_lossy(datatype)));
    } else if props.write_once() {
        "keeps the first write alone (write_once = true)"
    } else if props.last_write_wins() {
        "lets the last writer win (last_write_wins = true), which loses writes without a sign"
    } else if !props.allow_mult() {
        "keeps one of two concurrent writes by the nodes' clocks (allow_mult = false)"
    } else {
        return None;
    };
    Some(format!("{why}; {create}"))
}

/// Looks at one node, and again.
async fn look_after(shared: &Arc<Shared>, node: &Arc<Node>) {
    let mut pause = LOOK_EVERY;
    loop {
        tokio::time::sleep(pause).await;
        let place = Place::floor();
        let ms = u32::try_from(LOOK_MAX.as_millis()).unwrap_or(u32::MAX);
        let request = GetReq {
            bucket: place.bucket.clone(),
            key: place.key.clone(),
            timeout: Some(ms),
            r#type: shared.settings.type_field(),
            ..GetReq::default()
        };
        // The node notes itself what came of it.
        let deadline = Instant::now() + LOOK_MAX * 2;
        if let Ok(turn) = node.enter(Line::Quick, LOOK_MAX, deadline).await
            && let Ok(found) = turn.ask(&request, LOOK_MAX, deadline).await
            && let Some(row) = Present::read(&place, &found.content, None, wall_ms()).row
        {
            shared.floor.raise(row.version.hlc);
        }
        pause = if node.blamed().is_none() { LOOK_EVERY } else { (pause * 2).min(LOOK_PAUSE_MAX) };
    }
}

/// Whether any node answers.
pub(super) fn health(shared: &Shared) -> Result<()> {
    shared.fit()?;
    let mut last = None;
    for node in &shared.pool.nodes {
        match node.blamed() {
            None => return Ok(()),
            Some(why) => last = Some(why),
        }
    }
    let why = last.unwrap_or_else(|| "it has no node".to_owned());
    Err(Error::unavailable(why, super::classify::RETRY_AFTER_MS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_type_that_would_lose_writes_is_not_used() {
        let good = BucketProps { allow_mult: Some(true), last_write_wins: Some(false), ..Default::default() };
        assert_eq!(misfit(&good), None);
        for (props, words) in [
            (BucketProps { allow_mult: Some(false), ..good.clone() }, "allow_mult = false"),
            (BucketProps { allow_mult: None, ..good.clone() }, "allow_mult = false"),
            (BucketProps { last_write_wins: Some(true), ..good.clone() }, "last_write_wins = true"),
            (BucketProps { consistent: Some(true), ..good.clone() }, "consistent = true"),
            (BucketProps { write_once: Some(true), ..good.clone() }, "write_once = true"),
            (BucketProps { datatype: Some(Bytes::from_static(b"counter")), ..good.clone() }, "counters"),
        ] {
            let why = misfit(&props).unwrap();
            assert!(why.contains(words) && why.contains("create one with"), "{why}");
        }
    }
}
