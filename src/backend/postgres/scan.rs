//! Pages and sweeps.
//!
//! A page reads each server once, in one statement that also tells which slots the server owned in the same snapshot. It stands only
//! if they are all of them together: one that moved between two servers while they were asked would be missing, or there twice.

use std::collections::BTreeMap;

use sqlx::Row as _;
use tokio::time::Instant;

use super::classify::Stage;
use super::connections::Loan;
use super::shard::Shard;
use super::{Server, Shared, rows, sql};
use crate::backend::remote::merge::{self, LOAD_BYTES_MAX, Walked};
use crate::backend::remote::{Fault, NOBODY, Pause, RETRY_AFTER_MS, Remedy};
use crate::backend::{EXAMINED_PER_ROW_MAX, Page, Range, SWEEP_ROWS_MAX, Swept};
use crate::model::clock::hlc_at;
use crate::model::limits::{CLOCK_EPSILON_MS, KEY_BYTES_MAX};
use crate::model::{Error, Result};
use crate::placement::SLOTS;

/// What one server gives to a page.
pub(super) struct Part {
    walked: merge::Part,
    /// The slots it owned, a bit for each, the first one highest in its byte.
    slots: Vec<u8>,
}

/// Bytes of a set of slots.
const SLOTS_BYTES: usize = SLOTS as usize / 8;

impl Shared {
    /// A page over all shards: each gives its own, and the smallest keys of all make the page.
    pub(super) async fn scan(&self, range: &Range, deadline: Instant) -> Result<Page> {
        let mut pause = Pause::new(deadline);
        // What an earlier try met says more than that the last one was cut off.
        let mut met = None;
        let mut aged = !range.staleness.is_zero();
        loop {
            if let Some(slot) = (0..SLOTS).find(|slot| self.owner_index(*slot) == NOBODY) {
                return Err(self.unplaced(slot));
            }
            let (fault, budget) = match self.parts(range, aged, deadline).await {
                Ok((parts, as_of)) if is_whole(&parts) => {
                    let parts = parts.into_iter().map(|part| part.walked).collect();
                    let examined = range.limit.saturating_mul(EXAMINED_PER_ROW_MAX);
                    return Ok(Page { as_of, ..merge::merge(parts, range, examined)? });
                }
                Ok(_) => {
                    self.moved.notify_one();
                    let message = "slots are being moved from one server to another";
                    let error = Error::unavailable(message, RETRY_AFTER_MS);
                    (Fault { error, remedy: Remedy::Again }, &self.shards[0].shard.budget)
                }
                Err((fault, shard)) => (fault, &shard.budget),
            };
            // What a replica shows of a move may be long over.
            aged = false;
            if Instant::now() >= deadline {
                let late = || Error::deadline("PostgreSQL did not answer the scan in time");
                return Err(met.unwrap_or_else(late));
            }
            if !pause.repeats(&fault, budget).await {
                return Err(fault.error);
            }
            met = Some(fault.error);
        }
    }

    /// What each server has of a page, and how old that may be.
    async fn parts(
        &self,
        range: &Range,
        aged: bool,
        deadline: Instant,
    ) -> Result<(Vec<Part>, Option<Instant>), (Fault, &Shard)> {
        let (mut parts, mut as_of) = (Vec::new(), None);
        let oldest = Instant::now().checked_sub(range.staleness).filter(|_| aged);
        for Server { shard, replicas, .. } in &self.shards {
            if let (Some(replicas), Some(oldest)) = (replicas, oldest)
                && let Some((part, shown)) = replicas.page(range, oldest, deadline).await
            {
                as_of = Some(as_of.map_or(shown, |as_of: Instant| as_of.min(shown)));
                parts.push(part);
                continue;
            }
            if let Some(fault) = shard.fault() {
                let error = Error::unavailable(fault, RETRY_AFTER_MS);
                return Err((Fault { error, remedy: Remedy::None }, shard));
            }
            let part = async {
                let mut connection = shard.connection_by(deadline).await?;
                shard.page(range, None, deadline, &mut connection).await
            };
            parts.push(part.await.map_err(|fault| (fault, &**shard))?);
            shard.budget.succeeded();
        }
        Ok((parts, as_of))
    }

    /// One step over one shard; the first two bytes of `resume` say which.
    pub(super) async fn sweep(&self, resume: Option<Vec<u8>>, grace_ms: i64) -> Result<Swept> {
        let resume = resume.unwrap_or_default();
        let (index, after) = match resume.split_first_chunk::<2>() {
            Some((index, after)) => (usize::from(u16::from_be_bytes(*index)), after),
            None => (0, &resume[..]),
        };
        let Some(Server { shard, .. }) = self.shards.get(index) else {
            return Ok(Swept::default());
        };
        // One that is not there has its turn at the next walk; the others need not wait for it.
        let mut swept = match shard.fault() {
            Some(_) => Swept::default(),
            None => shard.sweep(after, grace_ms).await.map_err(|fault| fault.error)?,
        };
        let next = match swept.resume.take() {
            Some(after) => Some((index, after)),
            None if index + 1 < self.shards.len() => Some((index + 1, Vec::new())),
            None => None,
        };
        swept.resume = next.map(|(index, after)| {
            let index = u16::try_from(index).unwrap_or(u16::MAX);
            [&index.to_be_bytes()[..], &after].concat()
        });
        Ok(swept)
    }
}

/// Whether the servers owned all slots together.
fn is_whole(parts: &[Part]) -> bool {
    let owned = |byte: usize| parts.iter().fold(0, |bits, part| bits | part.slots.get(byte).unwrap_or(&0));
    (0..SLOTS_BYTES).all(|byte| owned(byte) == u8::MAX)
}

impl Shard {
    /// Its part of a page; a replica's by the primary's time.
    pub(super) async fn page(
        &self,
        range: &Range,
        now_ms: Option<i64>,
        until: Instant,
        connection: &mut Loan,
    ) -> Result<Part, Fault> {
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let statement = match (now_ms, range.reverse) {
            (None, false) => sql::SCAN,
            (None, true) => sql::SCAN_REVERSE,
            (Some(_), false) => sql::SCAN_REPLICA,
            (Some(_), true) => sql::SCAN_REVERSE_REPLICA,
        };
        // Every key lies behind "" and in front of one that is longer than any and of the greatest letters.
        let mut above = "";
        let mut end = range.end.clone().unwrap_or_else(|| "\u{10ffff}".repeat(KEY_BYTES_MAX / 4 + 1));
        match &range.after {
            Some(after) if range.reverse => end = end.min(after.clone()),
            Some(after) => above = after,
            None => {}
        }
        let query = sqlx::query(statement)
            .bind(range.namespace.as_str())
            .bind(&range.start)
            .bind(end)
            .bind(above)
            .bind(count(range.limit))
            .bind(count(range.max_bytes))
            .bind(range.keys_only)
            .bind(count(LOAD_BYTES_MAX))
            .bind(count(range.limit))
            .bind(count(EXAMINED_PER_ROW_MAX - 1));
        let query = if let Some(now_ms) = now_ms { query.bind(now_ms) } else { query };
        let judged = |error| self.judge(Stage::Read, &error);
        let rows = connection.rows(query, until).await.map_err(judged)?;
        let mut part = part(&rows).map_err(judged)?;
        part.walked.rows.sort_unstable_by(|one, other| match range.reverse {
            false => one.key.cmp(&other.key),
            true => other.key.cmp(&one.key),
        });
        Ok(part)
    }

    async fn sweep(&self, after: &[u8], grace_ms: i64) -> Result<Swept, Fault> {
        let judge = |error: sqlx::Error| self.judge(Stage::Write, &error);
        let split = after.iter().position(|byte| *byte == 0).unwrap_or(after.len());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (namespace, key) = (text(&after[..split]), text(after.get(split + 1..).unwrap_or_default()));
        let mut connection = self.connection().await?;
        let walk = sqlx::query(sql::WALK)
            .bind(namespace)
            .bind(key)
            .bind(i64::try_from(SWEEP_ROWS_MAX).unwrap_or(i64::MAX))
            .bind(CLOCK_EPSILON_MS);
        let rows = connection.rows_in_time(walk).await.map_err(judge)?;
        let mut swept = Swept { examined: rows.len(), ..Swept::default() };
        let (mut expired, mut old) = (Dead::default(), BTreeMap::<i32, Dead>::new());
        let mut floor = 0;
        for row in &rows {
            let now: i64 = row.try_get("now").map_err(judge)?;
            floor = hlc_at(now.saturating_sub(grace_ms)).cast_signed();
            let due: String = row.try_get("due").map_err(judge)?;
            match due.as_str() {
                "expired" => expired.push(row).map_err(judge)?,
                "tombstone" if row.try_get::<i64, _>("hlc").map_err(judge)? <= floor => {
                    let slot = row.try_get("slot").map_err(judge)?;
                    old.entry(slot).or_default().push(row).map_err(judge)?;
                }
                _ => {}
            }
        }
        if !expired.keys.is_empty() {
            let done = connection.rows_in_time(expired.bind(sqlx::query(sql::BURY))).await.map_err(judge)?;
            swept.expired = done.len();
        }
        // One slot at a time: nobody writes into it meanwhile.
        for (slot, dead) in old {
            let remove = dead.bind(sqlx::query(sql::REMOVE)).bind(slot).bind(floor);
            swept.removed += connection.rows_in_time(remove).await.map_err(judge)?.len();
        }
        if let Some(last) = rows.last().filter(|_| rows.len() == SWEEP_ROWS_MAX) {
            let (namespace, key): (String, String) =
                (last.try_get("ns").map_err(judge)?, last.try_get("key").map_err(judge)?);
            swept.resume = Some([namespace.as_bytes(), &[0], key.as_bytes()].concat());
        }
        Ok(swept)
    }
}

/// What a page's statement gives, in no order.
fn part(rows: &[sqlx::postgres::PgRow]) -> Result<Part, sqlx::Error> {
    let walked = merge::Part { rows: Vec::with_capacity(rows.len()), stopped: false };
    let mut part = Part { walked, slots: Vec::new() };
    let count = |row: &sqlx::postgres::PgRow, column| {
        Ok::<_, sqlx::Error>(usize::try_from(row.try_get::<i32, _>(column)?).unwrap_or(0))
    };
    for row in rows {
        if let Some(slots) = row.try_get::<Option<&[u8]>, _>("slots")? {
            // Four bytes in front tell how many bits there are.
            part.slots = slots.get(4..).unwrap_or_default().to_vec();
            part.walked.stopped = row.try_get("live")?;
            continue;
        }
        let found = rows::found(row)?.filter(|found| found.live.is_some()).map(Ok);
        let (bytes, load) = (count(row, "size")?, count(row, "load")?);
        part.walked.rows.push(Walked { key: row.try_get("key")?, found, bytes, load });
    }
    Ok(part)
}

/// Rows that a sweep saw dead.
#[derive(Default)]
struct Dead {
    namespaces: Vec<String>,
    keys: Vec<String>,
    hlcs: Vec<i64>,
    origins: Vec<i64>,
}

impl Dead {
    fn push(&mut self, row: &sqlx::postgres::PgRow) -> Result<(), sqlx::Error> {
        self.namespaces.push(row.try_get("ns")?);
        self.keys.push(row.try_get("key")?);
        self.hlcs.push(row.try_get("hlc")?);
        self.origins.push(row.try_get("origin")?);
        Ok(())
    }

    fn bind<'q>(
        &self,
        query: sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>,
    ) -> sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments> {
        query
            .bind(self.namespaces.clone())
            .bind(self.keys.clone())
            .bind(self.hlcs.clone())
            .bind(self.origins.clone())
    }
}
