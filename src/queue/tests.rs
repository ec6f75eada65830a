//! The queue over a real broker and a real Redis, with a store in memory behind it.

mod blocked;
mod dead;
mod drain;
mod groups;
mod ladder;
mod left;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;

use super::private_rabbit::Rabbit;
use super::*;
use crate::backend::memory::Memory;
use crate::backend::{Backend, Entry, OpRing, Row};
use crate::link::private_redis::Redis;
use crate::model::Version;
use crate::model::clock::{hlc_at, wall_ms};

/// One store for all namespaces, which can be away, refuses keys that begin with `poison` until it is mended, and is too busy for those
/// that begin with `locked` until then.
#[derive(Default)]
struct Store {
    memory: Memory,
    away: AtomicBool,
    mended: AtomicBool,
    /// Milliseconds that a batch takes.
    slow_ms: AtomicU64,
    /// Whether requests write to it, and how many did.
    busy: AtomicBool,
    requests: AtomicU64,
    /// How many writes were looked at together, and how many were applied.
    looked_at: Mutex<Vec<usize>>,
    applied_together: Mutex<Vec<usize>>,
    applied: Mutex<Vec<(String, u64)>>,
    announced: AtomicU64,
}

impl Target for Store {
    fn shard(&self, _: &RowKey) -> Result<LaneShard> {
        Ok(only())
    }
    fn admits(&self, _: &LaneShard) -> bool {
        !self.away.load(Ordering::Relaxed)
    }
    fn load(&self, _: &LaneShard) -> crate::layer::Times {
        let more = if self.busy.load(Ordering::Relaxed) { 20 } else { 0 };
        let requests = self.requests.fetch_add(more, Ordering::Relaxed) + more;
        crate::layer::Times::of(&[(requests, Duration::from_micros(500))])
    }
    fn apply<'a>(&'a self, writes: &'a [Queued], deadline: Instant) -> Boxed<'a, Vec<Result<Applied>>> {
        Box::pin(async move {
            self.applied_together.lock().unwrap().push(writes.len());
            tokio::time::sleep(Duration::from_millis(self.slow_ms.load(Ordering::Relaxed))).await;
            let mut results = Vec::new();
            for write in writes {
                results.push(match self.refuses(write) {
                    Some(error) => Err(error),
                    None => {
                        let (key, hlc) = (write.entry.at.key.as_str(), write.entry.row.version.hlc);
                        self.applied.lock().unwrap().push((key.to_owned(), hlc));
                        Backend::apply(&self.memory, vec![write.entry.clone()], deadline).await.remove(0)
                    }
                });
            }
            results
        })
    }
    fn already<'a>(&'a self, writes: &'a [Queued], deadline: Instant) -> Boxed<'a, Vec<Option<Applied>>> {
        Box::pin(async move {
            self.looked_at.lock().unwrap().push(writes.len());
            let mut told = Vec::new();
            for write in writes {
                let (at, version) = (write.entry.at.clone(), write.entry.row.version);
                let found = Backend::read(&self.memory, vec![at], deadline).await.remove(0).unwrap();
                told.push(found.filter(|found| found.version > version).map(|_| Applied::Superseded));
            }
            told
        })
    }
    fn foresee<'a>(&'a self, write: &'a Queued, deadline: Instant) -> Boxed<'a, Result<Applied>> {
        Box::pin(async move {
            match self.refuses(write) {
                Some(error) => Err(error),
                None => Backend::foresee(&self.memory, vec![write.entry.clone()], deadline).await.remove(0),
            }
        })
    }
    fn announce<'a>(&'a self, keys: Vec<RowKey>) -> Boxed<'a, ()> {
        self.announced.fetch_add(keys.len() as u64, Ordering::Relaxed);
        Box::pin(async {})
    }
    fn row_key(&self, namespace: &Namespace, key: &Key) -> Result<RowKey> {
        Ok(RowKey { namespace: namespace.clone(), key: key.clone(), slot: 7 })
    }
    fn mint(&self) -> Version {
        Version { hlc: hlc_at(wall_ms()), origin: 99 }
    }
}

impl Store {
    fn refuses(&self, write: &Queued) -> Option<Error> {
        if self.away.load(Ordering::Relaxed) {
            return Some(Error::unavailable("away", 1));
        }
        if self.mended.load(Ordering::Relaxed) {
            return None;
        }
        let key = write.entry.at.key.as_str();
        if write.entry.row.body.as_deref() == Some(b"refused") {
            return Some(Error::unavailable("a trigger says no", 1).of(crate::model::Scope::Row));
        }
        if key.starts_with("locked") {
            return Some(Error::overloaded("the row is locked", 1));
        }
        key.starts_with("poison").then(|| Error::internal("it refuses the row"))
    }

    async fn body(&self, key: &str) -> Option<String> {
        let at = row_key(key);
        let deadline = Instant::now() + Duration::from_secs(1);
        let found = Backend::read(&self.memory, vec![at], deadline).await.remove(0).unwrap()?;
        Some(String::from_utf8(found.live?.body.to_vec()).unwrap())
    }
}

fn only() -> LaneShard {
    LaneShard { backend: "main".to_owned(), shard: "main".to_owned() }
}

fn row_key(key: &str) -> RowKey {
    // Spread over the lanes by the last letter.
    let slot = u16::from(*key.as_bytes().last().unwrap());
    RowKey { namespace: Namespace::parse("n").unwrap(), key: Key::parse(key).unwrap(), slot }
}

fn put(key: &str, body: &str, counter: u64) -> Queued {
    let at = row_key(key);
    let version = Version { hlc: hlc_at(wall_ms() - 10_000) + counter, origin: 3 };
    let op = (xxhash_rust::xxh3::xxh3_64(body.as_bytes()) | 1 << 63, version.fingerprint());
    let row = Row {
        version,
        slot: at.slot,
        body: Some(Bytes::from(body.to_owned())),
        expires_at_ms: 0,
        ring: OpRing { entries: vec![op], evicted_at_ms: 0 },
        was: false,
    };
    Queued { entry: Entry { at, row }, taken_at_ms: wall_ms() }
}

/// The lane of a write.
fn lane_of(queue: &Queue, shard: &LaneShard, write: &Queued) -> Arc<str> {
    queue.lanes(shard)[usize::from(write.entry.at.slot % topology::LANES)].clone()
}

/// Takes one write, alone in its message.
async fn put_one(queue: &Queue, shard: &LaneShard, write: &Queued, until: Instant) -> Result<(), Unqueued> {
    queue.put(&lane_of(queue, shard, write), std::slice::from_ref(write), until).await.remove(0).1
}

fn settings(rabbit: &Rabbit, prefix: &str, lane_bytes_max: u64) -> Settings {
    Settings {
        url: rabbit.url(),
        prefix: prefix.to_owned(),
        lane_bytes_max,
        redis_url: Redis::shared().url(),
    }
}

async fn open(rabbit: &Rabbit, prefix: &str, lane_bytes_max: u64) -> Arc<Queue> {
    let queue = Queue::open(&settings(rabbit, prefix, lane_bytes_max), "test", vec![only()]).unwrap();
    until("the queue is there", async || is_there(&queue).await).await;
    queue
}

/// Whether its broker and its Redis are.
async fn is_there(queue: &Queue) -> bool {
    queue.state().is_ok() && redis_is_there(queue).await
}

async fn redis_is_there(queue: &Queue) -> bool {
    queue.overlay.look_at_clock().await;
    queue.overlay.health().is_ok()
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn letters_of(queue: &Queue) -> Vec<DeadLetter> {
    let mut letters = Vec::new();
    let walked = queue.walk(100, |letter| {
        letters.push(letter.clone());
        Act::Keep
    });
    assert_eq!(walked.await.unwrap().ended_early, None);
    letters
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_wait_for_their_store_and_the_newest_of_each_key_stands() {
    let rabbit = tokio::task::block_in_place(Rabbit::shared);
    let queue = open(rabbit, "q1", 1 << 30).await;
    let store = Arc::new(Store::default());
    store.away.store(true, Ordering::Relaxed);
    queue.start(store.clone(), 1, || vec![1]);
    let writes: Vec<Queued> = (0..1000).map(|n| put(&format!("k{}", n % 100), &format!("v{n}"), n)).collect();
    let shard = only();
    let puts = writes.iter().map(|write| put_one(&queue, &shard, write, soon()));
    let put = futures_util::future::join_all(puts).await;
    assert!(put.iter().all(Result::is_ok), "{:?}", put.iter().find(|put| put.is_err()));
    for write in &writes {
        queue.overlay().hold(std::slice::from_ref(write), Known::default()).await.unwrap();
    }
    let (namespace, key) = (Namespace::parse("n").unwrap(), Key::parse("k42").unwrap());
    let pending = queue.overlay().look(&namespace, &[&key]).await.remove(0).unwrap().unwrap();
    assert_eq!(pending.body.unwrap(), "v942");
    until("all wait", async || {
        let (lanes, dead) = queue.status().await.unwrap();
        lanes.iter().map(|lane| lane.depth).sum::<Option<u64>>() == Some(1000) && dead == 0
    })
    .await;
    assert!(store.applied.lock().unwrap().is_empty());

    store.away.store(false, Ordering::Relaxed);
    until("all are applied", async || queue.overlay().count(&namespace).await == Ok(0)).await;
    for n in 0..100 {
        assert_eq!(store.body(&format!("k{n}")).await, Some(format!("v{}", 900 + n)));
    }
    let fate = queue.overlay().fate(&namespace, &key, writes[942].entry.row.version).await.unwrap();
    assert_eq!(fate, Fate::Applied);
    until("nothing waits", async || {
        let (lanes, dead) = queue.status().await.unwrap();
        lanes.iter().all(|lane| lane.depth == Some(0)) && dead == 0
    })
    .await;
    queue.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poison_lies_with_the_dead_until_it_is_mended_and_the_rest_goes_on() {
    let rabbit = tokio::task::block_in_place(Rabbit::shared);
    let queue = open(rabbit, "q2", 1 << 30).await;
    let store = Arc::new(Store::default());
    queue.start(store.clone(), 1, || vec![1]);
    let namespace = Namespace::parse("n").unwrap();
    for n in 0..60 {
        let key = if n % 20 == 7 { format!("poison{n}") } else { format!("good{n}") };
        let write = put(&key, &format!("v{n}"), n);
        put_one(&queue, &only(), &write, soon()).await.unwrap();
        queue.overlay().hold(std::slice::from_ref(&write), Known::default()).await.unwrap();
    }
    until("three are dead", async || queue.dead_letters().await.unwrap() == 3).await;
    until("all are settled", async || queue.overlay().count(&namespace).await == Ok(0)).await;
    assert_eq!(store.body("good8").await.as_deref(), Some("v8"));
    let letters = letters_of(&queue).await;
    assert_eq!(letters.len(), 3);
    assert!(letters[0].notes.reason.contains("it refuses the row"), "{:?}", letters[0].notes);
    assert!(letters[0].notes.lane.starts_with("q2.wb.main.main."));
    let fate = queue.overlay().fate(
        &namespace,
        &letters[0].write.as_ref().unwrap().entry.at.key,
        letters[0].id.parse().unwrap(),
    );
    assert!(matches!(fate.await.unwrap(), Fate::Dead(reason) if reason.contains("refuses")));
    assert!(matches!(queue.foresee(&*store, &letters[0]).await, Foreseen::Failing(_)));
    let replayed = queue.replay(&*store, 100, false, |_| true).await.unwrap();
    assert_eq!((replayed.looked_at, replayed.applied, replayed.failed.len()), (3, 0, 3));

    store.mended.store(true, Ordering::Relaxed);
    assert_eq!(queue.foresee(&*store, &letters[1]).await, Foreseen::Applied);
    let one = letters[1].id.clone();
    let replayed = queue.replay(&*store, 100, false, |letter| letter.id == one).await.unwrap();
    assert_eq!((replayed.applied, replayed.skipped), (1, 2));
    let replayed = queue.replay(&*store, 100, false, |_| true).await.unwrap();
    assert_eq!((replayed.applied, replayed.superseded, replayed.failed.len()), (2, 0, 0));
    assert_eq!(store.body("poison47").await.as_deref(), Some("v47"));
    until("none are left", async || queue.dead_letters().await.unwrap() == 0).await;
    queue.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_is_full_says_so_and_a_broker_that_dies_loses_nothing_it_confirmed() {
    let mut rabbit = tokio::task::block_in_place(Rabbit::start);
    let queue = open(&rabbit, "q3", 40_000).await;
    let shard = only();
    let body = "x".repeat(1000);
    let (mut taken, mut full) = (Vec::new(), 0);
    for n in 0..200 {
        let write = put("k", &format!("{n:03}{body}"), n);
        match put_one(&queue, &shard, &write, soon()).await {
            Ok(()) => taken.push(write),
            Err(Unqueued::Full(_)) => full += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(taken.len() >= 30 && full >= 100, "taken {}, full {full}", taken.len());

    // Others arrive while the broker dies.
    let others: Vec<Queued> = (0..3000).map(|n| put(&format!("m{}", n % 5), &format!("w{n}"), n)).collect();
    let killed = async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        rabbit.kill9();
    };
    let puts = others.iter().map(|write| put_one(&queue, &shard, write, soon()));
    let (confirmed, ()) = futures_util::join!(futures_util::future::join_all(puts), killed);
    until("it is told", async || queue.state().is_err()).await;
    let refused = put_one(&queue, &shard, &others[0], soon()).await;
    assert!(matches!(refused, Err(Unqueued::Down(_))), "{refused:?}");
    for (write, confirmed) in others.iter().zip(&confirmed) {
        if confirmed.is_ok() {
            taken.push(write.clone());
        }
    }
    tokio::task::block_in_place(|| rabbit.restart());
    until("it is back", async || queue.state().is_ok()).await;
    let store = Arc::new(Store::default());
    queue.start(store.clone(), 1, || vec![1]);
    let mut newest: std::collections::HashMap<String, u64> = std::collections::HashMap::new();
    for write in &taken {
        let hlc = write.entry.row.version.hlc;
        let stands = newest.entry(write.entry.at.key.as_str().to_owned()).or_default();
        *stands = (*stands).max(hlc);
    }
    println!("confirmed {} of {} before the kill", taken.len(), others.len() + 200);
    for (key, hlc) in newest {
        until(&format!("{key}: every confirmed write is applied"), async || {
            let found = Backend::read(&store.memory, vec![row_key(&key)], soon()).await.remove(0).unwrap();
            found.is_some_and(|found| found.version.hlc >= hlc)
        })
        .await;
    }
    queue.stop().await;
}

/// What waits, of all lanes and rungs; `None` where nobody knows.
async fn waiting(queue: &Queue) -> Option<u64> {
    queue.status().await.unwrap().0.iter().map(|lane| lane.depth).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_on_the_ladder_or_is_being_applied_is_counted() {
    let rabbit = tokio::task::block_in_place(Rabbit::shared);
    let queue = open(rabbit, "q4", 1 << 30).await;
    let store = Arc::new(Store::default());
    store.slow_ms.store(6_500, Ordering::Relaxed);
    queue.start(store.clone(), 1, || vec![1]);
    until("all lanes are worked on", async || {
        queue.status().await.unwrap().0.iter().all(|lane| lane.in_hand == Some(0) && lane.rate.is_some())
    })
    .await;
    // It is ahead of the clock, so it waits ten minutes.
    let mut ahead = put("ahead", "later", 0);
    ahead.entry.row.version.hlc = hlc_at(wall_ms() + 60_000);
    ahead.taken_at_ms = wall_ms() - 5_000;
    put_one(&queue, &only(), &ahead, soon()).await.unwrap();
    let rung = async || {
        let lanes = queue.status().await.unwrap().0;
        lanes.into_iter().find(|lane| lane.name == "q4.wb.retry.600s").unwrap()
    };
    until("it is counted on the ladder", async || rung().await.depth == Some(1)).await;
    put_one(&queue, &only(), &put("k", "v", 0), soon()).await.unwrap();
    until("it is counted in its lane", async || waiting(&queue).await == Some(2)).await;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(5_500) {
        assert_eq!(waiting(&queue).await, Some(2), "after {:?}", begun.elapsed());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let rung = rung().await;
    assert_eq!((rung.ready, rung.in_hand), (0, Some(1)), "{rung:?}");
    assert!(rung.oldest_age_ms >= Some(10_000) && rung.bytes > Some(50), "{rung:?}");
    until("the other is applied", async || waiting(&queue).await == Some(1)).await;
    queue.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_can_tell_is_not_taken_for_nothing() {
    let rabbit = tokio::task::block_in_place(Rabbit::shared);
    let mut redis = tokio::task::block_in_place(|| Redis::start(&[]));
    let settings = Settings {
        url: rabbit.url(),
        prefix: "q5".to_owned(),
        lane_bytes_max: 1 << 30,
        redis_url: redis.url(),
    };
    let queue = Queue::open(&settings, "test", vec![only()]).unwrap();
    until("the queue is there", async || is_there(&queue).await).await;
    assert_eq!(waiting(&queue).await, None, "nobody is there who could tell");
    let store = Arc::new(Store::default());
    queue.start(store.clone(), 1, || vec![1]);
    until("all lanes are worked on", async || {
        queue.status().await.unwrap().0.iter().all(|lane| lane.in_hand == Some(0) && lane.rate.is_some())
    })
    .await;
    tokio::task::block_in_place(|| redis.kill9());
    until("nobody knows", async || waiting(&queue).await.is_none()).await;
    let lanes = queue.status().await.unwrap().0;
    assert!(lanes.iter().all(|lane| lane.ready == 0 && lane.in_hand.is_none()), "{lanes:?}");
    queue.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_is_shown_also_where_it_cannot_be_asked_whether_it_was_settled() {
    let rabbit = tokio::task::block_in_place(Rabbit::shared);
    let server = tokio::task::block_in_place(|| Redis::start(&["--rename-command", "MGET", "HIDDEN"]));
    let settings = Settings { redis_url: server.url(), ..settings(rabbit, "q15", 1 << 30) };
    let queue = Queue::open(&settings, "test", vec![only()]).unwrap();
    until("Redis is there", async || redis_is_there(&queue).await).await;
    let write = put("k", "v", 1);
    assert!(queue.show(std::slice::from_ref(&write), Known::default()).await);
    assert_eq!(queue.overlay().count(&write.entry.at.namespace).await, Ok(1));
}
