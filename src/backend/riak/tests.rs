//! What only nodes can show. The helpers of it, and pages of many keys.
//!
//! What needs no failing nodes runs [`on_riak`]: on a double of its own, or on the real node where there is one.

mod double;
mod failures;
mod hostile;
mod recorded;
mod siblings;

use std::time::Duration;

use super::*;
use crate::backend::Action;
pub(in crate::backend) use crate::backend::private_riak as private;
use crate::model::clock::{hlc_at, wall_ms};
use crate::model::op::{Expiry, Lifetime};
use crate::model::{Code, Key, Version};
use private::Riak as Double;

/// Settings for these nodes.
pub(in crate::backend) fn settings(hosts: Vec<String>) -> RiakSettings {
    RiakSettings {
        hosts,
        bucket_type: private::BUCKET_TYPE.to_owned(),
        pool_size: 8,
        connect_timeout: Duration::from_secs(1),
        request_timeout: Duration::from_secs(1),
        quorums: Quorums::default(),
    }
}

/// Opens and waits until it answers.
async fn open(double: &Double) -> Riak {
    open_on(double.hosts()).await
}

async fn open_on(hosts: Vec<String>) -> Riak {
    let riak = Riak::open(&settings(hosts)).unwrap();
    heals(&riak).await;
    riak
}

tokio::task_local! {
    /// The namespace of a trial on a Riak that others use as well.
    static NAMESPACE: Namespace;
}

/// Where a trial runs.
struct Ground {
    /// `None` on a real node.
    double: Option<Double>,
    hosts: Vec<String>,
}

impl Ground {
    async fn open(&self) -> Riak {
        open_on(self.hosts.clone()).await
    }
}

/// Waits for a turn on the real node, where there is one: a sweep raises the floor of all namespaces, ahead of the clock.
pub(in crate::backend) async fn turn_on_real() -> Option<tokio::sync::MutexGuard<'static, ()>> {
    static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    private::Riak::real()?;
    let turn = ONE_AT_A_TIME.lock().await;
    // The floor of the trial before lies ahead by as much.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    Some(turn)
}

/// Runs a trial on a double of so many nodes, or on the real node, in a namespace of its own.
async fn on_riak<F: Future<Output = ()>>(nodes: usize, trial: impl FnOnce(Arc<Ground>) -> F) {
    let _turn = turn_on_real().await;
    let double = private::Riak::real().is_none().then(|| Double::start(nodes));
    let hosts = double.as_ref().map_or_else(Double::hosts_of_run, Double::hosts);
    let namespace = Namespace::parse(&format!("n{:016x}", fastrand::u64(..))).unwrap();
    NAMESPACE.scope(namespace, trial(Arc::new(Ground { double, hosts }))).await;
}

fn namespace() -> Namespace {
    NAMESPACE.try_with(Namespace::clone).unwrap_or_else(|_| Namespace::parse("n").unwrap())
}

/// How many siblings a key has, Riak's own tombstones included.
async fn siblings(riak: &Riak, key: &str) -> usize {
    riak.shared.contents(&Place::of(&at(key)), within(5000)).await.unwrap().len()
}

async fn heals(riak: &Riak) {
    let mut said = None;
    for _ in 0..2000 {
        said = Backend::health(riak).err();
        if said.is_none() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{said:?}");
}

/// Waits until it says these words of itself.
async fn says(riak: &Riak, words: &str) {
    let mut said = String::new();
    for _ in 0..2000 {
        said = Backend::health(riak).err().map(|error| error.message).unwrap_or_default();
        if said.contains(words) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{words:?} is not said: {said:?}");
}

fn within(ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(ms)
}

fn at(key: &str) -> RowKey {
    RowKey { namespace: namespace(), key: Key::parse(key).unwrap(), slot: 7 }
}

fn put(key: &str, body: &str, origin: u64) -> Write {
    Write {
        at: at(key),
        action: Action::Put { body: body.to_owned().into(), expiry: Expiry::New(Lifetime::Forever) },
        precondition: None,
        op: None,
        proposed: Version { hlc: hlc_at(wall_ms()), origin },
        taken_at_ms: wall_ms(),
    }
}

async fn write(riak: &Riak, write: Write, deadline: Instant) -> Result<Version> {
    match Backend::write(riak, vec![write], deadline).await.remove(0)? {
        Written::Applied { version, .. } => Ok(version),
        other => panic!("{other:?}"),
    }
}

async fn read(riak: &Riak, key: &str, deadline: Instant) -> Result<Option<Found>> {
    Backend::read(riak, vec![at(key)], deadline).await.remove(0)
}

/// All keys of the tests' namespace, in pages of so many.
fn range(limit: usize) -> Range {
    Range {
        namespace: namespace(),
        start: String::new(),
        end: None,
        after: None,
        reverse: false,
        keys_only: true,
        limit,
        max_bytes: 1 << 20,
        staleness: Duration::ZERO,
    }
}

/// The keys of all pages of so many rows.
async fn scan(riak: &Riak, limit: usize, reverse: bool) -> Vec<String> {
    let mut range = Range { reverse, ..range(limit) };
    let mut keys = Vec::new();
    loop {
        let page = Backend::scan(riak, range.clone(), within(20_000)).await.unwrap();
        assert!(page.rows.len() <= limit);
        keys.extend(page.rows.into_iter().map(|(key, _)| key.as_str().to_owned()));
        match page.resume {
            Some(resume) => range.after = Some(resume.as_str().to_owned()),
            None => return keys,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_many_keys_meet_in_both_directions_by_few_queries() {
    on_riak(1, async |ground| {
        let riak = ground.open().await;
        let keys: Vec<String> = (0..3000).map(|n| format!("user/{:07}/profile", n * 37)).collect();
        let writes = keys.iter().map(|key| put(key, "a", 1)).collect();
        for written in Backend::write(&riak, writes, within(60_000)).await {
            written.unwrap();
        }
        let forward = scan(&riak, 1000, false).await;
        assert_eq!(forward, keys);
        let asked = || {
            let cluster = ground.double.as_ref().map(Double::cluster);
            cluster.and_then(|cluster| cluster.requests.get(&25).copied()).unwrap_or(0)
        };
        let before = asked();
        let mut backward = scan(&riak, 250, true).await;
        backward.reverse();
        assert_eq!(backward, keys);
        let queries = (asked() - before) / 12;
        println!("a page of 250 keys from the end takes {queries} queries of an index of 3000");
        assert!(queries < 100, "{queries}");
        Backend::close(&riak).await;
    })
    .await;
}

/// Documents come with every read, so a page ends once enough of them came, also where only keys are asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_keys_ends_before_it_holds_too_many_documents() {
    on_riak(1, async |ground| {
        let riak = ground.open().await;
        let body = "a".repeat(1024 * 1024);
        let keys: Vec<String> = (0..40).map(|n| format!("k{n:02}")).collect();
        for key in &keys {
            write(&riak, put(key, &body, 1), within(10_000)).await.unwrap();
        }
        // Siblings are loaded as well.
        for n in 0..4 {
            let row = put("k00", &format!("{n}{body}"), 1).entry().unwrap().row;
            riak.shared.store(&Place::of(&at("k00")), &row, None, within(10_000)).await.unwrap();
        }
        let mut range = range(10_000);
        let mut pages = Vec::new();
        loop {
            let page = Backend::scan(&riak, range.clone(), within(20_000)).await.unwrap();
            pages.push(page.rows.len());
            match page.resume {
                Some(resume) => range.after = Some(resume.as_str().to_owned()),
                None => break,
            }
        }
        // A row is some bytes more than its document.
        assert_eq!(pages, [12, 16, 12]);
        Backend::close(&riak).await;
    })
    .await;
}
