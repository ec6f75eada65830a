//! Writes: versions that stores raise or clamp, offers, batches, and what is refused.

use super::*;
use crate::model::op::Precondition;
use crate::model::version::RAISED;

#[tokio::test]
async fn a_version_is_raised_above_what_stands_and_clamped_to_the_stores_clock() {
    on_each(async |backend| {
        let far = hlc_at(wall_ms() + 3_600_000);
        let Written::Applied { version: clamped, .. } = write(&*backend, put("k", "a", far)).await else {
            panic!()
        };
        assert!(clamped.hlc < hlc_at(wall_ms() + 1000), "an hour ahead is not taken");
        assert_ne!(clamped.origin & RAISED, 0, "a clamped version is flagged");
        let none = u64::try_from(i64::MAX).unwrap();
        let Written::Applied { version: of_store, .. } = write(&*backend, put("max", "a", none)).await else {
            panic!()
        };
        assert!((of_store.hlc as i64 - hlc_at(wall_ms()) as i64).abs() < hlc_at(1000) as i64, "{of_store}");
        assert_ne!(of_store.origin & RAISED, 0, "a clamped version is flagged");
        let Written::Applied { version: raised, .. } = write(&*backend, put("k", "b", 5)).await else {
            panic!()
        };
        assert!(raised > clamped, "a slow clock's write still gets a greater version");
        assert_eq!(raised.hlc, clamped.hlc + 1);
        let fresh = hlc_at(wall_ms() + 200);
        let Written::Applied { version, .. } = write(&*backend, put("other", "c", fresh)).await else {
            panic!()
        };
        assert_eq!(version, Version { hlc: fresh, origin: 1 }, "a sane proposal stands as it is");
    })
    .await;
}

#[tokio::test]
async fn an_offer_stands_under_its_own_version_or_not_at_all() {
    on_each(async |backend| {
        let offer = async |write| backend.offer(vec![write], deadline()).await.remove(0).unwrap();
        let op = |id: u64| Some(OpStamp { id: 1 << 63 | id, lookback_ms: None });
        let now = hlc_at(wall_ms());
        let first = offer(Write { op: op(1), ..put("k", "a", now) }).await;
        let Offered::Written(Written::Applied { version, existed: false, live }) = first else { panic!() };
        assert_eq!(version, Version { hlc: now, origin: 1 });
        assert_eq!(live.unwrap().body, "a");
        assert_eq!(offer(put("k", "older", now - 1)).await, Offered::Superseded);
        assert_eq!(offer(put("k", "the same", now)).await, Offered::Superseded);
        assert_eq!(body(&*backend, "k").await.as_deref(), Some("a"), "nothing of it happened");
        let again = offer(Write { op: op(1), ..put("k", "again", now + 5) }).await;
        let known = Written::Duplicate { version: Some(version), existed: false };
        assert_eq!(again, Offered::Written(known), "a known operation changes nothing");
        let between = offer(put("k", "between", now + 6)).await;
        assert!(matches!(between, Offered::Written(Written::Applied { .. })), "{between:?}");
        let again = offer(Write { op: op(1), ..put("k", "again", now + 7) }).await;
        let known = Written::Duplicate { version: None, existed: false };
        assert_eq!(again, Offered::Written(known), "nor does it undo what came after it");
        assert_eq!(body(&*backend, "k").await.as_deref(), Some("between"));
        let far = hlc_at(wall_ms() + 3_600_000);
        assert_eq!(
            offer(put("far", "a", far)).await,
            Offered::Superseded,
            "a clock that jumped is not taken"
        );
        assert_eq!(found(&*backend, "far").await, None);
        let deleted = offer(Write { proposed: Version { hlc: now + 9, origin: 1 }, ..delete("k") }).await;
        let Offered::Written(Written::Applied { existed: true, live: None, .. }) = deleted else { panic!() };
        let absent = offer(delete("absent")).await;
        let Offered::Written(Written::Applied { existed: false, live: None, .. }) = absent else { panic!() };
        assert!(found(&*backend, "absent").await.is_some(), "a delete of nothing leaves a tombstone");
        let depends = Write { precondition: Some(Precondition::Exists), ..put("k", "x", now + 99) };
        assert!(backend.offer(vec![depends], deadline()).await.remove(0).is_err());
        let late = backend.offer(vec![put("late", "a", now)], Instant::now()).await.remove(0).unwrap_err();
        assert_eq!(late.code, crate::model::Code::DeadlineExceeded);
    })
    .await;
}

#[tokio::test]
async fn an_atomic_batch_is_kept_whole_or_not_at_all() {
    on_each(async |backend| {
        let now = hlc_at(wall_ms());
        let failing = Write { precondition: Some(Precondition::Exists), ..put("b", "x", now) };
        if !backend.capability().atomic {
            let refused = backend.write_atomic(vec![put("a", "x", now)], deadline()).await.unwrap_err();
            assert_eq!((refused.0, refused.1.code), (0, crate::model::Code::Unsupported));
            assert_eq!(found(&*backend, "a").await, None);
            return;
        }
        let (failed, error) =
            backend.write_atomic(vec![put("a", "x", now), failing], deadline()).await.unwrap_err();
        assert_eq!((failed, error.code), (1, crate::model::Code::Conflict));
        assert_eq!(found(&*backend, "a").await, None);
        // A later write of the batch sees the earlier one.
        let after = Write { precondition: Some(Precondition::Exists), ..put("a", "y", now) };
        backend.write_atomic(vec![put("a", "x", now), after], deadline()).await.unwrap();
        assert_eq!(body(&*backend, "a").await.as_deref(), Some("y"));
    })
    .await;
}

struct Never;

impl Change for Never {
    fn change(&self, _present: Option<&Live>) -> Result<(Bytes, Expiry)> {
        panic!("a change is computed where none can be kept")
    }
}

#[tokio::test]
async fn what_cannot_be_kept_is_refused_and_leaves_nothing() {
    on_each(async |backend| {
        if backend.capability().conditional {
            return;
        }
        let now = hlc_at(wall_ms());
        let kept = Action::Put { body: Bytes::new(), expiry: Expiry::KeepOr(Lifetime::Forever) };
        for refused in [
            Write { precondition: Some(Precondition::Absent), ..put("k", "a", now) },
            Write { precondition: Some(Precondition::Exists), ..delete("k") },
            Write { action: kept, ..put("k", "a", now) },
            Write { action: Action::Change(Arc::new(Never)), ..put("k", "a", now) },
        ] {
            let refused = backend.write(vec![refused], deadline()).await.remove(0).unwrap_err();
            assert_eq!(refused.code, crate::model::Code::Unsupported, "{refused:?}");
        }
        assert_eq!(found(&*backend, "k").await, None);
    })
    .await;
}

#[tokio::test]
async fn a_write_past_its_deadline_did_not_happen() {
    on_each(async |backend| {
        let late = backend.write(vec![put("k", "a", 1)], Instant::now()).await.remove(0).unwrap_err();
        assert_eq!(late.code, crate::model::Code::DeadlineExceeded);
        assert_eq!(found(&*backend, "k").await, None);
    })
    .await;
}
