//! Atomic batches: one transaction on one server, in which all is locked, decided, and stored.
//!
//! The keys that have a row are locked in the order of keys, as every statement does. One that has none cannot be locked before it
//! is stored, so a batch that creates records can meet a statement that created one of them and waits for another: the server
//! ends one of the two, which changed nothing and is repeated.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::time::Instant;

use super::Shared;
use super::classify::Stage;
use super::connections::Loan;
use super::shard::Shard;
use super::write::{Attempt, too_late};
use crate::backend::remote::sent::Sent;
use crate::backend::remote::{Fault, Pause, Remedy};
use crate::backend::{Row, RowKey, Write, Written, group, late};
use crate::model::{Code, Error, Result};

/// Rows of one of its statements.
const STATEMENT_ROWS_MAX: usize = 256;

impl Shared {
    /// Writes all or nothing, in one transaction on one server.
    pub(super) async fn write_atomic(
        &self,
        writes: &[Write],
        deadline: Instant,
        sent: &Sent,
    ) -> Result<Vec<Written>, (usize, Error)> {
        let Some(first) = writes.first() else { return Ok(Vec::new()) };
        let mut pause = Pause::new(deadline);
        loop {
            let shard = &self.server(first.at.slot).map_err(|error| (0, error))?.shard;
            match self.transaction(shard, writes, deadline, sent).await {
                Ok(done) => {
                    shard.budget.succeeded();
                    return done;
                }
                Err(fault) if pause.repeats(&fault, &shard.budget).await => {}
                Err(fault) => return Err((0, fault.error)),
            }
        }
    }

    /// One attempt.
    async fn transaction(
        &self,
        shard: &Shard,
        writes: &[Write],
        deadline: Instant,
        sent: &Sent,
    ) -> Attempt<Result<Vec<Written>, (usize, Error)>> {
        let mut connection = shard.connection_by(deadline).await?;
        connection.begin(deadline).await.map_err(|error| shard.judge(Stage::Read, &error))?;
        let written = match self.decide_all(shard, writes, deadline, &mut connection).await.map_err(again)? {
            Ok(written) => written,
            Err(failed) => {
                // Where this fails, the connection goes, and takes the transaction with it.
                drop(connection.rollback(deadline).await);
                return Ok(Err(failed));
            }
        };
        // Until here nothing can have happened.
        if !sent.begin() {
            return Err(too_late());
        }
        let committed = connection.commit(deadline).await.map_err(|error| shard.judge(Stage::Write, &error));
        sent.ended(&committed);
        committed.map(|()| Ok(written))
    }

    async fn decide_all(
        &self,
        shard: &Shard,
        writes: &[Write],
        deadline: Instant,
        connection: &mut Loan,
    ) -> Attempt<Result<Vec<Written>, (usize, Error)>> {
        // In the order of keys for the locks; what is answered is in the order asked.
        let mut keys: Vec<RowKey> = writes.iter().map(|write| write.at.clone()).collect();
        keys.sort_by(|one, other| (one.key.as_str()).cmp(other.key.as_str()));
        keys.dedup();
        let mut table = Locked::default();
        let mut now = None;
        for part in keys.chunks(STATEMENT_ROWS_MAX) {
            let read = shard.lock_rows(part, deadline, connection).await?;
            for (at, row) in part.iter().zip(read) {
                let Some((row, seen)) = row else { return Err(self.not_owner(at)) };
                now = Some(seen);
                table.rows.insert(group::stored_key(at), row.map(Arc::new));
            }
        }
        let Some(now) = now else { return Ok(Ok(Vec::new())) };
        // All writes are of one partition, so of one slot.
        table.gc_floor = now.gc_floor;
        let mut group = group::Group::new(&table, now.wall_ms);
        let written = match group.write_atomic(writes) {
            Ok(written) => written,
            Err(failed) => return Ok(Err(failed)),
        };
        let mut changes = group.into_changes().rows;
        let mut stores: Vec<(RowKey, Row, bool)> = Vec::new();
        for at in keys {
            let stored_key = group::stored_key(&at);
            if let Some(Some(row)) = changes.remove(&stored_key) {
                let stands = table.rows.get(&stored_key).is_some_and(Option::is_some);
                stores.push((at, Arc::unwrap_or_clone(row), stands));
            }
        }
        for part in stores.chunks(STATEMENT_ROWS_MAX) {
            if shard.store(part, deadline, connection).await? < part.len() {
                if Instant::now() >= deadline {
                    return Ok(Err((0, late())));
                }
                // A row that was not there is there now.
                let error = Error::overloaded("the batch met other writes of its keys each time", 10);
                return Err(Fault { error, remedy: Remedy::Again });
            }
        }
        Ok(Ok(written))
    }
}

/// Inside a transaction a statement that cannot be had now can be had again: it is rolled back.
fn again(fault: Fault) -> Fault {
    match fault.remedy {
        Remedy::Apart if fault.error.code == Code::Overloaded => Fault { remedy: Remedy::Again, ..fault },
        _ => fault,
    }
}

/// Rows that this transaction holds the locks of, by their stored keys.
#[derive(Default)]
struct Locked {
    rows: HashMap<Vec<u8>, Option<Arc<Row>>>,
    gc_floor: u64,
}

impl group::Table for Locked {
    fn row(&self, stored_key: &[u8]) -> Result<Option<Arc<Row>>> {
        Ok(self.rows.get(stored_key).cloned().flatten())
    }

    fn gc_floor(&self, _slot: u16) -> u64 {
        self.gc_floor
    }
}
