//! The first tier by itself.

use super::*;
use crate::model::{Key, Namespace};

fn id(key: &str) -> Id {
    Id::new(Namespace::parse("n").unwrap(), Key::parse(key).unwrap())
}

fn version(hlc: u64) -> Option<Version> {
    Some(Version { hlc, origin: 1 })
}

fn item(hlc: u64, record: &[u8]) -> Item {
    let record = Some(Bytes::copy_from_slice(record));
    Item {
        version: version(hlc),
        record,
        as_of: Micros(hlc),
        ends: Micros(0),
        expires_at_ms: 0,
        replica: false,
    }
}

fn found(memory: &Memory, key: &str) -> Option<(Option<Version>, Option<Vec<u8>>)> {
    memory.look(&id(key), |view| (view.version, view.record.map(<[u8]>::to_vec)))
}

#[test]
fn a_copy_is_never_replaced_by_an_older_one() {
    let memory = Memory::new(1 << 20);
    let generation = memory.generation(&id("a"));
    memory.fill(&id("a"), &item(5, b"five"), generation);
    memory.fill(&id("a"), &item(4, b"four"), generation);
    assert_eq!(found(&memory, "a"), Some((version(5), Some(b"five".to_vec()))));
    memory.fill(&id("a"), &item(6, b"six"), generation);
    assert_eq!(found(&memory, "a"), Some((version(6), Some(b"six".to_vec()))));
    let absent = Item { record: None, ..item(7, b"") };
    memory.fill(&id("a"), &absent, generation);
    assert_eq!(found(&memory, "a"), Some((version(7), None)));
}

#[test]
fn what_was_fetched_before_an_invalidation_is_not_kept() {
    let memory = Memory::new(1 << 20);
    let generation = memory.generation(&id("a"));
    memory.invalidate(id("a").hash, version(9));
    memory.fill(&id("a"), &item(5, b"old"), generation);
    assert_eq!(found(&memory, "a"), None);
    // Also a write of this worker itself: another's came in between.
    memory.written(&id("a"), &item(10, b"mine"), generation);
    assert_eq!(found(&memory, "a"), None);
    memory.written(&id("a"), &item(11, b"mine"), memory.generation(&id("a")));
    assert_eq!(found(&memory, "a"), Some((version(11), Some(b"mine".to_vec()))));
}

#[test]
fn an_invalidation_removes_what_is_older_and_what_has_no_version() {
    let memory = Memory::new(1 << 20);
    let fill = |item: &Item| memory.fill(&id("a"), item, memory.generation(&id("a")));
    fill(&item(5, b"five"));
    memory.invalidate(id("a").hash, version(5));
    assert!(found(&memory, "a").is_some(), "it is as new as what was announced");
    memory.invalidate(id("a").hash, version(6));
    assert_eq!(found(&memory, "a"), None);
    fill(&Item { version: None, record: None, ..item(0, b"") });
    assert_eq!(found(&memory, "a"), Some((None, None)));
    memory.invalidate(id("a").hash, version(1));
    assert_eq!(found(&memory, "a"), None);
    fill(&item(5, b"five"));
    memory.invalidate(id("a").hash, None);
    assert_eq!(found(&memory, "a"), None);
}

#[test]
fn the_json_form_lies_beside_its_record_alone() {
    let memory = Memory::new(1 << 20);
    let fill = |item: &Item| memory.fill(&id("a"), item, memory.generation(&id("a")));
    let json = || memory.look(&id("a"), |view| view.json.map(<[u8]>::to_vec)).flatten();
    fill(&item(5, b"five"));
    memory.add_json(&id("a"), version(4), b"4");
    assert_eq!(json(), None);
    memory.add_json(&id("a"), version(5), b"5");
    assert_eq!(json(), Some(b"5".to_vec()));
    assert_eq!(found(&memory, "a"), Some((version(5), Some(b"five".to_vec()))));
    fill(&item(6, b"six"));
    assert_eq!(json(), None);
}

#[test]
fn two_keys_of_one_hash_are_told_apart() {
    let memory = Memory::new(1 << 20);
    memory.fill(&id("a"), &item(5, b"five"), memory.generation(&id("a")));
    let other = Id { hash: id("a").hash, ..id("b") };
    assert!(memory.look(&other, |_| ()).is_none());
}

#[test]
fn what_is_found_again_is_younger_and_keeps_its_json_form() {
    let memory = Memory::new(1 << 20);
    let fill = |item: &Item| memory.fill(&id("a"), item, memory.generation(&id("a")));
    fill(&item(5, b"five"));
    memory.add_json(&id("a"), version(5), b"5");
    fill(&Item { as_of: Micros(9), ends: Micros(20), ..item(5, b"five") });
    let seen = memory.look(&id("a"), |view| (view.as_of, view.ends, view.json.map(<[u8]>::to_vec)));
    assert_eq!(seen, Some((Micros(9), Micros(20), Some(b"5".to_vec()))));
    fill(&item(5, b"five"));
    assert_eq!(memory.look(&id("a"), |view| view.as_of), Some(Micros(9)), "never older");
    // A JSON form that there is no room for leaves the record where it is.
    memory.fill(&id("b"), &item(5, &[1; 3000]), memory.generation(&id("b")));
    memory.add_json(&id("b"), version(5), &[2; 3000]);
    assert!(found(&memory, "b").is_some());
}

#[test]
fn it_stays_within_its_bytes_and_keeps_what_is_read() {
    let limit = 8 << 20;
    let memory = Memory::new(limit);
    let record = vec![7; 1000];
    let key = |at: usize| format!("k{at}");
    for at in 0..50_000 {
        memory.fill(&id(&key(at)), &item(1, &record), memory.generation(&id(&key(at))));
        // A hundred keys are read again and again.
        let hot = key(at % 100);
        if found(&memory, &hot).is_none() && at >= 100 {
            memory.fill(&id(&hot), &item(1, &record), memory.generation(&id(&hot)));
        }
        if at % 1000 == 0 {
            assert!(memory.size().1 <= limit, "{:?} at {at}", memory.size());
        }
    }
    let (copies, bytes, evicted) = memory.size();
    assert!(bytes <= limit && copies as u64 + evicted >= 50_000, "{copies} {bytes} {evicted}");
    assert!(copies * record.len() > limit * 6 / 10, "most of its room holds copies: {copies}");
    let kept = (0..100).filter(|at| found(&memory, &key(*at)).is_some()).count();
    assert!(kept >= 90, "what is read stays: {kept}");
}

#[test]
fn a_copy_too_large_for_it_is_not_kept_and_harms_no_other() {
    let memory = Memory::new(1 << 20);
    memory.fill(&id("a"), &item(5, b"five"), memory.generation(&id("a")));
    let large = vec![0; 1 << 20];
    memory.fill(&id("b"), &item(5, &large), memory.generation(&id("b")));
    assert_eq!(found(&memory, "b"), None);
    assert!(found(&memory, "a").is_some());
}
