//! How many writes a drain takes together.

use super::*;

/// What requests have overtaken is most of a lane beside them: it is looked at many together, and the few that are applied are in small
/// batches.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_requests_many_are_looked_at_and_few_are_applied_together() {
    let rabbit = tokio::task::block_in_place(Rabbit::shared);
    let queue = open(rabbit, "q20", 1 << 30).await;
    let store = Arc::new(Store { busy: true.into(), ..Store::default() });
    // All of one lane; nine of ten stand in the store with something newer.
    let writes: Vec<Queued> = (0..300).map(|n| put(&format!("{n}k"), "old", n)).collect();
    let newer = writes.iter().enumerate().filter(|(n, _)| n % 10 != 0).map(|(n, write)| {
        let row = put(write.entry.at.key.as_str(), "new", 1_000 + n as u64).entry.row;
        Entry { at: row_key(write.entry.at.key.as_str()), row }
    });
    let newer: Vec<Entry> = newer.collect();
    assert!(Backend::apply(&store.memory, newer, soon()).await.iter().all(Result::is_ok));
    let lane = lane_of(&queue, &only(), &writes[0]);
    assert!(queue.put(&lane, &writes, soon()).await.iter().all(|(_, put)| put.is_ok()));
    queue.start(store.clone(), 1, || vec![1]);
    until("nothing waits", async || waiting(&queue).await == Some(0)).await;
    for (n, write) in writes.iter().enumerate() {
        let stands = if n % 10 == 0 { "old" } else { "new" };
        assert_eq!(store.body(write.entry.at.key.as_str()).await.as_deref(), Some(stands));
    }
    queue.stop().await;
    let (looked_at, applied) = (store.looked_at.lock().unwrap(), store.applied_together.lock().unwrap());
    assert!(looked_at.iter().max() > Some(&100) && looked_at.len() < 6, "{looked_at:?}");
    assert!(applied.len() > 1 && applied.iter().all(|count| *count <= 30), "{applied:?}");
}
