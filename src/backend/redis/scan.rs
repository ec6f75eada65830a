//! Pages, sweeps and what a namespace notes.

use bytes::Bytes;
use futures_util::future::join_all;
use redis::{Cmd, Value};
use tokio::time::Instant;

use super::classify::Stage;
use super::scripts::{
    self, DURABILITY_KEY, PARTITIONING_KEY, RECORDS_PATTERN, REPLACE, SCRIPTS, SHARD_KEY, SLOTS_KEY,
};
use super::shard::Shard;
use super::{CALL_MAX, Server, Shared};
use crate::backend::remote::merge::{LOAD_BYTES_MAX, Part, Walked, merge};
use crate::backend::remote::{Fault, RETRY_AFTER_MS, Remedy};
use crate::backend::{EXAMINED_PER_ROW_MAX, Noting, Page, Range, Swept};
use crate::model::limits::CLOCK_EPSILON_MS;
use crate::model::{Error, Namespace, Result};

/// Rows that the script of one page looks at: it stops the whole server for so long.
const PAGE_ROWS_MAX: usize = 2000;
/// Keys that one step of a sweep asks for; the server gives about so many.
const WALK_KEYS: usize = 1000;
/// Rows of one script of a sweep.
const BURY_ROWS_MAX: usize = 250;

impl Shared {
    /// A page over all shards: each gives its own, and the smallest keys of all make the page.
    pub(super) async fn scan(&self, range: &Range, deadline: Instant) -> Result<Page> {
        let examined = range.limit.saturating_mul(EXAMINED_PER_ROW_MAX).min(PAGE_ROWS_MAX);
        let unplaced = self.unplaced.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        if let Some(why) = unplaced {
            return Err(Error::unavailable(why, RETRY_AFTER_MS));
        }
        let oldest = Instant::now().checked_sub(range.staleness);
        let parts = self.shards.iter().map(async |Server { shard, replicas, .. }| {
            if let (Some(replicas), Some(oldest)) = (replicas, oldest)
                && !range.staleness.is_zero()
                && let Some((part, as_of)) = replicas.page(range, examined, oldest, deadline).await
            {
                return Ok((part, Some(as_of)));
            }
            if let Some(fault) = shard.fault() {
                return Err(Error::unavailable(fault, RETRY_AFTER_MS));
            }
            let mark = shard.mark().unwrap_or_default();
            let part = shard.page(range, examined, &mark, deadline).await.map_err(|fault| fault.error)?;
            Ok((part, None))
        });
        let (mut pages, mut as_of) = (Vec::new(), None);
        for part in join_all(parts).await {
            let (page, shown_as_of) = part?;
            pages.push(Part::of(page, examined));
            as_of = as_of.into_iter().chain(shown_as_of).min();
        }
        Ok(Page { as_of, ..merge(pages, range, examined)? })
    }

    /// One step over one shard; the first two bytes of `resume` say which, the rest is the server's own cursor.
    pub(super) async fn sweep(&self, resume: Option<Vec<u8>>, grace_ms: i64) -> Result<Swept> {
        let resume = resume.unwrap_or_default();
        let (index, cursor) = match resume.split_first_chunk::<2>() {
            Some((index, cursor)) => (usize::from(u16::from_be_bytes(*index)), cursor),
            None => (0, &b"0"[..]),
        };
        let Some(Server { shard, .. }) = self.shards.get(index) else {
            return Ok(Swept::default());
        };
        if let Some(fault) = shard.fault() {
            return Err(Error::unavailable(fault, RETRY_AFTER_MS));
        }
        let (mut swept, cursor) = shard.sweep(cursor, grace_ms).await.map_err(|fault| fault.error)?;
        let next = match cursor {
            Some(cursor) => Some((index, cursor)),
            None if index + 1 < self.shards.len() => Some((index + 1, b"0".to_vec())),
            None => None,
        };
        swept.resume = next.map(|(index, cursor)| {
            let index = u16::try_from(index).unwrap_or(u16::MAX);
            [&index.to_be_bytes()[..], &cursor].concat()
        });
        Ok(swept)
    }
}

/// The script whose answer [`Shard::walked`] reads: a part of a page, by the given time or the server's own.
pub(super) fn page(range: &Range, examined: usize, mark: &str, now_ms: Option<i64>) -> Cmd {
    // `[` begins an inclusive bound, `(` an exclusive one; `-` and `+` are the ends.
    let mut low = format!("[{}", range.start);
    let mut high = range.end.as_ref().map_or_else(|| "+".to_owned(), |end| format!("({end}"));
    if let Some(after) = &range.after {
        *(if range.reverse { &mut high } else { &mut low }) = format!("({after}");
    }
    let (from, to) = if range.reverse { (high, low) } else { (low, high) };
    let mut ask = scripts::ask(&SCRIPTS.scan, [scripts::order(&range.namespace), SHARD_KEY.to_owned()]);
    ask.arg(mark).arg(scripts::records(&range.namespace)).arg(from).arg(to);
    ask.arg(if range.reverse { "REV" } else { "" }).arg(examined).arg(range.limit);
    ask.arg(range.max_bytes).arg(LOAD_BYTES_MAX).arg(u8::from(range.keys_only));
    ask.arg(now_ms.map_or_else(String::new, |ms| ms.to_string()));
    ask
}

impl Shard {
    /// Its part of a page.
    async fn page(
        &self,
        range: &Range,
        examined: usize,
        mark: &str,
        deadline: Instant,
    ) -> Result<Vec<Walked>, Fault> {
        let command = page(range, examined, mark, None);
        let value = self.run(Stage::Read, &SCRIPTS.scan, &command, deadline).await?;
        self.walked(range, value)
    }

    /// The rows that the script of a page gave.
    pub(super) fn walked(&self, range: &Range, value: Value) -> Result<Vec<Walked>, Fault> {
        let Value::Array(told) = value else { return Err(self.odd("no page")) };
        let mut told = told.into_iter();
        let now_ms = match told.next() {
            Some(Value::Int(ms)) => ms,
            Some(_) => return Err(self.odd("no time")),
            None => {
                let message = format!("Redis {:?} is not the server it was", self.name);
                let error = Error::unavailable(message, RETRY_AFTER_MS);
                return Err(Fault { error, remedy: Remedy::Again });
            }
        };
        let mut walked = Vec::with_capacity(told.len() / 2);
        while let (Some(key), Some(row)) = (told.next(), told.next()) {
            let key = self.text(&key)?.into_owned();
            let (found, load) = match row {
                Value::BulkString(row) if row.is_empty() => (None, 0),
                Value::BulkString(row) => {
                    let load = row.len();
                    let row = self.row(Value::BulkString(row));
                    (Some(row.map(|row| row.map(|row| row.found(now_ms)))), load)
                }
                _ => (None, 0),
            };
            let found = match found {
                Some(Ok(found)) => found.filter(|found| found.live.is_some()).map(Ok),
                Some(Err(fault)) => Some(Err(fault.error)),
                None => None,
            };
            let counted = if range.keys_only { 0 } else { load };
            let bytes = if found.is_some() { key.len() + counted } else { 0 };
            walked.push(Walked { key, found, bytes, load });
        }
        Ok(walked)
    }

    /// One step of a sweep from a cursor on; gives the next one.
    async fn sweep(&self, cursor: &[u8], grace_ms: i64) -> Result<(Swept, Option<Vec<u8>>), Fault> {
        let deadline = Instant::now() + CALL_MAX;
        let walk = redis::cmd("SCAN")
            .arg(cursor)
            .arg("MATCH")
            .arg(RECORDS_PATTERN)
            .arg("COUNT")
            .arg(WALK_KEYS)
            .to_owned();
        let mut told = self.array(self.call(Stage::Read, &walk, deadline).await?, 2)?.into_iter();
        let (Some(Value::BulkString(next)), Some(Value::Array(records))) = (told.next(), told.next()) else {
            return Err(self.odd("no step of a walk"));
        };
        let mut swept = Swept { examined: records.len(), ..Swept::default() };
        for part in records.chunks(BURY_ROWS_MAX) {
            let mut keys = vec![Bytes::from_static(SLOTS_KEY.as_bytes())];
            for record in part {
                if let Value::BulkString(record) = record
                    && let Some(order) = scripts::order_of(record)
                {
                    keys.extend([Bytes::copy_from_slice(record), order.into()]);
                }
            }
            let mut bury = redis::cmd("EVALSHA");
            bury.arg(&SCRIPTS.bury.hash).arg(keys.len());
            for key in &keys {
                bury.arg(key.as_ref());
            }
            bury.arg(grace_ms).arg(CLOCK_EPSILON_MS);
            // What is dead is dead: burying it twice is as once.
            let value = self.run(Stage::Read, &SCRIPTS.bury, &bury, Instant::now() + CALL_MAX).await?;
            let counts = self.array(value, 5)?;
            let count = |at: usize| match counts[at] {
                Value::Int(count) => usize::try_from(count).unwrap_or(0),
                _ => 0,
            };
            swept.expired += count(0);
            swept.removed += count(1);
            if count(2) > 0 {
                let (row, why) = (self.text(&counts[3])?, self.text(&counts[4])?);
                let damaged = count(2);
                tracing::warn!(shard = self.name, damaged, %row, "rows that cannot be read are not swept: {why}");
            }
        }
        Ok((swept, (next != b"0").then_some(next)))
    }

    /// Notes how a namespace is partitioned where nothing is noted yet; gives what stands.
    pub(super) async fn partitioning(
        &self,
        namespace: &Namespace,
        first: Option<String>,
    ) -> Result<Option<String>, Fault> {
        let noting = first.map_or(Noting::Look, Noting::First);
        self.noted(PARTITIONING_KEY, namespace, &noting).await
    }

    /// Notes a namespace's durability as asked; gives what stands.
    pub(super) async fn durability(
        &self,
        namespace: &Namespace,
        noting: &Noting,
    ) -> Result<Option<String>, Fault> {
        self.noted(DURABILITY_KEY, namespace, noting).await
    }

    async fn noted(
        &self,
        hash: &str,
        namespace: &Namespace,
        noting: &Noting,
    ) -> Result<Option<String>, Fault> {
        let (deadline, field) = (Instant::now() + CALL_MAX, namespace.as_str());
        let get = redis::cmd("HGET").arg(hash).arg(field).to_owned();
        let read = async || match self.call(Stage::Read, &get, deadline).await? {
            Value::Nil => Ok(None),
            noted => Ok(Some(self.text(&noted)?.into_owned())),
        };
        // Asked first, because a full server refuses to note it even where it is noted, and deletes wait for this.
        let noted = read().await?;
        let Some(written) = noting.written(noted.as_deref()) else { return Ok(noted) };
        let note = match noting {
            Noting::Replace { from, .. } => {
                let mut note = redis::cmd("EVAL");
                note.arg(REPLACE).arg(1).arg(hash).arg(field).arg(from).arg(written);
                note
            }
            _ => redis::cmd("HSETNX").arg(hash).arg(field).arg(written).to_owned(),
        };
        // Nothing is lost by noting it twice, so this is no write that may have happened.
        self.call(Stage::Read, &note, deadline).await?;
        read().await
    }
}
