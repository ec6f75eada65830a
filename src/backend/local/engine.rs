//! The engine's keyspaces and how rows lie in them.
//!
//! `rows`: namespace, NUL, key -> the row of `backend/row.rs`. `meta`: `store_id` (16 hex digits), `group`
//! (number of the last group of writes), `floor` + slot (big-endian) -> the floor of forgotten deletes,
//! `partition ` + namespace -> how its keys are partitioned.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable};

use crate::backend::group::{Buried, Changes, Table, dead, stored_key};
use crate::backend::pages::{self, Collector};
use crate::backend::{Found, Page, Range, Row, RowKey, SWEEP_ROWS_MAX, row};
use crate::model::clock::hlc_at;
use crate::model::{Code, Error, Namespace, Result, Version};

use super::{RETRY_AFTER_MS, shown};

/// Journals are flushed and dropped beyond this, which bounds how long a start takes.
const JOURNAL_BYTES_MAX: u64 = 128 << 20;
/// Blocks kept in memory.
const BLOCK_CACHE_BYTES: u64 = 64 << 20;

/// Bytes that one sweep step reads.
const SWEEP_BYTES_MAX: usize = 16 << 20;

const STORE_ID: &str = "store_id";
const GROUP: &str = "group";
const FLOOR: &str = "floor";
const PARTITION: &str = "partition ";
const DURABILITY: &str = "durability ";

/// An open engine.
pub(super) struct Engine {
    db: Database,
    rows: Keyspace,
    meta: Keyspace,
    gc_floors: RwLock<HashMap<u16, u64>>,
    /// Random, drawn when the directory was made.
    pub(super) store_id: String,
}

/// What one step of a sweep saw.
pub(super) struct Walked {
    pub(super) examined: usize,
    pub(super) dead: Vec<(Vec<u8>, Version)>,
    pub(super) floor: u64,
    pub(super) resume: Option<Vec<u8>>,
}

impl Engine {
    /// Opens the engine in a directory, never a new one.
    pub(super) fn open_existing(directory: &Path) -> Result<Self> {
        if !store_path(directory).is_dir() {
            return Err(Error::unavailable(
                format!("there is no store in {}", shown(directory)),
                RETRY_AFTER_MS,
            ));
        }
        Self::open(directory)
    }

    /// Opens or makes the engine in a directory. The error says what is wrong with it.
    pub(super) fn open(directory: &Path) -> Result<Self> {
        let path = store_path(directory);
        let failed = |error: fjall::Error| {
            Error::unavailable(
                format!("cannot open the store in {}: {}", shown(directory), told(&error)),
                RETRY_AFTER_MS,
            )
        };
        let db = Database::builder(&path)
            .max_journaling_size(JOURNAL_BYTES_MAX)
            .cache_size(BLOCK_CACHE_BYTES)
            .open()
            .map_err(failed)?;
        let rows = db.keyspace("rows", KeyspaceCreateOptions::default).map_err(failed)?;
        let meta = db.keyspace("meta", KeyspaceCreateOptions::default).map_err(failed)?;
        let store_id = match meta.get(STORE_ID).map_err(failed)? {
            Some(id) => String::from_utf8_lossy(&id).into_owned(),
            None => {
                let id = format!("{:016x}", fastrand::u64(..));
                meta.insert(STORE_ID, id.as_bytes()).map_err(failed)?;
                db.persist(PersistMode::SyncAll).map_err(failed)?;
                // The engine syncs its own folder; that it is there at all is written in the folders above.
                sync_folders(directory).map_err(|error| failed(error.into()))?;
                id
            }
        };
        let mut gc_floors = HashMap::new();
        for guard in meta.prefix(FLOOR) {
            let (key, value) = guard.into_inner().map_err(failed)?;
            let slot = key[FLOOR.len()..].try_into().map(u16::from_be_bytes);
            let floor = value.as_ref().try_into().map(u64::from_le_bytes);
            if let (Ok(slot), Ok(floor)) = (slot, floor) {
                gc_floors.insert(slot, floor);
            }
        }
        Ok(Self { db, rows, meta, gc_floors: RwLock::new(gc_floors), store_id })
    }

    /// Number of the last group of writes that the engine holds.
    pub(super) fn last_group(&self) -> Result<u64> {
        let bytes = self.meta.get(GROUP).map_err(|error| unreadable(&error))?;
        Ok(bytes.and_then(|bytes| bytes.as_ref().try_into().ok()).map_or(0, u64::from_le_bytes))
    }

    /// How a namespace's keys are partitioned, if that is noted.
    pub(super) fn partitioning(&self, namespace: &Namespace) -> Result<Option<String>> {
        let noted = self.meta.get(partition_key(namespace)).map_err(|error| unreadable(&error))?;
        Ok(noted.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// What is noted of a namespace's durability.
    pub(super) fn durability(&self, namespace: &Namespace) -> Result<Option<String>> {
        let noted = self.meta.get(durability_key(namespace)).map_err(|error| unreadable(&error))?;
        Ok(noted.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Makes a group's changes durable, all or none: one batch, one sync.
    pub(super) fn commit(&self, changes: &Changes, group: u64) -> Result<(), fjall::Error> {
        let mut batch = self.db.batch().durability(Some(PersistMode::SyncData));
        for (key, row) in &changes.rows {
            match row {
                Some(row) => batch.insert(&self.rows, key.as_slice(), row::encode(key, row)),
                None => batch.remove(&self.rows, key.as_slice()),
            }
        }
        for (slot, floor) in &changes.gc_floors {
            let key = [FLOOR.as_bytes(), &slot.to_be_bytes()].concat();
            batch.insert(&self.meta, key, floor.to_le_bytes().as_slice());
        }
        for (namespace, partitioning) in &changes.notes {
            batch.insert(&self.meta, partition_key(namespace), partitioning.as_str());
        }
        for (namespace, durability) in &changes.durabilities {
            batch.insert(&self.meta, durability_key(namespace), durability.as_str());
        }
        batch.insert(&self.meta, GROUP, group.to_le_bytes().as_slice());
        batch.commit()?;
        if !changes.gc_floors.is_empty() {
            let mut floors = self.gc_floors.write().unwrap_or_else(PoisonError::into_inner);
            floors.extend(&changes.gc_floors);
        }
        Ok(())
    }

    /// Reads keys; more than one are read from one snapshot.
    pub(super) fn read(&self, keys: &[RowKey], now_ms: i64) -> Vec<Result<Option<Found>>> {
        if let [at] = keys {
            let key = stored_key(at);
            return vec![self.row_of(&key, self.rows.get(&key)).map(|row| row.map(|row| row.found(now_ms)))];
        }
        let snapshot = self.db.snapshot();
        let one = |at: &RowKey| {
            let key = stored_key(at);
            self.row_of(&key, snapshot.get(&self.rows, &key)).map(|row| row.map(|row| row.found(now_ms)))
        };
        keys.iter().map(one).collect()
    }

    /// A page from one snapshot.
    pub(super) fn scan(&self, range: &Range, now_ms: i64) -> Result<Page> {
        let bounds = pages::bounds(range);
        if pages::is_empty(&bounds) {
            return Ok(Page::default());
        }
        let mut collector = Collector::new(range);
        let mut walk = self.db.snapshot().range(&self.rows, bounds);
        let mut next = || if range.reverse { walk.next_back() } else { walk.next() };
        while let Some(guard) = next() {
            let (key, value) = guard.into_inner().map_err(|error| unreadable(&error))?;
            let found = match decode(&key, value) {
                Ok(row) => Some(row.found(now_ms)).filter(|found| found.live.is_some()).map(Ok),
                Err(error) => Some(Err(error)),
            };
            if !collector.take(&key, found)? {
                return Ok(collector.page(next().is_some()));
            }
        }
        Ok(collector.page(false))
    }

    /// One step of a sweep: what is dead among the next rows.
    pub(super) fn walk(&self, resume: Option<Vec<u8>>, now_ms: i64, grace_ms: i64) -> Result<Walked> {
        let floor = hlc_at(now_ms.saturating_sub(grace_ms));
        let mut walked = Walked { examined: 0, dead: Vec::new(), floor, resume: None };
        let start = resume.map_or(Bound::Unbounded, Bound::Included);
        let mut bytes = 0;
        for guard in self.db.snapshot().range(&self.rows, (start, Bound::Unbounded)) {
            let (key, value) = guard.into_inner().map_err(|error| unreadable(&error))?;
            if walked.examined == SWEEP_ROWS_MAX || bytes > SWEEP_BYTES_MAX {
                walked.resume = Some(key.to_vec());
                break;
            }
            walked.examined += 1;
            bytes += value.len();
            // A damaged row is left for its reader to be told of.
            if let Ok(row) = decode(&key, value)
                && dead(&row, now_ms, floor) != Buried::Kept
            {
                walked.dead.push((key.to_vec(), row.version));
            }
        }
        Ok(walked)
    }

    fn row_of(&self, key: &[u8], read: fjall::Result<Option<fjall::Slice>>) -> Result<Option<Row>> {
        match read {
            Ok(None) => Ok(None),
            Ok(Some(bytes)) => decode(key, bytes).map(Some),
            Err(error) => Err(unreadable(&error)),
        }
    }
}

fn partition_key(namespace: &Namespace) -> Vec<u8> {
    [PARTITION.as_bytes(), namespace.as_str().as_bytes()].concat()
}

fn durability_key(namespace: &Namespace) -> Vec<u8> {
    [DURABILITY.as_bytes(), namespace.as_str().as_bytes()].concat()
}

fn store_path(directory: &Path) -> PathBuf {
    directory.join("store")
}

/// Syncs a folder's entries, and those of every folder above it that can be opened.
fn sync_folders(directory: &Path) -> std::io::Result<()> {
    let whole = std::path::absolute(directory)?;
    File::open(&whole)?.sync_all()?;
    for above in whole.ancestors().skip(1) {
        // One that belongs to somebody else was not made by us.
        if let Ok(folder) = File::open(above) {
            drop(folder.sync_all());
        }
    }
    Ok(())
}

impl Table for Engine {
    fn row(&self, stored_key: &[u8]) -> Result<Option<Arc<Row>>> {
        Ok(self.row_of(stored_key, self.rows.get(stored_key))?.map(Arc::new))
    }

    fn gc_floor(&self, slot: u16) -> u64 {
        self.gc_floors.read().unwrap_or_else(PoisonError::into_inner).get(&slot).copied().unwrap_or(0)
    }
}

fn decode(key: &[u8], bytes: fjall::Slice) -> Result<Row> {
    row::decode(key, &bytes.into()).map_err(|fault| {
        // Whoever asked knows which record of which backend this is.
        Error::new(Code::Corrupt, fault)
    })
}

/// The error of a read that the engine could not do. A read never leaves anything behind.
fn unreadable(error: &fjall::Error) -> Error {
    use fjall::Error::{Io, KeyspaceDeleted, Locked, Poisoned, Storage};
    match error {
        Storage(fjall::LsmError::Io(_)) | Io(_) | Poisoned | Locked | KeyspaceDeleted => {
            Error::unavailable(format!("the local store cannot be read: {}", told(error)), RETRY_AFTER_MS)
        }
        _ => Error::new(Code::Corrupt, format!("a block is damaged: {}", told(error))),
    }
}

/// An engine error in words.
pub(super) fn told(error: &fjall::Error) -> String {
    match error {
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => error.to_string(),
        fjall::Error::Poisoned => "an earlier write failed".to_owned(),
        fjall::Error::JournalRecovery(fault) => format!("its journal is damaged ({fault:?})"),
        other => format!("{other:?}"),
    }
}
