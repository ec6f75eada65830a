//! The overlay on a real Redis.

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

#[tokio::test]
async fn the_newest_are_noted_and_what_they_push_out_still_waits() {
    let overlay = open(&Server::shared().url(), "o2").await;
    let (namespace, key) = (Namespace::parse("n").unwrap(), Key::parse("k").unwrap());
    let ahead = async || overlay.ahead(&[(namespace.clone(), key.clone())]).await.unwrap().remove(0);
    let full = NOTED_MAX as u64;
    for op in 1..=full + 2 {
        let write = queued("k", op, Some(b"x"), op);
        let at = write.entry.at.clone();
        let surplus = ahead().await.pending.and_then(|waits| waits.surplus());
        let surplus: Vec<_> = surplus.into_iter().map(|version| (at.clone(), version)).collect();
        assert_eq!(surplus.len(), usize::from(op == full + 1), "{op}");
        overlay.held(&[write], Known { surplus: &surplus, ..Known::default() }).await.unwrap();
    }
    // Once more, as after an answer that was lost.
    overlay.held(&[queued("k", full, Some(b"x"), full)], Known::default()).await.unwrap();
    let there = ahead().await;
    let pending = there.pending.unwrap();
    let noted: Vec<_> =
        pending.all.iter().map(|(version, op)| (version.hlc, op.unwrap() & !(1 << 63))).collect();
    let expected: Vec<_> = (0..=KEPT_MAX as u64).map(|back| (full + 2 - back, full + 2 - back)).collect();
    assert_eq!((noted, there.copy), (expected, None));
    let version = |hlc| Version { hlc, origin: 5 };
    for hlc in 1..=full + 2 {
        assert_eq!(overlay.fate(&namespace, &key, version(hlc)).await, Ok(Fate::Pending), "{hlc}");
    }
    assert_eq!(overlay.fate(&namespace, &key, version(full + 3)).await, Ok(Fate::Unknown));
    assert_eq!(documents(&overlay, "o2").await.len(), KEPT_MAX + 1);
    // What was pushed out may be held again: then it is noted again.
    overlay.held(&[queued("k", 1, Some(b"x"), 1)], Known::default()).await.unwrap();
    let settlements: Vec<_> =
        (1..=full + 2).map(|hlc| settlement(&queued("k", hlc, None, hlc), Fate::Applied)).collect();
    overlay.settle(&settlements).await.unwrap();
    assert_eq!((ahead().await.pending, overlay.count(&namespace).await), (None, Ok(0)));
    for hlc in 1..=full + 2 {
        assert_eq!(overlay.fate(&namespace, &key, version(hlc)).await, Ok(Fate::Applied), "{hlc}");
    }
    assert_eq!(documents(&overlay, "o2").await, Vec::new());
    assert_eq!(names(&overlay, "o2:r:*:o").await, Vec::new(), "none waits unseen");
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

#[tokio::test]
async fn one_that_was_settled_before_it_was_noted_and_is_pushed_out_waits_no_more() {
    let overlay = open(&Server::shared().url(), "o6").await;
    let first = |hlc| Version { hlc, origin: 5 };
    let front = note::Front { notes: 2, first: first(1), last: first(2) };
    for (key, document, front) in [("own", Document::Own, None), ("placed", PLACED, Some(front))] {
        let (early, late) = (queued(key, 1, Some(b"early"), 1), queued(key, 2, Some(b"late"), 2));
        overlay.settle(&[settlement(&early, Fate::Superseded)]).await.unwrap();
        let settled = overlay.held(std::slice::from_ref(&early), placed(&[document])).await.unwrap();
        // The one after it pushes it out, and itself.
        overlay.held(std::slice::from_ref(&late), placed(&[document])).await.unwrap();
        let newest = late.entry.row.version;
        let surplus = [(late.entry.at.clone(), note::Surplus { newest, front })];
        let last = queued(key, 3, Some(b"last"), 3);
        overlay.held(&[last], Known { surplus: &surplus, ..placed(&[document]) }).await.unwrap();
        overlay.settle(&settled).await.unwrap();
        let RowKey { namespace, key, .. } = &late.entry.at;
        let fate = async |version| overlay.fate(namespace, key, version).await.unwrap();
        assert_eq!((fate(first(1)).await, fate(first(2)).await), (Fate::Superseded, Fate::Pending));
        assert_eq!(names(&overlay, "o6:r:*:o").await.len(), 1);
        overlay.settle(&[settlement(&late, Fate::Superseded)]).await.unwrap();
        assert_eq!(names(&overlay, "o6:r:*:o").await, Vec::new());
    }
}

#[tokio::test]
async fn what_is_noted_of_a_key_is_bounded_also_where_nobody_looks() {
    let overlay = open(&Server::shared().url(), "o7").await;
    let most = CROWDED as u64;
    for hlc in 1..=most + 1 {
        overlay.held(&[queued("k", hlc, Some(b"x"), hlc)], Known::default()).await.unwrap();
    }
    let (namespace, key) = (Namespace::parse("n").unwrap(), Key::parse("k").unwrap());
    let waits = overlay.ahead(&[(namespace.clone(), key.clone())]).await.unwrap().remove(0).pending.unwrap();
    assert_eq!(waits.all.iter().map(|(version, _)| version.hlc).collect::<Vec<_>>(), [most + 1]);
    assert_eq!(documents(&overlay, "o7").await.len(), 1);
    let fate = overlay.fate(&namespace, &key, Version { hlc: 1, origin: 5 }).await;
    assert_eq!(fate, Ok(Fate::Pending), "it waits all the same");
}

const PLACED: Document = Document::Placed;

fn placed(documents: &[Document]) -> Known<'_> {
    Known { documents, ..Known::default() }
}

#[tokio::test]
async fn receipts_are_asked_for_where_something_was_settled_meanwhile_and_there_alone() {
    let overlay = open(&Server::shared().url(), "o10").await;
    let (namespace, key) = (Namespace::parse("n").unwrap(), Key::parse("k").unwrap());
    let epoch = async || overlay.ahead(&[(namespace.clone(), key.clone())]).await.unwrap().remove(0).epoch;
    let held = async |write: &Queued, since: Option<Epoch>| {
        let known = Known { since, ..Known::default() };
        overlay.held(std::slice::from_ref(write), known).await.unwrap().len()
    };
    let write = |hlc| queued("k", hlc, Some(b"x"), hlc);
    // What says so without the epoch, which nothing of ours does, shows whether it was asked.
    let says = async |write: &Queued| {
        let name = overlay.calls.receipt(&namespace, &key, write.entry.row.version);
        let deadline = Instant::now() + HOLD_TIMEOUT;
        overlay.calls.redis.call(redis::cmd("SET").arg(name).arg("applied"), deadline).await.unwrap();
    };
    assert_eq!(epoch().await, None);
    says(&write(1)).await;
    assert_eq!(held(&write(1), None).await, 1, "without an epoch it is asked");
    let first = epoch().await.expect("it began");
    says(&write(2)).await;
    assert_eq!(held(&write(2), Some(first)).await, 0);
    assert_eq!(held(&write(2), None).await, 1);
    // Another's, and its own.
    overlay.settle(&[settlement(&queued("other", 3, None, 3), Fate::Superseded)]).await.unwrap();
    assert_eq!(held(&write(2), Some(first)).await, 1);
    let second = epoch().await.unwrap();
    assert!(second != first);
    overlay.settle(&[settlement(&write(4), Fate::Dead("no".to_owned()))]).await.unwrap();
    assert_eq!(held(&write(4), Some(second)).await, 1);
    let third = epoch().await.unwrap();
    // What is taken away and not settled changes nothing.
    overlay.overtaken(&write(5).entry.at, write(5).entry.row.version).await;
    assert_eq!(epoch().await, Some(third));
    // That of another connection may have been counted up to once more.
    let other = Epoch { connection: third.connection + 1, ..third };
    says(&write(7)).await;
    assert_eq!((held(&write(7), Some(third)).await, held(&write(7), Some(other)).await), (0, 1));
    // One that Redis forgot does not come again, whoever begins the next.
    let mut seen = vec![first, second, third];
    for settles in [true, true, false, false] {
        let deadline = Instant::now() + HOLD_TIMEOUT;
        overlay.calls.redis.call(redis::cmd("DEL").arg("o10:z"), deadline).await.unwrap();
        match settles {
            true => overlay.settle(&[settlement(&write(6), Fate::Applied)]).await.unwrap(),
            false => assert_eq!(held(&write(6), Some(third)).await, 1),
        }
        seen.push(epoch().await.expect("it began"));
    }
    let numbers: std::collections::BTreeSet<u64> = seen.iter().map(|epoch| epoch.number).collect();
    assert_eq!(numbers.len(), seen.len(), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_settled_while_it_is_noted_does_not_stay_noted() {
    let url = Server::shared().url();
    let (overlay, consumer) = (open(&url, "o13").await, Arc::new(open(&url, "o13").await));
    let namespace = Namespace::parse("n").unwrap();
    let (mut before, mut after) = (0, 0);
    for round in 1..=400 {
        let write = queued(&format!("k{round}"), round, Some(b"x"), round);
        let at = write.entry.at.clone();
        let ahead = overlay.ahead(&[(namespace.clone(), at.key.clone())]).await.unwrap().remove(0);
        // From here on it is in the queue.
        let dead = settlement(&write, Fate::Dead("no".to_owned()));
        let settles = consumer.clone();
        let settle = async move { settles.settle(&[dead]).await.unwrap() };
        let known = Known { since: ahead.epoch, ..placed(&[PLACED]) };
        let write = [write];
        let hold = overlay.held(&write, known);
        // Before, after, and at the same time.
        let settled = match round % 3 {
            0 => {
                settle.await;
                hold.await
            }
            1 => {
                let settled = hold.await;
                settle.await;
                settled
            }
            _ => {
                let settling = tokio::spawn(settle);
                let settled = hold.await;
                settling.await.unwrap();
                settled
            }
        };
        let settled = settled.unwrap();
        match settled.is_empty() {
            true => after += 1,
            false => before += 1,
        }
        overlay.settle(&settled).await.unwrap();
        let waits = overlay.ahead(&[(namespace.clone(), at.key.clone())]).await.unwrap().remove(0).pending;
        assert_eq!(waits, None, "{round}");
    }
    assert!(before >= 133 && after >= 133, "{before} before, {after} after");
    assert_eq!(overlay.count(&namespace).await, Ok(0));
    for left in ["o13:r:*s", "o13:r:*b", "o13:r:*:o"] {
        assert_eq!(names(&overlay, left).await, Vec::new(), "{left}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_noted_counts_as_noted_also_where_receipts_are_not_told() {
    let server = tokio::task::block_in_place(|| Server::start(&["--rename-command", "MGET", "HIDDEN"]));
    let overlay = open(&server.url(), "o15").await;
    let write = queued("k", 1, Some(b"x"), 1);
    let noted = overlay.hold(std::slice::from_ref(&write), Known::default()).await.unwrap();
    assert!(matches!(&noted, Noted::Unasked(Away(why)) if why.contains("MGET")), "{noted:?}");
    assert_eq!(overlay.count(&write.entry.at.namespace).await, Ok(1));
}

#[tokio::test]
async fn of_many_writes_of_one_call_each_is_asked_for_by_itself() {
    let overlay = open(&Server::shared().url(), "o14").await;
    // More than of one transaction.
    let writes: Vec<Queued> =
        (1..=3 * TOLD_TOGETHER as u64).map(|n| queued(&format!("k{n}"), n, Some(b"x"), n)).collect();
    let settled = [3, TOLD_TOGETHER + 7, 3 * TOLD_TOGETHER - 1];
    let settlements: Vec<_> = settled.iter().map(|at| settlement(&writes[*at], Fate::Superseded)).collect();
    overlay.settle(&settlements).await.unwrap();
    let told = overlay.held(&writes, Known::default()).await.unwrap();
    let told: Vec<u64> = told.iter().map(|one| one.version.hlc).collect();
    assert_eq!(told, settled.map(|at| writes[at].entry.row.version.hlc));
    let namespace = Namespace::parse("n").unwrap();
    assert_eq!(overlay.count(&namespace).await, Ok(writes.len() as u64));
    let keys: Vec<&Key> = writes.iter().map(|write| &write.entry.at.key).collect();
    let seen = overlay.look(&namespace, &keys).await;
    assert!(seen.into_iter().all(|pending| pending.unwrap().is_some()));
}

#[tokio::test]
async fn what_is_noted_first_is_pushed_out_if_it_is_as_it_was() {
    let overlay = open(&Server::shared().url(), "o11").await;
    let (namespace, key) = (Namespace::parse("n").unwrap(), Key::parse("k").unwrap());
    let waits = async |key: &Key| {
        overlay.ahead(&[(namespace.clone(), key.clone())]).await.unwrap().remove(0).pending.unwrap()
    };
    let noted = async |key: &Key| waits(key).await.all.iter().map(|(at, _)| at.hlc).collect::<Vec<_>>();
    let put = async |name: &str, hlc, body, surplus: &[(RowKey, note::Surplus)]| {
        let known = Known { documents: &[PLACED], surplus, since: None };
        overlay.held(&[queued(name, hlc, body, hlc)], known).await.unwrap();
    };
    let full = NOTED_MAX as u64;
    let at = queued("k", 1, None, 1).entry.at;
    for hlc in 1..=full {
        put("k", hlc, (hlc != 3).then_some(b"x"), &[]).await;
    }
    let surplus = waits(&key).await.surplus().unwrap();
    let front = surplus.front.clone().expect("all of it is noted first");
    assert_eq!((front.notes, front.first.hlc, front.last.hlc), (NOTED_MAX - KEPT_MAX + 1, 1, full - 3));
    put("k", full + 1, Some(b"newest"), &[(at.clone(), surplus.clone())]).await;
    let kept: Vec<u64> = (0..KEPT_MAX as u64).map(|back| full + 1 - back).collect();
    assert_eq!(noted(&key).await, kept);
    // Twice: they are not what they were.
    put("k", full + 2, Some(b"newest"), &[(at.clone(), surplus.clone())]).await;
    assert_eq!(noted(&key).await.len(), KEPT_MAX + 1);
    for hlc in 1..=full + 2 {
        let fate = overlay.fate(&namespace, &key, Version { hlc, origin: 5 }).await;
        assert_eq!(fate, Ok(Fate::Pending), "{hlc}");
    }
    let pending = overlay.look(&namespace, &[&key]).await.remove(0).unwrap().unwrap();
    assert_eq!((pending.version.hlc, pending.body.as_deref()), (full + 2, Some(&b"newest"[..])));
    // The newest is dead: those that were pushed out still wait, and are settled like others.
    let settled: Vec<_> = (1..=full + 2)
        .rev()
        .map(|hlc| settlement(&queued("k", hlc, None, hlc), Fate::Dead("no".to_owned())))
        .collect();
    for settled in &settled {
        overlay.settle(std::slice::from_ref(settled)).await.unwrap();
    }
    for prefix in ["o11:r:*:o", "o11:r:*b", "o11:r:*s", "o11:v:*"] {
        assert_eq!(names(&overlay, prefix).await, Vec::new(), "{prefix}");
    }
    assert_eq!(overlay.count(&namespace).await, Ok(0));

    // Where one of it is gone, or was settled in between, nothing goes.
    let key = Key::parse("gone").unwrap();
    for hlc in 1..=full {
        put("gone", hlc, Some(b"x"), &[]).await;
    }
    let surplus = waits(&key).await.surplus().unwrap();
    let gone = settlement(&queued("gone", 2, None, 2), Fate::Superseded);
    overlay.settle(std::slice::from_ref(&gone)).await.unwrap();
    let surplus = [(gone.at.clone(), surplus)];
    put("gone", full + 1, Some(b"newest"), &surplus).await;
    assert_eq!(noted(&key).await.len(), NOTED_MAX);
    // The first is another, the last the same.
    let at = surplus[0].0.clone();
    let front = surplus[0].1.front.clone().unwrap();
    let version = |hlc| Version { hlc, origin: 5 };
    let pushed_out = async |fronts: &[(&RowKey, &note::Front)]| {
        let mut steps = redis::pipe();
        overlay.calls.push_out(&mut steps, fronts);
        overlay.calls.send(&steps, HOLD_TIMEOUT).await.unwrap()
    };
    let other = note::Front { notes: NOTED_MAX - 1, first: version(2), last: version(full) };
    assert_eq!(pushed_out(&[(&at, &other)]).await, [Value::Int(0)]);
    // Of several of one call those go that are as they were.
    for hlc in 1..=3 {
        put("several", hlc, Some(b"x"), &[]).await;
    }
    let several = queued("several", 1, None, 1).entry.at;
    let two = note::Front { notes: 2, first: version(1), last: version(2) };
    let right = note::Front { first: version(1), ..other };
    assert_eq!(
        pushed_out(&[(&at, &front), (&several, &two), (&several, &two), (&at, &right)]).await,
        [Value::Int(2)]
    );
    assert_eq!((noted(&key).await, noted(&several.key).await), (vec![full + 1], vec![3]));
    let mut ask = redis::cmd("TTL");
    ask.arg(overlay.calls.unseen(&namespace, &several.key));
    let left = overlay.calls.redis.call(&ask, Instant::now() + HOLD_TIMEOUT).await;
    assert!(matches!(left, Ok(Value::Int(seconds)) if seconds > 1_000_000), "some day it ends: {left:?}");
    // And where it is all that is there.
    let all = note::Front { notes: 1, first: version(7), last: version(7) };
    put("alone", 7, Some(b"x"), &[]).await;
    let alone = queued("alone", 7, None, 7).entry.at;
    assert_eq!(pushed_out(&[(&alone, &all)]).await, [Value::Int(0)]);
    assert_eq!(noted(&alone.key).await, [7]);
}

#[tokio::test]
async fn what_is_noted_first_needs_nothing_taken_away_with_it_or_goes_another_way() {
    let overlay = open(&Server::shared().url(), "o12").await;
    let namespace = Namespace::parse("n").unwrap();
    // Of another worker, of which nothing stays; with a document of its own; behind one that stays.
    for name in ["plain", "other", "own", "behind"] {
        for nth in 1..=NOTED_MAX as u64 {
            let (hlc, origin, document) = match (name, nth) {
                ("other", 2) => (2, 6, PLACED),
                ("own", 2) => (2, 5, Document::Own),
                ("behind", 1) => (90, 5, PLACED),
                (_, nth) => (nth, 5, PLACED),
            };
            let mut write = queued(name, hlc, Some(b"x"), hlc);
            write.entry.row.version.origin = origin;
            overlay.held(&[write], placed(&[document])).await.unwrap();
        }
        let write = queued(name, 100, Some(b"newest"), 100);
        let at = write.entry.at.clone();
        let ask = [(namespace.clone(), at.key.clone())];
        let surplus = overlay.ahead(&ask).await.unwrap().remove(0).pending.unwrap().surplus().unwrap();
        assert_eq!(surplus.front.is_some(), name == "plain", "{name}");
        let surplus = [(at, surplus)];
        overlay.held(&[write], Known { surplus: &surplus, ..placed(&[PLACED]) }).await.unwrap();
        let waits = overlay.ahead(&ask).await.unwrap().remove(0).pending.unwrap();
        assert_eq!(waits.all.len(), KEPT_MAX, "{name}");
        let left = names(&overlay, &format!("o12:r:n:{name}:*[bs]")).await;
        assert_eq!(left.len(), 1, "{name}: the newest has its document, and no other");
    }
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
