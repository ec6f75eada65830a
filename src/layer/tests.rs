//! The layers around a store that can be cut off. Time is paused: what takes seconds here takes none.

use std::sync::atomic::AtomicBool;

use bytes::Bytes;

use super::*;
use crate::backend::memory::Memory;
use crate::backend::{Action, ONLY_SHARD};
use crate::model::Version;
use crate::model::op::{Expiry, Lifetime};

/// A store of two shards (even and odd slots) whose servers can be taken away.
#[derive(Clone)]
struct Store {
    memory: Arc<Memory>,
    cut: Arc<[AtomicBool; 2]>,
    asked: Arc<AtomicUsize>,
    takes: Duration,
}

impl Store {
    fn new() -> Self {
        let (memory, cut) = (Arc::default(), Arc::new([AtomicBool::new(false), AtomicBool::new(false)]));
        Self { memory, cut, asked: Arc::default(), takes: Duration::ZERO }
    }

    fn cut(&self, shard: usize, cut: bool) {
        self.cut[shard].store(cut, Ordering::Relaxed);
    }

    async fn reach(&self, slots: impl Iterator<Item = u16>) -> Result<()> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(self.takes).await;
        for shard in slots.map(|slot| usize::from(slot % 2)) {
            if self.cut[shard].load(Ordering::Relaxed) {
                return Err(Error::unavailable(format!("shard {shard} is away"), 7));
            }
        }
        Ok(())
    }
}

impl Backend for Store {
    fn capability(&self) -> Capability {
        Backend::capability(&*self.memory)
    }
    async fn read(&self, keys: Vec<RowKey>, deadline: Instant) -> Vec<Result<Option<Found>>> {
        match self.reach(keys.iter().map(|at| at.slot)).await {
            Ok(()) => Backend::read(&*self.memory, keys, deadline).await,
            Err(error) => vec![Err(error); keys.len()],
        }
    }
    async fn write(&self, writes: Vec<Write>, deadline: Instant) -> Vec<Result<Written>> {
        match self.reach(writes.iter().map(|write| write.at.slot)).await {
            Ok(()) => Backend::write(&*self.memory, writes, deadline).await,
            Err(error) => vec![Err(error); writes.len()],
        }
    }
    async fn offer(&self, writes: Vec<Write>, deadline: Instant) -> Vec<Result<Offered>> {
        match self.reach(writes.iter().map(|write| write.at.slot)).await {
            Ok(()) => Backend::offer(&*self.memory, writes, deadline).await,
            Err(error) => vec![Err(error); writes.len()],
        }
    }
    async fn write_atomic(
        &self,
        writes: Vec<Write>,
        deadline: Instant,
    ) -> Result<Vec<Written>, (usize, Error)> {
        self.reach(writes.iter().map(|write| write.at.slot)).await.map_err(|error| (1, error))?;
        Backend::write_atomic(&*self.memory, writes, deadline).await
    }
    async fn apply(&self, entries: Vec<Entry>, deadline: Instant) -> Vec<Result<Applied>> {
        match self.reach(entries.iter().map(|entry| entry.at.slot)).await {
            Ok(()) => Backend::apply(&*self.memory, entries, deadline).await,
            Err(error) => vec![Err(error); entries.len()],
        }
    }
    async fn scan(&self, range: Range, deadline: Instant) -> Result<Page> {
        self.reach([0, 1].into_iter()).await?;
        Backend::scan(&*self.memory, range, deadline).await
    }
    async fn sweep(&self, resume: Option<Vec<u8>>, grace_ms: i64) -> Result<Swept> {
        Backend::sweep(&*self.memory, resume, grace_ms).await
    }
    async fn partitioning(&self, namespace: &Namespace, first: Option<String>) -> Result<Option<String>> {
        Backend::partitioning(&*self.memory, namespace, first).await
    }

    async fn durability(&self, namespace: &Namespace, noting: Noting) -> Result<Option<String>> {
        Backend::durability(&*self.memory, namespace, noting).await
    }
    fn health(&self) -> Result<()> {
        Ok(())
    }
    fn shards(&self) -> Vec<String> {
        vec!["even".to_owned(), "odd".to_owned()]
    }
    fn shard_of(&self, slot: u16) -> usize {
        usize::from(slot % 2)
    }
    fn store_id(&self) -> Option<String> {
        None
    }
    async fn close(&self) {}
}

fn at(key: &str, slot: u16) -> RowKey {
    RowKey { namespace: Namespace::parse("n").unwrap(), key: Key::parse(key).unwrap(), slot }
}

fn put(key: &str, slot: u16) -> Write {
    Write {
        at: at(key, slot),
        action: Action::Put { body: Bytes::new(), expiry: Expiry::New(Lifetime::Forever) },
        precondition: None,
        op: None,
        proposed: Version { hlc: 9, origin: 1 },
        taken_at_ms: 0,
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

fn breaker(layered: &Layered, shard: &str, work: &str) -> &'static str {
    let states = layered.states();
    states.iter().find(|state| state.shard == shard && state.work == work).unwrap().breaker
}

async fn write(layered: &Layered, slot: u16) -> Result<Written> {
    Backend::write(layered, vec![put("k", slot)], soon()).await.remove(0)
}

#[tokio::test(start_paused = true)]
async fn five_refusals_open_it_and_the_other_shard_and_the_reads_go_on() {
    let store = Store::new();
    let layered = Layered::new("main", Arc::new(store.clone()), &Settings::default());
    store.cut(1, true);
    for _ in 0..5 {
        assert_eq!(write(&layered, 1).await.unwrap_err().code, Code::Unavailable);
    }
    assert_eq!(breaker(&layered, "odd", "writes"), "open");
    let asked = store.asked.load(Ordering::Relaxed);
    let refused = write(&layered, 1).await.unwrap_err();
    assert!(refused.message.contains("shard 1 is away") && refused.message.contains("writes of main.odd"));
    assert!(refused.retry_after_ms > 0);
    assert_eq!(store.asked.load(Ordering::Relaxed), asked, "an open breaker asks nobody");
    write(&layered, 0).await.unwrap();
    assert_eq!(
        (breaker(&layered, "even", "writes"), breaker(&layered, "odd", "reads")),
        ("closed", "closed")
    );
    // A batch over both shards: each key for itself, in the order asked.
    let both = Backend::write(&layered, vec![put("a", 1), put("b", 2), put("c", 3)], soon()).await;
    assert_eq!(both.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true, false]);
}

#[tokio::test(start_paused = true)]
async fn it_probes_by_itself_lets_requests_back_in_and_closes() {
    let store = Store::new();
    let layered = Layered::new("main", Arc::new(store.clone()), &Settings::default());
    store.cut(0, true);
    for _ in 0..5 {
        write(&layered, 0).await.unwrap_err();
    }
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(breaker(&layered, "even", "writes"), "open");
    store.cut(0, false);
    // The longest pause there is.
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert!(["ramp", "closed"].contains(&breaker(&layered, "even", "writes")));
    write(&layered, 0).await.unwrap();
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(breaker(&layered, "even", "writes"), "closed");
}

/// How long it takes from now until requests are let in again.
async fn until_let_in(layered: &Layered) -> Duration {
    let begun = Instant::now();
    while !["ramp", "closed"].contains(&breaker(layered, "even", "writes")) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    begun.elapsed()
}

#[tokio::test(start_paused = true)]
async fn pauses_grow_to_their_limit_and_after_a_recovery_begin_anew() {
    let store = Store::new();
    let layered = Layered::new("main", Arc::new(store.clone()), &Settings::default());
    let fail = async || {
        store.cut(0, true);
        while breaker(&layered, "even", "writes") != "open" {
            write(&layered, 0).await.unwrap_err();
        }
    };
    fail().await;
    let (mut counts, mut asked) = (Vec::new(), store.asked.load(Ordering::Relaxed));
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(60)).await;
        let now = store.asked.load(Ordering::Relaxed);
        counts.push(now - asked);
        asked = now;
    }
    // Pauses of half a second to 16 s in the first minute, of 15 to 30 s then.
    assert!(counts[0] >= 6 && counts[1..].iter().all(|count| (2..=4).contains(count)), "{counts:?}");

    store.cut(0, false);
    assert!(until_let_in(&layered).await <= Duration::from_secs(31));
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(breaker(&layered, "even", "writes"), "closed");
    fail().await;
    store.cut(0, false);
    let again = until_let_in(&layered).await;
    assert!(again <= Duration::from_millis(600), "the first pause, not the longest: {again:?}");

    // One that fails again while requests are let back in waits longer than the first time.
    fail().await;
    store.cut(0, false);
    let again = until_let_in(&layered).await;
    assert!((Duration::from_millis(490)..=Duration::from_millis(1100)).contains(&again), "{again:?}");
}

#[tokio::test(start_paused = true)]
async fn a_tenth_of_the_places_at_first_then_all() {
    let store = Store { takes: Duration::from_millis(600), ..Store::new() };
    let settings = Settings { writes_max: 10, ..Settings::default() };
    let layered = Arc::new(Layered::new("main", Arc::new(store.clone()), &settings));
    store.cut(0, true);
    for _ in 0..5 {
        write(&layered, 0).await.unwrap_err();
    }
    store.cut(0, false);
    while breaker(&layered, "even", "writes") != "ramp" {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let at_once = async || {
        let begun = Instant::now();
        let writes = (0..3).map(|_| write(&layered, 0));
        join_all(writes).await.into_iter().for_each(|one| drop(one.unwrap()));
        begun.elapsed()
    };
    assert!(at_once().await >= Duration::from_millis(1200), "one after another, or nearly");
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert!(at_once().await < Duration::from_millis(700), "together");
}

#[tokio::test(start_paused = true)]
async fn half_of_enough_failures_open_it_but_a_caller_in_a_hurry_says_nothing() {
    let breaker = Breaker::new("w".to_owned());
    let failed: [Result<()>; 1] = [Err(Error::deadline("late"))];
    for _ in 0..100 {
        breaker.record(&failed, Instant::now(), Instant::now() + Duration::from_millis(49));
    }
    assert!(breaker.admits());
    for n in 0..19 {
        breaker.record(if n % 2 == 0 { &failed } else { &[Ok(())] }, Instant::now(), soon());
    }
    assert!(breaker.admits(), "119 calls, 10 of them failures");
    tokio::time::sleep(Duration::from_secs(11)).await;
    for _ in 0..19 {
        breaker.record(&failed, Instant::now(), soon());
    }
    assert!(breaker.admits(), "19 calls say nothing");
    breaker.record(&failed, Instant::now(), soon());
    assert!(!breaker.admits());
    let conflicts = Breaker::new("w".to_owned());
    for code in [Code::Conflict, Code::Overloaded, Code::Corrupt] {
        (0..50).for_each(|_| conflicts.record::<()>(&[Err(Error::new(code, ""))], Instant::now(), soon()));
    }
    let moved: [Result<()>; 1] =
        [Err(Error::unavailable("slot 1 is being moved", 1).of(crate::model::Scope::Part))];
    (0..50).for_each(|_| conflicts.record(&moved, Instant::now(), soon()));
    assert!(conflicts.admits());
}

#[tokio::test(start_paused = true)]
async fn what_did_not_happen_is_tried_once_more_and_offers_are_not() {
    let store = Store::new();
    let layered = Layered::new("main", Arc::new(store.clone()), &Settings::default());
    store.cut(0, true);
    write(&layered, 0).await.unwrap_err();
    assert_eq!(store.asked.swap(0, Ordering::Relaxed), 2);
    Backend::apply(&layered, vec![put("k", 0).entry().unwrap()], soon()).await.remove(0).unwrap_err();
    assert_eq!(store.asked.swap(0, Ordering::Relaxed), 1);
    let layered = Layered::new("main", Arc::new(store.clone()), &Settings::default());
    let (at, _) = Backend::write_atomic(&layered, vec![put("k", 0), put("k", 0)], soon()).await.unwrap_err();
    assert_eq!((at, store.asked.load(Ordering::Relaxed)), (1, 2), "the operation that failed is told");
    store.cut(0, false);
    Backend::write_atomic(&layered, vec![put("k", 0)], soon()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_finds_no_place_waits_a_quarter_of_his_time_and_too_many_do_not() {
    let store = Store { takes: Duration::from_secs(2), ..Store::new() };
    let settings = Settings { reads_max: 1, ..Settings::default() };
    let layered = Layered::new("main", Arc::new(store), &settings);
    let read = async |seconds| {
        let (begun, until) = (Instant::now(), Instant::now() + Duration::from_secs(seconds));
        let read = Backend::read(&layered, vec![at("k", 0)], until).await.remove(0);
        (read.map(drop).map_err(|error| error.code), begun.elapsed().as_secs())
    };
    let (first, patient, brief, surplus, write) =
        futures_util::join!(read(5), read(20), read(4), read(20), write(&layered, 0));
    assert_eq!(first, (Ok(()), 2));
    assert_eq!(patient, (Ok(()), 4));
    assert_eq!(brief, (Err(Code::Overloaded), 1));
    assert_eq!(surplus, (Err(Code::Overloaded), 0));
    write.unwrap();
}

#[tokio::test]
async fn counts_are_of_calls_and_of_items() {
    let layered = Layered::new("main", Arc::new(Memory::new()), &Settings::default());
    Backend::read(&layered, vec![at("a", 0), at("b", 1)], soon()).await;
    let states = layered.states();
    assert_eq!(states.len(), 3);
    let seen = &states[0].seen;
    assert_eq!((states[0].shard.as_str(), seen.calls, seen.items, seen.failures), (ONLY_SHARD, 1, 2, 0));
    assert_eq!(seen.buckets.iter().sum::<u64>(), 1);
}
