//! Pages, sweeps and what a namespace notes.

use sqlx::Row as _;
use tokio::time::Instant;

use super::classify::Stage;
use super::connections::Loan;
use super::shard::Shard;
use super::{Server, Shared, rows, sql};
use crate::backend::remote::merge::{LOAD_BYTES_MAX, Walked, merge};
use crate::backend::remote::{Fault, NOBODY, RETRY_AFTER_MS};
use crate::backend::{EXAMINED_PER_ROW_MAX, Page, Range, SWEEP_ROWS_MAX, Swept};
use crate::model::clock::hlc_at;
use crate::model::limits::CLOCK_EPSILON_MS;
use crate::model::{Error, Namespace, Result};

impl Shared {
    /// A page over all shards: each gives its own, and the smallest keys of all make the page.
    pub(super) async fn scan(&self, range: &Range, deadline: Instant) -> Result<Page> {
        let (mut parts, mut as_of) = (Vec::new(), None);
        let examined = range.limit.saturating_mul(EXAMINED_PER_ROW_MAX);
        let oldest = Instant::now().checked_sub(range.staleness);
        for Server { shard, replicas, .. } in &self.shards {
            if let (Some(replicas), Some(oldest)) = (replicas, oldest)
                && !range.staleness.is_zero()
                && let Some((replica, mut connection, shown_as_of, now_ms)) =
                    replicas.borrow(oldest, deadline).await
                && let Ok(part) = replica.page(range, examined, Some(now_ms), &mut connection).await
            {
                as_of = Some(as_of.map_or(shown_as_of, |as_of: Instant| as_of.min(shown_as_of)));
                parts.push(part);
                continue;
            }
            if let Some(fault) = shard.fault() {
                return Err(Error::unavailable(fault, RETRY_AFTER_MS));
            }
            let mut connection = shard.connection().await.map_err(|fault| fault.error)?;
            let part = shard.page(range, examined, None, &mut connection).await;
            parts.push(part.map_err(|fault| fault.error)?);
        }
        if let Some(slot) =
            self.owners.iter().position(|owner| owner.load(std::sync::atomic::Ordering::Acquire) == NOBODY)
        {
            let message = format!("slot {slot} is on no server that answers");
            return Err(Error::unavailable(message, RETRY_AFTER_MS));
        }
        Ok(Page { as_of, ..merge(parts, range, examined)? })
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
        if let Some(fault) = shard.fault() {
            return Err(Error::unavailable(fault, RETRY_AFTER_MS));
        }
        let mut swept = shard.sweep(after, grace_ms).await.map_err(|fault| fault.error)?;
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

impl Shard {
    /// Its part of a page; a replica's by the primary's time.
    async fn page(
        &self,
        range: &Range,
        examined: usize,
        now_ms: Option<i64>,
        connection: &mut Loan,
    ) -> Result<Vec<Walked>, Fault> {
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let statement = match (now_ms, range.reverse) {
            (None, false) => sql::SCAN,
            (None, true) => sql::SCAN_REVERSE,
            (Some(_), false) => sql::SCAN_REPLICA,
            (Some(_), true) => sql::SCAN_REVERSE_REPLICA,
        };
        let query = sqlx::query(statement)
            .bind(range.namespace.as_str())
            .bind(&range.start)
            .bind(&range.end)
            .bind(&range.after)
            .bind(count(examined))
            .bind(count(range.max_bytes))
            .bind(range.keys_only)
            .bind(count(LOAD_BYTES_MAX))
            .bind(count(range.limit));
        let query = if let Some(now_ms) = now_ms { query.bind(now_ms) } else { query };
        let rows = connection.rows_in_time(query).await.map_err(|error| self.judge(Stage::Read, &error))?;
        let walked = |row: &sqlx::postgres::PgRow| -> Result<Walked, sqlx::Error> {
            let found = rows::found(row)?.filter(|found| found.live.is_some()).map(Ok);
            let count =
                |column| Ok::<_, sqlx::Error>(usize::try_from(row.try_get::<i32, _>(column)?).unwrap_or(0));
            Ok(Walked { key: row.try_get("key")?, found, bytes: count("size")?, load: count("load")? })
        };
        rows.iter().map(walked).collect::<Result<_, _>>().map_err(|error| self.judge(Stage::Read, &error))
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
        let (mut expired, mut old, mut slots) = (Dead::default(), Dead::default(), Vec::<i32>::new());
        let mut floor = 0;
        for row in &rows {
            let now: i64 = row.try_get("now").map_err(judge)?;
            floor = hlc_at(now.saturating_sub(grace_ms)).cast_signed();
            let due: String = row.try_get("due").map_err(judge)?;
            match due.as_str() {
                "expired" => expired.push(row).map_err(judge)?,
                "tombstone" if row.try_get::<i64, _>("hlc").map_err(judge)? <= floor => {
                    old.push(row).map_err(judge)?;
                    slots.push(row.try_get("slot").map_err(judge)?);
                }
                _ => {}
            }
        }
        if !expired.keys.is_empty() {
            let done = connection.rows_in_time(expired.bind(sqlx::query(sql::BURY))).await.map_err(judge)?;
            swept.expired = done.len();
        }
        if !old.keys.is_empty() {
            connection.begin(connection.in_time()).await.map_err(judge)?;
            connection.rows_in_time(sqlx::query(sql::CLOSE_SLOTS).bind(&slots)).await.map_err(judge)?;
            let raise = sqlx::query(sql::RAISE_FLOORS).bind(&slots).bind(floor);
            connection.rows_in_time(raise).await.map_err(judge)?;
            let done = connection.rows_in_time(old.bind(sqlx::query(sql::REMOVE))).await.map_err(judge)?;
            connection.commit(connection.in_time()).await.map_err(judge)?;
            swept.removed = done.len();
        }
        if let Some(last) = rows.last().filter(|_| rows.len() == SWEEP_ROWS_MAX) {
            let (namespace, key): (String, String) =
                (last.try_get("ns").map_err(judge)?, last.try_get("key").map_err(judge)?);
            swept.resume = Some([namespace.as_bytes(), &[0], key.as_bytes()].concat());
        }
        Ok(swept)
    }

    /// Notes how a namespace is partitioned where nothing is noted yet; gives what stands.
    pub(super) async fn partitioning(
        &self,
        namespace: &Namespace,
        first: Option<&str>,
    ) -> Result<Option<String>, Fault> {
        let judge = |error: sqlx::Error| self.judge(Stage::Read, &error);
        let mut connection = self.connection().await?;
        if let Some(first) = first {
            // Nothing is lost by noting it twice, so this is no write that may have happened.
            let note = sqlx::query(sql::NOTE_PARTITIONING).bind(namespace.as_str()).bind(first);
            connection.rows_in_time(note).await.map_err(judge)?;
        }
        let rows = connection.rows_in_time(sqlx::query(sql::PARTITIONING).bind(namespace.as_str())).await;
        rows.map_err(judge)?.first().map(|row| row.try_get(0)).transpose().map_err(judge)
    }
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
