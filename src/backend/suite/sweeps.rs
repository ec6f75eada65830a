//! Sweeps: what is removed, and what must not come back when it is.

use super::*;

#[tokio::test]
async fn a_forgotten_delete_is_not_undone_by_anything_older() {
    on_each(async |backend| {
        let old = hlc_at(wall_ms() - 60_000);
        write(&*backend, put("k", "a", hlc_at(wall_ms()))).await;
        let Written::Applied { version: deleted, existed: true, .. } = write(&*backend, delete("k")).await
        else {
            panic!()
        };
        assert_eq!(
            found(&*backend, "k").await,
            Some(Found { version: deleted, live: None }),
            "a tombstone stays"
        );
        let superseded =
            backend.apply(vec![entry("k", Some("late"), old)], deadline()).await.remove(0).unwrap();
        assert_eq!(superseded, Applied::Superseded, "while it stays, it wins by its version");

        let swept = backend.sweep(None, NO_GRACE).await.unwrap();
        assert_eq!((swept.removed, swept.resume), (1, None), "the floor rises with it");
        assert_eq!(found(&*backend, "k").await, None, "after the grace it is gone");
        let below = backend.apply(vec![entry("k", Some("late"), old)], deadline()).await.remove(0).unwrap();
        assert_eq!(below, Applied::BelowFloor, "and the floor keeps older writes out");
        assert_eq!(found(&*backend, "k").await, None);

        let Written::Applied { version, .. } = write(&*backend, put("k", "new", 5)).await else { panic!() };
        assert!(version.hlc > deleted.hlc, "a direct write is always above the floor");
    })
    .await;
}

#[tokio::test]
async fn a_retry_after_its_row_was_removed_is_not_called_new() {
    on_each(async |backend| {
        let op = |lookback_ms| Some(OpStamp { id: 1 << 63 | 5, lookback_ms });
        write(&*backend, Write { op: op(None), ..delete("k") }).await;
        backend.sweep(None, NO_GRACE).await.unwrap();
        let retried = write(&*backend, Write { op: op(Some(100)), ..delete("k") }).await;
        assert_eq!(retried, Written::Forgotten);
    })
    .await;
}

#[tokio::test]
async fn a_grace_keeps_tombstones_and_live_records_are_never_swept() {
    on_each(async |backend| {
        write(&*backend, put("live", "a", hlc_at(wall_ms()))).await;
        write(&*backend, delete("dead")).await;
        let swept = backend.sweep(None, 60_000).await.unwrap();
        assert_eq!((swept.expired, swept.removed), (0, 0));
        // Riak finds the dead by an index of them.
        assert_eq!(swept.examined, if backend.capability().conditional { 2 } else { 0 });
        let swept = backend.sweep(None, NO_GRACE).await.unwrap();
        assert_eq!(swept.removed, 1);
        assert_eq!(body(&*backend, "live").await.as_deref(), Some("a"));
    })
    .await;
}

#[tokio::test]
async fn an_expired_record_becomes_a_tombstone_of_the_same_version() {
    on_each(async |backend| {
        let mut short = put("k", "a", hlc_at(wall_ms()));
        short.action =
            Action::Put { body: Bytes::from_static(b"a"), expiry: Expiry::New(Lifetime::Millis(1)) };
        let Written::Applied { version, .. } = write(&*backend, short).await else { panic!() };
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(found(&*backend, "k").await, Some(Found { version, live: None }));
        assert_eq!(backend.sweep(None, 60_000).await.unwrap().expired, 1);
        assert_eq!(found(&*backend, "k").await, Some(Found { version, live: None }), "the version stays");
        assert_eq!(backend.sweep(None, 60_000).await.unwrap().expired, 0, "once");
    })
    .await;
}
