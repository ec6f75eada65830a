//! The overlay on a real Redis.

use super::*;
use crate::backend::{Entry, OpRing, Row};
use crate::link::private_redis::Redis as Server;

fn queued(key: &str, hlc: u64, body: Option<&'static [u8]>, op: u64) -> Queued {
    let version = Version { hlc, origin: 5 };
    let at = RowKey { namespace: Namespace::parse("n").unwrap(), key: Key::parse(key).unwrap(), slot: 7 };
    let ring = OpRing { entries: vec![(op | 1 << 63, version.fingerprint())], evicted_at_ms: 0 };
    let body = body.map(Bytes::from_static);
    let row = Row { version, slot: 7, body, expires_at_ms: 44, ring, was: false };
    Queued { entry: Entry { at, row }, taken_at_ms: 9 }
}

fn settlement(write: &Queued, fate: Fate) -> Settlement {
    Settlement { at: write.entry.at.clone(), version: write.entry.row.version, fate }
}

#[tokio::test]
async fn the_newest_pending_write_is_seen_until_it_is_settled() {
    let overlay = Overlay::open(&Server::shared().url(), "o1").unwrap();
    while overlay.health().is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (namespace, key) = (Namespace::parse("n").unwrap(), Key::parse("a").unwrap());
    let look = async || overlay.look(&namespace, &[&key]).await.unwrap().remove(0);
    let fate = async |hlc| overlay.fate(&namespace, &key, Version { hlc, origin: 5 }).await.unwrap();
    assert_eq!((look().await, fate(5).await), (None, Fate::Unknown));

    let (five, nine) = (queued("a", 5, Some(b"five"), 1), queued("a", 9, None, 2));
    overlay.hold(std::slice::from_ref(&nine)).await.unwrap();
    overlay.hold(std::slice::from_ref(&five)).await.unwrap();
    let pending = look().await.unwrap();
    assert_eq!((pending.version.hlc, pending.body.clone(), pending.expires_at_ms), (9, None, 44));
    let ahead = overlay.ahead(&[(namespace.clone(), key.clone())]).await.unwrap().remove(0).pending.unwrap();
    assert_eq!(ahead.version, pending.version);
    let versions = [1, 2].map(|op| ahead.find(op | 1 << 63).map(|version| version.hlc));
    assert_eq!(versions, [Some(5), Some(9)], "operations of both");
    overlay.hold(&[queued("b", 3, Some(b"b"), 4)]).await.unwrap();
    let keys = overlay.keys(&namespace, "", None, true, 10).await.unwrap();
    assert_eq!(keys.iter().map(Key::as_str).collect::<Vec<_>>(), ["b", "a"]);
    assert_eq!(overlay.keys(&namespace, "a", Some("b"), false, 10).await.unwrap().len(), 1);

    overlay.settle(&[settlement(&five, Fate::Superseded)]).await.unwrap();
    assert_eq!(look().await.unwrap().version.hlc, 9, "an older one takes nothing away");
    assert_eq!((fate(5).await, fate(9).await), (Fate::Superseded, Fate::Pending));
    overlay.settle(&[settlement(&nine, Fate::Dead("no such luck".to_owned()))]).await.unwrap();
    assert_eq!((look().await, fate(9).await), (None, Fate::Dead("no such luck".to_owned())));
    overlay.hold(std::slice::from_ref(&nine)).await.unwrap();
    assert_eq!(look().await, None, "one that was settled before it was held does not come back");
    assert_eq!(overlay.count(&namespace).await, Ok(1));
    overlay.overtaken(&queued("b", 3, None, 4).entry.at, Version { hlc: 3, origin: 6 }).await;
    assert_eq!(overlay.count(&namespace).await, Ok(0));
}

#[tokio::test]
async fn the_last_four_operations_are_kept() {
    let overlay = Overlay::open(&Server::shared().url(), "o2").unwrap();
    while overlay.health().is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for op in 1..=6 {
        overlay.hold(&[queued("k", op, Some(b"x"), op)]).await.unwrap();
    }
    let (namespace, key) = (Namespace::parse("n").unwrap(), Key::parse("k").unwrap());
    let pending =
        overlay.ahead(&[(namespace.clone(), key.clone())]).await.unwrap().remove(0).pending.unwrap();
    let kept: Vec<u64> = pending.ops.iter().map(|(op, _)| op & !(1 << 63)).collect();
    assert_eq!(kept, [6, 5, 4, 3]);
    let ahead = overlay.ahead(&[(namespace.clone(), key.clone())]).await.unwrap().remove(0);
    assert_eq!((ahead.pending.unwrap().version.hlc, ahead.copy), (6, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_without_room_holds_nothing_more_and_settles_what_it_holds() {
    let server = tokio::task::block_in_place(|| Server::start(&["--maxmemory", "8mb"]));
    let overlay = Overlay::open(&server.url(), "o5").unwrap();
    while overlay.health().is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    static BODY: [u8; 16 * 1024] = [7; 16 * 1024];
    let mut held = Vec::new();
    let refused = loop {
        let write = queued(&format!("k{}", held.len()), 1 + held.len() as u64, Some(&BODY), 1);
        let told = overlay.hold(std::slice::from_ref(&write)).await;
        held.push(write);
        if let Err(away) = told {
            break away;
        }
        assert!(held.len() < 1000, "it takes without end");
    };
    assert!(refused.0.contains("OOM") && held.len() > 100, "{refused:?} after {}", held.len());
    let namespace = Namespace::parse("n").unwrap();
    let there = overlay.count(&namespace).await.unwrap();
    let settlements: Vec<_> = held.iter().map(|write| settlement(write, Fate::Applied)).collect();
    overlay.settle(&settlements).await.unwrap();
    // Of the last one, what is small may have found room.
    let most = held.len() as u64;
    assert!((most - 1..=most).contains(&there), "{there} of {most}");
    assert_eq!(overlay.count(&namespace).await, Ok(0));
    let left =
        overlay.calls.redis.call(redis::cmd("KEYS").arg("o5:b:*"), Instant::now() + HOLD_TIMEOUT).await;
    assert_eq!(left, Ok(Value::Array(Vec::new())), "documents");
    let (key, version) = (&held[7].entry.at.key, held[7].entry.row.version);
    assert_eq!(overlay.fate(&namespace, key, version).await, Ok(Fate::Applied));
    overlay.hold(&[queued("again", 9999, Some(&BODY), 1)]).await.unwrap();
}
