//! What was settled before it was noted, or while it is, does not stay noted.

use super::*;

#[tokio::test]
async fn receipts_are_asked_for_where_something_was_settled_meanwhile_and_there_alone() {
    let overlay = open(&Server::shared().url(), "o10").await;
    let (namespace, key) = (Namespace::parse("n").unwrap(), Key::parse("k").unwrap());
    let epoch = async || overlay.ahead(&[(namespace.clone(), key.clone())]).await.unwrap().remove(0).epoch;
    let held = async |write: &Queued, since: Option<Epoch>| {
        let known = Known { since, ..Known::default() };
        overlay.held(std::slice::from_ref(write), known).await.unwrap().len()
    };
    let write = |hlc| queued("k", hlc, Some(b"x"), hlc);
    // What says so without the epoch, which nothing of ours does, shows whether it was asked.
    let says = async |write: &Queued| {
        let name = overlay.calls.receipt(&namespace, &key, write.entry.row.version);
        let deadline = Instant::now() + HOLD_TIMEOUT;
        overlay.calls.redis.call(redis::cmd("SET").arg(name).arg("applied"), deadline).await.unwrap();
    };
    assert_eq!(epoch().await, None);
    says(&write(1)).await;
    assert_eq!(held(&write(1), None).await, 1, "without an epoch it is asked");
    let first = epoch().await.expect("it began");
    says(&write(2)).await;
    assert_eq!(held(&write(2), Some(first)).await, 0);
    assert_eq!(held(&write(2), None).await, 1);
    // Another's, and its own.
    overlay.settle(&[settlement(&queued("other", 3, None, 3), Fate::Superseded)]).await.unwrap();
    assert_eq!(held(&write(2), Some(first)).await, 1);
    let second = epoch().await.unwrap();
    assert!(second != first);
    overlay.settle(&[settlement(&write(4), Fate::Dead("no".to_owned()))]).await.unwrap();
    assert_eq!(held(&write(4), Some(second)).await, 1);
    let third = epoch().await.unwrap();
    // What is taken away and not settled changes nothing.
    overlay.overtaken(&write(5).entry.at, write(5).entry.row.version).await;
    assert_eq!(epoch().await, Some(third));
    // That of another connection may have been counted up to once more.
    let other = Epoch { connection: third.connection + 1, ..third };
    says(&write(7)).await;
    assert_eq!((held(&write(7), Some(third)).await, held(&write(7), Some(other)).await), (0, 1));
    // One that Redis forgot does not come again, whoever begins the next.
    let mut seen = vec![first, second, third];
    for settles in [true, true, false, false] {
        let deadline = Instant::now() + HOLD_TIMEOUT;
        overlay.calls.redis.call(redis::cmd("DEL").arg("o10:z"), deadline).await.unwrap();
        match settles {
            true => overlay.settle(&[settlement(&write(6), Fate::Applied)]).await.unwrap(),
            false => assert_eq!(held(&write(6), Some(third)).await, 1),
        }
        seen.push(epoch().await.expect("it began"));
    }
    let numbers: std::collections::BTreeSet<u64> = seen.iter().map(|epoch| epoch.number).collect();
    assert_eq!(numbers.len(), seen.len(), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_settled_while_it_is_noted_does_not_stay_noted() {
    let url = Server::shared().url();
    let (overlay, consumer) = (open(&url, "o13").await, Arc::new(open(&url, "o13").await));
    let namespace = Namespace::parse("n").unwrap();
    let (mut before, mut after) = (0, 0);
    for round in 1..=400 {
        let write = queued(&format!("k{round}"), round, Some(b"x"), round);
        let at = write.entry.at.clone();
        let ahead = overlay.ahead(&[(namespace.clone(), at.key.clone())]).await.unwrap().remove(0);
        // From here on it is in the queue.
        let dead = settlement(&write, Fate::Dead("no".to_owned()));
        let settles = consumer.clone();
        let settle = async move { settles.settle(&[dead]).await.unwrap() };
        let known = Known { since: ahead.epoch, ..placed(&[PLACED]) };
        let write = [write];
        let hold = overlay.held(&write, known);
        // Before, after, and at the same time.
        let settled = match round % 3 {
            0 => {
                settle.await;
                hold.await
            }
            1 => {
                let settled = hold.await;
                settle.await;
                settled
            }
            _ => {
                let settling = tokio::spawn(settle);
                let settled = hold.await;
                settling.await.unwrap();
                settled
            }
        };
        let settled = settled.unwrap();
        match settled.is_empty() {
            true => after += 1,
            false => before += 1,
        }
        overlay.settle(&settled).await.unwrap();
        let waits = overlay.ahead(&[(namespace.clone(), at.key.clone())]).await.unwrap().remove(0).pending;
        assert_eq!(waits, None, "{round}");
    }
    assert!(before >= 133 && after >= 133, "{before} before, {after} after");
    assert_eq!(overlay.count(&namespace).await, Ok(0));
    for left in ["o13:r:*s", "o13:r:*b", "o13:r:*:o"] {
        assert_eq!(names(&overlay, left).await, Vec::new(), "{left}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_noted_counts_as_noted_also_where_receipts_are_not_told() {
    let server = tokio::task::block_in_place(|| Server::start(&["--rename-command", "MGET", "HIDDEN"]));
    let overlay = open(&server.url(), "o15").await;
    let write = queued("k", 1, Some(b"x"), 1);
    let noted = overlay.hold(std::slice::from_ref(&write), Known::default()).await.unwrap();
    assert!(matches!(&noted, Noted::Unasked(Away(why)) if why.contains("MGET")), "{noted:?}");
    assert_eq!(overlay.count(&write.entry.at.namespace).await, Ok(1));
}

#[tokio::test]
async fn of_many_writes_of_one_call_each_is_asked_for_by_itself() {
    let overlay = open(&Server::shared().url(), "o14").await;
    // More than of one transaction.
    let writes: Vec<Queued> =
        (1..=3 * TOLD_TOGETHER as u64).map(|n| queued(&format!("k{n}"), n, Some(b"x"), n)).collect();
    let settled = [3, TOLD_TOGETHER + 7, 3 * TOLD_TOGETHER - 1];
    let settlements: Vec<_> = settled.iter().map(|at| settlement(&writes[*at], Fate::Superseded)).collect();
    overlay.settle(&settlements).await.unwrap();
    let told = overlay.held(&writes, Known::default()).await.unwrap();
    let told: Vec<u64> = told.iter().map(|one| one.version.hlc).collect();
    assert_eq!(told, settled.map(|at| writes[at].entry.row.version.hlc));
    let namespace = Namespace::parse("n").unwrap();
    assert_eq!(overlay.count(&namespace).await, Ok(writes.len() as u64));
    let keys: Vec<&Key> = writes.iter().map(|write| &write.entry.at.key).collect();
    let seen = overlay.look(&namespace, &keys).await;
    assert!(seen.into_iter().all(|pending| pending.unwrap().is_some()));
}

#[tokio::test]
async fn one_that_was_settled_before_it_was_noted_and_is_pushed_out_waits_no_more() {
    let overlay = open(&Server::shared().url(), "o6").await;
    let first = |hlc| Version { hlc, origin: 5 };
    let front = note::Front { notes: 2, first: first(1), last: first(2) };
    for (key, document, front) in [("own", Document::Own, None), ("placed", PLACED, Some(front))] {
        let (early, late) = (queued(key, 1, Some(b"early"), 1), queued(key, 2, Some(b"late"), 2));
        overlay.settle(&[settlement(&early, Fate::Superseded)]).await.unwrap();
        let settled = overlay.held(std::slice::from_ref(&early), placed(&[document])).await.unwrap();
        // The one after it pushes it out, and itself.
        overlay.held(std::slice::from_ref(&late), placed(&[document])).await.unwrap();
        let newest = late.entry.row.version;
        let surplus = [(late.entry.at.clone(), note::Surplus { newest, front })];
        let last = queued(key, 3, Some(b"last"), 3);
        overlay.held(&[last], Known { surplus: &surplus, ..placed(&[document]) }).await.unwrap();
        overlay.settle(&settled).await.unwrap();
        let RowKey { namespace, key, .. } = &late.entry.at;
        let fate = async |version| overlay.fate(namespace, key, version).await.unwrap();
        assert_eq!((fate(first(1)).await, fate(first(2)).await), (Fate::Superseded, Fate::Pending));
        assert_eq!(names(&overlay, "o6:r:*:o").await.len(), 1);
        overlay.settle(&[settlement(&late, Fate::Superseded)]).await.unwrap();
        assert_eq!(names(&overlay, "o6:r:*:o").await, Vec::new());
    }
}
