//! Merges of rows that carry their versions: foreseen, of many, in any order.

use proptest::prelude::*;

use super::*;

#[tokio::test]
async fn what_is_foreseen_is_what_a_merge_comes_to_and_nothing_is_kept() {
    on_each(async |backend| {
        let now = hlc_at(wall_ms());
        write(&*backend, put("old", "a", now)).await;
        // The others do not foresee their floor.
        let foresees_floor = backend.capability().strong;
        if foresees_floor {
            write(&*backend, delete("gone")).await;
            backend.sweep(None, NO_GRACE).await.unwrap();
        }
        let mut entries = vec![
            entry("new", Some("x"), now + 5),
            entry("old", Some("x"), now - 5),
            entry("old", Some("x"), now + 5),
        ];
        if foresees_floor {
            entries.push(entry("gone", Some("x"), now - 60_000));
        }
        let foreseen = backend.foresee(entries.clone(), deadline()).await;
        assert_eq!(found(&*backend, "new").await, None);
        assert_eq!(body(&*backend, "old").await.as_deref(), Some("a"));
        let each = async |entry: Entry| backend.apply(vec![entry], deadline()).await.remove(0);
        for (entry, foreseen) in entries.into_iter().zip(foreseen) {
            assert_eq!(each(entry).await, foreseen);
        }
    })
    .await;
}

#[tokio::test]
async fn a_merge_of_many_rows_is_that_of_each() {
    on_each(async |backend| {
        let now = hlc_at(wall_ms());
        let many: Vec<Entry> =
            (0..700).map(|n| entry(&format!("k{}", n % 300), Some(&format!("v{n}")), now + n)).collect();
        let merged = backend.apply(many.clone(), deadline()).await;
        assert_eq!(merged.len(), 700);
        assert!(merged.iter().all(|one| *one == Ok(Applied::Applied)), "one key's in their order");
        assert_eq!(body(&*backend, "k99").await.as_deref(), Some("v699"));
        let merged = backend.apply(many, deadline()).await;
        assert!(merged.iter().all(|one| *one == Ok(Applied::Superseded)), "once is as good as twice");
    })
    .await;
}

#[tokio::test]
async fn an_operation_that_took_effect_is_not_merged_again_under_another_version() {
    on_each(async |backend| {
        let now = hlc_at(wall_ms());
        let of = |op: u64, body: &str, hlc: u64| {
            let mut entry = entry("k", Some(body), hlc);
            entry.row.ring.entries = vec![(op | 1 << 63, entry.row.version.fingerprint())];
            entry
        };
        let each = async |entry: Entry| backend.apply(vec![entry], deadline()).await.remove(0);
        assert_eq!(each(of(1, "A", now)).await, Ok(Applied::Applied));
        assert_eq!(each(of(2, "B", now + 1)).await, Ok(Applied::Applied));
        // With another operation merged into it, which must not be taken for one that took effect.
        let mut again = of(1, "A", now + 9);
        let other = of(3, "C", now + 8);
        again.row.ring.entries.extend(&other.row.ring.entries);
        assert_eq!(each(again.clone()).await, Ok(Applied::Known));
        assert_eq!(body(&*backend, "k").await.as_deref(), Some("B"));
        assert_eq!(each(other.clone()).await, Ok(Applied::Applied));
        assert_eq!(body(&*backend, "k").await.as_deref(), Some("C"));
        assert_eq!(each(other).await, Ok(Applied::Superseded), "its own version is no other");
        // Beside others, and twice.
        let many = vec![again.clone(), of(4, "D", now + 10), again];
        let merged = backend.apply(many, deadline()).await;
        assert_eq!(merged, [Ok(Applied::Known), Ok(Applied::Applied), Ok(Applied::Superseded)]);
        assert_eq!(body(&*backend, "k").await.as_deref(), Some("D"));
    })
    .await;
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let body = proptest::option::of("[a-z]{0,4}");
    ((0..3_u8), body, 1..20_u64, proptest::collection::vec(0..6_u64, 0..3)).prop_map(
        |(key, body, hlc, ops)| {
            // One version names one value: the body follows from key and version.
            let mut entry = entry(&format!("k{key}"), body.map(|_| format!("{key}-{hlc}")).as_deref(), hlc);
            if hlc % 3 == 0 {
                entry.row.body = None;
            } else {
                entry.row.body = Some(Bytes::from(format!("{key}-{hlc}")));
            }
            let fingerprint = entry.row.version.fingerprint();
            // An operation took effect under one version.
            let op = |op: u64| (op | hlc << 8 | 1 << 63, fingerprint);
            entry.row.ring.entries = ops.into_iter().map(op).collect();
            entry.row.ring.entries.dedup();
            entry
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Merging is idempotent and does not depend on order: any arrival of any duplicates ends the same.
    #[test]
    fn merges_converge(entries in proptest::collection::vec(any_entry(), 1..24), seed in any::<u64>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (once, again) = (Memory::new(), Memory::new());
            Backend::apply(&once, entries.clone(), deadline()).await;
            let mut shuffled = [entries.clone(), entries.clone()].concat();
            fastrand::Rng::with_seed(seed).shuffle(&mut shuffled);
            for entry in shuffled {
                Backend::apply(&again, vec![entry], deadline()).await;
            }
            for key in ["k0", "k1", "k2"] {
                assert_eq!(found(&once, key).await, found(&again, key).await);
            }
        });
    }

    /// The stored version never decreases, whatever mix of writes and merges arrives.
    #[test]
    fn versions_never_decrease(entries in proptest::collection::vec((any_entry(), any::<bool>()), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let backend = Memory::new();
            let mut last = std::collections::HashMap::new();
            for (entry, merge) in entries {
                let key = entry.at.key.clone();
                if merge {
                    Backend::apply(&backend, vec![entry], deadline()).await;
                } else {
                    let mut direct = put(key.as_str(), "direct", entry.row.version.hlc);
                    if entry.row.body.is_none() {
                        direct.action = Action::Delete;
                    }
                    write(&backend, direct).await;
                }
                let version = found(&backend, key.as_str()).await.unwrap().version;
                if let Some(before) = last.insert(key, version) {
                    assert!(version >= before);
                }
            }
        });
    }
}
