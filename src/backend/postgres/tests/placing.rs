//! Who owns which slot, and what each server notes of it.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_placement_that_was_cut_off_in_the_middle_is_gone_on_with() {
    let server = Postgres::shared();
    let urls = [server.database(), server.database(), server.database()];
    let names = ["a", "b", "c"];
    let shards: Vec<_> = names.iter().zip(&urls).map(|(name, url)| (*name, url.as_str(), 1)).collect();
    let store = open(&shards).await;
    let owners = |store: &PostgreSql| -> Vec<u16> {
        store.shared.owners.iter().map(|owner| owner.load(Ordering::Acquire)).collect()
    };
    let whole = owners(&store);
    Backend::close(&store).await;
    // As it stands once the plan and the part of "b" are written.
    for url in [&urls[0], &urls[2]] {
        let database = url.rsplit('/').next().unwrap();
        server.sql(database, "DELETE FROM slot_own; DELETE FROM shard_name");
    }
    let plan = names.iter().enumerate().map(|(index, name)| {
        let of = |place: Option<usize>| place.unwrap_or(whole.len());
        let first = of(whole.iter().position(|owner| usize::from(*owner) == index));
        let end = of(whole.iter().rposition(|owner| usize::from(*owner) == index).map(|last| last + 1));
        format!("('{name}', {first}, {end})")
    });
    let plan = format!("INSERT INTO placement_plan VALUES {}", plan.collect::<Vec<_>>().join(","));
    server.sql(urls[0].rsplit('/').next().unwrap(), &plan);
    // Other weights, and another server before them, change nothing of what was begun.
    let fourth = server.database();
    let mut more = vec![("0", fourth.as_str(), 9)];
    more.extend(shards.iter().map(|(name, url, _)| (*name, *url, 2)));
    let store = open(&more).await;
    let shifted: Vec<u16> = whole.iter().map(|owner| owner + 1).collect();
    assert_eq!(owners(&store), shifted);
    Backend::close(&store).await;
}

/// A server that is given no slots is none the worse for being given them twice, where the first try was cut off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_no_slots_is_placed_like_any_other() {
    let server = Postgres::shared();
    let urls = [server.database(), server.database(), server.database()];
    let [more, none, less] = urls.each_ref().map(String::as_str);
    let shards = [("a", more, 600_000), ("b", none, 1), ("c", less, 400_000)];
    Backend::close(&open(&shards).await).await;
    let owned = |url: &str| server.sql(url.rsplit('/').next().unwrap(), "SELECT count(*) FROM slot_own");
    let all = || [more, none, less].map(owned).join(" ");
    assert_eq!(all(), "2457 0 1639");
    // As it stands when all but the last step is done: that of the one that keeps the plan.
    let keeper = more.rsplit('/').next().unwrap();
    server.sql(keeper, "DELETE FROM slot_own; DELETE FROM shard_name");
    let plan = "INSERT INTO placement_plan VALUES ('a', 0, 2457), ('b', 2457, 2457), ('c', 2457, 4096)";
    server.sql(keeper, plan);
    Backend::close(&open(&shards).await).await;
    assert_eq!(all(), "2457 0 1639");
}

/// Workers whose lists differ and who start for the first time at once: one of the lists is placed, whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_starts_with_different_lists_do_not_both_place() {
    let server = Postgres::shared();
    for _ in 0..3 {
        let urls = [server.database(), server.database(), server.database()];
        let [a, b, c] = [("a", urls[0].as_str(), 1), ("b", urls[1].as_str(), 1), ("c", urls[2].as_str(), 1)];
        let stores = [vec![b, c], vec![a, b, c]].map(|list| PostgreSql::open(&settings(&list)).unwrap());
        let settled = async |store: &PostgreSql| loop {
            let (ever, fault) = {
                let placement = store.shared.placement.lock().unwrap();
                (placement.ever, placement.fault.clone())
            };
            if ever || fault.is_some_and(|fault| fault.code == Code::Internal) {
                return ever;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let placed = tokio::join!(settled(&stores[0]), settled(&stores[1]));
        assert!(placed.0 || placed.1, "{placed:?}");
        let slots = "SELECT slot FROM slot_own WHERE mode = 1";
        let mut owned: Vec<String> = Vec::new();
        for url in &urls {
            let found = server.sql(url.rsplit('/').next().unwrap(), slots);
            owned.extend(found.lines().map(str::to_owned));
        }
        assert_eq!(owned.len(), usize::from(SLOTS), "{placed:?}");
        owned.sort_unstable();
        owned.dedup();
        assert_eq!(owned.len(), usize::from(SLOTS), "none of them twice");
        for store in &stores {
            Backend::close(store).await;
        }
    }
}

/// A slot that is given to another server is found there, without a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_moved_is_followed() {
    let server = Postgres::shared();
    let (one, two) = (server.database(), server.database());
    let store = open(&[("one", one.as_str(), 1), ("two", two.as_str(), 1)]).await;
    let slot = at("k").slot;
    let owner = store.shared.owner_index(slot);
    let mut names = [&one, &two].map(|url| url.rsplit('/').next().unwrap());
    names.rotate_left(usize::from(owner));
    let [from, to] = names;
    server.sql(from, &format!("DELETE FROM slot_own WHERE slot = {slot}"));
    server.sql(to, &format!("INSERT INTO slot_own (slot, mode, epoch) VALUES ({slot}, 1, 2)"));
    Backend::write(&store, vec![put("k")], deadline()).await.remove(0).unwrap();
    assert_eq!(store.shared.owner_index(slot), 1 - owner);
    assert_eq!(server.sql(to, "SELECT key FROM rec"), "k");
    assert_eq!(scan(&store, 10, false).await.unwrap(), ["k"]);
    // What is left behind on the old one is nobody's.
    server.sql(from, &format!("INSERT INTO rec (ns, key, slot, hlc, origin, kind, val) VALUES ('n', 'left', {slot}, 1, 1, 0, 'x')"));
    assert_eq!(scan(&store, 10, false).await.unwrap(), ["k"]);
    assert_eq!(scan(&store, 10, true).await.unwrap(), ["k"]);
    Backend::close(&store).await;
}

/// What a namespace notes is noted beside its records, on each server, and asked of those that are there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_away_takes_no_namespace_along() {
    let mut mortal = Postgres::start(&[]);
    let (kept, lost) = (Postgres::shared().database(), mortal.database());
    let shards = [("kept", kept.as_str(), 1), ("lost", lost.as_str(), 1)];
    let store = open(&shards).await;
    let before = Namespace::parse("before").unwrap();
    let noted = Backend::partitioning(&store, &before, Some("key".to_owned())).await.unwrap();
    assert_eq!(noted.as_deref(), Some("key"));
    for url in [&kept, &lost] {
        let server = if url == &kept { Postgres::shared() } else { &mortal };
        assert_eq!(server.sql(url.rsplit('/').next().unwrap(), "SELECT spec FROM ns_part"), "key");
    }
    mortal.kill9();
    while store.shared.shards[1].shard.fault().is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // A worker that starts now knows none of them yet.
    let second = PostgreSql::open(&settings(&shards)).unwrap();
    while Backend::health(&second).is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for store in [&store, &second] {
        let fresh = Namespace::parse("fresh").unwrap();
        let begun = Instant::now();
        // It goes on, and asks again: one of them does not know yet.
        assert_eq!(Backend::partitioning(store, &fresh, Some("key".to_owned())).await, Ok(None));
        let other = Backend::partitioning(store, &fresh, Some("prefix /".to_owned())).await;
        assert_eq!(other.unwrap().as_deref(), Some("key"), "what another says is told");
        assert_eq!(Backend::partitioning(store, &before, None).await.unwrap().as_deref(), Some("key"));
        let unknown = Namespace::parse("unknown").unwrap();
        assert_eq!(Backend::partitioning(store, &unknown, None).await, Ok(None));
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    }
    mortal.restart();
    healed(&second).await;
    let fresh = Namespace::parse("fresh").unwrap();
    let noted = Backend::partitioning(&second, &fresh, Some("key".to_owned())).await.unwrap();
    assert_eq!(noted.as_deref(), Some("key"));
    let database = lost.rsplit('/').next().unwrap();
    assert_eq!(mortal.sql(database, "SELECT count(*) FROM ns_part WHERE spec = 'key'"), "2");
    Backend::close(&store).await;
    Backend::close(&second).await;
}

/// Asks until it is told that the slot is being moved, which one deadline may be too short for on a busy machine. It is never
/// answered.
async fn told_of_move<T: std::fmt::Debug>(ask: impl AsyncFn() -> Result<T>) {
    let mut said = Vec::new();
    for _ in 0..20 {
        said.push(ask().await.unwrap_err().message);
        if said.iter().any(|message| message.contains("being moved")) {
            return;
        }
    }
    panic!("{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_knows_at_once_that_a_slot_was_taken_away() {
    let server = Postgres::shared();
    let url = server.database();
    let database = url.rsplit('/').next().unwrap().to_owned();
    let store = open(&[("main", url.as_str(), 1)]).await;
    Backend::write(&store, vec![put("k")], deadline()).await.remove(0).unwrap();
    let slot = at("k").slot;
    server.sql(&database, &format!("UPDATE slot_own SET mode = 0 WHERE slot = {slot}"));
    let soon = || Instant::now() + Duration::from_millis(500);
    told_of_move(async || Backend::read(&store, vec![at("k")], soon()).await.remove(0)).await;
    // A page without its keys would be one with a hole.
    for reverse in [false, true] {
        let range = Range { reverse, ..namespace() };
        told_of_move(async || Backend::scan(&store, range.clone(), soon()).await).await;
    }
    server.sql(&database, &format!("UPDATE slot_own SET mode = 1 WHERE slot = {slot}"));
    assert!(Backend::read(&store, vec![at("k")], deadline()).await.remove(0).unwrap().is_some());
    // Several that take and give at once leave in one row what stands in the other table.
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let database = &database;
            scope.spawn(move || {
                for n in 0..10 {
                    let slots = format!("slot % 4 = {thread} AND slot % 10 <= {n}");
                    server.sql(database, &format!("UPDATE slot_own SET mode = 1 - mode WHERE {slots}"));
                }
            });
        }
    });
    let wrong = "SELECT count(*) FROM slot_own, slots_owned WHERE get_bit(bits, slot) <> mode";
    assert_eq!(server.sql(&database, wrong), "0");
    assert_ne!(server.sql(&database, "SELECT count(*) FROM slot_own WHERE mode = 0"), "0");
    Backend::close(&store).await;
}
