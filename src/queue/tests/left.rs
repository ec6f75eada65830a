//! Queues that were made otherwise than they would be today.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_in_the_lanes_of_a_renamed_shard_is_applied_all_the_same() {
    let rabbit = tokio::task::block_in_place(Rabbit::shared);
    let old = LaneShard { backend: "main".to_owned(), shard: "old.name".to_owned() };
    let settings = settings(rabbit, "q-left", 1 << 30);
    let before = Queue::open(&settings, "test", vec![old.clone()]).unwrap();
    until("the queue is there", async || before.state().is_ok()).await;
    let store = Arc::new(Store::default());
    store.away.store(true, Ordering::Relaxed);
    before.start(store.clone(), 1, || vec![1]);
    until("all lanes are worked on", async || {
        before.status().await.unwrap().0.iter().all(|lane| lane.in_hand == Some(0) && lane.rate.is_some())
    })
    .await;
    let namespace = Namespace::parse("n").unwrap();
    for n in 0..50 {
        let write = put(&format!("k{n}"), "v", n);
        put_one(&before, &old, &write, soon()).await.unwrap();
        before.overlay().hold(std::slice::from_ref(&write), Known::default()).await.unwrap();
    }
    before.stop().await;

    let after = open(rabbit, "q-left", 1 << 30).await;
    store.away.store(false, Ordering::Relaxed);
    after.start(store.clone(), 1, || vec![1]);
    until("all are applied", async || after.overlay().count(&namespace).await == Ok(0)).await;
    assert_eq!(store.body("k42").await.as_deref(), Some("v"));
    let lanes = after.status().await.unwrap().0;
    let left = lanes.iter().filter(|lane| lane.name.contains(".main.old.name.")).count();
    assert_eq!(left, 8, "they are told of while somebody works on them");
    after.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_was_made_with_another_bound_serves_as_it_is() {
    let rabbit = tokio::task::block_in_place(Rabbit::shared);
    let first = open(rabbit, "q-bound", 1 << 20).await;
    first.stop().await;
    let queue = open(rabbit, "q-bound", 1 << 21).await;
    let store = Arc::new(Store::default());
    queue.start(store.clone(), 1, || vec![1]);
    put_one(&queue, &only(), &put("k", "v", 1), soon()).await.unwrap();
    until("it is applied", async || store.body("k").await.is_some()).await;
    assert_eq!(queue.state(), Ok(()));
    queue.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_somebody_deleted_is_made_anew_while_nobody_publishes() {
    let rabbit = tokio::task::block_in_place(Rabbit::shared);
    let queue = open(rabbit, "q-deleted", 1 << 30).await;
    let store = Arc::new(Store::default());
    queue.start(store.clone(), 1, || vec![1]);
    let whole = async || match queue.status().await {
        Ok((lanes, _)) => lanes.iter().all(|lane| lane.in_hand == Some(0) && lane.rate.is_some()),
        Err(_) => false,
    };
    until("all lanes are worked on", whole).await;
    let link = queue.broker.connect("test").await.unwrap();
    let channel = link.consuming(1).await.unwrap();
    let lane = queue.topology.lanes()[3].0.clone();
    let options = lapin::options::QueueDeleteOptions::default();
    channel.queue_delete(lane.as_str().into(), options).await.unwrap();
    let gone = lapin::options::QueueDeclareOptions { passive: true, ..Default::default() };
    let there = async || {
        let channel = link.consuming(1).await.unwrap();
        channel.queue_declare(lane.as_str().into(), gone, Default::default()).await.is_ok()
    };
    until("it is there again", there).await;
    until("all lanes are worked on again", whole).await;
    let write = put("k", "v", 1);
    let begun = Instant::now();
    until("it is used", async || put_one(&queue, &only(), &write, soon()).await.is_ok()).await;
    assert!(begun.elapsed() > Duration::from_secs(1), "a broker that dies now would forget it");
    until("it is applied", async || store.body("k").await.is_some()).await;
    link.close().await;
    queue.stop().await;
}
