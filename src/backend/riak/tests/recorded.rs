//! What a real Riak KV 3.2.3 was recorded to say (`tests/golden/riak`), held against the client.
//!
//! One line is one request and the frames that answered it. The client must write every request of a kind that it makes to the
//! same bytes, and read every reply.

use bytes::Bytes;
use prost::Message;

use super::private::fields::{Field, Fields};
use super::*;
use crate::backend::Row;
use crate::backend::riak::wire::*;

/// A request and its answer.
pub(super) struct Case {
    pub(super) file: &'static str,
    pub(super) name: String,
    /// `None` for bytes that are no request, and where there are none.
    pub(super) code: Option<u8>,
    pub(super) bytes: Vec<u8>,
    pub(super) replies: Vec<(u8, Vec<u8>)>,
    pub(super) after: String,
}

macro_rules! files {
    ($($name:literal)*) => {
        &[$(($name, include_str!(concat!("../../../../tests/golden/riak/", $name, ".ndjson")))),*]
    };
}
pub(super) const FILES: &[(&str, &str)] = files![
    "01-basic" "02-siblings" "02b-lww-vclock" "03-conditional" "04-quorum" "05-delete-3000" "05-delete-immediate"
    "05-delete-keep" "06-list" "07-buckets" "08-index" "09-errors" "10-large" "11-sibling-limit" "12-pipelining"
    "12-pipelining-streams" "13-bitcask" "14-cluster-failures" "15-false-notfound" "16-strong-consistency"
    "16b-strong-consistency-single-node" "17-riakc-erlang-client" "19-startup-shutdown" "20-clock-skew"
];

pub(super) fn cases(file: &str) -> Vec<Case> {
    let (file, text) = FILES.iter().find(|(name, _)| *name == file).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let lines: Vec<_> = lines.filter(|line| line.get("name").is_some()).collect();
    let code = |value: &serde_json::Value| value.as_u64().map(|code| u8::try_from(code).unwrap());
    let mut cases: Vec<Case> = Vec::new();
    for line in &lines {
        let hex = |value: &serde_json::Value| unhex(value.as_str().unwrap());
        // A capture of frames in both directions.
        if line["from"] == "server" {
            let reply = (code(&line["code"]).unwrap(), hex(&line["hex"]));
            cases.last_mut().unwrap().replies.push(reply);
            continue;
        }
        let replies = line["replies"].as_array().map(Vec::as_slice).unwrap_or_default();
        cases.push(Case {
            file,
            name: line["name"].as_str().unwrap().to_owned(),
            code: code(&line["code"]),
            // Large requests were not kept, their answers were.
            bytes: line.get("hex").or(line.get("raw")).map(hex).unwrap_or_default(),
            replies: replies
                .iter()
                .map(|reply| (code(&reply["code"]).unwrap(), hex(&reply["hex"])))
                .collect(),
            after: line["after"].as_str().unwrap_or_default().to_owned(),
        });
    }
    cases
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// Reads a request as its kind and writes it again; `None` for kinds that the client does not make.
fn rewritten(code: u8, bytes: &[u8]) -> Option<Vec<u8>> {
    fn again<R: Request + Default>(bytes: &[u8]) -> Vec<u8> {
        let frame = encode(&R::decode(bytes).unwrap());
        assert_eq!(
            usize::try_from(u32::from_be_bytes(frame[..4].try_into().unwrap())).unwrap(),
            frame.len() - 4
        );
        assert_eq!(frame[4], R::CODE);
        frame[5..].to_vec()
    }
    Some(match code {
        7 => again::<GetServerInfoReq>(bytes),
        9 => again::<GetReq>(bytes),
        11 => again::<PutReq>(bytes),
        13 => again::<DelReq>(bytes),
        25 => again::<IndexReq>(bytes),
        31 => again::<GetBucketTypeReq>(bytes),
        _ => return None,
    })
}

/// Requests that were broken on purpose.
const BROKEN: [&str; 5] = [
    "get_undecodable",
    "get_missing_required_key",
    "get_empty_payload",
    "put_missing_content",
    "get_unknown_field",
];

#[test]
fn requests_are_written_as_they_were_recorded() {
    let mut written = 0;
    for case in FILES.iter().flat_map(|(file, _)| cases(file)) {
        let Some(code) = case.code.filter(|_| !BROKEN.contains(&case.name.as_str())) else { continue };
        if let Some(again) = rewritten(code, &case.bytes) {
            assert_eq!(again, case.bytes, "{} {}", case.file, case.name);
            written += 1;
        }
    }
    assert!(written > 400, "{written}");
}

/// A request of the worker as it goes over the wire, its fields told apart by hand.
fn sent<R: Request>(mut request: R, timeout_ms: u32) -> Fields {
    request.set_timeout(timeout_ms);
    Fields::read(&encode(&request)[5..]).unwrap()
}

fn settings_of(bucket_type: &str, [r, pr, w, dw, pw]: [u32; 5]) -> RiakSettings {
    let quorums = Quorums { r: Quorum(r), pr: Quorum(pr), w: Quorum(w), dw: Quorum(dw), pw: Quorum(pw) };
    RiakSettings { bucket_type: bucket_type.to_owned(), quorums, ..settings(vec!["a:1".to_owned()]) }
}

fn place(bucket: &str, key: &str) -> Place {
    Place { bucket: Bytes::copy_from_slice(bucket.as_bytes()), key: Bytes::copy_from_slice(key.as_bytes()) }
}

fn get_of(settings: &RiakSettings, place: &Place) -> GetReq {
    records::get(settings, place, settings.quorums.r, settings.quorums.pr)
}

fn row(body: Option<&'static str>, expires_at_ms: i64) -> Row {
    Row {
        version: Version { hlc: hlc_at(1234), origin: 1 },
        slot: 7,
        body: body.map(|body| Bytes::from_static(body.as_bytes())),
        expires_at_ms,
        ring: Default::default(),
        was: false,
    }
}

/// What the worker's own builders write, every field of another value, by the numbers that Riak publishes.
#[test]
fn what_the_worker_builds_has_the_published_numbers() {
    let settings = settings_of("kind", [11, 12, 21, 22, 23]);
    let at = place("bucket", "key");
    let named = Fields::default().with(1, "bucket").with(2, "key");
    let clock = Bytes::from_static(b"clock");

    let get = named.clone().with_number(3, 11).with_number(4, 12).with_number(9, 1).with_number(10, 31);
    assert_eq!(sent(get_of(&settings, &at), 31), get.with(13, "kind"));

    for (row, index) in [
        (row(Some("doc"), 0), None),
        (row(Some("doc"), 5678), Some(("expires_int", "5678"))),
        (row(None, 0), Some(("buried_int", "1234"))),
    ] {
        let value = crate::backend::row::encode(b"bucket\0key", &row);
        let mut content = Fields::default().with(1, value).with(2, "application/octet-stream");
        if let Some((name, term)) = index {
            content = content.with(10, Fields::default().with(1, name).with(2, term).write());
        }
        let put = named.clone().with(3, "clock").with(4, content.write());
        let put = put.with_number(5, 21).with_number(6, 22).with_number(8, 23).with_number(12, 32);
        let built = records::put(&settings, &at, &row, Some(clock.clone()));
        assert_eq!(sent(built, 32), put.with(16, "kind"));
    }

    let delete = named.with(4, "clock").with_number(6, 21).with_number(8, 23).with_number(9, 22);
    let built = records::delete(&settings, &at, clock);
    assert_eq!(sent(built, 33), delete.with_number(10, 33).with(13, "kind"));

    let query =
        scan::Query { index: "buried_int", low: Bytes::from_static(b"1"), high: Bytes::from_static(b"2") };
    let index = Fields::default().with(1, "bucket").with(2, "buried_int").with_number(3, 1);
    let index = index.with(5, "1").with(6, "2").with_number(9, 41).with(10, "on").with_number(11, 34);
    let built = scan::request(&settings, &at.bucket, &query, 41, Some(Bytes::from_static(b"on")));
    assert_eq!(sent(built, 34), index.with(12, "kind"));

    let built = GetBucketTypeReq { r#type: Bytes::from_static(b"kind") };
    assert_eq!(sent(built, 35), Fields::default().with(1, "kind"));
    // The default type has no name.
    let built = get_of(&settings_of("default", [11, 12, 21, 22, 23]), &at);
    assert_eq!(sent(built, 31).bytes(13), None);
}

/// The same builders with what Riak's own client and the recording client were made to ask. The two sides differ in which
/// optional fields they use, so the fields that both have must be the same bytes, and these are named.
#[test]
fn what_the_worker_builds_is_what_was_recorded_for_the_same() {
    let find = |file: &str, name: &str, code: u8| {
        let found = cases(file).into_iter().find(|case| case.name == name && case.code == Some(code));
        Fields::read(&found.unwrap_or_else(|| panic!("{file} {name}")).bytes).unwrap()
    };
    let text = |fields: &Fields, number: u32| {
        String::from_utf8(fields.bytes(number).unwrap_or_default().to_vec()).unwrap()
    };
    let number = |fields: &Fields, number: u32| u32::try_from(fields.number(number).unwrap_or(77)).unwrap();
    let bytes = |fields: &Fields, number: u32| fields.bytes(number).map(Bytes::copy_from_slice);
    let kind = |fields: &Fields, number: u32| match text(fields, number) {
        kind if kind.is_empty() => "default".to_owned(),
        kind => kind,
    };
    let same = |name: &str, built: &Fields, recorded: &Fields, common: &[u32]| {
        let numbers = |fields: &Fields| fields.0.iter().map(|(number, _)| *number).collect::<Vec<_>>();
        let shared: Vec<u32> =
            numbers(recorded).into_iter().filter(|number| numbers(built).contains(number)).collect();
        assert_eq!(shared, common, "{name}: the fields that are compared");
        let only = |fields: &Fields| {
            let kept = fields.0.iter().filter(|(number, _)| common.contains(number));
            Fields(kept.cloned().collect()).write()
        };
        assert_eq!(only(built), only(recorded), "{name}");
    };

    for (file, name, common) in [
        ("14-cluster-failures", "up_get_pr3", &[1, 2, 3, 4][..]),
        ("17-riakc-erlang-client", "RpbGetReq", &[1, 2, 3, 9, 10, 13]),
        ("16-strong-consistency", "sc_get_deleted", &[1, 2, 9, 10, 13]),
        ("01-basic", "get_deletedvclock_live_key", &[1, 2, 9]),
    ] {
        let recorded = find(file, name, 9);
        let settings =
            settings_of(&kind(&recorded, 13), [number(&recorded, 3), number(&recorded, 4), 0, 0, 0]);
        let built = get_of(&settings, &place(&text(&recorded, 1), &text(&recorded, 2)));
        same(name, &sent(built, number(&recorded, 10)), &recorded, common);
    }

    for (file, name, common) in [
        ("04-quorum", "put_w3_dw3_pw3", &[1, 2, 4, 5, 6, 8][..]),
        ("16-strong-consistency", "sc_put_vclock", &[1, 2, 3, 4, 12, 16]),
        ("02-siblings", "sib_put_d_with_stale_vclock", &[1, 2, 3, 4, 16]),
        ("01-basic", "put_full_metadata", &[1, 2, 4]),
    ] {
        let recorded = find(file, name, 11);
        let quorums = [0, 0, number(&recorded, 5), number(&recorded, 6), number(&recorded, 8)];
        let at = place(&text(&recorded, 1), &text(&recorded, 2));
        let mut built = records::put(
            &settings_of(&kind(&recorded, 16), quorums),
            &at,
            &row(None, 0),
            bytes(&recorded, 3),
        );
        // The value and what it is called are the worker's own; where they lie is not.
        let content = recorded.bytes(4).and_then(Fields::read).unwrap();
        let asked = |content: &Fields| {
            let kept = content.0.iter().filter(|(number, _)| [1, 2, 10].contains(number));
            Fields(kept.cloned().collect())
        };
        built.content.value = bytes(&content, 1).unwrap();
        built.content.content_type = bytes(&content, 2);
        let pairs = content.all(10).map(|pair| Fields::read(pair).unwrap());
        built.content.indexes =
            pairs.map(|pair| Pair { key: bytes(&pair, 1).unwrap(), value: bytes(&pair, 2) }).collect();
        let recorded = recorded.0.into_iter().map(|(number, field)| match number {
            4 => (4, Field::Bytes(asked(&content).write())),
            _ => (number, field),
        });
        let recorded = Fields(recorded.collect());
        same(name, &sent(built, number(&recorded, 12)), &recorded, common);
    }

    for (file, name, common) in [
        ("05-delete-3000", "siblings_del_with_vclock", &[1, 2, 4, 13][..]),
        ("16-strong-consistency", "sc_del_vclock", &[1, 2, 4, 10, 13]),
        ("04-quorum", "del_w_4", &[1, 2, 6]),
    ] {
        let recorded = find(file, name, 13);
        let settings = settings_of(&kind(&recorded, 13), [0, 0, number(&recorded, 6), 0, 0]);
        let at = place(&text(&recorded, 1), &text(&recorded, 2));
        let built = records::delete(&settings, &at, bytes(&recorded, 4).unwrap_or_default());
        same(name, &sent(built, number(&recorded, 10)), &recorded, common);
    }

    for (file, name, common) in [
        ("08-index", "key_range_empty_min", &[1, 2, 3, 5, 6, 9][..]),
        ("08-index", "key_range_page2", &[1, 2, 3, 5, 6, 9, 10]),
        ("14-cluster-failures", "one_down_index", &[1, 2, 3, 5, 6, 9, 11]),
        ("17-riakc-erlang-client", "RpbIndexReq", &[1, 2, 3, 5, 6, 9, 12]),
        ("08-index", "int_range_terms", &[1, 2, 3, 5, 6, 9]),
    ] {
        let recorded = find(file, name, 25);
        let index = ["$key", "num_int"].into_iter().find(|index| *index == text(&recorded, 2)).unwrap();
        let query =
            scan::Query { index, low: bytes(&recorded, 5).unwrap(), high: bytes(&recorded, 6).unwrap() };
        let settings = settings_of(&kind(&recorded, 12), [0; 5]);
        let most = usize::try_from(number(&recorded, 9)).unwrap();
        let bucket = bytes(&recorded, 1).unwrap();
        let built = scan::request(&settings, &bucket, &query, most, bytes(&recorded, 10));
        same(name, &sent(built, number(&recorded, 11)), &recorded, common);
    }

    let recorded = find("07-buckets", "get_type_props_siblings", 31);
    let built = GetBucketTypeReq { r#type: bytes(&recorded, 1).unwrap() };
    same("get_type_props_siblings", &sent(built, 1), &recorded, &[1]);
    assert_eq!(sent(GetServerInfoReq {}, 1), find("01-basic", "server_info", 7));
}

#[test]
fn every_recorded_reply_is_read() {
    let (mut read, mut errors, mut large) = (0, 0, 0);
    for case in FILES.iter().flat_map(|(file, _)| cases(file)) {
        for (code, bytes) in &case.replies {
            let at = format!("{} {}", case.file, case.name);
            let frame = Frame { code: *code, message: Bytes::from(bytes.clone()) };
            let again = match code {
                0 => {
                    let Err(NoReply::Error(text)) = reply::<GetReq>(frame) else { panic!("{at}") };
                    errors += 1;
                    // Whatever a node says is judged, and a trace is kept back.
                    let fault = classify::classify("a:1", &text);
                    assert_eq!(
                        fault.spoils_connection,
                        text.starts_with("Error processing")
                            || text.starts_with("Cannot send")
                            || text.starts_with("Invalid message"),
                        "{at}: {text}"
                    );
                    assert!(!fault.error.message.contains("riak_api_pb_server"), "{at}");
                    // A connection that the node closed is given up by what it said before.
                    assert!(fault.spoils_connection || !case.after.starts_with("closed"), "{at}: {text}");
                    if text.starts_with("{too_large,") {
                        assert_eq!(
                            (fault.error.code, fault.effect),
                            (Code::TooLarge, classify::Effect::None),
                            "{at}"
                        );
                        large += 1;
                    }
                    continue;
                }
                8 => reply::<GetServerInfoReq>(frame).unwrap().encode_to_vec(),
                10 => reply::<GetReq>(frame).unwrap().encode_to_vec(),
                12 => reply::<PutReq>(frame).unwrap().encode_to_vec(),
                14 => reply::<DelReq>(frame).unwrap().encode_to_vec(),
                20 => reply::<GetBucketTypeReq>(frame).unwrap().encode_to_vec(),
                26 => reply::<IndexReq>(frame).unwrap().encode_to_vec(),
                // Of kinds that the client does not ask for.
                _ => {
                    let strange = reply::<GetReq>(frame);
                    assert!(matches!(strange, Err(NoReply::Strange(_))), "{at}: {code}");
                    continue;
                }
            };
            assert_eq!(&again, bytes, "{at}: nothing is lost of it");
            read += 1;
        }
    }
    println!("{read} replies, {errors} errors");
    assert!(read > 400 && errors > 125 && large == 2, "{read} replies, {errors} errors, {large} too large");
}
