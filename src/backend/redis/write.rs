//! Writes: which road each takes, and what its script's word means.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::join_all;
use tokio::time::{Instant, timeout_at};

use super::shard::{Committed, Decided, Proposal, Seen, Shard, Wants, Word};
use super::{Shared, WHO};
use crate::backend::offer::not_offered;
use crate::backend::remote::lane::{Answer, BATCH_BYTES_MAX, BATCH_ROWS_MAX, Deadlines};
use crate::backend::remote::{ANSWER_GRACE, Fault, Pause, Remedy, each_key_in_order, not_owner, to_its_end};
use crate::backend::{
    Action, Applied, Entry, Live, Offered, Row, RowKey, Write, Written, decide, group, late,
};
use crate::model::op::{Expiry, Precondition};
use crate::model::{Error, Result};

impl Shared {
    /// Writes each by itself; those of one key one after another.
    pub(super) async fn write(
        self: &Arc<Self>,
        writes: Vec<Write>,
        deadline: Instant,
    ) -> Vec<Result<Written>> {
        each_key_in_order(&writes, |write| self.one(write, deadline)).await
    }

    async fn one(self: &Arc<Self>, write: Write, deadline: Instant) -> Result<Written> {
        match &write.action {
            Action::Put { .. } | Action::Delete => match self.put(proposal(&write), deadline).await? {
                Offered::Written(written) => Ok(written),
                Offered::Superseded => {
                    Err(Error::internal("a write that may take any version was superseded"))
                }
            },
            Action::Change(_) => {
                let shared = self.clone();
                to_its_end(WHO, deadline, async move { shared.change(&write, deadline).await }).await?
            }
        }
    }

    /// An unconditional write under exactly its version. Whether its operation is known is judged in the same step, so of
    /// attempts that come at the same time one takes effect.
    pub(super) async fn offer(&self, write: &Write, deadline: Instant) -> Result<Offered> {
        if write.entry().is_none() {
            return Err(not_offered());
        }
        self.put(Proposal { exact: true, ..proposal(write) }, deadline).await
    }

    /// A put or a delete, in a script with others.
    async fn put(&self, proposal: Proposal, deadline: Instant) -> Result<Offered> {
        let mut pause = Pause::new(deadline);
        loop {
            let server = self.server(proposal.at.slot)?;
            let fault = match server.writes.ask(proposal.clone(), deadline, deadline + ANSWER_GRACE).await {
                Answer::Unsent => return Err(late()),
                Answer::Unknown => {
                    return Err(Error::indeterminate("Redis did not confirm the write in time"));
                }
                Answer::Done(Ok(word)) => match judged(&proposal, word) {
                    Judged::Done(written) => return Ok(Offered::Written(written)),
                    Judged::Superseded => return Ok(Offered::Superseded),
                    // The deadline of a neighbour.
                    Judged::Late if Instant::now() >= deadline || !pause.again().await => return Err(late()),
                    Judged::Late => continue,
                    Judged::Failed(fault) => fault,
                },
                Answer::Done(Err(fault)) => fault,
            };
            if !pause.repeats(&fault, &server.shard.budget).await {
                return Err(fault.error);
            }
        }
    }

    /// A change: computed from what is read, and written if that still stands.
    async fn change(&self, write: &Write, deadline: Instant) -> Result<Written> {
        let turn = self.turns.of(&write.at);
        let Ok(_turn) = timeout_at(deadline, turn.lock()).await else {
            return Err(late());
        };
        let mut pause = Pause::new(deadline);
        loop {
            let server = self.server(write.at.slot)?;
            let fault = match self.attempt(&server.shard, write, deadline).await {
                Ok(outcome) => match outcome? {
                    Some(written) => return Ok(written),
                    None if pause.again().await => continue,
                    None => return Err(late()),
                },
                Err(fault) => fault,
            };
            if !pause.repeats(&fault, &server.shard.budget).await {
                return Err(fault.error);
            }
        }
    }

    /// One attempt at a change: `None` where something else was written in between.
    async fn attempt(
        &self,
        shard: &Shard,
        write: &Write,
        deadline: Instant,
    ) -> Result<Result<Option<Written>>, Fault> {
        let seen = shard.read(std::slice::from_ref(&write.at), deadline).await?;
        let Some(Seen { now, row }) = seen.into_iter().next().flatten() else {
            return Err(not_owner(&write.at));
        };
        let present = row?;
        let row = match decide::write(present.as_ref(), write, now) {
            Err(error) => return Ok(Err(error)),
            Ok((None, written)) => return Ok(Ok(Some(written))),
            Ok((Some(row), _)) => row,
        };
        let wants = match present.filter(|row| row.live(now.wall_ms).is_some()) {
            Some(row) => Wants::Version(row.version),
            None => Wants::Absent,
        };
        let proposal =
            Proposal { body: row.body, expires_at_ms: row.expires_at_ms, wants, ..proposal(write) };
        let deadlines = Deadlines { first: deadline, last: deadline + ANSWER_GRACE };
        let words = shard.write(std::slice::from_ref(&proposal), deadlines).await?;
        let Some(word) = words.into_iter().next() else { return Err(shard.odd("no word")) };
        match judged(&proposal, word) {
            // What was read no longer stands: the change is computed again.
            Judged::Done(Written::Conflict { .. }) => Ok(Ok(None)),
            Judged::Done(written) => Ok(Ok(Some(written))),
            Judged::Late => Ok(Err(late())),
            Judged::Superseded => Err(shard.odd("that a change was superseded")),
            Judged::Failed(fault) => Err(fault),
        }
    }

    /// Writes all or nothing, in one script on one server.
    pub(super) async fn write_atomic(
        &self,
        writes: &[Write],
        deadline: Instant,
    ) -> Result<Vec<Written>, (usize, Error)> {
        let Some(first) = writes.first() else { return Ok(Vec::new()) };
        // Batches of one partition often share keys: one after the other, none meets another of this worker.
        let turn = self.turns.of(&first.at);
        let Ok(_turn) = timeout_at(deadline, turn.lock()).await else {
            return Err((0, late()));
        };
        let mut pause = Pause::new(deadline);
        loop {
            let shard = &self.server(first.at.slot).map_err(|error| (0, error))?.shard;
            let fault = match decide_all(shard, writes, deadline).await {
                Ok(Some(done)) => return done,
                Ok(None) if pause.again().await => continue,
                Ok(None) => return Err((0, late())),
                Err(fault) => fault,
            };
            if !pause.repeats(&fault, &shard.budget).await {
                return Err((0, fault.error));
            }
        }
    }

    /// Merges rows that carry their versions.
    pub(super) async fn apply(&self, entries: Vec<Entry>, deadline: Instant) -> Vec<Result<Applied>> {
        // Those of one server share scripts, in their order.
        let mut parts: HashMap<usize, Vec<usize>> = HashMap::new();
        let mut done: Vec<Option<Result<Applied>>> = entries.iter().map(|_| None).collect();
        for (at, entry) in entries.iter().enumerate() {
            match self.owner_index(entry.at.slot) {
                Ok(index) => parts.entry(index).or_default().push(at),
                Err(error) => done[at] = Some(Err(error)),
            }
        }
        let entries = &entries;
        let merged = join_all(parts.into_values().map(|places| async move {
            let mut done = Vec::with_capacity(places.len());
            for part in portions(&places, |at| entries[*at].row.body.as_ref().map_or(0, bytes::Bytes::len)) {
                let of_part: Vec<&Entry> = part.iter().map(|at| &entries[*at]).collect();
                done.extend(part.iter().copied().zip(self.merge(&of_part, deadline).await));
            }
            done
        }));
        for (at, applied) in merged.await.into_iter().flatten() {
            done[at] = Some(applied);
        }
        let lost = || Err(Error::internal("the backend lost a row"));
        done.into_iter().map(|applied| applied.unwrap_or_else(lost)).collect()
    }

    /// Merges rows of one server: merging some of them twice is as once.
    async fn merge(&self, entries: &[&Entry], deadline: Instant) -> Vec<Result<Applied>> {
        let mut pause = Pause::new(deadline);
        loop {
            let server = match self.server(entries[0].at.slot) {
                Ok(server) => server,
                Err(error) => return entries.iter().map(|_| Err(error.clone())).collect(),
            };
            let fault = match server.shard.apply(entries, deadline).await {
                Ok(words) => {
                    let moved = words.iter().position(|word| matches!(word, Ok(word) if word == "N"));
                    match moved {
                        None => return words.into_iter().map(|word| applied(&server.shard, word)).collect(),
                        Some(at) => not_owner(&entries[at].at),
                    }
                }
                Err(fault) => fault,
            };
            if !pause.repeats(&fault, &server.shard.budget).await {
                return entries.iter().map(|_| Err(fault.error.clone())).collect();
            }
        }
    }
}

/// Parts of a list that fit one script each.
fn portions<T>(list: &[T], bytes: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let (mut parts, mut start, mut sum) = (Vec::new(), 0, 0);
    for (at, item) in list.iter().enumerate() {
        let size = bytes(item);
        if at > start && (at - start >= BATCH_ROWS_MAX || sum + size > BATCH_BYTES_MAX) {
            parts.push(&list[start..at]);
            (start, sum) = (at, 0);
        }
        sum += size;
    }
    parts.push(&list[start..]);
    parts
}

fn applied(shard: &Shard, word: Result<String, Fault>) -> Result<Applied> {
    match word.map_err(|fault| fault.error)?.as_str() {
        "A" => Ok(Applied::Applied),
        "S" => Ok(Applied::Superseded),
        "K" => Ok(Applied::Known),
        "B" => Ok(Applied::BelowFloor),
        "L" => Err(late()),
        other => match other.strip_prefix('E') {
            Some(error) => Err(super::classify::refused_row(&shard.name, error).error),
            None => Err(shard.odd(&format!("the word {other:?}")).error),
        },
    }
}

/// One attempt at an atomic batch: `None` where something else was written in between.
async fn decide_all(
    shard: &Shard,
    writes: &[Write],
    deadline: Instant,
) -> Result<Option<Result<Vec<Written>, (usize, Error)>>, Fault> {
    let mut keys: Vec<RowKey> = writes.iter().map(|write| write.at.clone()).collect();
    keys.sort_by(|one, other| (one.key.as_str()).cmp(other.key.as_str()));
    keys.dedup();
    let (read, scripts) = shard.read_told(&keys, deadline).await?;
    let mut table = Snapshot::default();
    let mut decided = Vec::with_capacity(keys.len());
    let mut wall_ms = 0;
    for (at, seen) in keys.into_iter().zip(read) {
        let Some(Seen { now, row }) = seen else { return Err(not_owner(&at)) };
        let present = row.map_err(|fault| Fault { remedy: Remedy::None, ..fault })?;
        // All writes are of one partition, so of one slot.
        (table.gc_floor, wall_ms) = (now.gc_floor, now.wall_ms);
        let live = present.as_ref().is_some_and(|row| row.live(now.wall_ms).is_some());
        let version = present.as_ref().map(|row| row.version);
        let ring = present.as_ref().map(|row| row.ring.clone()).unwrap_or_default();
        table.rows.insert(group::stored_key(&at), present.map(Arc::new));
        decided.push(Decided { at, version, live, ring, gc_floor: now.gc_floor, row: None });
    }
    let mut group = group::Group::new(&table, wall_ms);
    let written = group.write_atomic(writes);
    let mut changes = match &written {
        Ok(_) => group.into_changes().rows,
        Err(_) => HashMap::new(),
    };
    // What one script read stood there at one moment. Of what several read, the script that compares it says so.
    if changes.is_empty() && scripts < 2 {
        return Ok(Some(written));
    }
    for row in &mut decided {
        row.row = changes.remove(&group::stored_key(&row.at)).flatten().map(Arc::unwrap_or_clone);
    }
    match shard.commit(&decided, deadline).await? {
        Committed::Done => Ok(Some(written)),
        Committed::Late => Ok(Some(Err((0, late())))),
        Committed::NotOwner => Err(not_owner(&writes[0].at)),
        Committed::Overtaken => Ok(None),
    }
}

/// Rows as they were read, by their stored keys.
#[derive(Default)]
struct Snapshot {
    rows: HashMap<Vec<u8>, Option<Arc<Row>>>,
    gc_floor: u64,
}

impl group::Table for Snapshot {
    fn row(&self, stored_key: &[u8]) -> Result<Option<Arc<Row>>> {
        Ok(self.rows.get(stored_key).cloned().flatten())
    }

    fn gc_floor(&self, _slot: u16) -> u64 {
        self.gc_floor
    }
}

pub(super) fn proposal(write: &Write) -> Proposal {
    let (body, expires_at_ms, keep) = match &write.action {
        Action::Put { body, expiry } => {
            let keep = matches!(expiry, Expiry::KeepOr(_));
            (Some(body.clone()), decide::end_of_life(*expiry, None, write.taken_at_ms), keep)
        }
        Action::Delete | Action::Change(_) => (None, 0, false),
    };
    let wants = match write.precondition {
        None => Wants::Anything,
        Some(Precondition::Absent) => Wants::Absent,
        Some(Precondition::Exists) => Wants::Exists,
        Some(Precondition::Version(version)) => Wants::Version(version),
    };
    Proposal {
        at: write.at.clone(),
        version: write.proposed,
        body,
        expires_at_ms,
        keep,
        op: write.op.map_or(0, |op| op.id),
        lookback_ms: write.op.and_then(|op| op.lookback_ms),
        wants,
        exact: false,
    }
}

/// What a word means.
enum Judged {
    Done(Written),
    Superseded,
    Late,
    Failed(Fault),
}

fn judged(proposal: &Proposal, word: Word) -> Judged {
    Judged::Done(match word {
        Word::Applied { version, existed, expires_at_ms } => {
            let live = proposal.body.clone().map(|body| Live { body, expires_at_ms });
            Written::Applied { version, existed, live }
        }
        Word::Duplicate(same) => Written::Duplicate {
            version: same.map(|(version, _)| version),
            existed: same.is_some_and(|(_, was)| was),
        },
        Word::Forgotten => Written::Forgotten,
        Word::Conflict(present) => Written::Conflict { present },
        Word::Superseded => return Judged::Superseded,
        Word::Late => return Judged::Late,
        Word::NotOwner => return Judged::Failed(not_owner(&proposal.at)),
        Word::Failed(fault) => return Judged::Failed(fault),
    })
}
