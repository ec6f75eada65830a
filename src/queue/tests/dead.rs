//! Dead letters: told apart, walked along, removed, and known of where the broker is lost meanwhile.

use std::collections::HashSet;

use super::*;

/// Puts what is no queued write among the dead letters.
async fn bury_unreadable(queue: &Queue, id: &str, body: &[u8]) {
    let unreadable = letters::Unreadable {
        tag: 0,
        id: id.to_owned(),
        body: body.to_vec(),
        notes: Notes::default(),
        reason: "it cannot be read".to_owned(),
    };
    queue.bury_unreadable(&unreadable, "somewhere").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_the_broker_gave_up_is_taken_apart_and_each_write_can_be_replayed() {
    let rabbit = tokio::task::block_in_place(Rabbit::shared);
    let queue = open(rabbit, "q9", 1 << 30).await;
    let store = Arc::new(Store::default());
    let writes: Vec<Queued> = (0..5).map(|n| put(&format!("k{n}"), &format!("v{n}"), n)).collect();
    let notes = Notes { reason: "the broker gave it up: delivery_limit".to_owned(), ..Notes::default() };
    let first = writes[0].properties(&notes);
    let properties = group::properties(&writes).with_headers(first.headers().clone().unwrap());
    let damaged = {
        let mut body = group::encode(&writes);
        body[9] ^= 1;
        body
    };
    for body in [group::encode(&writes), damaged] {
        let letter = Letter { queue: queue.topology.dead(), body, properties: properties.clone() };
        queue.publisher.publish(letter, soon()).await.unwrap();
    }
    let letters = letters_of(&queue).await;
    assert_eq!(letters.len(), 6);
    let readable: Vec<&str> =
        letters.iter().filter_map(|letter| Some(letter.write.as_ref()?.entry.at.key.as_str())).collect();
    assert_eq!(readable, ["k0", "k1", "k2", "k3", "k4"]);
    assert!(letters.iter().all(|letter| letter.notes.reason.contains("delivery_limit")), "{letters:?}");
    let replayed = queue.replay(&*store, 100, false, |_| true).await.unwrap();
    assert_eq!((replayed.applied, replayed.failed.len()), (5, 1));
    assert_eq!(store.body("k3").await.as_deref(), Some("v3"));
    queue.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unreadable_letters_are_told_apart_and_purged_each_by_its_own_name() {
    let rabbit = tokio::task::block_in_place(Rabbit::shared);
    let queue = open(rabbit, "q6", 1 << 30).await;
    for (id, body) in [("", "one"), ("", "two"), ("same", "one"), ("same", "three")] {
        bury_unreadable(&queue, id, body.as_bytes()).await;
    }
    until("four are dead", async || queue.dead_letters().await.unwrap() == 4).await;
    let letters = letters_of(&queue).await;
    let ids: HashSet<String> = letters.iter().map(|letter| letter.id.clone()).collect();
    assert_eq!(ids.len(), 4, "{letters:?}");
    // Moved to the end they are what they were.
    assert!(letters_of(&queue).await.iter().all(|letter| ids.contains(&letter.id)));
    let one = HashSet::from([letters[1].id.clone()]);
    let purged = queue.purge(100, &one).await.unwrap();
    assert_eq!((purged.looked_at, purged.removed), (4, 1), "{purged:?}");
    let left = letters_of(&queue).await;
    assert!(left.len() == 3 && left.iter().all(|letter| letter.body != b"two"), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_that_stay_are_the_first_again_in_their_order() {
    let rabbit = tokio::task::block_in_place(Rabbit::shared);
    let queue = open(rabbit, "q7", 1 << 30).await;
    for n in 0..300 {
        bury_unreadable(&queue, "", format!("{n}").as_bytes()).await;
    }
    until("all are dead", async || queue.dead_letters().await.unwrap() == 300).await;
    // Some are moved to the end, which leaves the others as they were.
    let mut bodies = Vec::new();
    let walked = queue.walk(100, |letter| {
        if bodies.len() == 50 {
            return Act::End;
        }
        bodies.push(String::from_utf8(letter.body.clone()).unwrap());
        Act::Keep
    });
    assert_eq!(walked.await.unwrap(), Walked { looked_at: 50, ended_early: None });
    let mut left = 300;
    for page in 0..3 {
        let mut ids = HashSet::new();
        let walked = queue.walk(100, |letter| {
            ids.insert(letter.id.clone());
            bodies.push(String::from_utf8(letter.body.clone()).unwrap());
            Act::Stay
        });
        assert_eq!(walked.await.unwrap(), Walked { looked_at: 100, ended_early: None });
        assert_eq!(queue.dead_letters().await.unwrap(), left, "they are counted as soon as the walk is over");
        let purged = queue.purge(100, &ids).await.unwrap();
        assert_eq!((purged.looked_at, purged.removed), (100, 100), "page {page}: {purged:?}");
        left -= 100;
    }
    assert_eq!(queue.dead_letters().await.unwrap(), 0);
    let in_order: Vec<String> = (0..300).chain(0..50).map(|n| n.to_string()).collect();
    assert_eq!(bodies, in_order);
}

/// What is logged on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_that_loses_the_broker_is_counted_and_logged_as_far_as_it_came() {
    let rabbit = tokio::task::block_in_place(Rabbit::start);
    let queue = open(&rabbit, "q8", 1 << 30).await;
    let rabbit = Mutex::new(rabbit);
    let store = Arc::new(Store::default());
    let writes: Vec<Queued> = (0..6).map(|n| put(&format!("k{n}"), "v", n)).collect();
    let bury = async || {
        for write in &writes {
            let notes = Notes { reason: "for a test".to_owned(), ..Notes::default() };
            until("it is buried", async || queue.send(queue.topology.dead(), write, &notes).await.is_ok())
                .await;
        }
    };
    bury().await;
    let log = Log::default();
    let to = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || to.clone()).with_ansi(false).finish();
    let _logged = tracing::subscriber::set_default(subscriber);
    // With one subscriber alone the library asks that of whichever thread logs first, which may be another test's.
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::default());
    let logged = |what: &str| String::from_utf8_lossy(&log.0.lock().unwrap()).matches(what).count();
    let looked_at = AtomicU64::new(0);
    let third = || {
        if looked_at.fetch_add(1, Ordering::Relaxed) == 2 {
            tokio::task::block_in_place(|| rabbit.lock().unwrap().kill9());
        }
        true
    };
    let replayed = queue.replay(&*store, 100, false, |_| third()).await.unwrap();
    assert!(replayed.ended_early.is_some(), "{replayed:?}");
    assert_eq!(replayed.applied, replayed.looked_at, "{replayed:?}");
    assert!((3..=6).contains(&replayed.applied), "{replayed:?}");
    assert_eq!(logged("replayed a dead letter: applied"), replayed.applied);

    tokio::task::block_in_place(|| rabbit.lock().unwrap().restart());
    until("it is back", async || queue.state().is_ok()).await;
    until("they lie there", async || queue.dead_letters().await.is_ok()).await;
    bury().await;
    let ids: HashSet<String> = writes.iter().map(|write| write.entry.row.version.to_string()).collect();
    let mut removed = 0;
    until("all are purged", async || {
        if let Ok(purged) = queue.purge(100, &ids).await {
            removed += purged.removed;
        }
        removed >= 6
    })
    .await;
    assert_eq!(logged("purges a dead letter"), removed);
    queue.stop().await;
}
