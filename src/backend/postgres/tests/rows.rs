//! What the statements make of a row, beside what [`decide`](crate::backend::decide) says.

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;

use super::*;
use crate::backend::decide::{self, Now};
use crate::backend::{OpRing, Row};

/// A row as a replay or a copy brings it: few versions, few operations, so that they meet.
fn any_row() -> impl Strategy<Value = Row> {
    let ops = proptest::collection::btree_set(0..9_u64, 0..5);
    (1..6_u64, ops, proptest::sample::select(vec![0_i64, 5, 9])).prop_map(|(hlc, ops, evicted_at_ms)| {
        let version = Version { hlc, origin: 9 };
        // One version names one value, and one operation got one version.
        let body = (hlc % 3 > 0).then(|| bytes::Bytes::from(format!("{hlc}")));
        let entries = ops.into_iter().map(|op| (op | 1 << 63, op + 100)).collect();
        Row {
            version,
            slot: at("k").slot,
            body,
            expires_at_ms: 0,
            ring: OpRing { entries, evicted_at_ms },
            was: hlc % 2 == 0,
        }
    })
}

/// The row that stands under a key.
async fn row(store: &PostgreSql, at: &RowKey) -> Option<(Row, Now)> {
    let shard = &store.shared.shards[0].shard;
    let mut connection = shard.connection().await.unwrap();
    let read = shard.read_rows(std::slice::from_ref(at), deadline(), &mut connection).await.unwrap();
    let (row, now) = read.into_iter().next().unwrap().unwrap();
    row.map(|row| (row, now))
}

/// Merges leave what the reference does, the rings and what they forgot included.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn merges_are_those_of_the_reference() {
    let url = Postgres::shared().database();
    let store = open(&[("main", url.as_str(), 1)]).await;
    let mut runner = proptest::test_runner::TestRunner::default();
    let mut settled_by_a_look = 0;
    for case in 0..24 {
        let at = at(&format!("k{case}"));
        let rows = proptest::collection::vec(any_row(), 1..16).new_tree(&mut runner).unwrap().current();
        let mut expected: Option<Row> = None;
        // When the store forgets an operation, it notes its own time.
        let began = wall_ms();
        for row in &rows {
            let row = Row { slot: at.slot, ..row.clone() };
            let entry = Entry { at: at.clone(), row };
            let (after, applied) =
                decide::apply(expected.as_ref(), &entry, Now { wall_ms: began, gc_floor: 0 });
            let already = Backend::already(&store, vec![entry.clone()], deadline()).await.remove(0).unwrap();
            if let Some(already) = already {
                // It told the same without a merge, and a merge would leave the row as it is, but for when it forgot last.
                let own = expected.as_ref().is_some_and(|stands| stands.version == entry.row.version);
                let told = if own { Applied::Applied } else { Applied::Superseded };
                assert_eq!((already, applied), (told, Applied::Superseded), "{rows:?}");
                let entries = |row: &Option<Row>| {
                    let mut entries = row.as_ref().map(|row| row.ring.entries.clone()).unwrap_or_default();
                    entries.sort_unstable();
                    entries
                };
                assert!(after.is_none() || entries(&after) == entries(&expected), "{rows:?}");
                settled_by_a_look += 1;
            }
            let done = Backend::apply(&store, vec![entry], deadline()).await.remove(0).unwrap();
            assert_eq!(done, applied, "{rows:?}");
            expected = after.or(expected);
        }
        let mut expected = expected.unwrap();
        let (mut stands, _) = row(&store, &at).await.unwrap();
        assert_eq!(stands.ring.evicted_at_ms >= began, expected.ring.evicted_at_ms >= began, "{rows:?}");
        if expected.ring.evicted_at_ms >= began {
            (stands.ring.evicted_at_ms, expected.ring.evicted_at_ms) = (began, began);
        }
        assert_eq!(stands, expected, "{rows:?}");
    }
    assert!(settled_by_a_look > 0);
    Backend::close(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_that_a_merge_drops_is_not_called_new() {
    let url = Postgres::shared().database();
    let store = open(&[("main", url.as_str(), 1)]).await;
    let row = |hlc, ops: std::ops::Range<u64>| {
        let ring = OpRing { entries: ops.map(|op| (op | 1 << 63, op)).collect(), evicted_at_ms: 0 };
        let version = Version { hlc, origin: 1 };
        let body = Some("k".into());
        let row = Row { version, slot: at("k").slot, body, expires_at_ms: 0, ring, was: false };
        Entry { at: at("k"), row }
    };
    // The older one's fifth operation finds the ring full: nobody knows of it until it is merged.
    for entry in [row(1000, 0..4), row(500, 4..5)] {
        let already = Backend::already(&store, vec![entry.clone()], deadline()).await.remove(0);
        assert_eq!(already.unwrap(), None);
        Backend::apply(&store, vec![entry], deadline()).await.remove(0).unwrap();
    }
    let already = Backend::already(&store, vec![row(500, 4..5)], deadline()).await.remove(0);
    assert_eq!(already.unwrap(), Some(Applied::Superseded));
    let op = Some(crate::backend::OpStamp { id: 4 | 1 << 63, lookback_ms: Some(60_000) });
    let again = Backend::write(&store, vec![Write { op, ..put("k") }], deadline()).await.remove(0);
    assert_eq!(again.unwrap(), Written::Forgotten);
    Backend::close(&store).await;
}
