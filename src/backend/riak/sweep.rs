//! Removal of what is dead: expired records become tombstones, old tombstones are left to Riak.
//!
//! The dead are found by indexes of their own, so a sweep costs nothing for what lives. Before the first tombstone goes the
//! floor is raised above all that may go; a merge of something older that finds nothing is then refused. Riak itself has no
//! step that does both, so what a cut-off part of the cluster still holds may come back with it, unless the nodes keep their
//! tombstones (`delete_mode`): see `docs/riak.md`.

use bytes::Bytes;
use tokio::time::Instant;

use super::classify::Fault;
use super::place::{self, BURIED_INDEX, EXPIRES_INDEX, NOTE_PREFIX, OWN_BUCKET, Place};
use super::records::{Look, of_read};
use super::scan::{INDEX_PATIENCE, KEY_INDEX, Query};
use super::{SWEEP_ROWS_MAX, Shared};
use crate::backend::group::{self, Buried};
use crate::backend::{Row, Swept};
use crate::model::clock::{hlc_at, wall_ms};
use crate::model::key::shorten;
use crate::model::limits::CLOCK_EPSILON_MS;
use crate::model::{Error, Namespace, Result, Version};

/// How far a walk has come.
struct Step {
    namespace: Namespace,
    index: &'static str,
    continuation: Option<Bytes>,
}

impl Shared {
    /// One bounded step of a walk over all namespaces.
    pub(super) async fn sweep(&self, resume: Option<Vec<u8>>, grace_ms: i64) -> Result<Swept> {
        self.fit()?;
        let mut swept = Swept::default();
        let mut step = match resume {
            Some(resume) => Step::read(&resume),
            None => self.namespace_from("").await?.map(Step::first),
        };
        while let Some(Step { namespace, index, continuation }) = step {
            let most = SWEEP_ROWS_MAX - swept.examined;
            if most == 0 {
                let step = Step { namespace, index, continuation };
                return Ok(Swept { resume: Some(step.write()), ..swept });
            }
            let (now_ms, deadline) = (wall_ms(), Instant::now() + INDEX_PATIENCE);
            let until_ms = if index == EXPIRES_INDEX { now_ms - CLOCK_EPSILON_MS } else { now_ms - grace_ms };
            let bucket = place::bucket(&namespace);
            let query =
                Query { index, low: Bytes::from_static(b"0"), high: until_ms.max(0).to_string().into() };
            let page = self.index(&bucket, &query, most, continuation, deadline).await.map_err(of_read)?;
            let floor = hlc_at(now_ms - grace_ms);
            if index == BURIED_INDEX && !page.keys.is_empty() {
                self.raise_floor(floor, deadline).await.map_err(Fault::of_write)?;
            }
            let in_time = self.bury_each(&bucket, &page.keys, floor, deadline, &mut swept).await;
            step = match (page.continuation, index) {
                (Some(more), _) => Some(Step { namespace, index, continuation: Some(more) }),
                (None, EXPIRES_INDEX) => Some(Step { namespace, index: BURIED_INDEX, continuation: None }),
                (None, _) => self.namespace_from(&format!("{namespace}\0")).await?.map(Step::first),
            };
            if !in_time {
                return Ok(Swept { resume: step.map(|step| step.write()), ..swept });
            }
        }
        Ok(swept)
    }

    /// Buries what is dead of a page. What cannot be read or written is told of and left to the next walk: it must not keep
    /// the dead behind it. Says whether there was time for all.
    async fn bury_each(
        &self,
        bucket: &Bytes,
        keys: &[Bytes],
        floor: u64,
        deadline: Instant,
        swept: &mut Swept,
    ) -> bool {
        for (at, key) in keys.iter().enumerate() {
            let left = keys.len() - at;
            if Instant::now() >= deadline {
                let namespace = String::from_utf8_lossy(bucket);
                tracing::warn!(
                    "sweep of namespace {namespace:?}: no time for {left} keys; the next walk meets them"
                );
                return false;
            }
            let place = Place { bucket: bucket.clone(), key: key.clone() };
            let its_deadline = deadline.min(Instant::now() + self.settings.request_timeout * 2);
            let buried = self.bury(&place, floor, its_deadline).await.unwrap_or_else(|fault| {
                tell_of(&place, &fault.of_write().message);
                Buried::Kept
            });
            swept.count(buried);
        }
        true
    }

    async fn bury(&self, place: &Place, floor: u64, deadline: Instant) -> Result<Buried, Fault> {
        // Whoever writes it now has the better right: it is left to the next walk.
        let turn = self.turns.of(place);
        let Ok(_turn) = turn.try_lock() else { return Ok(Buried::Kept) };
        let present = self.look(place, Look::ToWrite, deadline).await?;
        if let Some(damage) = &present.damage {
            tell_of(place, damage);
            return Ok(Buried::Kept);
        }
        let (Some(row), Some(vclock)) = (present.row, present.vclock) else { return Ok(Buried::Kept) };
        let buried = group::dead(&row, wall_ms(), floor);
        match buried {
            Buried::Kept => {}
            Buried::Expired => {
                let tombstone = Row { body: None, expires_at_ms: 0, ..row };
                self.store(place, &tombstone, Some(vclock), deadline).await?;
            }
            Buried::Removed => self.forget(place, vclock, deadline).await?,
        }
        Ok(buried)
    }

    async fn raise_floor(&self, floor: u64, deadline: Instant) -> Result<(), Fault> {
        let place = Place::floor();
        let turn = self.turns.of(&place);
        let _turn = turn.lock().await;
        let present = self.look(&place, Look::ToWrite, deadline).await?;
        if present.row.as_ref().is_none_or(|row| row.version.hlc < floor) {
            let row = own_row(Version { hlc: floor, origin: 0 }, Bytes::new());
            self.store(&place, &row, present.vclock, deadline).await?;
        }
        self.floor.raise(floor);
        Ok(())
    }

    /// The first namespace that has been written to, of those not below a name.
    async fn namespace_from(&self, name: &str) -> Result<Option<Namespace>> {
        let query = Query {
            index: KEY_INDEX,
            low: format!("{NOTE_PREFIX}{name}").into(),
            high: [NOTE_PREFIX.as_bytes(), &[0xff]].concat().into(),
        };
        let bucket = Bytes::from_static(OWN_BUCKET.as_bytes());
        let page = self.index(&bucket, &query, 1, None, Instant::now() + INDEX_PATIENCE).await;
        let Some(key) = page.map_err(of_read)?.keys.into_iter().next() else { return Ok(None) };
        let name = std::str::from_utf8(&key).ok().and_then(|key| key.strip_prefix(NOTE_PREFIX));
        let unreadable = || Error::internal(format!("bucket {OWN_BUCKET:?} holds a note of no namespace"));
        name.and_then(|name| Namespace::parse(name).ok()).ok_or_else(unreadable).map(Some)
    }
}

/// Tells of a key that a sweep must leave as it is.
fn tell_of(place: &Place, why: &str) {
    let (namespace, key) = (String::from_utf8_lossy(&place.bucket), String::from_utf8_lossy(&place.key));
    tracing::warn!("sweep of namespace {namespace:?}: key {:?} is left as it is: {why}", shorten(&key));
}

/// A row of our own bucket.
pub(super) fn own_row(version: Version, body: Bytes) -> Row {
    Row { version, slot: 0, body: Some(body), expires_at_ms: 0, ring: Default::default(), was: false }
}

// === impl Step ===

impl Step {
    fn first(namespace: Namespace) -> Self {
        Self { namespace, index: EXPIRES_INDEX, continuation: None }
    }

    /// Namespace, NUL, `e` or `b`, continuation.
    fn write(&self) -> Vec<u8> {
        let kind = if self.index == EXPIRES_INDEX { b'e' } else { b'b' };
        let continuation = self.continuation.as_deref().unwrap_or_default();
        [self.namespace.as_str().as_bytes(), &[0, kind], continuation].concat()
    }

    /// `None` for what no step wrote: the walk begins anew.
    fn read(bytes: &[u8]) -> Option<Self> {
        let end = bytes.iter().position(|byte| *byte == 0)?;
        let namespace = Namespace::parse(std::str::from_utf8(&bytes[..end]).ok()?).ok()?;
        let index = if *bytes.get(end + 1)? == b'e' { EXPIRES_INDEX } else { BURIED_INDEX };
        let continuation = Some(&bytes[end + 2..]).filter(|rest| !rest.is_empty());
        Some(Self { namespace, index, continuation: continuation.map(Bytes::copy_from_slice) })
    }
}
