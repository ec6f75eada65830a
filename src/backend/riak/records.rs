//! One key: read, written, merged, and its siblings written back as one.
//!
//! Riak decides nothing about a record, so this worker does, from what it read: `decide` judges as it does for every backend,
//! and the row is put with the clock of what was read, which replaces just that. A write that another worker made meanwhile
//! stays beside it as a sibling, and the greater version is the record. So no write is lost to an older one; what cannot be
//! had this way (preconditions, changes, kept lifetimes) is refused.
//!
//! **A missing key is doubted.** Replicas that stand in for others know nothing at first and may be the first to answer. So a
//! read asks for a primary replica, looks a second time with all replicas before it says that a key is missing, and says
//! `unavailable` where no primary is left. A write asks for as many primaries before as it will need then, and for no fewer than
//! a read: where they are not there, it is known that nothing happened.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::classify::{Effect, Fault, RETRY_AFTER_MS, Remedy};
use super::place::{BURIED_INDEX, EXPIRES_INDEX, Place};
use super::settings::{Quorum, Quorums, RiakSettings};
use super::siblings::Present;
use super::wire::{Content, DelReq, GetReq, Pair, PutReq};
use super::{Floor, Shared};
use crate::backend::decide::{self, Now};
use crate::backend::offer::not_offered;
use crate::backend::{Action, Applied, Entry, Found, Offered, Row, Write, Written, late, row};
use crate::model::clock::{wall_ms, wall_of};
use crate::model::op::Expiry;
use crate::model::{Code, Error, Result, Version};

/// The second look of a read that found nothing waits no longer: with a node that is silent, not all replicas can answer.
const SECOND_LOOK_MAX: Duration = Duration::from_millis(250);
/// After a second look that was not to be had, none is tried for so long.
const SECOND_LOOK_PAUSE: Duration = Duration::from_secs(1);
/// How often a write reads again because of too many siblings.
const REREADS_MAX: usize = 3;
/// Keys whose siblings are being written back at once; more are left to their next reader.
const REPAIRS_MAX: usize = 8;
/// A repair waits a random part of this first, so that workers that found the same siblings do not make new ones.
const REPAIR_PAUSE_MAX: Duration = Duration::from_millis(20);
/// What a content says it is.
const CONTENT_TYPE: &str = "application/octet-stream";

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// An answer for a reader.
    ToRead,
    /// What a write stands on.
    ToWrite,
}

/// What looks share.
pub(super) struct Looking {
    /// When second looks are tried again.
    pause_until: Mutex<Option<Instant>>,
    repairs: Arc<Semaphore>,
}

impl Default for Looking {
    fn default() -> Self {
        Self { pause_until: Mutex::default(), repairs: Arc::new(Semaphore::new(REPAIRS_MAX)) }
    }
}

impl Shared {
    /// What a reader finds under a key. Siblings are written back as one behind its back.
    pub(super) async fn read(self: &Arc<Self>, place: &Place, deadline: Instant) -> Result<Option<Found>> {
        self.load(place, deadline).await.1
    }

    /// The same, and before it the bytes that came for it, those of siblings among them.
    pub(super) async fn load(
        self: &Arc<Self>,
        place: &Place,
        deadline: Instant,
    ) -> (usize, Result<Option<Found>>) {
        if let Err(error) = self.fit() {
            return (0, Err(error));
        }
        let present = match self.look(place, Look::ToRead, deadline).await {
            Ok(present) => present,
            Err(fault) => return (0, Err(of_read(fault))),
        };
        let loaded = present.loaded;
        if let Some(damage) = present.damage {
            return (loaded, Err(Error::new(Code::Corrupt, damage)));
        }
        if present.is_split() {
            self.repair(place);
        }
        (loaded, Ok(present.row.map(|row| row.found(wall_ms()))))
    }

    /// Writes what does not depend on what stands there.
    pub(super) async fn write(&self, write: Write, deadline: Instant) -> Result<Written> {
        if depends(&write) {
            return Err(Error::unsupported("Riak cannot promise preconditions, update, touch or keep_ttl"));
        }
        self.replace(&write, deadline, decide::write).await
    }

    /// Writes what does not depend on what stands there, under its own version or not at all.
    pub(super) async fn offer(&self, write: Write, deadline: Instant) -> Result<Offered> {
        if write.entry().is_none() {
            return Err(not_offered());
        }
        self.replace(&write, deadline, decide::offer).await
    }

    /// Puts what is decided in place of what was read.
    async fn replace<O>(
        &self,
        write: &Write,
        deadline: Instant,
        decide: impl Fn(Option<&Row>, &Write, Now) -> Result<(Option<Row>, O)>,
    ) -> Result<O> {
        self.fit()?;
        let place = Place::of(&write.at);
        let turn = self.turns.of(&place);
        let Ok(_turn) = timeout_at(deadline, turn.lock()).await else { return Err(late()) };
        for _ in 0..REREADS_MAX {
            if Instant::now() >= deadline {
                return Err(late());
            }
            let present = self.look(&place, Look::ToWrite, deadline).await.map_err(of_look)?;
            if let Some(damage) = &present.damage {
                tracing::error!("{damage}; a write that needs nothing of it replaces it");
            }
            let now = Now { wall_ms: wall_ms(), gc_floor: self.floor.known() };
            let (mut row, mut decided) = decide(present.row.as_ref(), write, now)?;
            if row.as_ref().is_some_and(|row| row.version != write.proposed) {
                // Raised above what was read, which may be the same for another write of this worker: replicas differ. So that
                // the two never get one version, each raised one gets an origin of its own.
                let proposed = Version { origin: Version::draw_origin(), ..write.proposed };
                (row, decided) = decide(present.row.as_ref(), &Write { proposed, ..write.clone() }, now)?;
            }
            let Some(row) = row else { return Ok(decided) };
            match self.store(&place, &row, present.vclock, deadline).await {
                Ok(()) => return Ok(decided),
                Err(fault) if fault.remedy == Remedy::Reread => {}
                Err(fault) => return Err(fault.of_write()),
            }
        }
        Err(Error::unavailable("the key has too many siblings; nothing happened", RETRY_AFTER_MS))
    }

    /// Merges a row that carries its version.
    pub(super) async fn apply(&self, entry: Entry, deadline: Instant) -> Result<Applied> {
        self.fit()?;
        let place = Place::of(&entry.at);
        let turn = self.turns.of(&place);
        let Ok(_turn) = timeout_at(deadline, turn.lock()).await else { return Err(late()) };
        for _ in 0..REREADS_MAX {
            let present = self.look(&place, Look::ToWrite, deadline).await.map_err(of_look)?;
            if let Some(damage) = present.damage {
                return Err(Error::new(Code::Corrupt, damage));
            }
            let gc_floor = match &present.row {
                Some(_) => 0,
                // Nothing stands there: a delete that was forgotten may have been newer.
                None => self.read_floor(deadline).await.map_err(of_look)?,
            };
            let now = Now { wall_ms: wall_ms(), gc_floor };
            let (row, applied) = decide::apply(present.row.as_ref(), &entry, now);
            let Some(row) = row else { return Ok(applied) };
            match self.store(&place, &row, present.vclock, deadline).await {
                Ok(()) => return Ok(applied),
                Err(fault) if fault.remedy == Remedy::Reread => {}
                Err(fault) => return Err(fault.of_write()),
            }
        }
        Err(Error::unavailable("the key has too many siblings; nothing happened", RETRY_AFTER_MS))
    }

    /// What stands under a key.
    pub(super) async fn look(&self, place: &Place, look: Look, deadline: Instant) -> Result<Present, Fault> {
        let quorums = self.settings.quorums;
        let pr = self.primaries(look);
        let asked = self.pool.ask(get(&self.settings, place, quorums.r, pr), deadline).await;
        let present = match asked {
            Ok(found) => Present::read(place, &found.content, found.vclock, wall_ms()),
            // What stands in for the primaries may know the key all the same; that it does not says nothing.
            Err(fault) if fault.remedy == Remedy::Fallbacks && look == Look::ToRead => {
                let found = self.pool.ask(get(&self.settings, place, quorums.r, Quorum(0)), deadline).await?;
                let present = Present::read(place, &found.content, found.vclock, wall_ms());
                return if present.is_miss() { Err(fault) } else { Ok(present) };
            }
            Err(fault) => return Err(fault),
        };
        if present.is_miss() && look == Look::ToRead && self.looks_twice() {
            return Ok(self.second_look(place, deadline).await.unwrap_or(present));
        }
        Ok(present)
    }

    /// Every replica's word on a key. None where they could not be asked: then the first word stands.
    async fn second_look(&self, place: &Place, deadline: Instant) -> Option<Present> {
        let request = get(&self.settings, place, Quorum::ALL, self.primaries(Look::ToRead));
        match self.pool.ask_once(request, SECOND_LOOK_MAX, deadline).await {
            Ok(found) => Some(Present::read(place, &found.content, found.vclock, wall_ms())),
            Err(_) => {
                let mut pause = self.looking.pause_until.lock().unwrap_or_else(PoisonError::into_inner);
                *pause = Some(Instant::now() + SECOND_LOOK_PAUSE);
                None
            }
        }
    }

    fn looks_twice(&self) -> bool {
        let pause = self.looking.pause_until.lock().unwrap_or_else(PoisonError::into_inner);
        pause.is_none_or(|until| Instant::now() >= until)
    }

    /// Puts a row in place of what was read.
    pub(super) async fn store(
        &self,
        place: &Place,
        row: &Row,
        vclock: Option<Bytes>,
        deadline: Instant,
    ) -> Result<(), Fault> {
        self.pool.ask(put(&self.settings, place, row, vclock), deadline).await.map(drop)
    }

    /// Lets Riak forget what was read; what came meanwhile stays.
    pub(super) async fn forget(&self, place: &Place, vclock: Bytes, deadline: Instant) -> Result<(), Fault> {
        self.pool.ask(delete(&self.settings, place, vclock), deadline).await.map(drop)
    }

    /// Primary replicas that a look asks for: a write as many as any of the settings asks for, since it must neither miss
    /// what a reader would find nor begin what it cannot end. In numbers: the bucket type's own, which `default` means, is
    /// mostly none.
    fn primaries(&self, look: Look) -> Quorum {
        let of_type = *self.of_type.lock().unwrap_or_else(PoisonError::into_inner);
        let Quorums { pr, pw, .. } = self.settings.quorums;
        let (pr, pw) = (pr.of(of_type.n_val, of_type.pr), pw.of(of_type.n_val, of_type.pw));
        Quorum(if look == Look::ToWrite { pr.max(pw) } else { pr })
    }

    /// Everything that stands under a key, as it was written.
    pub(super) async fn contents(&self, place: &Place, deadline: Instant) -> Result<Vec<Content>, Fault> {
        let request = get(&self.settings, place, self.settings.quorums.r, self.primaries(Look::ToRead));
        Ok(self.pool.ask(request, deadline).await?.content)
    }

    /// The floor as Riak has it.
    pub(super) async fn read_floor(&self, deadline: Instant) -> Result<u64, Fault> {
        let present = self.look(&Place::floor(), Look::ToWrite, deadline).await?;
        if let Some(row) = present.row {
            self.floor.raise(row.version.hlc);
        }
        Ok(self.floor.known())
    }

    /// Writes siblings back as one, as far as nobody does so already. Whoever reads meanwhile merges them himself.
    fn repair(self: &Arc<Self>, place: &Place) {
        let Ok(permit) = self.looking.repairs.clone().try_acquire_owned() else { return };
        let Ok(turn) = self.turns.of(place).try_lock_owned() else { return };
        let (shared, place) = (self.clone(), place.clone());
        tokio::spawn(async move {
            let (_permit, _turn) = (permit, turn);
            tokio::time::sleep(REPAIR_PAUSE_MAX.mul_f64(fastrand::f64())).await;
            let deadline = Instant::now() + shared.settings.request_timeout * 2;
            // What was read is old by now: another worker may have written, or repaired it.
            let Ok(present) = shared.look(&place, Look::ToWrite, deadline).await else { return };
            if present.is_split()
                && let Some(row) = &present.row
                && let Err(fault) = shared.store(&place, row, present.vclock.clone(), deadline).await
            {
                tracing::debug!("siblings were not written back: {}", fault.error.message);
            }
        });
    }
}

// === impl Floor ===

impl Floor {
    /// The floor as far as this worker knows.
    pub(super) fn known(&self) -> u64 {
        self.0.load(std::sync::atomic::Ordering::Acquire)
    }

    /// Takes note of a floor.
    pub(super) fn raise(&self, hlc: u64) {
        self.0.fetch_max(hlc, std::sync::atomic::Ordering::AcqRel);
    }
}

impl RiakSettings {
    /// The bucket type as requests name it: the default one has no name.
    pub(super) fn type_field(&self) -> Option<Bytes> {
        (self.bucket_type != "default").then(|| Bytes::copy_from_slice(self.bucket_type.as_bytes()))
    }
}

/// A get of a key.
pub(super) fn get(settings: &RiakSettings, place: &Place, r: Quorum, pr: Quorum) -> GetReq {
    GetReq {
        bucket: place.bucket.clone(),
        key: place.key.clone(),
        r: Some(r.0),
        pr: Some(pr.0),
        deletedvclock: Some(true),
        r#type: settings.type_field(),
        ..GetReq::default()
    }
}

/// A delete of what was read.
pub(super) fn delete(settings: &RiakSettings, place: &Place, vclock: Bytes) -> DelReq {
    DelReq {
        bucket: place.bucket.clone(),
        key: place.key.clone(),
        vclock: Some(vclock),
        w: Some(settings.quorums.w.0),
        pw: Some(settings.quorums.pw.0),
        dw: Some(settings.quorums.dw.0),
        r#type: settings.type_field(),
        ..DelReq::default()
    }
}

/// A put of a row.
pub(super) fn put(settings: &RiakSettings, place: &Place, row: &Row, vclock: Option<Bytes>) -> PutReq {
    let content = Content {
        value: row::encode(&place.stored_key(), row).into(),
        content_type: Some(Bytes::from_static(CONTENT_TYPE.as_bytes())),
        indexes: indexes(row),
        ..Content::default()
    };
    PutReq {
        bucket: place.bucket.clone(),
        key: Some(place.key.clone()),
        vclock,
        content,
        w: Some(settings.quorums.w.0),
        dw: Some(settings.quorums.dw.0),
        pw: Some(settings.quorums.pw.0),
        r#type: settings.type_field(),
        ..PutReq::default()
    }
}

/// What a sweep finds it by.
fn indexes(row: &Row) -> Vec<Pair> {
    let (index, ms) = match &row.body {
        None => (BURIED_INDEX, wall_of(row.version.hlc)),
        Some(_) if row.expires_at_ms != 0 => (EXPIRES_INDEX, row.expires_at_ms),
        Some(_) => return Vec::new(),
    };
    let value = Some(ms.to_string().into());
    vec![Pair { key: Bytes::from_static(index.as_bytes()), value }]
}

/// Whether a write needs what stands there to be as it is.
fn depends(write: &Write) -> bool {
    let keeps = matches!(write.action, Action::Put { expiry: Expiry::KeepOr(_), .. } | Action::Change(_));
    keeps || write.precondition.is_some()
}

/// What a read that failed is answered.
pub(super) fn of_read(fault: Fault) -> Error {
    fault.error
}

/// What a write is answered whose look failed: it has not begun.
fn of_look(fault: Fault) -> Error {
    Fault { effect: Effect::None, ..fault }.of_write()
}
