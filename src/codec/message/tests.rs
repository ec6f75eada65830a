use proptest::prelude::*;

use super::*;
use crate::codec::value;
use crate::codec::value::tests::{any_value, nested};
use crate::model::limits::{BATCH_OPS_MAX, CHANGES_MAX, DEPTH_MAX};
use crate::model::reply::*;
use crate::model::request::*;
use crate::model::{Code, Key, Outcome, Record, Value, Version};

const VERSION: Version = Version { hlc: 5, origin: 9 };

fn version_text() -> String {
    VERSION.to_string()
}

fn record(value: Option<Value>) -> Record {
    Record {
        key: Key::parse("k/1").unwrap(),
        value,
        version: VERSION,
        updated_at_ms: 1_700_000_000_000,
        expires_at_ms: 3,
        content_type: "text/plain".to_owned(),
        schema: 2,
    }
}

fn put(value: Value) -> PutRequest {
    PutRequest {
        key: "k".to_owned(),
        value: Some(Ok(value)),
        content_type: "c".to_owned(),
        precondition: Some(PreconditionRequest { version: Some(version_text()), ..Default::default() }),
        ttl_ms: -1,
        keep_ttl: true,
        op_id: "op".to_owned(),
        op_age_ms: 4,
    }
}

/// One request of each operation, with every field set to something of its own.
fn requests(value: &Value) -> Vec<Request> {
    use ChangeKind::*;
    let kinds = [Set, Increment, Append, Min, Max, AddToSet, RemoveFromSet].map(|make| make(value.clone()));
    let changes = kinds.into_iter().chain([Unset]);
    let mut requests = vec![
        Request::Get(GetRequest {
            key: "k".to_owned(),
            consistency: Consistency::Bounded,
            max_staleness_ms: -7,
            min_version: version_text(),
            head_only: true,
            fields: vec!["a.b".to_owned(), String::new()],
        }),
        Request::Put(put(value.clone())),
        Request::Delete(DeleteRequest {
            key: "d".to_owned(),
            precondition: Some(PreconditionRequest { exists: Some(false), ..Default::default() }),
            op_id: "o".to_owned(),
            op_age_ms: 1,
        }),
        Request::Update(UpdateRequest {
            key: "u".to_owned(),
            changes: changes
                .map(|kind| ChangeRequest { path: kind.word().to_owned(), kind: Ok(kind) })
                .collect(),
            precondition: Some(PreconditionRequest { absent: Some(true), ..Default::default() }),
            create: true,
            return_record: true,
            ttl_ms: i64::MIN,
            op_id: "o".to_owned(),
            op_age_ms: i64::MAX,
        }),
        Request::Touch(TouchRequest { key: "t".to_owned(), ttl_ms: 5, op_id: "o".to_owned(), op_age_ms: 6 }),
    ];
    requests.push(Request::Batch(BatchRequest { ops: requests.clone(), atomic: true }));
    requests.push(Request::Scan(ScanRequest {
        prefix: "p".to_owned(),
        start: "s".to_owned(),
        end: "e".to_owned(),
        limit: u32::MAX,
        max_bytes: 1,
        cursor: "c".to_owned(),
        reverse: true,
        keys_only: true,
        consistency: Consistency::Eventual,
    }));
    requests
}

/// Replies of each operation, with every field set.
fn replies(value: &Value) -> Vec<(&'static str, Reply)> {
    let mut error = Error::conflict("m", Some(VERSION));
    (error.retry_after_ms, error.details) = (8, vec!["3".to_owned(), String::new()]);
    let get = GetReply {
        error: None,
        found: true,
        record: Some(record(Some(value.clone()))),
        source: Source::Pending,
        age_ms: 9,
        stale: true,
        pending: true,
    };
    let write = WriteReply {
        error: Some(error.clone()),
        outcome: Outcome::Indeterminate,
        version: Some(VERSION),
        durability: Durability::Queue,
        duplicate: true,
        read_your_write: true,
        record: Some(record(None)),
        existed: Some(true),
    };
    let applied =
        WriteReply { error: None, outcome: Outcome::Applied, existed: Some(false), ..write.clone() };
    let results = vec![BatchResult::Get(get.clone()), BatchResult::Write(write.clone())];
    vec![
        ("get", Reply::Get(get)),
        ("put", Reply::Write(write)),
        ("delete", Reply::Write(applied)),
        ("batch", Reply::Batch(BatchReply { error: Some(error.clone()), results })),
        (
            "scan",
            Reply::Scan(ScanReply {
                error: Some(error),
                records: vec![record(Some(value.clone())), record(None)],
                cursor: "c".to_owned(),
                source: Source::Replica,
                age_ms: 1,
                stale: true,
                pending: true,
            }),
        ),
    ]
}

fn fault(op: &str, payload: &[u8]) -> Error {
    decode_request(op, &Bytes::copy_from_slice(payload)).unwrap_err()
}

/// A length-delimited field.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, u8::try_from(content.len()).unwrap()], content].concat()
}

proptest! {
    #[test]
    fn requests_survive(value in any_value()) {
        for request in requests(&value) {
            let bytes = Bytes::from(encode_request(&request));
            prop_assert_eq!(decode_request(request.op_name(), &bytes).unwrap(), request);
        }
    }

    #[test]
    fn replies_survive_and_lengths_are_foretold(value in any_value()) {
        for (op, reply) in replies(&value) {
            prop_assert_eq!(decode_reply(op, &encode_reply(&reply).into()).unwrap(), reply);
        }
        let full = record(Some(value));
        let alone = GetReply { record: Some(full.clone()), ..GetReply::default() };
        let bytes = encode_reply(&Reply::Get(alone.clone())).len();
        prop_assert_eq!(value::slice_len(record_len(&full)), bytes);
        prop_assert_eq!(result_len(&BatchResult::Get(alone)), value::slice_len(bytes));
    }
}

#[test]
fn a_payload_cut_at_any_byte_never_panics() {
    for request in requests(&nested(3)) {
        let bytes = Bytes::from(encode_request(&request));
        for length in 0..bytes.len() {
            if let Ok(cut) = decode_request(request.op_name(), &bytes.slice(..length)) {
                assert_ne!(cut, request);
            }
        }
    }
    for (op, reply) in replies(&nested(3)) {
        let bytes = Bytes::from(encode_reply(&reply));
        for length in 0..bytes.len() {
            if let Err(error) = decode_reply(op, &bytes.slice(..length)) {
                assert_eq!(error.code, Code::Internal);
            }
        }
    }
}

#[test]
fn a_document_at_fault_fails_its_operation_alone() {
    let ops = vec![Request::Put(put(nested(DEPTH_MAX + 1))), Request::Put(put(nested(DEPTH_MAX)))];
    let bytes = encode_request(&Request::Batch(BatchRequest { ops, atomic: false })).into();
    let Request::Batch(batch) = decode_request("batch", &bytes).unwrap() else { panic!("batch") };
    let values = batch.ops.iter().map(|op| match op {
        Request::Put(put) => put.value.as_ref().unwrap().is_ok(),
        _ => panic!("put"),
    });
    assert_eq!(values.collect::<Vec<_>>(), [false, true]);
    let update = field(2, &field(2, &[]));
    let Request::Update(update) = decode_request("update", &update.into()).unwrap() else { panic!("update") };
    assert_eq!(update.changes[0].kind, Err(Error::invalid("changes[0]: a value of no kind")));
}

#[test]
fn a_change_of_no_kind_is_kept_as_a_fault() {
    for (change, words) in [(&[][..], "names no kind"), (&[0x18, 0], "unset must be true")] {
        let payload = field(2, change).into();
        let Request::Update(update) = decode_request("update", &payload).unwrap() else { panic!("update") };
        let error = update.changes[0].kind.clone().unwrap_err();
        assert!(error.code == Code::InvalidArgument && error.message.contains(words), "{error}");
    }
}

#[test]
fn the_last_of_two_members_wins() {
    let two = field(2, &[field(2, &[0x08, 1]), field(4, &[0x18, 2])].concat());
    let Request::Update(update) = decode_request("update", &two.into()).unwrap() else { panic!("update") };
    assert_eq!(update.changes[0].kind, Ok(ChangeKind::Increment(Value::Int(1))));
}

#[test]
fn an_absent_value_is_not_null() {
    let value = |payload: &[u8]| match decode_request("put", &Bytes::copy_from_slice(payload)).unwrap() {
        Request::Put(put) => put.value,
        _ => panic!("put"),
    };
    assert_eq!(value(&[]), None);
    assert_eq!(value(&field(2, &[0x08, 1])), Some(Ok(Value::Null)));
}

#[test]
fn faults_of_the_whole_payload_name_their_place() {
    let get = field(1, &field(1, &field(1, b"k")));
    let in_batch = |op: &[u8]| fault("batch", &[&get[..], &get, &field(1, op)].concat()).message;
    assert!(in_batch(&[]).starts_with("ops[2]: names no operation"));
    assert!(in_batch(&field(2, &field(2, &[0x18]))).starts_with("ops[2]: value: malformed protobuf"));
    assert!(in_batch(&field(2, &field(1, &[0xff]))).starts_with("ops[2]: "), "a key that is not UTF-8");
    assert!(in_batch(&field(1, &[0x10, 9])).starts_with("ops[2]: consistency: 9"));
    assert!(in_batch(&field(4, &field(2, &field(2, &[0x18])))).starts_with("ops[2]: changes[0]: malformed"));
    for (op, payload) in [
        ("get", &[0x10, 4][..]), // an unknown consistency
        ("scan", &[0x48, 4]),
        ("get", &[0x08, 1]), // a key of varint type
        ("batch", &[0x08, 1]),
        ("batch", &[0x12, 0]),
        ("put", &[0x12, 9]), // cut short
        ("put", b"not protobuf"),
    ] {
        assert_eq!(fault(op, payload).code, Code::InvalidArgument, "{op} {payload:02x?}");
    }
}

#[test]
fn a_batch_is_bounded_on_each_side() {
    let op = field(1, &field(1, &[]));
    assert!(decode_request("batch", &op.repeat(BATCH_OPS_MAX).into()).is_ok());
    let Ok(Request::Batch(kept)) = decode_request("batch", &op.repeat(BATCH_OPS_MAX + 5).into()) else {
        panic!("the number of operations is judged later")
    };
    assert_eq!(kept.ops.len(), BATCH_OPS_MAX + 1, "one beyond the limit is kept, to be found");
    let bad_shape = [op.repeat(BATCH_OPS_MAX + 1), field(1, &[])].concat();
    assert_eq!(fault("batch", &bad_shape).code, Code::InvalidArgument, "shape is judged first");
}

#[test]
fn of_changes_beyond_the_limit_one_is_kept() {
    let kept = |payload: Vec<u8>| match decode_request("update", &payload.into()).unwrap() {
        Request::Update(update) => update.changes.len(),
        other => panic!("{other:?}"),
    };
    let change = field(2, &[]);
    assert_eq!(kept(change.repeat(CHANGES_MAX)), CHANGES_MAX);
    assert_eq!(kept(change.repeat(CHANGES_MAX + 5)), CHANGES_MAX + 1, "to be found");
    let bad_shape = [change.repeat(CHANGES_MAX + 4), field(2, &field(2, &[0x18]))].concat();
    assert!(fault("update", &bad_shape).message.starts_with("changes[1004]: "), "shape is judged first");
}

#[test]
fn unknown_fields_are_ignored() {
    let payload = [field(1, b"k"), field(15, b"new"), vec![0x70, 1]].concat();
    let expected = Request::Touch(TouchRequest { key: "k".to_owned(), ..TouchRequest::default() });
    assert_eq!(decode_request("touch", &payload.into()).unwrap(), expected);
}

#[test]
fn a_reply_of_unknown_numbers_is_not_understood() {
    let error_code = field(1, &[0x08, 16]);
    for (op, payload) in [
        ("get", &[0x20, 5][..]),
        ("put", &[0x10, 4]),
        ("put", &[0x20, 3]),
        ("touch", &error_code),
        ("batch", &field(2, &[])),
        ("get", &field(3, &[])),
        ("scan", b"?"),
    ] {
        let error = decode_reply(op, &Bytes::copy_from_slice(payload)).unwrap_err();
        assert_eq!(error.code, Code::Internal, "{op} {payload:02x?}");
        assert!(error.message.starts_with("reply not understood: "), "{error}");
    }
}
