//! What a row that somebody holds does to those who want it, and to those who do not.

use futures_util::future::join3;

use super::*;
use crate::backend::{Change, Live, OpRing, Row};
use crate::model::op::Precondition;

/// Runs work while another session holds what it locked, for so long.
async fn while_held<T>(database: &str, lock: &str, seconds: f64, work: impl Future<Output = T>) -> T {
    let (name, hold) = (database.to_owned(), format!("BEGIN; {lock}; SELECT pg_sleep({seconds}); COMMIT"));
    let held = tokio::task::spawn_blocking(move || Postgres::shared().sql(&name, &hold));
    let sleeps = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}' AND wait_event = 'PgSleep'"
    );
    while Postgres::shared().sql("postgres", &sleeps) != "1" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let done = work.await;
    held.await.unwrap();
    done
}

/// Appends to a document.
struct Append(&'static str);

impl Change for Append {
    fn change(&self, present: Option<&Live>) -> Result<(bytes::Bytes, Expiry)> {
        let before = present.map_or(&[][..], |live| &live.body);
        Ok(([before, self.0.as_bytes()].concat().into(), Expiry::New(Lifetime::Forever)))
    }
}

async fn body(store: &PostgreSql, key: &str) -> String {
    let found = Backend::read(store, vec![at(key)], deadline()).await.remove(0).unwrap();
    String::from_utf8(found.unwrap().live.unwrap().body.to_vec()).unwrap()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_millis(300)
}

/// A write that waits in the server until its caller has gone is not done then, on whichever road it came.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_written_behind_a_deadline() {
    let url = Postgres::shared().database();
    let database = url.rsplit('/').next().unwrap();
    let store = open(&[("main", url.as_str(), 1)]).await;
    let new = |key: &str| Write {
        action: Action::Put { body: "new".into(), expiry: Expiry::New(Lifetime::Forever) },
        ..put(key)
    };
    for key in ["a", "b", "c"] {
        Backend::write(&store, vec![put(key)], deadline()).await.remove(0).unwrap();
    }
    let hold = "SELECT * FROM rec FOR UPDATE";
    let (one, several, conditional) = while_held(database, hold, 1.0, async {
        let conditional = Write { precondition: Some(Precondition::Exists), ..new("c") };
        join3(
            Backend::write(&store, vec![new("a")], soon()),
            Backend::write(&store, vec![new("b"), new("a")], soon()),
            Backend::write(&store, vec![conditional], soon()),
        )
        .await
    })
    .await;
    for written in one.into_iter().chain(several).chain(conditional) {
        // It was under way, so nobody knows; or it was known not to be.
        let code = written.unwrap_err().code;
        assert!(matches!(code, Code::Indeterminate | Code::DeadlineExceeded), "{code:?}");
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    for key in ["a", "b", "c"] {
        assert_eq!(body(&store, key).await, key);
    }
    Backend::close(&store).await;
}

/// One whose statement that writes had not left is told that it did not happen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_only_read_when_the_time_was_over_did_not_happen() {
    let url = Postgres::shared().database();
    let database = url.rsplit('/').next().unwrap();
    let store = open(&[("main", url.as_str(), 1)]).await;
    Backend::write(&store, vec![put("k")], deadline()).await.remove(0).unwrap();
    let change = || Write { action: Action::Change(Arc::new(Append("+"))), ..put("k") };
    // A batch waits for its locks, a change for what it is computed from.
    let batch = while_held(database, "SELECT * FROM rec FOR UPDATE", 1.0, async {
        Backend::write_atomic(&store, vec![put("k")], soon()).await
    });
    assert_eq!(batch.await.unwrap_err().1.code, Code::DeadlineExceeded);
    let changed = while_held(database, "LOCK TABLE rec IN ACCESS EXCLUSIVE MODE", 1.0, async {
        Backend::write(&store, vec![change()], soon()).await.remove(0)
    });
    assert_eq!(changed.await.unwrap_err().code, Code::DeadlineExceeded);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(body(&store, "k").await, "k");
    Backend::write(&store, vec![change()], deadline()).await.remove(0).unwrap();
    assert_eq!(body(&store, "k").await, "k+");
    Backend::close(&store).await;
}

/// A row that somebody holds keeps the others of its statement waiting once, and then nobody but those who want it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_row_that_is_held_does_not_hold_the_others() {
    let url = Postgres::shared().database();
    let database = url.rsplit('/').next().unwrap();
    let store = Arc::new(open(&[("main", url.as_str(), 1)]).await);
    Backend::write(&*store, vec![put("held")], deadline()).await.remove(0).unwrap();
    let done = while_held(database, "SELECT * FROM rec WHERE key = 'held' FOR UPDATE", 6.0, async {
        let begun = Instant::now();
        let writers = (0..32).map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                let key = if n == 0 { "held".to_owned() } else { format!("k{n}") };
                let mut took = Vec::new();
                while begun.elapsed() < Duration::from_secs(5) {
                    let asked = Instant::now();
                    let written = Backend::write(&*store, vec![put(&key)], deadline()).await.remove(0);
                    match n {
                        0 => {
                            let refused = written.unwrap_err();
                            assert_eq!(
                                (refused.code, refused.code.outcome()),
                                (Code::Overloaded, Outcome::Refused)
                            );
                        }
                        _ => drop(written.unwrap()),
                    }
                    took.push((asked - begun, asked.elapsed()));
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                took
            })
        });
        join_all(writers).await
    })
    .await;
    let others: Vec<_> = done.into_iter().skip(1).flat_map(|took| took.unwrap()).collect();
    let longest = others.iter().map(|(_, took)| *took).max().unwrap();
    assert!(longest < Duration::from_millis(3500), "{longest:?}");
    // Once it is known, nobody waits with it.
    let later = others.iter().filter(|(asked, _)| *asked > Duration::from_millis(3500));
    let longest = later.map(|(_, took)| *took).max().unwrap();
    assert!(longest < Duration::from_millis(600), "{longest:?}");
    Backend::write(&*store, vec![put("held")], deadline()).await.remove(0).unwrap();
    Backend::close(&*store).await;
}

/// Each road of a write notes its key while the slot is copied to another server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_into_a_slot_that_moves_is_noted() {
    let server = Postgres::shared();
    let url = server.database();
    let database = url.rsplit('/').next().unwrap();
    let store = open(&[("main", url.as_str(), 1)]).await;
    for key in ["cond", "change", "stands"] {
        Backend::write(&store, vec![put(key)], deadline()).await.remove(0).unwrap();
    }
    let noted = || {
        server.sql(database, "SELECT coalesce(string_agg(DISTINCT key, ' ' ORDER BY key), '') FROM move_log")
    };
    assert_eq!(noted(), "");
    server.sql(database, "UPDATE slot_own SET moving = true");
    let exists = Write { precondition: Some(Precondition::Exists), ..put("cond") };
    let absent = Write { precondition: Some(Precondition::Absent), ..put("fresh") };
    let refused = Write { precondition: Some(Precondition::Absent), ..put("stands") };
    let change = Write { action: Action::Change(Arc::new(Append("+"))), ..put("change") };
    Backend::write(&store, vec![put("one")], deadline()).await.remove(0).unwrap();
    Backend::write(&store, vec![put("two"), put("three")], deadline()).await;
    for write in [exists, absent, change, refused] {
        drop(Backend::write(&store, vec![write], deadline()).await.remove(0));
    }
    Backend::write_atomic(&store, vec![put("whole")], deadline()).await.unwrap();
    let version = Version { hlc: hlc_at(wall_ms()), origin: 9 };
    let (body, ring) = (Some("x".into()), OpRing::default());
    let row = Row { version, slot: at("copied").slot, body, expires_at_ms: 0, ring, was: false };
    let entry = Entry { at: at("copied"), row };
    Backend::apply(&store, vec![entry.clone()], deadline()).await.remove(0).unwrap();
    assert_eq!(noted(), "change cond copied fresh one three two whole", "and what was refused is not");
    // One that changes nothing is not noted again.
    server.sql(database, "DELETE FROM move_log");
    Backend::apply(&store, vec![entry], deadline()).await.remove(0).unwrap();
    assert_eq!(noted(), "");
    Backend::close(&store).await;
}
