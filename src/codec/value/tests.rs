//! Tests of documents in protobuf.

use proptest::prelude::*;

use super::*;

const SPECIAL: [&str; 5] = ["$bytes", "$time", "$float", "$int", "$map"];

/// Short text, of all of Unicode.
pub(in crate::codec) fn any_text() -> impl Strategy<Value = String> {
    proptest::collection::vec(any::<char>(), 0..6).prop_map(String::from_iter)
}

/// Any document, those that look like JSON's special forms among them.
pub(in crate::codec) fn any_value() -> impl Strategy<Value = Value> {
    let int = prop_oneof![any::<i64>(), -10..10_i64, Just(i64::MIN), Just(i64::MAX), Just(1 << 53)];
    let float = prop_oneof![
        any::<u64>().prop_map(f64::from_bits),
        (-1000..1000_i32).prop_map(f64::from),
        prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(f64::NEG_INFINITY), Just(-0.0), Just(5e-324)],
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        int.prop_map(Value::Int),
        float.prop_map(Value::Float),
        any_text().prop_map(Value::Text),
        proptest::collection::vec(any::<u8>(), 0..9).prop_map(|bytes| Value::Bytes(bytes.into())),
        TIME_US.prop_map(Value::Time),
    ];
    let key = || prop_oneof![any_text(), proptest::sample::select(&SPECIAL[..]).prop_map(str::to_owned)];
    leaf.prop_recursive(8, 48, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::List),
            proptest::collection::vec((key(), inner.clone()), 0..6).prop_map(|entries| {
                let mut map = Map::new();
                for (key, value) in entries {
                    *map.get_or_insert_with(&key, || Value::Null) = value;
                }
                Value::Map(map)
            }),
            (key(), inner).prop_map(|entry| Value::Map(Map::from_entries(vec![entry]).unwrap())),
        ]
    })
}

/// A document of exactly so many levels, lists and maps by turns.
pub(in crate::codec) fn nested(levels: usize) -> Value {
    (0..levels).fold(Value::Int(7), |inner, level| match level % 2 {
        0 => Value::List(vec![inner]),
        _ => Value::Map(Map::from_entries(vec![("k".to_owned(), inner)]).unwrap()),
    })
}

fn refused(bytes: &[u8]) -> String {
    match decode(&Bytes::copy_from_slice(bytes)) {
        Err(DecodeFault::Refused(error)) => error.message,
        other => panic!("{bytes:02x?} gave {other:?}"),
    }
}

fn malformed(bytes: &[u8]) -> String {
    match decode(&Bytes::copy_from_slice(bytes)) {
        Err(DecodeFault::Malformed(error)) => error.message,
        other => panic!("{bytes:02x?} gave {other:?}"),
    }
}

fn read(bytes: &[u8]) -> Value {
    decode(&Bytes::copy_from_slice(bytes)).unwrap()
}

proptest! {
    #[test]
    fn any_document_survives_and_its_length_is_foretold(value in any_value()) {
        let bytes = Bytes::from(encode(&value));
        prop_assert_eq!(bytes.len(), encoded_len(&value));
        prop_assert_eq!(decode(&bytes).unwrap(), value.clone());
        let mut appended = b"before".to_vec();
        encode_into(&value, &mut appended);
        prop_assert_eq!(&appended[6..], &bytes[..]);
    }

    #[test]
    fn any_bytes_read_or_fail_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = decode(&bytes.into());
    }

    #[test]
    fn a_changed_byte_reads_or_fails_without_a_panic(value in any_value(), at in any::<usize>(), byte in any::<u8>()) {
        let mut bytes = encode(&value);
        let at = at % bytes.len();
        bytes[at] = byte;
        let _ = decode(&bytes.into());
    }
}

#[test]
fn the_bytes_are_those_of_the_proto_file() {
    let map = Map::from_entries(vec![("a".to_owned(), Value::Int(-1))]).unwrap();
    let table: [(Value, &[u8]); 9] = [
        (Value::Null, &[0x08, 1]),
        (Value::Bool(false), &[0x10, 0]),
        (Value::Int(-3), &[0x18, 5]),
        (Value::Float(1.0), &[0x21, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f]),
        (Value::from("ab"), &[0x2a, 2, b'a', b'b']),
        (Value::Bytes(Bytes::from_static(&[0xff])), &[0x32, 1, 0xff]),
        (Value::Time(150), &[0x38, 0xac, 0x02]),
        (Value::List(vec![Value::Null]), &[0x42, 4, 0x0a, 2, 0x08, 1]),
        (Value::Map(map), &[0x4a, 9, 0x0a, 7, 0x0a, 1, b'a', 0x12, 2, 0x18, 1]),
    ];
    for (value, bytes) in table {
        assert_eq!(encode(&value), bytes, "{value:?}");
        assert_eq!(read(bytes), value);
    }
}

#[test]
fn depth_64_reads_and_65_is_refused_however_deep_it_goes() {
    assert_eq!(read(&encode(&nested(DEPTH_MAX))), nested(DEPTH_MAX));
    for levels in [DEPTH_MAX + 1, DEPTH_MAX + 2, 1000] {
        assert!(refused(&encode(&nested(levels))).contains("deeper than 64"));
    }
}

#[test]
fn what_is_no_document_is_refused_alone() {
    assert!(refused(&[]).contains("no kind"));
    assert!(refused(&[0x78, 1]).contains("no kind"), "an unknown field names no kind");
    assert!(refused(&[0x42, 2, 0x0a, 0]).contains("no kind"), "an element of no kind");
    assert!(refused(&[0x4a, 2, 0x0a, 0]).contains("no kind"), "an entry without a value");
    let entry = [0x0a, 7, 0x0a, 1, b'a', 0x12, 2, 0x18, 1];
    let twice = [&[0x4a, 18][..], &entry, &entry].concat();
    assert!(refused(&twice).contains("\"a\" stands twice"));
    for (us, good) in [
        (*TIME_US.start(), true),
        (*TIME_US.end(), true),
        (TIME_US.start() - 1, false),
        (TIME_US.end() + 1, false),
    ] {
        let bytes = encode(&Value::Time(us)).into();
        assert_eq!(matches!(decode(&bytes), Ok(Value::Time(_))), good, "{us}");
        assert_eq!(matches!(decode(&bytes), Err(DecodeFault::Refused(_))), !good, "{us}");
    }
}

#[test]
fn what_is_no_protobuf_is_malformed() {
    for bytes in [
        &[0x08][..],                                                         // no number
        &[0x21, 0, 0],                                                       // a float cut short
        &[0x2a, 5, b'a'],                                                    // text cut short
        &[0x2a, 1, 0xff],                                                    // text that is not UTF-8
        &[0x2a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], // a hostile length
        &[0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02], // 65 bits
        &[0x1a, 1, 0],                      // an integer of length-delimited type
        &[0x28, 1],                         // text of varint type
        &[0x00, 1],                         // field number 0
        &[0x0f, 1],                         // wire type 7
        &[0x7c],                            // the end of no group
        &[0x7b],                            // a group without end
        &[0x7b, 0x74],                      // the end of another group
        &[0x0b, 0x0c],                      // a known field as a group
        &[0x42, 4, 0x0a, 9, 0x08, 1],       // an element longer than its list
        &[0x42, 2, 0x08, 1],                // an element of varint type
        &[0x4a, 5, 0x0a, 3, 0x0a, 1, 0xff], // a key that is not UTF-8
    ] {
        assert!(malformed(bytes).starts_with("malformed protobuf at byte"), "{bytes:02x?}");
    }
}

#[test]
fn malformed_outranks_refused() {
    // A list of a value of no kind, then one cut short.
    assert!(malformed(&[0x42, 5, 0x0a, 0, 0x0a, 1, 0x08]).contains("inside a number"));
}

#[test]
fn unknown_fields_are_skipped_and_the_last_member_wins() {
    assert_eq!(read(&[0x78, 1, 0x18, 2]), Value::Int(1));
    assert_eq!(
        read(&[0x7a, 1, 0xff, 0x18, 2, 0x7d, 1, 2, 3, 4, 0x79, 1, 2, 3, 4, 5, 6, 7, 8]),
        Value::Int(1)
    );
    assert_eq!(read(&[0x7b, 0x08, 1, 0x73, 0x74, 0x7c, 0x18, 2]), Value::Int(1), "groups in groups");
    assert_eq!(read(&[0x18, 2, 0x10, 1]), Value::Bool(true));
    assert_eq!(read(&[0x42, 2, 0x0a, 0, 0x10, 1]), Value::Bool(true), "what is overwritten is not judged");
    assert_eq!(read(&[0x08, 0]), Value::Null);
}

#[test]
fn a_document_cut_at_any_byte_is_never_taken_for_itself() {
    let value = Value::List(vec![nested(5), Value::from("text"), Value::Float(f64::NAN), Value::Time(-1)]);
    let bytes = Bytes::from(encode(&value));
    for length in 0..bytes.len() {
        assert!(decode(&bytes.slice(..length)).is_err(), "{length}");
    }
}

#[test]
fn bytes_are_shared_not_copied() {
    let document = Bytes::from(encode(&Value::Bytes(Bytes::from(vec![7; 100]))));
    let Value::Bytes(inner) = decode(&document).unwrap() else { panic!("bytes") };
    assert_eq!(inner.as_ptr(), document[2..].as_ptr());
}
