//! Read your own writes: a session remembers the version of the last write to each key, and gets of that key ask
//! for nothing older.
//!
//! What it remembers is bounded twice: [`SESSION_KEYS_MAX`] keys, the one written longest ago goes first, and
//! [`SESSION_MEMORY`] of time (or the record's own lifetime): a record that ended meanwhile must not be waited
//! for. What was forgotten is read as anybody else reads it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::Version;
use crate::model::reply::{BatchResult, Reply, WriteReply};
use crate::model::request::{GetRequest, Request};
use crate::model::{Namespace, Outcome};

/// Keys that a session remembers.
pub const SESSION_KEYS_MAX: usize = 10_000;
/// How long a write is remembered. Copies that lag further than this are outside every level's bound.
pub const SESSION_MEMORY: Duration = Duration::from_secs(60);

/// What one reader must see again. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Session {
    written: Arc<Mutex<Written>>,
}

type Place = (Namespace, String);

#[derive(Debug, Default)]
struct Written {
    last: HashMap<Place, Entry>,
    /// Oldest first; each key of `last` stands here once.
    order: BTreeMap<u64, Place>,
    next: u64,
}

#[derive(Debug)]
struct Entry {
    version: Version,
    turn: u64,
    until: Instant,
}

/// One write of a request: its key and the lifetime it asked for.
pub(super) struct Wrote {
    key: String,
    ttl_ms: i64,
}

impl Session {
    /// A session that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the gets of a request for what was written before.
    pub(super) fn demand(&self, namespace: &Namespace, request: &mut Request) {
        let ops = match request {
            Request::Batch(batch) => batch.ops.as_mut_slice(),
            single => std::slice::from_mut(single),
        };
        for op in ops {
            if let Request::Get(get) = op {
                self.demand_one(namespace, get);
            }
        }
    }

    fn demand_one(&self, namespace: &Namespace, get: &mut GetRequest) {
        if let Some(version) = self.version(namespace, &get.key) {
            let version = version.to_string();
            // Versions compare as text; what the caller asks for stays if it is newer (or malformed).
            if version > get.min_version {
                get.min_version = version;
            }
        }
    }

    /// The version last written to a key, while it is remembered.
    pub fn version(&self, namespace: &Namespace, key: &str) -> Option<Version> {
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = written.last.get(&(namespace.clone(), key.to_owned()))?;
        (Instant::now() < entry.until).then_some(entry.version)
    }

    /// Takes note of what the writes of a request came to.
    pub(super) fn note(&self, namespace: &Namespace, wrote: Vec<Option<Wrote>>, reply: &Reply) {
        match reply {
            Reply::Write(reply) => {
                if let Some(Some(wrote)) = wrote.into_iter().next() {
                    self.note_one(namespace, wrote, reply);
                }
            }
            Reply::Batch(reply) => {
                for (wrote, result) in wrote.into_iter().zip(&reply.results) {
                    if let (Some(wrote), BatchResult::Write(result)) = (wrote, result) {
                        self.note_one(namespace, wrote, result);
                    }
                }
            }
            Reply::Get(_) | Reply::Scan(_) => {}
        }
    }

    fn note_one(&self, namespace: &Namespace, wrote: Wrote, reply: &WriteReply) {
        let readable = reply.outcome == Outcome::Applied || reply.read_your_write;
        let (true, Some(version)) = (readable, reply.version) else { return };
        let lifetime = match u64::try_from(wrote.ttl_ms) {
            Ok(ttl_ms @ 1..) => SESSION_MEMORY.min(Duration::from_millis(ttl_ms)),
            _ => SESSION_MEMORY,
        };
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.insert((namespace.clone(), wrote.key), version, Instant::now() + lifetime);
    }
}

impl Written {
    fn insert(&mut self, place: Place, version: Version, until: Instant) {
        let turn = self.next;
        self.next += 1;
        if let Some(before) = self.last.insert(place.clone(), Entry { version, turn, until }) {
            self.order.remove(&before.turn);
            // Replies may come in another order than the writes took effect.
            if before.version > version
                && let Some(entry) = self.last.get_mut(&place)
            {
                entry.version = before.version;
            }
        }
        self.order.insert(turn, place);
        if self.last.len() > SESSION_KEYS_MAX
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.last.remove(&oldest);
        }
    }
}

/// The writes of a request, in the order of its results; `None` for reads.
pub(super) fn writes_of(request: &Request) -> Vec<Option<Wrote>> {
    let one = |op: &Request| {
        let (key, ttl_ms) = match op {
            Request::Put(put) => (&put.key, put.ttl_ms),
            Request::Update(update) => (&update.key, update.ttl_ms),
            Request::Touch(touch) => (&touch.key, touch.ttl_ms),
            Request::Delete(delete) => (&delete.key, 0),
            Request::Get(_) | Request::Batch(_) | Request::Scan(_) => return None,
        };
        Some(Wrote { key: key.clone(), ttl_ms })
    };
    match request {
        Request::Batch(batch) => batch.ops.iter().map(one).collect(),
        single => vec![one(single)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(hlc: u64) -> Version {
        Version { hlc, origin: 1 }
    }

    fn place(key: impl ToString) -> Place {
        (Namespace::parse("n").unwrap(), key.to_string())
    }

    #[test]
    fn the_newest_version_stays_and_the_oldest_key_goes() {
        let session = Session::new();
        let later = Instant::now() + SESSION_MEMORY;
        let mut written = session.written.lock().unwrap();
        written.insert(place("a"), version(9), later);
        written.insert(place("a"), version(3), later);
        for key in 0..SESSION_KEYS_MAX - 1 {
            written.insert(place(key), version(1), later);
        }
        assert_eq!((written.last.len(), written.order.len()), (SESSION_KEYS_MAX, SESSION_KEYS_MAX));
        drop(written);
        let namespace = Namespace::parse("n").unwrap();
        assert_eq!(session.version(&namespace, "a"), Some(version(9)));
        session.written.lock().unwrap().insert(place("one more"), version(1), later);
        assert_eq!(session.version(&namespace, "a"), None);
        assert_eq!(session.written.lock().unwrap().order.len(), SESSION_KEYS_MAX);
    }

    #[test]
    fn a_get_asks_for_the_newer_of_two() {
        let session = Session::new();
        let namespace = Namespace::parse("n").unwrap();
        session.written.lock().unwrap().insert(place("a"), version(5), Instant::now() + SESSION_MEMORY);
        for (asked, sent) in [(0, 5), (4, 5), (6, 6)] {
            let min_version = if asked == 0 { String::new() } else { version(asked).to_string() };
            let mut request =
                Request::Get(GetRequest { key: "a".into(), min_version, ..GetRequest::default() });
            session.demand(&namespace, &mut request);
            let Request::Get(get) = request else { panic!() };
            assert_eq!(get.min_version, version(sent).to_string());
        }
    }

    #[test]
    fn what_ended_is_not_asked_for() {
        let session = Session::new();
        session.written.lock().unwrap().insert(place("a"), version(5), Instant::now());
        assert_eq!(session.version(&Namespace::parse("n").unwrap(), "a"), None);
    }
}
