//! A broker that takes nothing for a while.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_takes_nothing_is_told_and_what_it_confirmed_is_there() {
    let rabbit = tokio::task::block_in_place(Rabbit::start);
    let queue = open(&rabbit, "q-blocked", 1 << 30).await;
    let store = Arc::new(Store::default());
    let confirmed = Arc::new(Mutex::new(Vec::new()));
    let writing = CancellationToken::new();
    let mut writers = tokio::task::JoinSet::new();
    let (down, slowest) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    for writer in 0..16 {
        let (queue, confirmed, writing) = (queue.clone(), confirmed.clone(), writing.clone());
        let (down, slowest) = (down.clone(), slowest.clone());
        writers.spawn(async move {
            for n in 0.. {
                if writing.is_cancelled() {
                    return;
                }
                let (key, begun) = (format!("k{writer}-{n}"), Instant::now());
                match put_one(&queue, &only(), &put(&key, "v", n), begun + Duration::from_secs(1)).await {
                    Ok(()) => confirmed.lock().unwrap().push(key),
                    Err(Unqueued::Down(_)) => {
                        down.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(_) => {}
                }
                slowest.fetch_max(begun.elapsed().as_millis() as u64, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
    }
    until("some are taken", async || confirmed.lock().unwrap().len() > 200).await;
    let limit =
        |part: &str| tokio::task::block_in_place(|| rabbit.control(&["set_vm_memory_high_watermark", part]));
    limit("0.000001");
    until("it is known", async || queue.state().is_err()).await;
    let before = down.load(Ordering::Relaxed);
    until("writes are refused at once", async || down.load(Ordering::Relaxed) > before + 500).await;
    limit("0.6");
    until("it takes writes again", async || queue.state().is_ok()).await;
    let taken = confirmed.lock().unwrap().len();
    until("and confirms them", async || confirmed.lock().unwrap().len() > taken + 200).await;
    writing.cancel();
    while writers.join_next().await.is_some() {}
    assert!(slowest.load(Ordering::Relaxed) < 1500, "nobody waits beyond his deadline: {slowest:?} ms");

    queue.start(store.clone(), 1, || vec![1]);
    let confirmed = confirmed.lock().unwrap().clone();
    for key in confirmed {
        until("what was confirmed is applied", async || store.body(&key).await.is_some()).await;
    }
    queue.stop().await;
}
