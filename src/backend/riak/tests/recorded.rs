//! What a real Riak KV 3.2.3 was recorded to say (`tests/golden/riak`), held against the client.
//!
//! One line is one request and the frames that answered it. The client must write every request of a kind that it makes to the
//! same bytes, and read every reply.

use bytes::Bytes;
use prost::Message;

use super::*;
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

/// What this worker itself asks for, in the bytes that Riak's own client or the recording client sent for the same.
#[test]
fn what_the_worker_builds_has_the_published_numbers() {
    let find = |file: &str, name: &str| cases(file).into_iter().find(|case| case.name == name).unwrap().bytes;
    let get = GetReq {
        bucket: Bytes::from_static(b"wire-q"),
        key: Bytes::from_static(b"q1"),
        pr: Some(3),
        ..GetReq::default()
    };
    assert_eq!(get.encode_to_vec(), find("04-quorum", "get_pr3"));
    let put = PutReq {
        bucket: Bytes::from_static(b"wire-q"),
        key: Some(Bytes::from_static(b"q1")),
        content: Content { value: Bytes::from_static(b"w"), ..Content::default() },
        w: Some(3),
        dw: Some(3),
        pw: Some(3),
        ..PutReq::default()
    };
    assert_eq!(put.encode_to_vec(), find("04-quorum", "put_w3_dw3_pw3"));
    let index = IndexReq {
        bucket: Bytes::from_static(b"wire-2i"),
        index: Bytes::from_static(b"$key"),
        qtype: 1,
        range_min: Some(Bytes::new()),
        range_max: Some(Bytes::from_static(&[0xff])),
        max_results: Some(3),
        ..IndexReq::default()
    };
    assert_eq!(index.encode_to_vec(), find("08-index", "key_range_empty_min"));
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
