//! Writes: which road each takes, and what its statement's answer means.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::time::{Instant, timeout_at};

use super::connections::Loan;
use super::shard::{Before, Cond, Condition, Each, Proposal, Put, Shard, Wants};
use super::{Shared, rows, to_its_end};
use crate::backend::offer::not_offered;
use crate::backend::remote::lane::Answer;
use crate::backend::remote::sent::Sent;
use crate::backend::remote::{ANSWER_GRACE, Fault, Pause, Remedy, each_key_in_order};
use crate::backend::{Action, Applied, Entry, Live, Offered, Row, RowKey, Write, Written, decide, late};
use crate::model::op::{Expiry, Precondition};
use crate::model::{Error, Result, Version};

/// Rows of one statement of a merge.
const MERGED_ROWS_MAX: usize = 256;
/// Bytes of documents of one statement of a merge; one that has more goes alone.
const MERGED_BYTES_MAX: usize = 8 * 1024 * 1024;

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
        let first_attempt = write.op.is_none_or(|op| op.lookback_ms.is_none());
        match &write.action {
            Action::Put { expiry: Expiry::New(_), .. } | Action::Delete
                if write.precondition.is_none() && first_attempt =>
            {
                self.put(&write, deadline).await
            }
            Action::Put { .. } | Action::Delete => {
                let shared = self.clone();
                let work = async move |sent: Arc<Sent>| shared.conditional(&write, deadline, &sent).await;
                to_its_end(deadline, work).await?
            }
            Action::Change(_) => {
                let shared = self.clone();
                let work = async move |sent: Arc<Sent>| shared.change(&write, deadline, &sent).await;
                to_its_end(deadline, work).await?
            }
        }
    }

    /// An unconditional write, in a statement with others.
    async fn put(&self, write: &Write, deadline: Instant) -> Result<Written> {
        let proposal = proposal(write);
        let mut pause = Pause::new(deadline);
        loop {
            let server = self.server(write.at.slot)?;
            let budget = &server.shard.budget;
            let fault = match server.puts.ask(proposal.clone(), deadline, deadline + ANSWER_GRACE).await {
                Answer::Unsent => return Err(late()),
                Answer::Unknown => {
                    return Err(Error::indeterminate("PostgreSQL did not confirm the write in time"));
                }
                Answer::Done(Ok(Some(Put { written: Some((version, existed)), .. }))) => {
                    budget.succeeded();
                    return Ok(applied(&proposal, version, existed, proposal.expires_at_ms));
                }
                Answer::Done(Ok(Some(Put { before, .. }))) => {
                    if let Some(known) = duplicate(&before, proposal.op) {
                        return Ok(known);
                    }
                    // The deadline of a neighbour, or a race with another write of the same operation.
                    if Instant::now() >= deadline || !pause.again().await {
                        return Err(late());
                    }
                    continue;
                }
                Answer::Done(Ok(None)) => self.not_owner(&write.at),
                Answer::Done(Err(fault)) => fault,
            };
            if !pause.repeats(&fault, budget).await {
                return Err(fault.error);
            }
        }
    }

    /// A write that must hold something, keeps a lifetime, or may be a retry.
    async fn conditional(&self, write: &Write, deadline: Instant, sent: &Sent) -> Result<Written> {
        let proposed = (proposal(write), condition(write));
        let mut pause = Pause::new(deadline);
        loop {
            let shard = &self.server(write.at.slot)?.shard;
            let budget = &shard.budget;
            let outcome = match shard.connection_by(deadline).await {
                Ok(mut connection) => cond(shard, &proposed, deadline, sent, &mut connection).await,
                Err(fault) => Err(fault),
            };
            let fault = match outcome {
                Ok(Some(cond)) => match judged(&proposed.0, &cond)? {
                    Some(written) => {
                        budget.succeeded();
                        return Ok(written);
                    }
                    None if pause.again().await => continue,
                    None => return Err(late()),
                },
                Ok(None) => self.not_owner(&write.at),
                Err(fault) => fault,
            };
            if !pause.repeats(&fault, budget).await {
                return Err(fault.error);
            }
        }
    }

    /// A change: computed from what is read, and written if that still stands.
    async fn change(&self, write: &Write, deadline: Instant, sent: &Sent) -> Result<Written> {
        let turn = self.turns.of(&write.at);
        let Ok(_turn) = timeout_at(deadline, turn.lock()).await else {
            return Err(late());
        };
        let mut pause = Pause::new(deadline);
        loop {
            let shard = &self.server(write.at.slot)?.shard;
            let budget = &shard.budget;
            let fault = match attempt(shard, write, deadline, sent).await {
                Ok(Some(outcome)) => match outcome? {
                    Some(written) => {
                        budget.succeeded();
                        return Ok(written);
                    }
                    None if pause.again().await => continue,
                    None => return Err(late()),
                },
                Ok(None) => self.not_owner(&write.at),
                Err(fault) => fault,
            };
            if !pause.repeats(&fault, budget).await {
                return Err(fault.error);
            }
        }
    }

    /// An unconditional write under exactly its version, in a statement with others.
    pub(super) async fn offer(&self, write: &Write, deadline: Instant) -> Result<Offered> {
        if write.entry().is_none() {
            return Err(not_offered());
        }
        let proposal = proposal(write);
        let mut pause = Pause::new(deadline);
        loop {
            let server = self.server(write.at.slot)?;
            let budget = &server.shard.budget;
            let fault = match server.offers.ask(proposal.clone(), deadline, deadline + ANSWER_GRACE).await {
                Answer::Unsent => return Err(late()),
                Answer::Unknown => {
                    return Err(Error::indeterminate("PostgreSQL did not confirm the write in time"));
                }
                Answer::Done(Ok(Some(Put { written: Some((version, existed)), .. }))) => {
                    let applied = applied(&proposal, version, existed, proposal.expires_at_ms);
                    return Ok(Offered::Written(applied));
                }
                Answer::Done(Ok(Some(Put { before, .. }))) => {
                    let known = duplicate(&before, proposal.op);
                    return Ok(known.map_or(Offered::Superseded, Offered::Written));
                }
                Answer::Done(Ok(None)) => self.not_owner(&write.at),
                Answer::Done(Err(fault)) => fault,
            };
            if !pause.repeats(&fault, budget).await {
                return Err(fault.error);
            }
        }
    }

    /// Merges rows that carry their versions: rounds of distinct keys, each a statement for each server.
    pub(super) async fn apply(
        &self,
        entries: Vec<Entry>,
        deadline: Instant,
        sent: &Sent,
    ) -> Vec<Result<Applied>> {
        let mut done: Vec<Option<Result<Applied>>> = vec![None; entries.len()];
        for round in distinct(&entries) {
            let mut of_owner: HashMap<u16, Vec<usize>> = HashMap::new();
            for at in round {
                of_owner.entry(self.owner_index(entries[at].at.slot)).or_default().push(at);
            }
            for part in of_owner.into_values().flat_map(|owned| parts(&entries, owned)) {
                let merged = self.merge_together(&entries, &part, deadline, sent).await;
                for (at, merged) in part.into_iter().zip(merged) {
                    done[at] = Some(merged);
                }
            }
        }
        done.into_iter().map(|merged| merged.expect("every entry lies in one round")).collect()
    }

    /// Merges rows of distinct keys of one server in one statement; where that cannot be, each by itself.
    async fn merge_together(
        &self,
        entries: &[Entry],
        part: &[usize],
        deadline: Instant,
        sent: &Sent,
    ) -> Vec<Result<Applied>> {
        let together: Vec<&Entry> = part.iter().map(|at| &entries[*at]).collect();
        let mut pause = Pause::new(deadline);
        let words = loop {
            let shard = match self.server(together[0].at.slot) {
                Ok(server) => &server.shard,
                Err(error) => return vec![Err(error); part.len()],
            };
            match merge(shard, &together, deadline, sent).await {
                Ok(words) => break words,
                Err(Fault { remedy: Remedy::Apart, .. }) if part.len() > 1 => break vec![None; part.len()],
                Err(fault) if pause.repeats(&fault, &shard.budget).await => {}
                Err(fault) => return vec![Err(fault.error); part.len()],
            }
        };
        let mut merged = Vec::with_capacity(part.len());
        for (entry, word) in together.into_iter().zip(words) {
            merged.push(match word.as_deref().and_then(word_of) {
                Some(applied) => Ok(applied),
                None => self.merge(entry, deadline, sent).await,
            });
        }
        merged
    }

    async fn merge(&self, entry: &Entry, deadline: Instant, sent: &Sent) -> Result<Applied> {
        let mut pause = Pause::new(deadline);
        loop {
            let shard = &self.server(entry.at.slot)?.shard;
            let merged = merge(shard, &[entry], deadline, sent).await;
            let fault = match merged.map(|mut words| words.pop().flatten()) {
                Ok(Some(word)) => match word_of(&word) {
                    Some(applied) => return Ok(applied),
                    None if pause.again().await => continue,
                    None => return Err(late()),
                },
                Ok(None) => self.not_owner(&entry.at),
                Err(fault) => fault,
            };
            if !pause.repeats(&fault, &shard.budget).await {
                return Err(fault.error);
            }
        }
    }

    /// What merges have come to already, a statement for each server.
    pub(super) async fn already(&self, entries: &[Entry], deadline: Instant) -> Vec<Result<Option<Applied>>> {
        let mut of_owner: HashMap<u16, Vec<usize>> = HashMap::new();
        for (at, entry) in entries.iter().enumerate() {
            of_owner.entry(self.owner_index(entry.at.slot)).or_default().push(at);
        }
        let mut told: Vec<Result<Option<Applied>>> = vec![Ok(None); entries.len()];
        for places in of_owner.into_values() {
            let looked = match self.server(entries[places[0]].at.slot) {
                Err(error) => Err(error),
                Ok(server) => {
                    let together: Vec<&Entry> = places.iter().map(|at| &entries[*at]).collect();
                    server.shard.already(&together, deadline).await.map_err(|fault| fault.error)
                }
            };
            match looked {
                Ok(words) => {
                    for (at, own) in places.into_iter().zip(words) {
                        let which = |own| if own { Applied::Applied } else { Applied::Superseded };
                        told[at] = Ok(own.map(which));
                    }
                }
                Err(error) => places.into_iter().for_each(|at| told[at] = Err(error.clone())),
            }
        }
        told
    }

    /// What a merge would come to, each by itself; nothing is kept.
    pub(super) async fn foresee(&self, entries: &[Entry], deadline: Instant) -> Vec<Result<Applied>> {
        let mut foreseen = Vec::with_capacity(entries.len());
        for entry in entries {
            foreseen.push(match self.server(entry.at.slot) {
                Err(error) => Err(error),
                Ok(server) => match server.shard.foresee(entry, deadline).await {
                    Ok(Some(word)) => word_of(&word).ok_or_else(late),
                    Ok(None) => Err(self.not_owner(&entry.at).error),
                    Err(fault) => Err(fault.error),
                },
            });
        }
        foreseen
    }
}

/// What a word of [`super::sql::APPLY`] means; `None` = again.
fn word_of(word: &str) -> Option<Applied> {
    match word {
        "applied" => Some(Applied::Applied),
        "superseded" => Some(Applied::Superseded),
        "known" => Some(Applied::Known),
        "below_floor" => Some(Applied::BelowFloor),
        _ => None,
    }
}

/// The places of entries in rounds, no key twice in one; entries of one key in their order.
fn distinct(entries: &[Entry]) -> Vec<Vec<usize>> {
    let mut rounds: Vec<Vec<usize>> = Vec::new();
    let mut seen: HashMap<&RowKey, usize> = HashMap::with_capacity(entries.len());
    for (at, entry) in entries.iter().enumerate() {
        let round = seen.entry(&entry.at).or_insert(0);
        if rounds.len() == *round {
            rounds.push(Vec::new());
        }
        rounds[*round].push(at);
        *round += 1;
    }
    rounds
}

/// The same places, as many together as one statement may hold.
fn parts(entries: &[Entry], places: Vec<usize>) -> Vec<Vec<usize>> {
    let mut parts: Vec<Vec<usize>> = Vec::new();
    let mut bytes = 0;
    for at in places {
        let more = entries[at].row.body.as_ref().map_or(0, bytes::Bytes::len);
        match parts.last_mut() {
            Some(part) if part.len() < MERGED_ROWS_MAX && bytes + more <= MERGED_BYTES_MAX => {
                part.push(at);
                bytes += more;
            }
            _ => {
                parts.push(vec![at]);
                bytes = more;
            }
        }
    }
    parts
}

pub(super) type Attempt<T> = Result<T, Fault>;

/// A conditional statement for one write: `None` where the slot is not this server's.
async fn cond(
    shard: &Shard,
    proposed: &(Proposal, Condition),
    deadline: Instant,
    sent: &Sent,
    connection: &mut Loan,
) -> Attempt<Option<Cond>> {
    if !sent.begin() {
        return Err(too_late());
    }
    let outcome = shard.cond(std::slice::from_ref(proposed), deadline, connection).await;
    sent.ended(&outcome);
    Ok(outcome?.pop().flatten())
}

/// A merge of rows of distinct keys, in their words.
async fn merge(shard: &Shard, entries: &[&Entry], deadline: Instant, sent: &Sent) -> Each<String> {
    let mut connection = shard.connection_by(deadline).await?;
    if !sent.begin() {
        return Err(too_late());
    }
    // Others may have been merged before, which does not become undone by what comes of these.
    shard.merge(entries, deadline, &mut connection).await
}

/// Nobody waits any more.
pub(super) fn too_late() -> Fault {
    Fault { error: late(), remedy: Remedy::None }
}

/// One attempt at a change: `None` where the slot is not this server's; inside, `None` where something else was written
/// in between.
async fn attempt(
    shard: &Shard,
    write: &Write,
    deadline: Instant,
    sent: &Sent,
) -> Attempt<Option<Result<Option<Written>>>> {
    let mut connection = shard.connection_by(deadline).await?;
    let read = shard.read_rows(std::slice::from_ref(&write.at), deadline, &mut connection).await?;
    let Some((present, now)) = read.into_iter().next().flatten() else {
        return Ok(None);
    };
    let (row, expected) = match decide::write(present.as_ref(), write, now) {
        Err(error) => return Ok(Some(Err(error))),
        Ok((None, written)) => return Ok(Some(Ok(Some(written)))),
        Ok((Some(row), _)) => (row, wants_the_same(present.as_ref(), now)),
    };
    let proposal = Proposal {
        at: write.at.clone(),
        version: write.proposed,
        body: row.body,
        expires_at_ms: row.expires_at_ms,
        op: write.op.map_or(0, |op| op.id),
    };
    let lookback_ms = write.op.and_then(|op| op.lookback_ms);
    let proposed = (proposal, Condition { wants: expected, keep: false, lookback_ms });
    let Some(cond) = cond(shard, &proposed, deadline, sent, &mut connection).await? else {
        return Ok(None);
    };
    Ok(Some(match judged(&proposed.0, &cond) {
        // What was read no longer stands: the change is computed again.
        Ok(Some(Written::Conflict { .. })) => Ok(None),
        other => other,
    }))
}

fn wants_the_same(present: Option<&Row>, now: decide::Now) -> Wants {
    match present.filter(|row| row.live(now.wall_ms).is_some()) {
        Some(row) => Wants::Version(row.version),
        None => Wants::Absent,
    }
}

fn proposal(write: &Write) -> Proposal {
    let (body, expires_at_ms) = match &write.action {
        Action::Put { body, expiry } => {
            (Some(body.clone()), decide::end_of_life(*expiry, None, write.taken_at_ms))
        }
        Action::Delete | Action::Change(_) => (None, 0),
    };
    let op = write.op.map_or(0, |op| op.id);
    Proposal { at: write.at.clone(), version: write.proposed, body, expires_at_ms, op }
}

fn condition(write: &Write) -> Condition {
    let wants = match write.precondition {
        None => Wants::Anything,
        Some(Precondition::Absent) => Wants::Absent,
        Some(Precondition::Exists) => Wants::Exists,
        Some(Precondition::Version(version)) => Wants::Version(version),
    };
    let keep = matches!(write.action, Action::Put { expiry: Expiry::KeepOr(_), .. });
    Condition { wants, keep, lookback_ms: write.op.and_then(|op| op.lookback_ms) }
}

fn applied(proposal: &Proposal, version: Version, existed: bool, expires_at_ms: i64) -> Written {
    let live = proposal.body.clone().map(|body| Live { body, expires_at_ms });
    Written::Applied { version, existed, live }
}

/// What an operation that took effect before is answered.
fn duplicate(before: &Before, op: u64) -> Option<Written> {
    let print = (op != 0).then(|| rows::ring(&before.ops, 0).find(op)).flatten()?;
    let same = before.version.filter(|version| version.fingerprint() == print);
    Some(Written::Duplicate { version: same, existed: same.is_some() && before.was })
}

/// What the word of a conditional statement means; `None` = again.
fn judged(proposal: &Proposal, cond: &Cond) -> Result<Option<Written>> {
    match (cond.result.as_str(), cond.version) {
        ("applied", Some(version)) => Ok(Some(applied(proposal, version, cond.live, cond.expires_at_ms))),
        ("dup", _) => Ok(duplicate(&cond.before, proposal.op)),
        ("lost", _) => Ok(Some(Written::Forgotten)),
        ("conflict", _) => Ok(Some(Written::Conflict { present: cond.before.version.filter(|_| cond.live) })),
        ("late", _) => Err(late()),
        _ => Ok(None),
    }
}
