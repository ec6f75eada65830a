//! Messages of many writes, each with a fate of its own.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_that_come_together_share_messages_and_each_has_its_own_fate() {
    let rabbit = tokio::task::block_in_place(Rabbit::shared);
    let queue = open(rabbit, "q10", 1 << 30).await;
    let store = Arc::new(Store::default());
    store.away.store(true, Ordering::Relaxed);
    // One lane, and three that it will refuse. Nobody consumes yet.
    let key = |n: u64| if n % 100 == 7 { format!("poison{n}k") } else { format!("{n}k") };
    let writes: Vec<Queued> = (0..300).map(|n| put(&key(n), &format!("v{n}"), n)).collect();
    let lane = lane_of(&queue, &only(), &writes[0]);
    assert!(queue.put(&lane, &writes, soon()).await.iter().all(|(_, put)| put.is_ok()));
    for write in &writes {
        queue.overlay().hold(std::slice::from_ref(write), Known::default()).await.unwrap();
    }
    let ready = async || {
        let (lanes, _) = queue.status().await.unwrap();
        lanes.iter().map(|lane| lane.ready).sum::<u64>()
    };
    until("they are counted", async || ready().await > 0).await;
    let messages = ready().await;
    assert!((300 / group::WRITES_MAX as u64..100).contains(&messages), "{messages} messages");
    // A worker that stops with all of them in hand.
    let first = open(rabbit, "q10", 1 << 30).await;
    first.start(store.clone(), 1, || vec![1]);
    let depth = async || {
        let (lanes, _) = queue.status().await.unwrap();
        lanes.iter().map(|lane| lane.depth).sum::<Option<u64>>()
    };
    until("each write is counted", async || depth().await == Some(300)).await;
    first.stop().await;
    assert!(store.applied.lock().unwrap().is_empty());

    store.away.store(false, Ordering::Relaxed);
    queue.start(store.clone(), 2, || vec![2]);
    until("three are dead", async || queue.dead_letters().await.unwrap() == 3).await;
    until("nothing waits", async || depth().await == Some(0)).await;
    let namespace = Namespace::parse("n").unwrap();
    for (n, write) in writes.iter().enumerate() {
        let (key, version) = (&write.entry.at.key, write.entry.row.version);
        let fate = queue.overlay().fate(&namespace, key, version).await.unwrap();
        match n % 100 == 7 {
            true => assert!(matches!(fate, Fate::Dead(_)), "{key:?}: {fate:?}"),
            false => assert_eq!(fate, Fate::Applied, "{key:?}"),
        }
    }
    queue.stop().await;
    // What was acknowledged is gone: another consumer finds nothing.
    assert_eq!(ready().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_acknowledged_when_the_last_of_its_writes_is_settled() {
    let rabbit = tokio::task::block_in_place(Rabbit::shared);
    let queue = open(rabbit, "q11", 1 << 30).await;
    let store = Arc::new(Store::default());
    let key = |n: u64| if n == 30 { "locked-k".to_owned() } else { format!("{n}k") };
    let writes: Vec<Queued> = (0..60).map(|n| put(&key(n), &format!("v{n}"), n)).collect();
    let lane = lane_of(&queue, &only(), &writes[0]);
    assert!(queue.put(&lane, &writes, soon()).await.iter().all(|(_, put)| put.is_ok()));
    for write in &writes {
        queue.overlay().hold(std::slice::from_ref(write), Known::default()).await.unwrap();
    }
    let depth = async |queue: &Queue| {
        let (lanes, _) = queue.status().await.unwrap();
        lanes.iter().map(|lane| lane.depth).sum::<Option<u64>>()
    };
    let first = open(rabbit, "q11", 1 << 30).await;
    first.start(store.clone(), 1, || vec![1]);
    until("all but one are settled", async || depth(&queue).await == Some(1)).await;
    // Whoever had it in hand stops: the message is delivered again, and what was settled stays so.
    let applied_before = store.applied.lock().unwrap().len();
    first.stop().await;
    let mut newer = put("3k", "newer", 9_000);
    newer.entry.row.version.origin = 8;
    Backend::apply(&store.memory, vec![newer.entry], soon()).await.remove(0).unwrap();
    let second = open(rabbit, "q11", 1 << 30).await;
    second.start(store.clone(), 2, || vec![2]);
    until("it is delivered again", async || store.applied.lock().unwrap().len() > applied_before).await;
    until("one waits still", async || depth(&queue).await == Some(1)).await;
    store.mended.store(true, Ordering::Relaxed);
    until("nothing waits", async || depth(&queue).await == Some(0)).await;
    assert_eq!(store.body("locked-k").await.as_deref(), Some("v30"));
    let namespace = Namespace::parse("n").unwrap();
    for write in &writes {
        let (key, version) = (&write.entry.at.key, write.entry.row.version);
        assert_eq!(queue.overlay().fate(&namespace, key, version).await, Ok(Fate::Applied), "{key:?}");
    }
    second.stop().await;
    queue.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_store_has_overtaken_is_settled_by_a_look() {
    let rabbit = tokio::task::block_in_place(Rabbit::shared);
    let queue = open(rabbit, "q8", 1 << 30).await;
    let store = Arc::new(Store::default());
    store.away.store(true, Ordering::Relaxed);
    queue.start(store.clone(), 1, || vec![1]);
    // One lane: all keys end with the same letter.
    let writes: Vec<Queued> = (0..500).map(|n| put(&format!("{n}k"), &format!("v{n}"), n)).collect();
    let lane = lane_of(&queue, &only(), &writes[0]);
    assert!(queue.put(&lane, &writes, soon()).await.iter().all(|(_, put)| put.is_ok()));
    for write in &writes {
        queue.overlay().hold(std::slice::from_ref(write), Known::default()).await.unwrap();
    }
    for key in 0..500 {
        let mut newer = put(&format!("{key}k"), "newer", 9_000);
        newer.entry.row.version.origin = 8;
        Backend::apply(&store.memory, vec![newer.entry], soon()).await.remove(0).unwrap();
    }
    store.away.store(false, Ordering::Relaxed);
    let namespace = Namespace::parse("n").unwrap();
    until("all are settled", async || queue.overlay().count(&namespace).await == Ok(0)).await;
    until("nothing waits", async || {
        let (lanes, dead) = queue.status().await.unwrap();
        lanes.iter().all(|lane| lane.depth == Some(0)) && dead == 0
    })
    .await;
    for write in &writes {
        let (key, version) = (&write.entry.at.key, write.entry.row.version);
        assert_eq!(queue.overlay().fate(&namespace, key, version).await, Ok(Fate::Superseded));
    }
    assert_eq!(store.body("7k").await.as_deref(), Some("newer"));
    let applied = store.applied.lock().unwrap().len();
    // All are of keys of their own, so nothing but a look spares them.
    assert!((1..=200).contains(&applied), "the first part alone is applied: {applied} of 500");
    queue.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeat_of_an_operation_that_took_effect_takes_nothing_else_along() {
    let store = Store::default();
    let write = |body: &str, op: u64, counter: u64| {
        let mut write = put("k", body, counter);
        write.entry.row.ring.entries = vec![(op | 1 << 63, write.entry.row.version.fingerprint())];
        write
    };
    let (first, newer) = (write("A", 1, 1), write("B", 2, 2));
    let until = soon();
    let applied = settle::apply(&store, &[first], until).await;
    assert_eq!(applied, [settle::Verdict::Done(Fate::Applied)]);
    // In one batch with what was never applied: older than the repeat, and merged into it.
    let repeats = [newer, write("A", 1, 3), write("C", 3, 4), write("A", 1, 5), write("B", 2, 6)];
    let fates: Vec<_> = settle::apply(&store, &repeats, until).await;
    let done = |fate| settle::Verdict::Done(fate);
    let (applied, superseded) = (done(Fate::Applied), done(Fate::Superseded));
    assert_eq!(store.body("k").await.as_deref(), Some("C"), "the newest that had not taken effect");
    // The second lies below the third, as what is merged into another does.
    let expected = [applied.clone(), applied.clone(), applied, superseded.clone(), superseded.clone()];
    assert_eq!(fates, expected);
    let again = [write("C", 3, 7), write("A", 1, 8), write("A", 1, 9)];
    let fates = settle::apply(&store, &again, until).await;
    assert_eq!(store.body("k").await.as_deref(), Some("C"), "{fates:?}");
    assert_eq!(fates, [superseded.clone(), superseded.clone(), superseded]);
    let new = [write("D", 4, 10), write("A", 1, 11)];
    let fates = settle::apply(&store, &new, until).await;
    assert_eq!((store.body("k").await.as_deref(), &fates[0]), (Some("D"), &done(Fate::Applied)), "{fates:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_key_is_settled_while_an_older_write_of_it_waits() {
    let store = Store::default();
    let write = |key: &str, op: u64, counter: u64| {
        let mut write = put(key, "x", counter);
        write.entry.row.ring.entries = vec![(op | 1 << 63, write.entry.row.version.fingerprint())];
        write
    };
    // The store has the operation, and then is too busy for the key: the repeat is known, what is older waits.
    store.mended.store(true, Ordering::Relaxed);
    settle::apply(&store, &[write("locked", 1, 1)], soon()).await;
    store.mended.store(false, Ordering::Relaxed);
    let verdicts = settle::apply(&store, &[write("locked", 2, 2), write("locked", 1, 3)], soon()).await;
    assert!(verdicts.iter().all(|verdict| matches!(verdict, settle::Verdict::Later(_))), "{verdicts:?}");
    let repeats = [write("locked", 2, 2), write("locked", 3, 3), write("locked", 2, 4)];
    let verdicts = settle::apply(&store, &repeats, soon()).await;
    assert!(verdicts.iter().all(|verdict| matches!(verdict, settle::Verdict::Later(_))), "{verdicts:?}");
    store.mended.store(true, Ordering::Relaxed);
    let verdicts = settle::apply(&store, &repeats, soon()).await;
    let done = |fate| settle::Verdict::Done(fate);
    assert_eq!(verdicts, [done(Fate::Applied), done(Fate::Applied), done(Fate::Superseded)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_behind_small_messages_is_counted_by_its_own_size() {
    let rabbit = tokio::task::block_in_place(Rabbit::shared);
    let queue = open(rabbit, "q14", 1 << 30).await;
    let store = Arc::new(Store::default());
    store.away.store(true, Ordering::Relaxed);
    // Taken one after the other.
    let taken = |n: u64| Queued {
        taken_at_ms: 50 * n.cast_signed() - 60_000 + crate::model::clock::wall_ms(),
        ..put(&format!("{n}k"), &format!("v{n}"), n)
    };
    let writes: Vec<Queued> = (0..1100).map(taken).collect();
    let lane = lane_of(&queue, &only(), &writes[0]);
    queue.start(store.clone(), 1, || vec![1]);
    let lane_of = async |lane: &str| {
        let (lanes, _) = queue.status().await.unwrap();
        lanes.into_iter().find(|one| one.name == lane).unwrap()
    };
    // More than a consumer takes, each by itself; then many together.
    let (alone, together) = writes.split_at(100 + usize::from(PREFETCH));
    for write in alone {
        assert!(queue.put(&lane, std::slice::from_ref(write), soon()).await[0].1.is_ok());
    }
    until("the first are handed", async || {
        lane_of(&lane).await.in_hand.is_some_and(|count| count >= u64::from(PREFETCH))
    })
    .await;
    let sent: Vec<_> = queue.put(&lane, together, soon()).await;
    assert!(sent.iter().all(|(_, put)| put.is_ok()) && sent.len() < 20, "{}", sent.len());
    until("all are counted", async || {
        let depth = lane_of(&lane).await.depth.unwrap_or(0);
        (900..=1200).contains(&depth)
    })
    .await;
    store.away.store(false, Ordering::Relaxed);
    until("nothing waits", async || lane_of(&lane).await.depth == Some(0)).await;
    queue.stop().await;
}
