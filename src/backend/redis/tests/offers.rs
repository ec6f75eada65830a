//! Writes that may stand under their own version alone.

use super::*;
use crate::backend::Offered;

/// Attempts of one operation that are made at the same time.
const ATTEMPTS: u64 = 8;

async fn offer(store: &RedisStore, write: Write) -> Offered {
    Backend::offer(store, vec![write], deadline()).await.remove(0).unwrap()
}

/// Workers that are sent the same operation at the same time propose versions of their own: just one of them stands, whichever
/// comes first, and the others are told of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_of_one_operation_at_the_same_time_take_effect_once() {
    let server = Redis::start(&[]);
    let url = server.url();
    let workers = [open(&[("main", &url, 1)]).await, open(&[("main", &url, 1)]).await];
    for round in 0..50 {
        let key = format!("k{round}");
        let now = hlc_at(wall_ms());
        let attempts = (0..ATTEMPTS).map(|attempt| {
            let op = Some(OpStamp { id: 1 << 63 | round, lookback_ms: None });
            let proposed = Version { hlc: now + attempt, origin: attempt + 1 };
            let store = &workers[usize::from(attempt % 2 == 0)];
            offer(store, Write { op, proposed, ..put(&key) })
        });
        let told = futures_util::future::join_all(attempts).await;
        let (mut applied, mut known) = (Vec::new(), Vec::new());
        for told in told {
            match told {
                Offered::Written(Written::Applied { version, .. }) => applied.push(version),
                Offered::Written(Written::Duplicate { version, .. }) => known.extend(version),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(applied.len(), 1, "round {round}: {applied:?}");
        assert_eq!(known, vec![applied[0]; ATTEMPTS as usize - 1]);
        assert_eq!(read(&workers[0], &key).await.unwrap().unwrap().version, applied[0]);
    }
    for store in &workers {
        Backend::close(store).await;
    }
}

/// The script of offers beside its reference, on random rows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offers_are_decided_as_their_reference_does() {
    let server = Redis::start(&[]);
    let store = open(&[("main", &server.url(), 1)]).await;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut written, mut superseded, mut known) = (0, 0, 0);
    for step in 0..6000 {
        let at = at(["a", "b", "ä/€"][rng.usize(..3)]);
        let (present, now) = seen(&store, &at).await;
        let asked = Write { at, ..any_write(&mut rng, present.as_ref()) };
        if asked.entry().is_none() {
            let refused = Backend::offer(&store, vec![asked], deadline()).await.remove(0).unwrap_err();
            assert_eq!(refused.code, Code::Internal, "step {step}: {refused:?}");
            continue;
        }
        // What is just too new for the clock now is not so a moment later.
        let cap = |ms: i64| hlc_at(now.wall_ms + CLOCK_EPSILON_MS + ms);
        if (cap(0)..=cap(STEP_MS_MAX)).contains(&asked.proposed.hlc) {
            continue;
        }
        let (row, expected) = decide::offer(present.as_ref(), &asked, now).unwrap();
        let got = offer(&store, asked.clone()).await;
        assert_eq!(expected, got, "step {step}");
        let (stands, _) = seen(&store, &asked.at).await;
        match (row, &got) {
            (Some(row), _) => {
                written += 1;
                assert_eq!(stands.as_ref().unwrap().version, asked.proposed, "step {step}");
                same_row(row, &stands.unwrap(), now.wall_ms);
            }
            (None, told) => {
                *(if *told == Offered::Superseded { &mut superseded } else { &mut known }) += 1;
                assert_eq!(stands, present, "step {step}: what is not written leaves no trace");
            }
        }
        // Rows that grow old and go, so that more than the newest reading meets them.
        if rng.u8(..8) == 0 {
            server.cli(&["--raw", "DEL", &scripts::record(&asked.at)]);
            server.cli(&["--raw", "ZREM", "ds1/o/n", asked.at.key.as_str()]);
        }
    }
    println!("{written} written, {superseded} superseded, {known} known or forgotten");
    assert!(written > 50 && superseded > 50 && known > 50, "{written} {superseded} {known}");
    Backend::close(&store).await;
}
