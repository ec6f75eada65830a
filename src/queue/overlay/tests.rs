//! The overlay on a real Redis.

mod epoch;
mod front;

use super::note::{CROWDED, KEPT_MAX, NOTED_MAX};
use super::*;
use crate::backend::{Entry, OpRing, Row};
use crate::link::private_redis::Redis as Server;

fn queued(key: &str, hlc: u64, body: Option<&'static [u8]>, op: u64) -> Queued {
    let version = Version { hlc, origin: 5 };
    let at = RowKey { namespace: Namespace::parse("n").unwrap(), key: Key::parse(key).unwrap(), slot: 7 };
    let ring = OpRing { entries: vec![(op | 1 << 63, version.fingerprint())], evicted_at_ms: 0 };
    let body = body.map(Bytes::from_static);
    let row = Row { version, slot: 7, body, expires_at_ms: 44, ring, was: false };
    Queued { entry: Entry { at, row }, taken_at_ms: 9 }
}

/// An overlay whose Redis answers.
async fn open(url: &str, prefix: &str) -> Overlay {
    let overlay = Overlay::open(url, prefix).unwrap();
    while overlay.health().is_err() {
        overlay.look_at_clock().await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    overlay
}

impl Queued {
    /// Another write of the same key and worker.
    fn clone_as(&self, hlc: u64, body: Option<&'static [u8]>) -> Self {
        queued(self.entry.at.key.as_str(), hlc, body, hlc)
    }
}

impl Overlay {
    /// Notes writes; those that had been settled before.
    async fn held(&self, writes: &[Queued], known: Known<'_>) -> Result<Vec<Settlement>, Away> {
        match self.hold(writes, known).await? {
            Noted::All(settled) => Ok(settled),
            Noted::Unasked(away) => Err(away),
        }
    }
}

fn settlement(write: &Queued, fate: Fate) -> Settlement {
    Settlement { at: write.entry.at.clone(), version: write.entry.row.version, fate }
}

#[tokio::test]
async fn the_newest_pending_write_is_seen_until_it_is_settled() {
    let overlay = open(&Server::shared().url(), "o1").await;
    let (namespace, key) = (Namespace::parse("n").unwrap(), Key::parse("a").unwrap());
    let look = async || overlay.look(&namespace, &[&key]).await.remove(0).unwrap();
    let fate = async |hlc| overlay.fate(&namespace, &key, Version { hlc, origin: 5 }).await.unwrap();
    assert_eq!((look().await, fate(5).await), (None, Fate::Unknown));
    assert_eq!(overlay.look(&namespace, &[]).await, Vec::new());

    let (five, nine) = (queued("a", 5, Some(b"five"), 1), queued("a", 9, None, 2));
    overlay.held(std::slice::from_ref(&nine), Known::default()).await.unwrap();
    overlay.held(std::slice::from_ref(&five), Known::default()).await.unwrap();
    let pending = look().await.unwrap();
    assert_eq!((pending.version.hlc, pending.body.clone(), pending.expires_at_ms), (9, None, 44));
    let ahead = overlay.ahead(&[(namespace.clone(), key.clone())]).await.unwrap().remove(0).pending.unwrap();
    assert_eq!(ahead.version, pending.version);
    let versions = [1, 2].map(|op| ahead.find(op | 1 << 63).map(|version| version.hlc));
    assert_eq!(versions, [Some(5), Some(9)], "operations of both");
    overlay.held(&[queued("b", 3, Some(b"b"), 4)], Known::default()).await.unwrap();
    let keys = overlay.keys(&namespace, "", None, true, 10).await.unwrap();
    assert_eq!(keys.iter().map(Key::as_str).collect::<Vec<_>>(), ["b", "a"]);
    assert_eq!(overlay.keys(&namespace, "a", Some("b"), false, 10).await.unwrap().len(), 1);

    overlay.settle(&[settlement(&five, Fate::Superseded)]).await.unwrap();
    assert_eq!(look().await.unwrap().version.hlc, 9, "an older one takes nothing away");
    assert_eq!((fate(5).await, fate(9).await), (Fate::Superseded, Fate::Pending));
    overlay.settle(&[settlement(&nine, Fate::Dead("no such luck".to_owned()))]).await.unwrap();
    assert_eq!((look().await, fate(9).await), (None, Fate::Dead("no such luck".to_owned())));
    let settled = overlay.held(std::slice::from_ref(&nine), Known::default()).await.unwrap();
    assert_eq!(settled.len(), 1);
    overlay.settle(&settled).await.unwrap();
    assert_eq!(look().await, None, "one that was settled before it was held does not come back");
    assert_eq!(overlay.count(&namespace).await, Ok(1));
    let settled =
        overlay.held(&[five.clone(), queued("a", 7, Some(b"seven"), 3)], Known::default()).await.unwrap();
    overlay.settle(&settled).await.unwrap();
    assert_eq!(fate(5).await, Fate::Superseded);
    assert_eq!(look().await.unwrap().version.hlc, 7, "five was settled, too");
    overlay.held(&[queued("a", 8, Some(b"eight"), 3)], Known::default()).await.unwrap();
    let dead = Fate::Dead("no".to_owned());
    overlay.settle(&[settlement(&queued("a", 8, None, 3), dead)]).await.unwrap();
    let pending = look().await.unwrap();
    assert_eq!(
        (pending.version.hlc, pending.body.as_deref()),
        (7, Some(&b"seven"[..])),
        "behind what is dead waits what is older"
    );
    overlay.held(&[queued("a", 11, Some(b"eleven"), 6)], Known::default()).await.unwrap();
    overlay.settle(&[settlement(&queued("a", 11, None, 6), Fate::Applied)]).await.unwrap();
    assert_eq!(
        (look().await, fate(7).await),
        (None, Fate::Pending),
        "what is applied takes older ones along, whose own fate is not known yet"
    );
    overlay.overtaken(&queued("b", 3, None, 4).entry.at, Version { hlc: 3, origin: 6 }).await;
    assert_eq!(overlay.count(&namespace).await, Ok(0));
}

/// The documents that are there; no receipt ends like them.
async fn documents(overlay: &Overlay, prefix: &str) -> Vec<Value> {
    names(overlay, &format!("{prefix}:r:*b")).await
}

async fn names(overlay: &Overlay, like: &str) -> Vec<Value> {
    let deadline = Instant::now() + HOLD_TIMEOUT;
    match overlay.calls.redis.call(redis::cmd("KEYS").arg(like), deadline).await {
        Ok(Value::Array(names)) => names,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_without_room_holds_nothing_more_and_settles_what_it_holds() {
    let server = tokio::task::block_in_place(|| Server::start(&["--maxmemory", "8mb"]));
    let overlay = open(&server.url(), "o5").await;
    static BODY: [u8; 16 * 1024] = [7; 16 * 1024];
    // One that waits unseen when memory is full.
    let (older, newer) = (queued("p", 1, Some(b"older"), 1), queued("p", 2, Some(b"newer"), 2));
    overlay.held(&[older.clone(), newer.clone()], Known::default()).await.unwrap();
    overlay.overtaken(&older.entry.at, older.entry.row.version).await;
    let mut held = vec![newer];
    let refused = loop {
        let write = queued(&format!("k{}", held.len()), 1 + held.len() as u64, Some(&BODY), 1);
        let told = overlay.held(std::slice::from_ref(&write), Known::default()).await;
        held.push(write);
        if let Err(away) = told {
            break away;
        }
        assert!(held.len() < 1000, "it takes without end");
    };
    assert!(refused.0.contains("OOM") && held.len() > 100, "{refused:?} after {}", held.len());
    let namespace = Namespace::parse("n").unwrap();
    let there = overlay.count(&namespace).await.unwrap();
    let mut settlements = vec![settlement(&older, Fate::Superseded)];
    settlements.extend(held.iter().map(|write| settlement(write, Fate::Applied)));
    overlay.settle(&settlements).await.unwrap();
    assert_eq!((there, overlay.count(&namespace).await), (held.len() as u64 - 1, Ok(0)));
    assert_eq!(documents(&overlay, "o5").await, Vec::new());
    let (key, version) = (&held[7].entry.at.key, held[7].entry.row.version);
    assert_eq!(overlay.fate(&namespace, key, version).await, Ok(Fate::Applied));
    let fate = overlay.fate(&namespace, &older.entry.at.key, older.entry.row.version).await;
    assert_eq!(fate, Ok(Fate::Superseded), "it has its receipt");
    overlay.held(&[queued("again", 9999, Some(&BODY), 1)], Known::default()).await.unwrap();
}

const PLACED: Document = Document::Placed;

fn placed(documents: &[Document]) -> Known<'_> {
    Known { documents, ..Known::default() }
}

#[tokio::test]
async fn documents_of_one_worker_take_each_others_place() {
    let overlay = open(&Server::shared().url(), "o8").await;
    let (namespace, key) = (Namespace::parse("n").unwrap(), Key::parse("k").unwrap());
    let look = async || {
        let pending = overlay.look(&namespace, &[&key]).await.remove(0).unwrap()?;
        Some((pending.version.hlc, pending.body.map(|body| String::from_utf8(body.to_vec()).unwrap())))
    };
    let seen = |hlc: u64, body: &str| Some((hlc, Some(body.to_owned())));
    let fate = async |hlc, origin| overlay.fate(&namespace, &key, Version { hlc, origin }).await.unwrap();
    let places = async || names(&overlay, "o8:r:*s").await.len();
    let held = async |write: &Queued, document: Document| {
        assert!(overlay.held(std::slice::from_ref(write), placed(&[document])).await.unwrap().is_empty());
    };
    // Two of one call, and one after them.
    let (one, two, three) =
        (queued("k", 1, Some(b"one"), 1), queued("k", 2, Some(b"two"), 2), queued("k", 3, Some(b"three"), 3));
    overlay.held(&[one.clone(), two.clone()], placed(&[PLACED, PLACED])).await.unwrap();
    assert_eq!((look().await, places().await), (seen(2, "two"), 1));
    held(&three, PLACED).await;
    assert_eq!(
        (look().await, places().await, documents(&overlay, "o8").await.len()),
        (seen(3, "three"), 1, 0)
    );
    // Of another worker, and one of the first that was tried before and has its version from then.
    let mut other = queued("k", 4, Some(b"other"), 4);
    other.entry.row.version.origin = 6;
    held(&other, PLACED).await;
    let tried = queued("k", 2, Some(b"tried"), 2);
    let tried = Queued {
        entry: Entry {
            row: Row { version: Version { hlc: 1, origin: 9 }, ..tried.entry.row },
            ..tried.entry
        },
        ..tried
    };
    held(&tried, Document::Own).await;
    assert_eq!(
        (look().await, places().await, documents(&overlay, "o8").await.len()),
        (seen(4, "other"), 2, 1)
    );
    // What is settled and not the newest of its place leaves the others.
    overlay.settle(&[settlement(&two, Fate::Superseded)]).await.unwrap();
    assert_eq!((look().await, fate(2, 5).await), (seen(4, "other"), Fate::Superseded));
    overlay.settle(&[settlement(&other, Fate::Dead("no".to_owned()))]).await.unwrap();
    assert_eq!(
        (look().await, places().await),
        (seen(3, "three"), 1),
        "that of another worker is still there"
    );
    // Those whose documents the newest took the place of still wait. They cannot be read.
    overlay.settle(&[settlement(&three, Fate::Dead("no".to_owned()))]).await.unwrap();
    assert_eq!((look().await, places().await), (seen(1, "tried"), 0));
    let waits = async || overlay.ahead(&[(namespace.clone(), key.clone())]).await.unwrap().remove(0).pending;
    let noted = async || {
        waits().await.map(|waits| {
            waits.all.iter().map(|(version, _)| (version.hlc, version.origin)).collect::<Vec<_>>()
        })
    };
    assert_eq!(noted().await, Some(vec![(1, 9), (1, 5)]));
    overlay.settle(&[settlement(&tried, Fate::Dead("no".to_owned()))]).await.unwrap();
    let lost = overlay.look(&namespace, &[&key, &Key::parse("none").unwrap()]).await;
    assert!(lost[0].as_ref().is_err_and(|away| away.0.contains("dead")) && lost[1] == Ok(None), "{lost:?}");
    assert_eq!((noted().await, fate(1, 5).await), (Some(vec![(1, 5)]), Fate::Pending));
    overlay.settle(&[settlement(&one, Fate::Applied), settlement(&tried, Fate::Superseded)]).await.unwrap();
    let fates = (fate(1, 5).await, fate(1, 9).await);
    assert_eq!((look().await, fates), (None, (Fate::Applied, Fate::Superseded)));
    assert_eq!(overlay.count(&namespace).await, Ok(0));
    // A delete needs no document, and the record before it keeps its place until it goes.
    held(&three.clone_as(5, Some(b"five")), PLACED).await;
    held(&three.clone_as(6, None), PLACED).await;
    assert_eq!((look().await, places().await), (Some((6, None)), 1));
    overlay.settle(&[settlement(&three.clone_as(6, None), Fate::Superseded)]).await.unwrap();
    assert_eq!(look().await, seen(5, "five"));
    overlay.overtaken(&three.entry.at, Version { hlc: 9, origin: 1 }).await;
    assert_eq!((look().await, places().await, fate(5, 5).await), (None, 0, Fate::Pending));
    // One that came late is not taken for the newest; one that is newer than what was noted a moment ago is.
    held(&three.clone_as(7, Some(b"seven")), PLACED).await;
    let put = async |hlc, body| {
        let (place, version) = (overlay.calls.place(&namespace, &key, 5), Version { hlc, origin: 5 });
        let mut set = redis::cmd("SET");
        set.arg(place).arg(note::Placed(version, 44, body));
        overlay.calls.redis.call(&set, Instant::now() + HOLD_TIMEOUT).await.unwrap();
    };
    put(6, b"late").await;
    let missing = overlay.look(&namespace, &[&key]).await.remove(0);
    assert!(missing.unwrap_err().0.contains("missing"));
    put(9, b"nine").await;
    assert_eq!(look().await, seen(9, "nine"));
    // Noted once more because nobody knew: it has a document of its own as well.
    held(&three.clone_as(10, Some(b"ten")), PLACED).await;
    held(&three.clone_as(10, Some(b"ten")), Document::Own).await;
    put(6, b"late").await;
    assert_eq!(look().await, seen(10, "ten"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_looks_while_documents_take_each_others_place_sees_one_and_never_an_older() {
    let overlay = Arc::new(open(&Server::shared().url(), "o9").await);
    let (namespace, key) = (Namespace::parse("n").unwrap(), Key::parse("k").unwrap());
    overlay.held(&[queued("k", 1, Some(b"x"), 1)], placed(&[PLACED])).await.unwrap();
    let writer = overlay.clone();
    let writing = tokio::spawn(async move {
        for hlc in 2..2000 {
            writer.held(&[queued("k", hlc, Some(b"x"), hlc)], placed(&[PLACED])).await.unwrap();
        }
    });
    let (mut last, mut looks) = (0, 0);
    while !writing.is_finished() {
        let pending = overlay.look(&namespace, &[&key]).await.remove(0).unwrap().expect("one is noted");
        assert!(pending.version.hlc >= last, "{} after {last}", pending.version.hlc);
        (last, looks) = (pending.version.hlc, looks + 1);
    }
    writing.await.unwrap();
    assert!(looks > 100, "{looks}");
}
