//! The ladder: what waits on it comes back, and what cannot be sent on stays in hand.

use futures_util::StreamExt;
use lapin::options::BasicConsumeOptions;
use lapin::types::{AMQPValue, FieldTable};

use super::*;

/// Puts a write on the first rung, as one that has been round so often and is due.
async fn due(queue: &Queue, write: &Queued, attempt: u32) {
    let notes = Notes { attempt, due_ms: wall_ms(), ..Notes::default() };
    until("the rung has room", async || queue.send(queue.topology.rung(0), write, &notes).await.is_ok())
        .await;
}

/// How often the broker has handed out the first message of a queue before now.
async fn handed_out(rabbit: &Rabbit, name: &str) -> i64 {
    let broker = connection::Broker::new(&rabbit.url(), "test").unwrap();
    let link = broker.connect("test").await.unwrap();
    let channel = link.consuming(1).await.unwrap();
    let (options, table) = (BasicConsumeOptions::default(), FieldTable::default());
    let mut consumer = channel.basic_consume(name.into(), "".into(), options, table).await.unwrap();
    let next = tokio::time::timeout(Duration::from_secs(10), consumer.next()).await;
    let delivery = next.expect("a message is there").unwrap().unwrap();
    let headers = delivery.properties.headers().clone().unwrap_or_default();
    let count = headers.inner().get("x-delivery-count").cloned();
    link.close().await;
    match count {
        None => 0,
        Some(AMQPValue::LongLongInt(count)) => count,
        Some(other) => panic!("{other:?}"),
    }
}

async fn rung_of(queue: &Queue, rung: usize) -> LaneStatus {
    let (lanes, name) = (queue.status().await.unwrap().0, queue.topology.rung(rung));
    lanes.into_iter().find(|lane| lane.name == name).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_comes_back_from_the_ladder_and_stands() {
    let rabbit = tokio::task::block_in_place(Rabbit::shared);
    let queue = open(rabbit, "q-ladder", 1 << 30).await;
    let store = Arc::new(Store::default());
    for n in 0..10 {
        due(&queue, &put(&format!("k{n}"), &format!("v{n}"), n), 1).await;
    }
    queue.start(store.clone(), 1, || vec![1]);
    for n in 0..10 {
        let is_there = async || store.body(&format!("k{n}")).await == Some(format!("v{n}"));
        until("it is applied", is_there).await;
    }
    until("nothing waits", async || waiting(&queue).await == Some(0)).await;
    queue.stop().await;
}

/// A full lane takes nothing back: what is due for it is held, not handed out again and again until the broker buries it, and what is
/// due for others goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_sent_back_is_held_and_holds_up_nobody() {
    let rabbit = tokio::task::block_in_place(Rabbit::shared);
    let queue = open(rabbit, "q-full", 60_000).await;
    let store = Arc::new(Store::default());
    // Its consumer has hundreds in hand, and beyond these the lane is full.
    let body = "x".repeat(1000);
    let (mut refused, mut n) = (0, 0);
    // Twenty refused one after the other: what is blocked for long goes round the ladder, and makes room.
    while refused < 20 {
        assert!(n < 5_000, "the lane is never full");
        let write = put("locked", &format!("{n:04}{body}"), n);
        if n == 100 {
            queue.start(store.clone(), 1, || vec![1]);
            until("some are in hand", async || {
                queue.status().await.unwrap().0.iter().any(|lane| lane.in_hand > Some(30))
            })
            .await;
        }
        let put = put_one(&queue, &only(), &write, soon()).await;
        let is_full = n >= 100 && matches!(put, Err(Unqueued::Full(_)));
        refused = if is_full { refused + 1 } else { 0 };
        n += 1;
    }
    due(&queue, &put("locked", "due", n), 1).await;
    until("it is on the ladder", async || rung_of(&queue, 0).await.depth >= Some(1)).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    due(&queue, &put("free", "v", 0), 1).await;
    until("another is applied", async || store.body("free").await.is_some()).await;
    queue.stop().await;
    assert!(handed_out(rabbit, &queue.topology.rung(0)).await <= 1, "it went to and fro");
    // All of it once there is room.
    let queue = open(rabbit, "q-full", 60_000).await;
    store.mended.store(true, Ordering::Relaxed);
    queue.start(store.clone(), 1, || vec![1]);
    until("it is applied", async || store.body("locked").await.as_deref() == Some("due")).await;
    queue.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_away_is_waited_for_with_the_messages_in_hand() {
    let rabbit = tokio::task::block_in_place(Rabbit::shared);
    let queue = open(rabbit, "q-held", 1 << 30).await;
    let store = Arc::new(Store::default());
    store.away.store(true, Ordering::Relaxed);
    queue.start(store.clone(), 1, || vec![1]);
    let write = put("k", "v", 0);
    put_one(&queue, &only(), &write, soon()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(4)).await;
    queue.stop().await;
    let lane = lane_of(&queue, &only(), &write);
    assert!(handed_out(rabbit, &lane).await <= 1, "it was given back");
}

/// The newest of a key is refused for good, and an older one that was merged into it is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_is_refused_for_long_is_dead_and_takes_no_older_one_along() {
    let rabbit = tokio::task::block_in_place(Rabbit::shared);
    let queue = open(rabbit, "q-refused", 1 << 30).await;
    let store = Arc::new(Store::default());
    let writes = [put("k", "good", 1), put("k", "refused", 2)];
    let notes = Notes { attempt: 6, ..Notes::default() };
    let lane = lane_of(&queue, &only(), &writes[0]);
    for write in &writes {
        queue.send(lane.to_string(), write, &notes).await.unwrap();
    }
    queue.start(store.clone(), 1, || vec![1]);
    until("one is dead", async || queue.dead_letters().await.unwrap() == 1).await;
    until("the other stands", async || store.body("k").await.as_deref() == Some("good")).await;
    let letters = letters_of(&queue).await;
    assert_eq!(letters[0].write.as_ref().unwrap().entry.row.version, writes[1].entry.row.version);
    // A row that is refused now and then goes round first.
    let held = letters::Held { tag: 0, write: put("l", "refused", 3), notes: Notes::default() };
    for (attempt, rung) in [(0, 0), (5, 0), (6, 1), (60, 1)] {
        let notes = Notes { attempt, ..Notes::default() };
        queue.send_round(&letters::Held { notes, ..held.clone() }, 0).await.unwrap();
        until("it is on its rung", async || rung_of(&queue, rung).await.depth > Some(0)).await;
    }
    queue.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_far_ahead_is_dead_and_one_that_is_ahead_waits() {
    let rabbit = tokio::task::block_in_place(Rabbit::shared);
    let queue = open(rabbit, "q-ahead", 1 << 30).await;
    let store = Arc::new(Store::default());
    queue.start(store.clone(), 1, || vec![1]);
    for (key, ahead_ms) in [("now", 500), ("soon", 10_000), ("never", 2 * 3_600_000)] {
        let mut write = put(key, "v", 0);
        write.entry.row.version.hlc = hlc_at(wall_ms() + ahead_ms);
        put_one(&queue, &only(), &write, soon()).await.unwrap();
    }
    until("one is applied", async || store.body("now").await.is_some()).await;
    until("one waits", async || rung_of(&queue, 1).await.depth == Some(1)).await;
    until("one is dead", async || queue.dead_letters().await.unwrap() == 1).await;
    let letters = letters_of(&queue).await;
    assert_eq!(letters[0].write.as_ref().unwrap().entry.at.key.as_str(), "never");
    queue.stop().await;
}

/// Letters of a key lie in any order: the newest is what stands when all are forced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forced_letters_of_a_key_stand_in_the_order_they_were_written() {
    let rabbit = tokio::task::block_in_place(Rabbit::shared);
    let queue = open(rabbit, "q-forced", 1 << 30).await;
    let store = Arc::new(Store::default());
    let [a, b, c] = ["a", "b", "c"].map(|body| put("k", body, u64::from(body.as_bytes()[0])));
    for write in [a, c, b] {
        let held = letters::Held { tag: 0, write, notes: Notes::default() };
        queue.bury(&held, "a lane", "a reason").await.unwrap();
    }
    let forced = queue.replay(&*store, 100, true, |_| true).await.unwrap();
    assert_eq!((forced.applied, forced.superseded), (2, 1), "{forced:?}");
    assert_eq!(store.body("k").await.as_deref(), Some("c"));
    queue.stop().await;
}
