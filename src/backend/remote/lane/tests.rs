//! A lane with a statement that does nothing but take its time.

use futures_util::future::join_all;

use super::*;
use crate::model::{Key, Namespace};

fn at(key: &str) -> RowKey {
    RowKey { namespace: Namespace::parse("n").unwrap(), key: Key::parse(key).unwrap(), slot: 0 }
}

/// The statements a lane made: their keys and deadlines.
type Made = Arc<Mutex<Vec<(Vec<String>, Deadlines)>>>;

/// A statement that takes so long, over a way that is had after so long; a row called "stuck" takes a second and fails it.
struct Slow {
    takes: Duration,
    way_after: Duration,
    made: Made,
}

impl Statement<RowKey> for Slow {
    type Way = ();
    type Outcome = String;
    const WRITES: bool = true;

    async fn way(&self, until: Instant) -> Result<(), Fault> {
        let waited = tokio::time::sleep(self.way_after);
        timeout_at(until, waited).await.map_err(|_| late())
    }

    async fn run(&self, (): (), items: &[RowKey], deadlines: Deadlines) -> Result<Vec<String>, Fault> {
        let names: Vec<String> = items.iter().map(|at| at.key.as_str().to_owned()).collect();
        self.made.lock().unwrap().push((names.clone(), deadlines));
        if names.iter().any(|name| name == "stuck") {
            tokio::time::sleep(Duration::from_secs(1)).await;
            return Err(Fault { error: Error::overloaded("a lock", 1), remedy: Remedy::Apart });
        }
        tokio::time::sleep(self.takes).await;
        Ok(names)
    }
}

/// A lane of one statement.
fn lane(takes_ms: u64, way_after_ms: u64) -> (Lane<RowKey, Slow>, Made) {
    let made = Made::default();
    let (takes, way_after) = (Duration::from_millis(takes_ms), Duration::from_millis(way_after_ms));
    (Lane::new(1, Slow { takes, way_after, made: made.clone() }), made)
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_share_the_next_statement_each_with_its_own_time_and_answer() {
    let (lane, made) = lane(100, 0);
    let begun = Instant::now();
    let ask = |key: &str, seconds: u64| {
        let (key, until) = (at(key), begun + Duration::from_secs(seconds));
        let lane = &lane;
        async move {
            match lane.ask(key, until, until).await {
                Answer::Done(Ok(answer)) => answer,
                _ => "none".to_owned(),
            }
        }
    };
    let first = ask("a", 5);
    let others = async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        join_all([ask("d", 3), ask("c", 9), ask("b", 1)]).await
    };
    let (first, others) = futures_util::join!(first, others);
    assert_eq!((first.as_str(), others), ("a", vec!["d".to_owned(), "c".to_owned(), "b".to_owned()]));
    let made = made.lock().unwrap();
    assert_eq!(made.len(), 2);
    assert_eq!(made[0].0, ["a"], "who finds a statement free leaves alone");
    assert_eq!(made[1].0, ["b", "c", "d"], "in one order");
    // Nothing is written for a caller who has gone, and nobody's wait is cut short by a neighbour's.
    assert_eq!(made[1].1.first - begun, Duration::from_secs(1));
    assert_eq!(made[1].1.last - begun, Duration::from_secs(9));
}

#[tokio::test(start_paused = true)]
async fn one_that_is_given_up_before_it_left_is_in_no_statement() {
    // Given up while another statement is under way, and while there is no connection.
    for (takes, way_after) in [(2000, 0), (0, 2000)] {
        let (lane, made) = lane(takes, way_after);
        let begun = Instant::now();
        let (long, short) = (begun + Duration::from_secs(5), begun + Duration::from_secs(1));
        let late = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            lane.ask(at("late"), short, short).await
        };
        let (first, late) = futures_util::join!(lane.ask(at("a"), long, long), late);
        assert!(matches!(first, Answer::Done(Ok(_))));
        assert!(matches!(late, Answer::Unsent | Answer::Done(Err(_))));
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(made.lock().unwrap().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_waits_for_a_connection_with_others_was_not_sent_when_it_gives_up() {
    let (lane, made) = lane(0, 2000);
    let begun = Instant::now();
    let (long, short) = (begun + Duration::from_secs(5), begun + Duration::from_secs(1));
    let ask = |key, until| lane.ask(at(key), until, until);
    let (kept, left) = futures_util::join!(ask("a", long), ask("b", short));
    assert!(matches!(kept, Answer::Done(Ok(_))));
    assert!(matches!(left, Answer::Unsent));
    assert_eq!(made.lock().unwrap().iter().map(|(names, _)| names.join("+")).collect::<Vec<_>>(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn one_in_a_hurry_does_not_hurry_the_others() {
    let (lane, made) = lane(100, 0);
    let begun = Instant::now();
    let ask = |key, ms| {
        let until = begun + Duration::from_millis(ms);
        lane.ask(at(key), until, until)
    };
    futures_util::join!(ask("a", 5000), async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        futures_util::join!(ask("b", 5000), ask("hurried", 103), ask("c", 6000));
    });
    let made = made.lock().unwrap();
    let with_b = made.iter().find(|(names, _)| names.contains(&"b".to_owned())).unwrap();
    assert_eq!(with_b.0, ["b", "c"]);
    assert_eq!(with_b.1.first - begun, Duration::from_secs(5));
    assert!(made.iter().any(|(names, _)| names == &["hurried"]));
}

#[tokio::test(start_paused = true)]
async fn one_that_is_stuck_keeps_its_neighbours_waiting_once() {
    let (lane, made) = lane(1, 0);
    let ask = async |key: &str| {
        let (begun, until) = (Instant::now(), Instant::now() + Duration::from_secs(10));
        (matches!(lane.ask(at(key), until, until).await, Answer::Done(Ok(_))), begun.elapsed())
    };
    let (first, stuck, b, c) = futures_util::join!(ask("a"), ask("stuck"), ask("b"), ask("c"));
    assert!(first.0 && !stuck.0 && b.0 && c.0);
    assert!(b.1 < Duration::from_secs(2), "{b:?}");
    // From now on it waits beside the others.
    let (stuck, b, c) = futures_util::join!(ask("stuck"), ask("b"), ask("c"));
    assert!(!stuck.0 && b.0 && c.0);
    assert!(b.1 < Duration::from_millis(10) && c.1 < Duration::from_millis(10), "{b:?} {c:?}");
    assert_eq!(made.lock().unwrap().iter().filter(|(names, _)| names == &["stuck"]).count(), 2);
    // Only so many wait there.
    let many = join_all((0..ASIDE_MAX + 3).map(|_| ask("stuck"))).await;
    let at_once = many.iter().filter(|(_, took)| *took < Duration::from_millis(100)).count();
    assert_eq!(at_once, 3, "{many:?}");
}
