//! The scripts that write: each row by itself, several that stand or fall together, and rows that carry their versions.

use bytes::Bytes;
use redis::Value;
use tokio::time::Instant;

use super::Shard;
use crate::backend::redis::classify::{Stage, refused_row};
use crate::backend::redis::rows;
use crate::backend::redis::scripts::{self, SCRIPTS, Script};
use crate::backend::remote::Fault;
use crate::backend::remote::lane::Deadlines;
use crate::backend::{Entry, OpRing, Row, RowKey};
use crate::model::{Result, Version};

/// A row as a write wants it to be, and what must hold for it.
#[derive(Debug, Clone)]
pub(in crate::backend::redis) struct Proposal {
    pub(in crate::backend::redis) at: RowKey,
    pub(in crate::backend::redis) version: Version,
    /// `None` = a tombstone.
    pub(in crate::backend::redis) body: Option<Bytes>,
    pub(in crate::backend::redis) expires_at_ms: i64,
    /// Keep the lifetime of a live record.
    pub(in crate::backend::redis) keep: bool,
    /// 0 = none.
    pub(in crate::backend::redis) op: u64,
    pub(in crate::backend::redis) lookback_ms: Option<i64>,
    pub(in crate::backend::redis) wants: Wants,
    /// Under this version, or not at all.
    pub(in crate::backend::redis) exact: bool,
}

/// See [`crate::model::op::Precondition`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::backend::redis) enum Wants {
    Anything,
    Absent,
    Exists,
    Version(Version),
}

/// What became of a write.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::backend::redis) enum Word {
    Applied {
        version: Version,
        existed: bool,
        expires_at_ms: i64,
    },
    /// The version that the operation got, unless the record was overwritten since, and whether it found a live one.
    Duplicate(Option<(Version, bool)>),
    Forgotten,
    Conflict(Option<Version>),
    /// It would have stood under another version than its own, which it must not.
    Superseded,
    /// The time at which nothing is written any more had passed.
    Late,
    NotOwner,
    Failed(Fault),
}

/// A row that was decided on what was read.
pub(in crate::backend::redis) struct Decided {
    pub(in crate::backend::redis) at: RowKey,
    /// What it was decided on.
    pub(in crate::backend::redis) version: Option<Version>,
    pub(in crate::backend::redis) live: bool,
    pub(in crate::backend::redis) ring: OpRing,
    pub(in crate::backend::redis) gc_floor: u64,
    /// The row as it is to stand; `None` = as it is.
    pub(in crate::backend::redis) row: Option<Row>,
}

/// What became of rows that stand or fall together.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::backend::redis) enum Committed {
    Done,
    Late,
    NotOwner,
    /// Something that was read does not stand any more.
    Overtaken,
}

impl Shard {
    /// Writes, each by itself. Where the server is full, its deletes are not refused with the puts beside them.
    pub(in crate::backend::redis) async fn write(
        &self,
        proposals: &[Proposal],
        deadlines: Deadlines,
    ) -> Result<Vec<Word>, Fault> {
        let each: Vec<&Proposal> = proposals.iter().collect();
        let full = match self.proposed(&SCRIPTS.write, &each, deadlines).await? {
            Ok(words) => return Ok(words),
            Err(full) => full,
        };
        let deletes: Vec<&Proposal> = each.into_iter().filter(|proposal| proposal.body.is_none()).collect();
        if deletes.is_empty() {
            return Err(full);
        }
        // Nothing of the puts happened, whatever becomes of these.
        let words = match self.proposed(&SCRIPTS.delete, &deletes, deadlines).await {
            Ok(Ok(words)) => words,
            Ok(Err(fault)) | Err(fault) => vec![Word::Failed(fault); deletes.len()],
        };
        let mut words = words.into_iter();
        let word = |proposal: &Proposal| match proposal.body {
            Some(_) => Word::Failed(full.clone()),
            None => words.next().unwrap_or_else(|| Word::Failed(self.odd("fewer words than writes"))),
        };
        Ok(proposals.iter().map(word).collect())
    }

    /// One script of writes.
    async fn proposed(
        &self,
        script: &Script,
        proposals: &[&Proposal],
        deadlines: Deadlines,
    ) -> Result<Result<Vec<Word>, Fault>, Fault> {
        let mut ask = scripts::ask_rows(script, proposals.iter().map(|proposal| &proposal.at));
        ask.arg(self.deadline_ms(deadlines.first)?);
        for proposal in proposals {
            ask.arg(scripts::parameters(proposal)).arg(proposal.body.as_deref().unwrap_or_default());
        }
        let value = match self.unless_full(Stage::Write, script, &ask, deadlines.last).await? {
            Ok(value) => value,
            Err(full) => return Ok(Err(full)),
        };
        let words = self.array(value, proposals.len())?;
        Ok(Ok(words.iter().map(|word| self.word(word)).collect::<Result<_, _>>()?))
    }

    /// The word for a write, as `write.lua` gives it.
    fn word(&self, value: &Value) -> Result<Word, Fault> {
        let Value::BulkString(bytes) = value else {
            return Err(self.odd(&format!("{value:?} in place of a word")));
        };
        let text = String::from_utf8_lossy(bytes);
        let version = |at: usize| text.get(at..at + 32).and_then(|text| text.parse::<Version>().ok());
        let was = text.get(1..2) == Some("1");
        let word = match (text.get(..1), text.len()) {
            (Some("A"), _) => version(2)
                .zip(text.get(34..).and_then(|text| text.parse().ok()))
                .map(|(version, expires_at_ms)| Word::Applied { version, existed: was, expires_at_ms }),
            (Some("D"), 1) => Some(Word::Duplicate(None)),
            (Some("D"), _) => version(2).map(|version| Word::Duplicate(Some((version, was)))),
            (Some("F"), _) => Some(Word::Forgotten),
            (Some("C"), 1) => Some(Word::Conflict(None)),
            (Some("C"), _) => version(1).map(|version| Word::Conflict(Some(version))),
            (Some("S"), _) => Some(Word::Superseded),
            (Some("L"), _) => Some(Word::Late),
            (Some("N"), _) => Some(Word::NotOwner),
            (Some("E"), _) => Some(Word::Failed(refused_row(&self.name, &text[1..]))),
            _ => None,
        };
        word.ok_or_else(|| self.odd(&format!("the word {text:?}")))
    }

    /// Writes rows that were decided on what was read, all or none.
    pub(in crate::backend::redis) async fn commit(
        &self,
        rows: &[Decided],
        deadline: Instant,
    ) -> Result<Committed, Fault> {
        let full = match self.committed(&SCRIPTS.commit, rows, deadline).await? {
            Ok(committed) => return Ok(committed),
            Err(full) => full,
        };
        let grows = rows.iter().any(|decided| decided.row.as_ref().is_some_and(|row| row.body.is_some()));
        match grows {
            true => Err(full),
            false => self.committed(&SCRIPTS.commit_deletes, rows, deadline).await?,
        }
    }

    /// One script of rows that stand or fall together.
    async fn committed(
        &self,
        script: &Script,
        rows: &[Decided],
        deadline: Instant,
    ) -> Result<Result<Committed, Fault>, Fault> {
        let mut ask = scripts::ask_rows(script, rows.iter().map(|row| &row.at));
        ask.arg(self.deadline_ms(deadline)?);
        for Decided { at, version, live, ring, gc_floor, row } in rows {
            let version = version.map_or_else(|| "-".repeat(32), |version| version.to_string());
            let (live, ring) = (u8::from(*live), rows::remembered(ring));
            ask.arg(format!("{:04}1{gc_floor:016x}{version}{live}{ring}", at.slot));
            ask.arg(row.as_ref().map(rows::encode).unwrap_or_default());
        }
        let value = match self.unless_full(Stage::Write, script, &ask, deadline).await? {
            Ok(value) => value,
            Err(full) => return Ok(Err(full)),
        };
        Ok(Ok(match self.text(&value)?.as_ref() {
            "A" => Committed::Done,
            "L" => Committed::Late,
            "N" => Committed::NotOwner,
            "X" => Committed::Overtaken,
            other => match other.strip_prefix('E') {
                Some(error) => return Err(refused_row(&self.name, error)),
                None => return Err(self.odd(&format!("the word {other:?}"))),
            },
        }))
    }

    /// Merges rows that carry their versions; a word or the fault of each. Where the server is full, tombstones are not refused
    /// with the documents beside them.
    pub(in crate::backend::redis) async fn apply(
        &self,
        entries: &[&Entry],
        deadline: Instant,
    ) -> Result<Vec<Result<String, Fault>>, Fault> {
        let full = match self.merged(&SCRIPTS.apply, entries, deadline).await? {
            Ok(words) => return Ok(words.into_iter().map(Ok).collect()),
            Err(full) => full,
        };
        let deletes: Vec<&Entry> = entries.iter().copied().filter(|entry| entry.row.body.is_none()).collect();
        if deletes.is_empty() {
            return Err(full);
        }
        let mut words = self.merged(&SCRIPTS.apply_deletes, &deletes, deadline).await??.into_iter();
        let word = |entry: &&Entry| match entry.row.body {
            Some(_) => Err(full.clone()),
            None => words.next().ok_or_else(|| self.odd("fewer words than rows")),
        };
        Ok(entries.iter().map(word).collect())
    }

    /// One script of rows to merge.
    async fn merged(
        &self,
        script: &Script,
        entries: &[&Entry],
        deadline: Instant,
    ) -> Result<Result<Vec<String>, Fault>, Fault> {
        let mut ask = scripts::ask_rows(script, entries.iter().map(|entry| &entry.at));
        ask.arg(self.deadline_ms(deadline)?);
        for Entry { row, .. } in entries {
            ask.arg(rows::encode(row));
        }
        let value = match self.unless_full(Stage::Write, script, &ask, deadline).await? {
            Ok(value) => value,
            Err(full) => return Ok(Err(full)),
        };
        let words = self.array(value, entries.len())?;
        let word = |word: &Value| self.text(word).map(std::borrow::Cow::into_owned);
        Ok(Ok(words.iter().map(word).collect::<Result<_, _>>()?))
    }
}
