//! `scan`: order, ranges, pages and cursors.

use super::trials;
use crate::support::caller::{Caller, Json, Protobuf, Reply};
use crate::support::time::now_ms;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::sleep;

trials![
    keys_come_in_byte_order,
    ranges_and_prefixes,
    an_empty_namespace,
    limits_of_a_page,
    pages_join_without_gap_or_repeat,
    a_cursor_is_bound_to_its_scan,
    a_malformed_cursor,
    keys_only_leaves_values_out,
    records_are_whole,
    what_is_gone_is_not_scanned,
    every_level_is_served[Strong],
    writes_during_a_scan,
    max_bytes_bounds_a_page,
    a_page_always_fits_the_bus,
    a_record_too_large_for_any_page,
];

/// "Byte order of the key, in every backend."
async fn keys_come_in_byte_order(c: Caller) {
    let sorted = ["0", "10", "2", "A", "Z", "a", "a!", "a/b", "aa", "b", "ä", "中", "🦀", "🦀a"];
    let mut shuffled = sorted;
    fastrand::shuffle(&mut shuffled);
    for key in shuffled {
        c.put(key, json!(key)).await;
    }
    assert_eq!(c.keys(json!({"limit": 100})).await, sorted);
    let reversed: Vec<_> = sorted.iter().rev().copied().collect();
    assert_eq!(c.keys(json!({"limit": 100, "reverse": true})).await, reversed);
}

/// "`start` is inclusive and `end` exclusive also with `reverse`; with `prefix`, the intersection; `start >= end` is empty."
async fn ranges_and_prefixes(c: Caller) {
    fill(&c, &["a", "b", "b/1", "b/2", "b/3", "b0", "c"]).await;
    let all = json!({"limit": 50});
    let table: [(Value, &[&str]); 15] = [
        (all, &["a", "b", "b/1", "b/2", "b/3", "b0", "c"]),
        (json!({"start": "b/2"}), &["b/2", "b/3", "b0", "c"]),
        (json!({"end": "b/2"}), &["a", "b", "b/1"]),
        (json!({"start": "b", "end": "b/3"}), &["b", "b/1", "b/2"]),
        (json!({"start": "aa", "end": "b/11"}), &["b", "b/1"]),
        (json!({"prefix": "b/"}), &["b/1", "b/2", "b/3"]),
        (json!({"prefix": "b"}), &["b", "b/1", "b/2", "b/3", "b0"]),
        (json!({"prefix": "b/", "start": "b/2"}), &["b/2", "b/3"]),
        (json!({"prefix": "b/", "end": "b/3"}), &["b/1", "b/2"]),
        (json!({"prefix": "b/", "start": "a", "end": "z"}), &["b/1", "b/2", "b/3"]),
        (json!({"prefix": "b/", "start": "c"}), &[]),
        (json!({"start": "b", "end": "b"}), &[]),
        (json!({"start": "c", "end": "a"}), &[]),
        (json!({"prefix": "nothing"}), &[]),
        (json!({"start": "c", "end": "c\u{10ffff}"}), &["c"]),
    ];
    for (mut request, expected) in table {
        assert_eq!(walk(&c, request.clone()).await, expected, "{request}");
        request["reverse"] = json!(true);
        let reversed: Vec<_> = expected.iter().rev().copied().collect();
        assert_eq!(walk(&c, request.clone()).await, reversed, "{request}");
    }
}

/// ScanReply: `"" = done`; an empty payload is an empty JSON object, so it scans from the beginning.
async fn an_empty_namespace(c: Caller) {
    let reply = c.call("scan", json!({"limit": 5})).await;
    assert_eq!(reply.ok()["records"], json!([]));
    assert_eq!(reply.cursor(), "");
    c.put("a", json!(1)).await;
    assert_eq!(walk(&c, json!({})).await, ["a"]);
}

/// "`limit` 0 or absent = 100, above 10,000 `too_large`."
async fn limits_of_a_page(c: Caller) {
    let keys: Vec<_> = (0..120).map(|n| format!("{n:03}")).collect();
    fill(&c, &keys.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for (request, expected) in [
        (json!({"limit": 0}), 100),
        (json!({"prefix": ""}), 100),
        (json!({"limit": 1}), 1),
        (json!({"limit": 119}), 119),
        (json!({"limit": 10_000}), 120),
    ] {
        let reply = c.call("scan", request.clone()).await;
        let page = reply.keys();
        assert!(page.len() <= expected, "{request}: at most {expected} records");
        assert_eq!(page[..], keys[..page.len()], "{request}");
        assert!(page.len() == 120 || !reply.cursor().is_empty(), "{request}: there is more");
    }
    c.call("scan", json!({"limit": 10_001})).await.error("too_large");
}

/// "A page may be short or empty while its `cursor` is not ""; "" = done. A page never repeats or skips a key".
async fn pages_join_without_gap_or_repeat(c: Caller) {
    let mut keys: Vec<_> = (0..57).map(|n| format!("k/{n:02}")).collect();
    fill(&c, &keys.iter().map(String::as_str).collect::<Vec<_>>()).await;
    fill(&c, &["j", "k", "l"]).await;
    for reverse in [false, true] {
        for limit in [1, 7, 57, 58] {
            let request = json!({"prefix": "k/", "limit": limit, "reverse": reverse});
            assert_eq!(walk(&c, request).await, keys, "pages of {limit}, reverse {reverse}");
        }
        keys.reverse();
    }
}

/// "A cursor ... is bound to namespace, prefix, start, end and reverse: with others ... `invalid_argument`."
async fn a_cursor_is_bound_to_its_scan(c: Caller) {
    fill(&c, &["a/1", "a/2", "a/3", "a/4"]).await;
    let scan = json!({"prefix": "a/", "start": "a/1", "end": "a/9", "limit": 1});
    let first = c.call("scan", scan.clone()).await;
    let with = |field: &str, value: Value| {
        let mut next = scan.clone();
        next["cursor"] = json!(first.cursor());
        next[field] = value;
        next
    };
    for (field, value) in [("prefix", "a"), ("start", "a/2"), ("start", ""), ("end", "a/8"), ("end", "")] {
        c.call("scan", with(field, json!(value))).await.error("invalid_argument");
    }
    c.call("scan", with("reverse", json!(true))).await.error("invalid_argument");
    let elsewhere = c.in_namespace(&format!("{}x", c.namespace));
    elsewhere.call("scan", with("limit", json!(1))).await.error("invalid_argument");
    // The size of a page is no part of it, nor is the encoding.
    let other = c.with_encoding(if c.encoding == Json { Protobuf } else { Json });
    assert_eq!(other.keys(with("limit", json!(2))).await.first().map(String::as_str), Some("a/2"));
}

/// "... or malformed, `invalid_argument`."
async fn a_malformed_cursor(c: Caller) {
    fill(&c, &["a", "b", "c"]).await;
    let cursor = c.call("scan", json!({"limit": 1})).await.cursor().to_owned();
    let flipped = if cursor.ends_with('A') { "B" } else { "A" };
    let altered = format!("{}{flipped}{}", &cursor[..cursor.len() / 2], &cursor[cursor.len() / 2 + 1..]);
    let mut wrong =
        vec!["x".to_owned(), "!!".to_owned(), "é".to_owned(), "A".repeat(4000), format!("{cursor}AAAA")];
    if altered != cursor {
        wrong.push(altered);
    }
    for cursor in &wrong[..5] {
        c.call("scan", json!({"limit": 1, "cursor": cursor})).await.error("invalid_argument");
    }
    for cursor in &wrong[5..] {
        // Whether a cursor is sealed is left open: an altered one is refused, or leads to some place in the order.
        let reply = c.call("scan", json!({"limit": 1, "cursor": cursor})).await;
        assert!(reply.body.get("error").is_none_or(|error| error["code"] == "invalid_argument"));
    }
}

/// "`record`, and its `value`, where ... `keys_only` asked so".
async fn keys_only_leaves_values_out(c: Caller) {
    fill(&c, &["a", "b"]).await;
    let reply = c.call("scan", json!({"keys_only": true})).await;
    assert_eq!(reply.keys(), ["a", "b"]);
    assert!(reply.body["records"].as_array().unwrap().iter().all(|record| record.get("value").is_none()));
}

/// ScanReply `records(2) repeated Record`: the same that a get answers; `source(4)`, `stale(6)`, `pending(7)`.
async fn records_are_whole(c: Caller) {
    c.write(
        "put",
        json!({"key": "a", "value": {"n": [null, 1.5]}, "content_type": "text/x", "ttl_ms": 60_000}),
    )
    .await;
    c.put("b", json!({"$bytes": "AAEC"})).await;
    let reply = c.call("scan", json!({"limit": 10})).await;
    assert_eq!(reply.ok()["records"], json!([c.record("a").await, c.record("b").await]));
    assert_eq!((&reply.body["source"], &reply.body["cursor"]), (&json!("backend"), &json!("")));
    assert_eq!((&reply.body["stale"], &reply.body["pending"]), (&json!(false), &json!(false)));
}

/// "An expired or deleted record counts as absent in every operation".
async fn what_is_gone_is_not_scanned(c: Caller) {
    fill(&c, &["a", "b", "deleted"]).await;
    c.write("put", json!({"key": "aa", "value": 1, "ttl_ms": 200})).await;
    c.write("delete", json!({"key": "deleted"})).await;
    sleep(Duration::from_millis(400)).await;
    assert_eq!(walk(&c, json!({"limit": 1})).await, ["a", "b"]);
    assert_eq!(walk(&c, json!({"limit": 10, "keys_only": true, "reverse": true})).await, ["b", "a"]);
}

/// ScanRequest `consistency(9)`.
async fn every_level_is_served(c: Caller) {
    fill(&c, &["a"]).await;
    for level in c.levels {
        assert_eq!(c.keys(json!({"consistency": level, "limit": 5})).await, ["a"], "{level}");
    }
}

/// "A page never repeats or skips a key that existed throughout the scan."
async fn writes_during_a_scan(c: Caller) {
    let lasting: Vec<_> = (0..40).map(|n| format!("{n:02}/lasting")).collect();
    fill(&c, &lasting.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for n in (0..40).step_by(3) {
        c.put(&format!("{n:02}/doomed"), json!(1)).await;
    }
    let (mut seen, mut cursor, mut round) = (Vec::new(), String::new(), 0);
    loop {
        let reply = c.call("scan", json!({"limit": 5, "cursor": cursor})).await;
        seen.extend(reply.keys());
        cursor = reply.cursor().to_owned();
        if cursor.is_empty() {
            break;
        }
        for n in [round, 39 - round % 40] {
            c.write("delete", json!({"key": format!("{n:02}/doomed")})).await;
            c.put(&format!("{n:02}/new"), json!(1)).await;
            c.put(&format!("{n:02}/lasting"), json!("rewritten")).await;
        }
        round = (round + 7) % 40;
    }
    let mut distinct = seen.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct, seen, "in order, none twice");
    seen.retain(|key| key.ends_with("/lasting"));
    assert_eq!(seen, lasting, "none skipped");
}

/// "`max_bytes` ... counts encoded reply bytes ...; however small it is, one record fits."
async fn max_bytes_bounds_a_page(c: Caller) {
    let keys: Vec<_> = (0..30).map(|n| format!("{n:02}")).collect();
    for key in &keys {
        c.put(key, json!("x".repeat(1000))).await;
    }
    for max_bytes in [1, 1500, 5000, 20_000] {
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let reply =
                c.call("scan", json!({"max_bytes": max_bytes, "limit": 1000, "cursor": cursor})).await;
            let page = reply.keys();
            let fits = reply.bytes.len() <= max_bytes;
            assert!(fits || page.len() <= 1, "{} bytes for {} records", reply.bytes.len(), page.len());
            seen.extend(page);
            cursor = reply.cursor().to_owned();
            if cursor.is_empty() {
                break;
            }
        }
        assert_eq!(seen, keys, "max_bytes {max_bytes}");
    }
}

/// "`max_bytes` (default 512 KiB) ... is lowered silently to what fits `max_payload`".
async fn a_page_always_fits_the_bus(c: Caller) {
    let keys: Vec<_> = (0..16).map(|n| format!("{n:02}")).collect();
    for key in &keys {
        c.put(key, json!("y".repeat(100 << 10))).await;
    }
    let page = c.call("scan", json!({"prefix": "", "limit": 100})).await;
    assert!(page.bytes.len() <= 512 << 10, "the default: {} bytes", page.bytes.len());
    assert!(page.keys().len() >= 2, "several records fit");
    let page = c.call("scan", json!({"limit": 100, "max_bytes": u32::MAX})).await;
    assert!((512 << 10..=1 << 20).contains(&page.bytes.len()), "lowered: {} bytes", page.bytes.len());
    assert_eq!(walk(&c, json!({"limit": 100, "max_bytes": u32::MAX})).await, keys);
}

/// "A record too large for any page: `too_large` naming its key, with a `cursor` (top level, beside the error) that goes
/// on after it."
async fn a_record_too_large_for_any_page(c: Caller) {
    fill(&c, &["a", "z"]).await;
    let protobuf = c.with_encoding(Protobuf);
    protobuf.put("huge-one", json!({"$bytes": BASE64.encode(vec![7; 800 << 10])})).await;
    for reverse in [false, true] {
        let (seen, refused) = walk_past_errors(&c, json!({"limit": 10, "reverse": reverse})).await;
        let mut expected = if c.encoding == Json { vec!["a", "z"] } else { vec!["a", "huge-one", "z"] };
        if reverse {
            expected.reverse();
        }
        assert_eq!(seen, expected);
        assert_eq!(refused, usize::from(c.encoding == Json), "refused once, in JSON only");
    }
    let (seen, _) = walk_past_errors(&c, json!({"limit": 10, "keys_only": true})).await;
    assert_eq!(seen, ["a", "huge-one", "z"], "its key fits");
}

/// Walks on after `too_large`; what was seen, and how often a record was refused.
async fn walk_past_errors(c: &Caller, mut request: Value) -> (Vec<String>, usize) {
    let (mut seen, mut refused) = (Vec::new(), 0);
    loop {
        let reply = c.call("scan", request.clone()).await;
        if reply.body.get("error").is_some() {
            reply.error("too_large");
            assert!(reply.message().contains("huge-one"), "names its key: {}", reply.message());
            refused += 1;
        } else {
            seen.extend(reply.keys());
        }
        request["cursor"] = json!(reply.cursor());
        if reply.cursor().is_empty() {
            return (seen, refused);
        }
        assert!(refused < 3, "the cursor goes on after the record");
    }
}

/// All keys of a scan, page by page.
pub(super) async fn walk(c: &Caller, mut request: Value) -> Vec<String> {
    let (mut seen, begun) = (Vec::new(), now_ms());
    loop {
        let reply: Reply = c.call("scan", request.clone()).await;
        seen.extend(reply.keys());
        if reply.cursor().is_empty() {
            return seen;
        }
        request["cursor"] = json!(reply.cursor());
        assert!(now_ms() - begun < 20_000, "the scan ends");
    }
}

pub(super) async fn fill(c: &Caller, keys: &[&str]) {
    let ops: Vec<_> = keys.iter().map(|key| json!({"put": {"key": key, "value": key}})).collect();
    c.call("batch", json!({"ops": ops})).await.ok();
}
