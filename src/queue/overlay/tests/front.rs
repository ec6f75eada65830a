//! What is noted of a key is bounded: what older ones make place for, and what becomes of them.

use super::*;

#[tokio::test]
async fn what_is_noted_first_is_pushed_out_if_it_is_as_it_was() {
    let overlay = open(&Server::shared().url(), "o11").await;
    let (namespace, key) = (Namespace::parse("n").unwrap(), Key::parse("k").unwrap());
    let waits = async |key: &Key| {
        overlay.ahead(&[(namespace.clone(), key.clone())]).await.unwrap().remove(0).pending.unwrap()
    };
    let noted = async |key: &Key| waits(key).await.all.iter().map(|(at, _)| at.hlc).collect::<Vec<_>>();
    let put = async |name: &str, hlc, body, surplus: &[(RowKey, note::Surplus)]| {
        let known = Known { documents: &[PLACED], surplus, since: None };
        overlay.held(&[queued(name, hlc, body, hlc)], known).await.unwrap();
    };
    let full = NOTED_MAX as u64;
    let at = queued("k", 1, None, 1).entry.at;
    for hlc in 1..=full {
        put("k", hlc, (hlc != 3).then_some(b"x"), &[]).await;
    }
    let surplus = waits(&key).await.surplus().unwrap();
    let front = surplus.front.clone().expect("all of it is noted first");
    assert_eq!((front.notes, front.first.hlc, front.last.hlc), (NOTED_MAX - KEPT_MAX + 1, 1, full - 3));
    put("k", full + 1, Some(b"newest"), &[(at.clone(), surplus.clone())]).await;
    let kept: Vec<u64> = (0..KEPT_MAX as u64).map(|back| full + 1 - back).collect();
    assert_eq!(noted(&key).await, kept);
    // Twice: they are not what they were.
    put("k", full + 2, Some(b"newest"), &[(at.clone(), surplus.clone())]).await;
    assert_eq!(noted(&key).await.len(), KEPT_MAX + 1);
    for hlc in 1..=full + 2 {
        let fate = overlay.fate(&namespace, &key, Version { hlc, origin: 5 }).await;
        assert_eq!(fate, Ok(Fate::Pending), "{hlc}");
    }
    let pending = overlay.look(&namespace, &[&key]).await.remove(0).unwrap().unwrap();
    assert_eq!((pending.version.hlc, pending.body.as_deref()), (full + 2, Some(&b"newest"[..])));
    // The newest is dead: those that were pushed out still wait, and are settled like others.
    let settled: Vec<_> = (1..=full + 2)
        .rev()
        .map(|hlc| settlement(&queued("k", hlc, None, hlc), Fate::Dead("no".to_owned())))
        .collect();
    for settled in &settled {
        overlay.settle(std::slice::from_ref(settled)).await.unwrap();
    }
    for prefix in ["o11:r:*:o", "o11:r:*b", "o11:r:*s", "o11:v:*"] {
        assert_eq!(names(&overlay, prefix).await, Vec::new(), "{prefix}");
    }
    assert_eq!(overlay.count(&namespace).await, Ok(0));

    // Where one of it is gone, or was settled in between, nothing goes.
    let key = Key::parse("gone").unwrap();
    for hlc in 1..=full {
        put("gone", hlc, Some(b"x"), &[]).await;
    }
    let surplus = waits(&key).await.surplus().unwrap();
    let gone = settlement(&queued("gone", 2, None, 2), Fate::Superseded);
    overlay.settle(std::slice::from_ref(&gone)).await.unwrap();
    let surplus = [(gone.at.clone(), surplus)];
    put("gone", full + 1, Some(b"newest"), &surplus).await;
    assert_eq!(noted(&key).await.len(), NOTED_MAX);
    // The first is another, the last the same.
    let at = surplus[0].0.clone();
    let front = surplus[0].1.front.clone().unwrap();
    let version = |hlc| Version { hlc, origin: 5 };
    let pushed_out = async |fronts: &[(&RowKey, &note::Front)]| {
        let mut steps = redis::pipe();
        overlay.calls.push_out(&mut steps, fronts);
        overlay.calls.send(&steps, HOLD_TIMEOUT).await.unwrap()
    };
    let other = note::Front { notes: NOTED_MAX - 1, first: version(2), last: version(full) };
    assert_eq!(pushed_out(&[(&at, &other)]).await, [Value::Int(0)]);
    // Of several of one call those go that are as they were.
    for hlc in 1..=3 {
        put("several", hlc, Some(b"x"), &[]).await;
    }
    let several = queued("several", 1, None, 1).entry.at;
    let two = note::Front { notes: 2, first: version(1), last: version(2) };
    let right = note::Front { first: version(1), ..other };
    assert_eq!(
        pushed_out(&[(&at, &front), (&several, &two), (&several, &two), (&at, &right)]).await,
        [Value::Int(2)]
    );
    assert_eq!((noted(&key).await, noted(&several.key).await), (vec![full + 1], vec![3]));
    let mut ask = redis::cmd("TTL");
    ask.arg(overlay.calls.unseen(&namespace, &several.key));
    let left = overlay.calls.redis.call(&ask, Instant::now() + HOLD_TIMEOUT).await;
    assert!(matches!(left, Ok(Value::Int(seconds)) if seconds > 1_000_000), "some day it ends: {left:?}");
    // And where it is all that is there.
    let all = note::Front { notes: 1, first: version(7), last: version(7) };
    put("alone", 7, Some(b"x"), &[]).await;
    let alone = queued("alone", 7, None, 7).entry.at;
    assert_eq!(pushed_out(&[(&alone, &all)]).await, [Value::Int(0)]);
    assert_eq!(noted(&alone.key).await, [7]);
}

#[tokio::test]
async fn what_is_noted_first_needs_nothing_taken_away_with_it_or_goes_another_way() {
    let overlay = open(&Server::shared().url(), "o12").await;
    let namespace = Namespace::parse("n").unwrap();
    // Of another worker, of which nothing stays; with a document of its own; behind one that stays.
    for name in ["plain", "other", "own", "behind"] {
        for nth in 1..=NOTED_MAX as u64 {
            let (hlc, origin, document) = match (name, nth) {
                ("other", 2) => (2, 6, PLACED),
                ("own", 2) => (2, 5, Document::Own),
                ("behind", 1) => (90, 5, PLACED),
                (_, nth) => (nth, 5, PLACED),
            };
            let mut write = queued(name, hlc, Some(b"x"), hlc);
            write.entry.row.version.origin = origin;
            overlay.held(&[write], placed(&[document])).await.unwrap();
        }
        let write = queued(name, 100, Some(b"newest"), 100);
        let at = write.entry.at.clone();
        let ask = [(namespace.clone(), at.key.clone())];
        let surplus = overlay.ahead(&ask).await.unwrap().remove(0).pending.unwrap().surplus().unwrap();
        assert_eq!(surplus.front.is_some(), name == "plain", "{name}");
        let surplus = [(at, surplus)];
        overlay.held(&[write], Known { surplus: &surplus, ..placed(&[PLACED]) }).await.unwrap();
        let waits = overlay.ahead(&ask).await.unwrap().remove(0).pending.unwrap();
        assert_eq!(waits.all.len(), KEPT_MAX, "{name}");
        let left = names(&overlay, &format!("o12:r:n:{name}:*[bs]")).await;
        assert_eq!(left.len(), 1, "{name}: the newest has its document, and no other");
    }
}

#[tokio::test]
async fn the_newest_are_noted_and_what_they_push_out_still_waits() {
    let overlay = open(&Server::shared().url(), "o2").await;
    let (namespace, key) = (Namespace::parse("n").unwrap(), Key::parse("k").unwrap());
    let ahead = async || overlay.ahead(&[(namespace.clone(), key.clone())]).await.unwrap().remove(0);
    let full = NOTED_MAX as u64;
    for op in 1..=full + 2 {
        let write = queued("k", op, Some(b"x"), op);
        let at = write.entry.at.clone();
        let surplus = ahead().await.pending.and_then(|waits| waits.surplus());
        let surplus: Vec<_> = surplus.into_iter().map(|version| (at.clone(), version)).collect();
        assert_eq!(surplus.len(), usize::from(op == full + 1), "{op}");
        overlay.held(&[write], Known { surplus: &surplus, ..Known::default() }).await.unwrap();
    }
    // Once more, as after an answer that was lost.
    overlay.held(&[queued("k", full, Some(b"x"), full)], Known::default()).await.unwrap();
    let there = ahead().await;
    let pending = there.pending.unwrap();
    let noted: Vec<_> =
        pending.all.iter().map(|(version, op)| (version.hlc, op.unwrap() & !(1 << 63))).collect();
    let expected: Vec<_> = (0..=KEPT_MAX as u64).map(|back| (full + 2 - back, full + 2 - back)).collect();
    assert_eq!((noted, there.copy), (expected, None));
    let version = |hlc| Version { hlc, origin: 5 };
    for hlc in 1..=full + 2 {
        assert_eq!(overlay.fate(&namespace, &key, version(hlc)).await, Ok(Fate::Pending), "{hlc}");
    }
    assert_eq!(overlay.fate(&namespace, &key, version(full + 3)).await, Ok(Fate::Unknown));
    assert_eq!(documents(&overlay, "o2").await.len(), KEPT_MAX + 1);
    // What was pushed out may be held again: then it is noted again.
    overlay.held(&[queued("k", 1, Some(b"x"), 1)], Known::default()).await.unwrap();
    let settlements: Vec<_> =
        (1..=full + 2).map(|hlc| settlement(&queued("k", hlc, None, hlc), Fate::Applied)).collect();
    overlay.settle(&settlements).await.unwrap();
    assert_eq!((ahead().await.pending, overlay.count(&namespace).await), (None, Ok(0)));
    for hlc in 1..=full + 2 {
        assert_eq!(overlay.fate(&namespace, &key, version(hlc)).await, Ok(Fate::Applied), "{hlc}");
    }
    assert_eq!(documents(&overlay, "o2").await, Vec::new());
    assert_eq!(names(&overlay, "o2:r:*:o").await, Vec::new(), "none waits unseen");
}

#[tokio::test]
async fn what_is_noted_of_a_key_is_bounded_also_where_nobody_looks() {
    let overlay = open(&Server::shared().url(), "o7").await;
    let crowd = CROWDED as u64;
    let (namespace, key) = (Namespace::parse("n").unwrap(), Key::parse("k").unwrap());
    let noted = async || {
        let ahead = overlay.ahead(&[(namespace.clone(), key.clone())]).await.unwrap().remove(0);
        ahead.pending.unwrap().all.iter().map(|(version, _)| version.hlc).collect::<Vec<_>>()
    };
    let hold = async |hlcs: std::ops::RangeInclusive<u64>| {
        let writes: Vec<_> = hlcs.map(|hlc| queued("k", hlc, Some(b"x"), hlc)).collect();
        overlay.held(&writes, Known::default()).await.unwrap();
    };
    // Some that come together leave as many as are kept of a key.
    let kept = KEPT_MAX as u64;
    hold(1..=crowd - 1).await;
    hold(crowd..=crowd + kept).await;
    assert_eq!(noted().await, (crowd + 1..=crowd + kept).rev().collect::<Vec<_>>());
    // One alone does not know of others, and leaves them to whoever looks, up to twice as many.
    let most = 3 * crowd;
    for hlc in crowd + kept + 1..=most {
        hold(hlc..=hlc).await;
    }
    assert_eq!(noted().await.len() as u64, 2 * crowd);
    hold(most + 1..=most + 1).await;
    assert_eq!(noted().await, [most + 1]);
    assert_eq!(documents(&overlay, "o7").await.len(), 1);
    let fate = overlay.fate(&namespace, &key, Version { hlc: 1, origin: 5 }).await;
    assert_eq!(fate, Ok(Fate::Pending), "it waits all the same");
}
