//! The statements of direct writes: unconditional ones, and those where something must hold.

use bytes::Bytes;
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use tokio::time::Instant;

use super::{Each, Shard};
use crate::backend::postgres::bind::{bind_proposals, kind};
use crate::backend::postgres::classify::Stage;
use crate::backend::postgres::connections::Loan;
use crate::backend::postgres::{rows, sql};
use crate::backend::remote::lane::Deadlines;
use crate::backend::{Row, RowKey};
use crate::model::Version;

/// A row as a write wants it to be.
#[derive(Debug, Clone)]
pub(in crate::backend::postgres) struct Proposal {
    pub(in crate::backend::postgres) at: RowKey,
    pub(in crate::backend::postgres) version: Version,
    /// `None` = a tombstone.
    pub(in crate::backend::postgres) body: Option<Bytes>,
    pub(in crate::backend::postgres) expires_at_ms: i64,
    /// 0 = none.
    pub(in crate::backend::postgres) op: u64,
}

/// What must hold for a proposal.
#[derive(Debug, Clone, Copy)]
pub(in crate::backend::postgres) struct Condition {
    pub(in crate::backend::postgres) wants: Wants,
    /// Keep the lifetime of a live record.
    pub(in crate::backend::postgres) keep: bool,
    pub(in crate::backend::postgres) lookback_ms: Option<i64>,
}

/// See [`crate::model::op::Precondition`].
#[derive(Debug, Clone, Copy)]
pub(in crate::backend::postgres) enum Wants {
    Anything,
    Absent,
    Exists,
    Version(Version),
}

/// What became of an unconditional write.
#[derive(Debug, Clone)]
pub(in crate::backend::postgres) struct Put {
    /// The version it got and whether a live record stood there.
    pub(in crate::backend::postgres) written: Option<(Version, bool)>,
    /// What stands there, for one that is not written.
    pub(in crate::backend::postgres) before: Before,
}

/// What stood under a key: enough to answer a repeated operation.
#[derive(Debug, Clone, Default)]
pub(in crate::backend::postgres) struct Before {
    pub(in crate::backend::postgres) version: Option<Version>,
    pub(in crate::backend::postgres) ops: Vec<i64>,
    pub(in crate::backend::postgres) was: bool,
}

/// What became of a conditional write.
#[derive(Debug, Clone)]
pub(in crate::backend::postgres) struct Cond {
    pub(in crate::backend::postgres) result: String,
    pub(in crate::backend::postgres) version: Option<Version>,
    pub(in crate::backend::postgres) expires_at_ms: i64,
    pub(in crate::backend::postgres) live: bool,
    pub(in crate::backend::postgres) before: Before,
}

impl Shard {
    /// Writes distinct keys, in their order.
    ///
    /// One that was to be written and was not says what stood there before.
    pub(in crate::backend::postgres) async fn put(
        &self,
        puts: &[Proposal],
        deadlines: Deadlines,
        connection: &mut Loan,
    ) -> Each<Put> {
        let (deadline_ms, deadline) = (self.deadline_ms(deadlines.first)?, deadlines.last);
        if let [put] = puts {
            return self.put_one(put, deadline_ms, deadline, connection).await;
        }
        self.put_many(sql::PUT, puts, deadline_ms, deadline, connection).await
    }

    /// The same under exactly the versions proposed, or not at all.
    pub(in crate::backend::postgres) async fn offer(
        &self,
        puts: &[Proposal],
        deadlines: Deadlines,
        connection: &mut Loan,
    ) -> Each<Put> {
        let (deadline_ms, deadline) = (self.deadline_ms(deadlines.first)?, deadlines.last);
        self.put_many(sql::OFFER, puts, deadline_ms, deadline, connection).await
    }

    async fn put_many(
        &self,
        statement: &'static str,
        puts: &[Proposal],
        deadline_ms: i64,
        deadline: Instant,
        connection: &mut Loan,
    ) -> Each<Put> {
        let query = bind_proposals(sqlx::query(statement), puts).bind(deadline_ms);
        let rows = self.run(Stage::Write, query, connection, deadline).await?;
        let judged = |error| self.judge(Stage::Write, &error);
        let mut written: Vec<Option<(Version, bool)>> = vec![None; puts.len()];
        for row in &rows {
            let (ns, key) = (row.try_get::<&str, _>(0), row.try_get::<&str, _>(1));
            let (ns, key) = (ns.map_err(judged)?, key.map_err(judged)?);
            let at =
                puts.binary_search_by(|put| (put.at.namespace.as_str(), put.at.key.as_str()).cmp(&(ns, key)));
            let version = rows::version(row, 2).map_err(judged)?;
            let was: bool = row.try_get(4).map_err(judged)?;
            if let Ok(at) = at {
                written[at] = version.map(|version| (version, was));
            }
        }
        Ok(self.explain(puts, written, deadline, connection).await)
    }

    /// Puts with what stands there now, for those that were not written.
    async fn explain(
        &self,
        puts: &[Proposal],
        written: Vec<Option<(Version, bool)>>,
        deadline: Instant,
        connection: &mut Loan,
    ) -> Vec<Option<Put>> {
        let done = |written| Some(Put { written: Some(written), before: Before::default() });
        let mut each: Vec<Option<Put>> = written.into_iter().map(|written| written.and_then(done)).collect();
        let missing: Vec<usize> = (0..puts.len()).filter(|at| each[*at].is_none()).collect();
        if missing.is_empty() {
            return each;
        }
        let keys: Vec<RowKey> = missing.iter().map(|at| puts[*at].at.clone()).collect();
        // The rows that were written are told of, whatever becomes of this look: without it, one that is missing is put again.
        let found = self.read_rows(&keys, deadline, connection).await;
        let found = found.map(|found| found.into_iter().map(|found| found.map(|(row, _)| row)).collect());
        let found: Vec<Option<Option<Row>>> = found.unwrap_or_else(|_| vec![Some(None); missing.len()]);
        for (at, found) in missing.into_iter().zip(found) {
            each[at] = found.map(|row| Put { written: None, before: row.map(stood).unwrap_or_default() });
        }
        each
    }

    async fn put_one(
        &self,
        put: &Proposal,
        deadline_ms: i64,
        deadline: Instant,
        connection: &mut Loan,
    ) -> Each<Put> {
        let query = sqlx::query(sql::PUT_ONE)
            .bind(i32::from(put.at.slot))
            .bind(put.at.namespace.as_str())
            .bind(put.at.key.as_str())
            .bind(put.version.hlc.cast_signed())
            .bind(put.version.origin.cast_signed())
            .bind(kind(put))
            .bind(put.expires_at_ms)
            .bind(put.op.cast_signed())
            .bind(put.body.as_deref())
            .bind(deadline_ms);
        let rows = self.run(Stage::Write, query, connection, deadline).await?;
        let Some(row) = rows.first() else {
            return Ok(vec![None]);
        };
        let read = || -> Result<_, sqlx::Error> {
            let was: Option<bool> = row.try_get(2)?;
            Ok(rows::version(row, 0)?.zip(was))
        };
        let written = read().map_err(|error| self.judge(Stage::Write, &error))?;
        Ok(self.explain(std::slice::from_ref(put), vec![written], deadline, connection).await)
    }

    /// Writes distinct keys where what must hold holds.
    pub(in crate::backend::postgres) async fn cond(
        &self,
        writes: &[(Proposal, Condition)],
        deadline: Instant,
        connection: &mut Loan,
    ) -> Each<Cond> {
        let deadline_ms = self.deadline_ms(deadline)?;
        let proposals: Vec<Proposal> = writes.iter().map(|(proposal, _)| proposal.clone()).collect();
        let wants = |condition: &Condition| match condition.wants {
            Wants::Anything => (0_i16, 0, 0),
            Wants::Absent => (1, 0, 0),
            Wants::Exists => (2, 0, 0),
            Wants::Version(version) => (3, version.hlc.cast_signed(), version.origin.cast_signed()),
        };
        let column = |of: fn((i16, i64, i64)) -> i64| -> Vec<i64> {
            writes.iter().map(|(_, condition)| of(wants(condition))).collect()
        };
        let query = bind_proposals(sqlx::query(sql::COND), &proposals)
            .bind(writes.iter().map(|(_, condition)| wants(condition).0).collect::<Vec<i16>>())
            .bind(column(|(_, hlc, _)| hlc))
            .bind(column(|(_, _, origin)| origin))
            .bind(writes.iter().map(|(_, condition)| condition.keep).collect::<Vec<bool>>())
            .bind(
                writes.iter().map(|(_, condition)| condition.lookback_ms.unwrap_or(-1)).collect::<Vec<i64>>(),
            )
            .bind(deadline_ms);
        let rows = self.run(Stage::Write, query, connection, deadline).await?;
        self.each(Stage::Write, writes.len(), &rows, |row| {
            Ok(Cond {
                result: sqlx::Row::try_get(row, "res")?,
                version: rows::version(row, 1)?,
                expires_at_ms: sqlx::Row::try_get::<Option<i64>, _>(row, "expires")?.unwrap_or(0),
                live: sqlx::Row::try_get(row, "live")?,
                before: before(row, 6)?,
            })
        })
    }
}

/// What a row says of the operations that made it.
fn stood(row: Row) -> Before {
    let ops = row.ring.entries.iter().flat_map(|(op, print)| [op.cast_signed(), print.cast_signed()]);
    Before { version: Some(row.version), ops: ops.collect(), was: row.was }
}

/// What stood there, in the four columns from a place on.
fn before(row: &PgRow, place: usize) -> Result<Before, sqlx::Error> {
    let ops: Option<Vec<i64>> = sqlx::Row::try_get(row, place + 2)?;
    let was: Option<bool> = sqlx::Row::try_get(row, place + 3)?;
    let version = rows::version(row, place)?;
    Ok(Before { version, ops: ops.unwrap_or_default(), was: was.unwrap_or(false) })
}
