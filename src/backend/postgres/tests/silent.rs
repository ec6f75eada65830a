//! Connections that fall silent.

use super::*;
use crate::backend::remote::ANSWER_GRACE;

/// A store behind such a way, which falls silent with the sender.
async fn behind_a_way(url: &str, limits: Limits) -> (PostgreSql, tokio::sync::watch::Sender<u32>) {
    let (cut, heard) = tokio::sync::watch::channel(0);
    let to = url.split('@').nth(1).unwrap().split('/').next().unwrap().to_owned();
    let port = silent_proxy(to.clone(), heard).await;
    let url = url.replace(&to, &format!("127.0.0.1:{port}"));
    let settings = PostgresSettings { limits, ..settings(&[("main", url.as_str(), 1)]) };
    let store = PostgreSql::open(&settings).unwrap();
    healed(&store).await;
    (store, cut)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_fall_silent_are_given_up_and_made_anew() {
    // All of them fall silent while they are in use, or after they have rested for a while.
    for rested in [Duration::ZERO, Duration::from_millis(800)] {
        let limits = Limits { pool_size: 4, ..Limits::default() };
        let (store, cut) = behind_a_way(&Postgres::shared().database(), limits).await;
        let store: Arc<dyn DynBackend> = Arc::new(store);
        let wait = Duration::from_millis(300);
        let all = async |store: &Arc<dyn DynBackend>| {
            let writes = (0..40).map(|n| {
                let store = store.clone();
                tokio::spawn(async move {
                    let begun = Instant::now();
                    let written = store.write(vec![put(&format!("k{n}"))], begun + wait).await.remove(0);
                    let read = store.read(vec![at(&format!("k{n}"))], Instant::now() + wait).await.remove(0);
                    (written.is_ok() && read.is_ok(), begun.elapsed())
                })
            });
            join_all(writes).await.into_iter().map(|done| done.unwrap()).collect::<Vec<_>>()
        };
        while !all(&store).await.iter().all(|(well, _)| *well) {}
        tokio::time::sleep(rested).await;
        cut.send(1).unwrap();
        let (begun, mut rounds) = (Instant::now(), 0);
        loop {
            let done = all(&store).await;
            // Whatever becomes of the statement, nobody waits for longer than was asked for.
            let longest = done.iter().map(|(_, took)| *took).max().unwrap();
            assert!(longest < 2 * (wait + ANSWER_GRACE) + Duration::from_millis(500), "{longest:?}");
            if done.iter().all(|(well, _)| *well) {
                break;
            }
            rounds += 1;
            assert!(begun.elapsed() < Duration::from_secs(10), "after {rounds} rounds: {done:?}");
        }
        assert!(rounds > 0, "the cut was noticed");
        store.close().await;
    }
}
