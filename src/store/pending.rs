//! Reads of namespaces whose writes may wait in the queue: a pending write outranks what is older.
//!
//! The overlay is asked before the backend: in the other order a write that is applied in between would be seen by neither. An
//! answer out of the first tier does not ask it: its bound on age covers queued writes, too, because they are announced. A pending
//! write that the backend has overtaken is taken away by whoever sees both.

use std::collections::BTreeMap;

use futures_util::future::{join, join_all};
use tokio::time::Instant;

use crate::backend::{Aged, Found, Live, Page, Range};
use crate::model::op::Get;
use crate::model::reply::{GetReply, Source};
use crate::model::{Key, Result, Version};
use crate::queue::{Away, Pending};

use super::read::{Got, Read, lost};
use super::{Call, Store, Waiting};

/// How long the backend is asked whether it has overtaken a pending write.
const OVERTAKEN_MAX: std::time::Duration = std::time::Duration::from_millis(300);
/// Keys with pending writes that one page looks at: as many as it may have rows, but neither fewer nor more than these. Deletes are no
/// rows, so a page of few rows would not come far; and all that is looked at is read whole.
const KEYS_LOOKED_AT: (usize, usize) = (100, 1_000);

/// Keys of a range on which writes are pending.
pub(super) struct PendingKeys {
    /// In the order of the range.
    keys: Vec<Key>,
    /// Whether there may be more behind the last.
    more: bool,
}

impl Store {
    /// What is pending on a key. Where nobody knows, nothing is: the bound of the level holds for what was applied.
    pub(super) async fn pending_on(&self, call: &Call, waiting: &Waiting, key: &Key) -> Option<Pending> {
        waiting.queue.overlay().look(&call.namespace, &[key]).await.pop()?.ok()?
    }

    /// What stands in the backend, if it is as new as a pending write, which then is taken away.
    pub(super) async fn overtaken(
        &self,
        call: &Call,
        waiting: &Waiting,
        key: &Key,
        pending: Version,
    ) -> Option<Found> {
        let deadline = call.deadline.min(Instant::now() + OVERTAKEN_MAX);
        let read = call.policy.backend.read(vec![call.row_key(key)], deadline).await.pop()?;
        let found = read.ok()??;
        if found.version < pending {
            return None;
        }
        waiting.queue.overlay().overtaken(&call.row_key(key), pending).await;
        Some(found)
    }

    /// The answer to a get of a key on which a write is pending.
    pub(super) async fn answer_pending(
        &self,
        call: &Call,
        waiting: &Waiting,
        get: &Get,
        pending: Pending,
    ) -> Result<Got> {
        self.saw(pending.version, call.now_ms);
        if let Some(found) = self.overtaken(call, waiting, &get.key, pending.version).await {
            return self.answer(call, get, Read::Stored(Aged { found: Some(found), as_of: None }));
        }
        let found = found(&pending, call.now_ms);
        let reply = self.answer_stored(call, get, Aged { found: Some(found), as_of: None })?;
        Ok(Got::Reply(GetReply { source: Source::Pending, age_ms: 0, pending: true, ..reply }))
    }

    /// Gets of a batch: those with a pending write, and the others on their usual road.
    pub(super) async fn find_beside_pending(
        &self,
        call: &Call,
        waiting: &Waiting,
        gets: &[&Get],
        newest: bool,
    ) -> Vec<Result<Read>> {
        let keys: Vec<&Key> = gets.iter().map(|get| &get.key).collect();
        let pending = waiting.queue.overlay().look(&call.namespace, &keys).await;
        let (mut waits, mut rest) = (Vec::new(), Vec::new());
        for (at, pending) in pending.into_iter().enumerate() {
            match pending.ok().flatten() {
                Some(pending) => waits.push((at, pending)),
                None => rest.push(at),
            }
        }
        let others: Vec<&Get> = rest.iter().map(|at| gets[*at]).collect();
        let answers = waits.into_iter().map(|(at, pending)| async move {
            // A level that cannot be promised is refused, whatever is pending.
            call.level(gets[at].consistency, gets[at].max_staleness_ms)?;
            let answer = self.answer_pending(call, waiting, gets[at], pending).await;
            Ok((at, answer.map(Read::Answered)))
        });
        let (answers, found) = join(join_all(answers), self.find_settled(call, &others, newest)).await;
        let mut reads: Vec<Result<Read>> = gets.iter().map(|_| Err(lost())).collect();
        for (at, found) in rest.into_iter().zip(found) {
            reads[at] = found;
        }
        for answer in answers {
            match answer {
                Ok((at, answer)) => reads[at] = answer,
                Err(error) => return gets.iter().map(|_| Err(crate::model::Error::clone(&error))).collect(),
            }
        }
        reads
    }

    /// Keys of a range on which writes are pending: asked before the page is read.
    pub(super) async fn pending_in(
        &self,
        call: &Call,
        waiting: &Waiting,
        range: &Range,
    ) -> Result<PendingKeys, Away> {
        let (start, end) = match (&range.after, range.reverse) {
            (Some(after), false) => (after.as_str(), range.end.as_deref()),
            (Some(after), true) => (range.start.as_str(), Some(after.as_str())),
            (None, _) => (range.start.as_str(), range.end.as_deref()),
        };
        let overlay = waiting.queue.overlay();
        let most = range.limit.clamp(KEYS_LOOKED_AT.0, KEYS_LOOKED_AT.1);
        // The page begins behind the first of them, where that is where the last one ended.
        let keys = overlay.keys(&call.namespace, start, end, range.reverse, most + 1).await?;
        let more = keys.len() > most;
        let behind = |key: &Key| range.after.as_deref() != Some(key.as_str());
        Ok(PendingKeys { keys: keys.into_iter().filter(behind).collect(), more })
    }

    /// A page with the pending writes of its part of the range; whether there were any, `None` = nobody knows any more.
    pub(super) async fn merge_pending(
        &self,
        call: &Call,
        waiting: &Waiting,
        range: &Range,
        page: Page,
        PendingKeys { keys, more }: PendingKeys,
    ) -> Result<(Page, Option<bool>)> {
        let Page { rows, mut resume, as_of } = page;
        if let Some(last) = keys.last().filter(|_| more) {
            // Behind the last key that is known, nobody knows.
            let nearer = resume.as_ref().is_none_or(|resume| is_before(last, resume, range.reverse));
            if nearer {
                resume = Some(last.clone());
            }
        }
        let covered = |key: &Key| resume.as_ref().is_none_or(|end| !is_before(end, key, range.reverse));
        let keys: Vec<Key> = keys.into_iter().filter(covered).collect();
        if keys.is_empty() {
            return Ok((Page { rows, resume, as_of }, Some(false)));
        }
        let asked: Vec<&Key> = keys.iter().collect();
        let looks = waiting.queue.overlay().look(&call.namespace, &asked).await;
        let is_known = looks.iter().all(Result::is_ok);
        let mut merged: BTreeMap<Key, Result<Found>> =
            rows.into_iter().filter(|(key, _)| covered(key)).collect();
        let pending: Vec<(&Key, Option<Pending>)> =
            keys.iter().zip(looks).filter_map(|(key, look)| Some((key, look.ok()?))).collect();
        self.read_behind(call, &pending, &mut merged).await?;
        let mut any = false;
        for (key, pending) in pending {
            let Some(pending) = pending else { continue };
            let stands = merged.get(key).and_then(|found| found.as_ref().ok());
            if stands.is_some_and(|stands| stands.version >= pending.version) {
                continue;
            }
            any = true;
            merged.insert(key.clone(), Ok(found(&pending, call.now_ms)));
        }
        let is_row = |found: &Result<Found>| found.as_ref().map_or(true, |found| found.live.is_some());
        let mut rows: Vec<(Key, Result<Found>)> =
            merged.into_iter().filter(|(_, found)| is_row(found)).collect();
        if range.reverse {
            rows.reverse();
        }
        if rows.len() > range.limit {
            rows.truncate(range.limit);
            resume = rows.last().map(|(key, _)| key.clone());
        }
        Ok((Page { rows, resume, as_of }, is_known.then_some(any)))
    }

    /// Reads what the page cannot tell of keys on which writes were pending: what stands where it has no row, and where nothing is
    /// pending any more, what was applied since it was read, which nobody else would show.
    async fn read_behind(
        &self,
        call: &Call,
        pending: &[(&Key, Option<Pending>)],
        merged: &mut BTreeMap<Key, Result<Found>>,
    ) -> Result<()> {
        let is_unknown =
            |(key, pending): &&(&Key, Option<Pending>)| pending.is_none() || !merged.contains_key(*key);
        let unknown: Vec<&Key> = pending.iter().filter(is_unknown).map(|(key, _)| *key).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let rows = unknown.iter().map(|key| call.row_key(key)).collect();
        let stands = call.policy.backend.read(rows, call.deadline).await;
        for (key, stands) in unknown.into_iter().zip(stands) {
            let Some(stands) = stands? else { continue };
            let is_newer =
                |page: &Result<Found>| page.as_ref().is_ok_and(|page| page.version < stands.version);
            if merged.get(key).is_none_or(is_newer) {
                merged.insert(key.clone(), Ok(stands));
            }
        }
        Ok(())
    }
}

/// Whether a key comes before another in a direction.
fn is_before(one: &Key, other: &Key, reverse: bool) -> bool {
    if reverse { one.as_str() > other.as_str() } else { one.as_str() < other.as_str() }
}

/// A pending write as what a read finds.
fn found(pending: &Pending, now_ms: i64) -> Found {
    let live = |body: &bytes::Bytes| Live { body: body.clone(), expires_at_ms: pending.expires_at_ms };
    Found { version: pending.version, live: pending.live(now_ms).map(live) }
}
