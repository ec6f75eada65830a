//! Rows in the worker's memory: the reference backend. Nothing survives the process.
//!
//! One lock around one ordered map: every call is one critical section, so it is linearizable as it reads.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::time::Instant;

use crate::model::clock::{hlc_at, wall_ms};
use crate::model::{Error, Namespace, Result};

use super::group::{Changes, Group, Table, stored_key};
use super::pages::{self, Collector};
use super::{
    Applied, Backend, Capability, Entry, Found, Noting, Offered, Page, Range, Row, RowKey, SWEEP_ROWS_MAX,
    Swept, Write, Written,
};

/// See the module.
#[derive(Debug)]
pub struct Memory {
    rows: RwLock<Rows>,
    store_id: String,
}

#[derive(Debug, Default)]
struct Rows {
    by_key: BTreeMap<Vec<u8>, Arc<Row>>,
    gc_floors: HashMap<u16, u64>,
    partitionings: HashMap<Namespace, String>,
    durabilities: HashMap<Namespace, String>,
}

impl Memory {
    /// An empty store with a random id.
    pub fn new() -> Self {
        Self { rows: RwLock::default(), store_id: format!("{:016x}", fastrand::u64(..)) }
    }

    fn rows(&self) -> RwLockReadGuard<'_, Rows> {
        self.rows.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn rows_mut(&self) -> RwLockWriteGuard<'_, Rows> {
        self.rows.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Backend for Memory {
    fn capability(&self) -> Capability {
        Capability { strong: true, conditional: true, atomic: true, scan: true, shared: false }
    }

    async fn read(&self, keys: Vec<RowKey>, _deadline: Instant) -> Vec<Result<Option<Found>>> {
        let (rows, now) = (self.rows(), wall_ms());
        keys.iter().map(|at| Ok(rows.by_key.get(&stored_key(at)).map(|row| row.found(now)))).collect()
    }

    async fn write(&self, writes: Vec<Write>, deadline: Instant) -> Vec<Result<Written>> {
        let mut rows = self.rows_mut();
        let mut group = Group::new(&*rows, wall_ms());
        let written = writes
            .iter()
            .map(|write| if Instant::now() < deadline { group.write(write) } else { Err(super::late()) })
            .collect();
        let changes = group.into_changes();
        rows.keep(changes);
        written
    }

    async fn offer(&self, writes: Vec<Write>, deadline: Instant) -> Vec<Result<Offered>> {
        let mut rows = self.rows_mut();
        let mut group = Group::new(&*rows, wall_ms());
        let offered = writes
            .iter()
            .map(|write| if Instant::now() < deadline { group.offer(write) } else { Err(super::late()) })
            .collect();
        let changes = group.into_changes();
        rows.keep(changes);
        offered
    }

    async fn write_atomic(
        &self,
        writes: Vec<Write>,
        deadline: Instant,
    ) -> Result<Vec<Written>, (usize, Error)> {
        let mut rows = self.rows_mut();
        if Instant::now() >= deadline {
            return Err((0, super::late()));
        }
        let mut group = Group::new(&*rows, wall_ms());
        let written = group.write_atomic(&writes)?;
        let changes = group.into_changes();
        rows.keep(changes);
        Ok(written)
    }

    async fn apply(&self, entries: Vec<Entry>, _deadline: Instant) -> Vec<Result<Applied>> {
        let mut rows = self.rows_mut();
        let mut group = Group::new(&*rows, wall_ms());
        let applied = entries.iter().map(|entry| group.apply(entry)).collect();
        let changes = group.into_changes();
        rows.keep(changes);
        applied
    }

    async fn foresee(&self, entries: Vec<Entry>, _deadline: Instant) -> Vec<Result<Applied>> {
        let rows = self.rows();
        let group = Group::new(&*rows, wall_ms());
        entries.iter().map(|entry| group.foresee(entry)).collect()
    }

    async fn scan(&self, range: Range, _deadline: Instant) -> Result<Page> {
        let (rows, now) = (self.rows(), wall_ms());
        let bounds = pages::bounds(&range);
        if pages::is_empty(&bounds) {
            return Ok(Page::default());
        }
        let mut collector = Collector::new(&range);
        let walk = rows.by_key.range::<[u8], _>((as_slice(&bounds.0), as_slice(&bounds.1)));
        let mut walk: Box<dyn Iterator<Item = (&Vec<u8>, &Arc<Row>)>> =
            if range.reverse { Box::new(walk.rev()) } else { Box::new(walk) };
        while let Some((key, row)) = walk.next() {
            let found = row.found(now);
            if !collector.take(key, found.live.is_some().then_some(Ok(found)))? {
                return Ok(collector.page(walk.next().is_some()));
            }
        }
        Ok(collector.page(false))
    }

    async fn sweep(&self, resume: Option<Vec<u8>>, grace_ms: i64) -> Result<Swept> {
        let mut rows = self.rows_mut();
        rows.sweep(resume, grace_ms, wall_ms())
    }

    async fn partitioning(&self, namespace: &Namespace, first: Option<String>) -> Result<Option<String>> {
        let mut rows = self.rows_mut();
        if let Some(first) = first {
            rows.partitionings.entry(namespace.clone()).or_insert(first);
        }
        Ok(rows.partitionings.get(namespace).cloned())
    }

    async fn durability(&self, namespace: &Namespace, noting: Noting) -> Result<Option<String>> {
        let mut rows = self.rows_mut();
        let noted = rows.durabilities.get(namespace).map(String::as_str);
        if let Some(written) = noting.written(noted) {
            rows.durabilities.insert(namespace.clone(), written.to_owned());
        }
        Ok(rows.durabilities.get(namespace).cloned())
    }

    fn health(&self) -> Result<()> {
        Ok(())
    }

    fn store_id(&self) -> Option<String> {
        Some(self.store_id.clone())
    }

    async fn close(&self) {}
}

// === impl Rows ===

impl Rows {
    fn keep(&mut self, changes: Changes) {
        for (key, row) in changes.rows {
            match row {
                Some(row) => self.by_key.insert(key, row),
                None => self.by_key.remove(&key),
            };
        }
        self.gc_floors.extend(changes.gc_floors);
    }

    fn sweep(&mut self, resume: Option<Vec<u8>>, grace_ms: i64, now_ms: i64) -> Result<Swept> {
        let floor = hlc_at(now_ms.saturating_sub(grace_ms));
        let start = resume.map_or(Bound::Unbounded, Bound::Included);
        let mut swept = Swept::default();
        let mut group = Group::new(self, now_ms);
        for (key, row) in self.by_key.range::<[u8], _>((as_slice(&start), Bound::Unbounded)) {
            if swept.examined == SWEEP_ROWS_MAX {
                swept.resume = Some(key.clone());
                break;
            }
            swept.count(group.bury(key, row.version, floor)?);
        }
        let changes = group.into_changes();
        self.keep(changes);
        Ok(swept)
    }
}

impl Table for Rows {
    fn row(&self, stored_key: &[u8]) -> Result<Option<Arc<Row>>> {
        Ok(self.by_key.get(stored_key).cloned())
    }

    fn gc_floor(&self, slot: u16) -> u64 {
        self.gc_floors.get(&slot).copied().unwrap_or(0)
    }
}

fn as_slice(bound: &Bound<Vec<u8>>) -> Bound<&[u8]> {
    bound.as_ref().map(Vec::as_slice)
}
