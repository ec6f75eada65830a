//! Tests of bodies.

use proptest::prelude::*;

use super::*;
use crate::codec::json::parse_value;
use crate::codec::value;
use crate::codec::value::tests::{any_value, nested};
use crate::model::Map;
use crate::model::limits::DEPTH_MAX;

fn map(entries: impl IntoIterator<Item = (String, Value)>) -> Value {
    Value::Map(Map::from_entries(entries.into_iter().collect()).unwrap())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Bytes {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// Written, read and sent in protobuf, it stays what it is. Gives the body.
fn survives(document: &Value) -> Bytes {
    let body = Bytes::from(encode(document));
    assert_eq!(decode(&body).unwrap(), *document);
    assert_eq!(to_protobuf(&body).unwrap(), value::encode(document));
    body
}

fn fault(body: &str) -> String {
    let body = unhex(body);
    let fault = decode(&body).unwrap_err();
    assert_eq!(to_protobuf(&body).unwrap_err(), fault);
    fault.to_string()
}

/// Documents whose texts and maps are alike: what sharing is for.
fn repetitive() -> impl Strategy<Value = Value> {
    let texts =
        ["", "a", "id", "name", "0", "12", "123", "9223372036854775807", "9223372036854775808", "007", "ü"];
    let texts = texts.map(str::to_owned).into_iter().chain([63, 64, 300].map(|length| "x".repeat(length)));
    let texts: Vec<String> = texts.collect();
    let keys = prop_oneof![
        Just(vec!["id", "name", "123"]),
        Just(vec!["name", "id"]),
        Just(vec!["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "id"]),
    ];
    let leaf = prop_oneof![
        proptest::sample::select(texts).prop_map(Value::Text),
        Just(Value::Int(123)),
        Just(Value::Null),
    ];
    leaf.prop_recursive(5, 200, 12, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..12).prop_map(Value::List),
            (keys.clone(), proptest::collection::vec(inner, 11))
                .prop_map(|(keys, values)| { map(keys.into_iter().map(str::to_owned).zip(values)) }),
        ]
    })
}

/// Paths that a document has, and some that it lacks.
fn paths() -> impl Strategy<Value = Vec<Path>> {
    let step = proptest::sample::select(&["id", "name", "123", "a", "k", "0", "1", "00", "", "x"][..]);
    let path = proptest::collection::vec(step, 0..4).prop_map(|steps| Path::parse(&steps.join(".")).unwrap());
    proptest::collection::vec(path, 0..5)
}

proptest! {
    #[test]
    fn any_document_survives(document in any_value()) {
        survives(&document);
    }

    #[test]
    fn documents_that_repeat_themselves_survive(document in repetitive()) {
        let body = survives(&document);
        prop_assert!(body.len() <= value::encode(&document).len());
    }

    #[test]
    fn reading_parts_chooses_what_reading_all_does(document in prop_oneof![repetitive(), any_value()], fields in paths()) {
        let body = Bytes::from(encode(&document));
        prop_assert_eq!(project(&body, &fields).unwrap(), crate::codec::project::project(document, &fields));
    }

    #[test]
    fn changed_bytes_read_or_fail_without_a_panic(
        document in repetitive(),
        changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..4),
        fields in paths(),
    ) {
        let mut body = encode(&document);
        for (at, byte) in changes {
            let at = at % body.len();
            body[at] = byte;
        }
        let body = Bytes::from(body);
        let read = decode(&body);
        prop_assert_eq!(to_protobuf(&body), read.map(|document| value::encode(&document)));
        let _ = project(&body, &fields);
    }
}

/// Every tag, by hand: what these bytes mean never changes.
#[test]
fn each_form_has_its_bytes() {
    let text = |length: usize| Value::Text("t".repeat(length));
    let time = Value::Time;
    for (document, body) in [
        (Value::from(""), "00".to_owned()),
        (Value::from("a"), "0161".to_owned()),
        (text(63), format!("3f{}", "74".repeat(63))),
        (text(64), format!("4000{}", "74".repeat(64))),
        (text(64 + 0x1ff), format!("41ff{}", "74".repeat(64 + 0x1ff))),
        (text(8255), format!("5fff{}", "74".repeat(8255))),
        (text(8256), format!("e640200000{}", "74".repeat(8256))),
        (Value::Int(-8), "60".to_owned()),
        (Value::Int(0), "68".to_owned()),
        (Value::Int(31), "87".to_owned()),
        (Value::Int(-2048), "8800".to_owned()),
        (Value::Int(-9), "8ff7".to_owned()),
        (Value::Int(32), "9020".to_owned()),
        (Value::Int(2047), "97ff".to_owned()),
        (Value::Int(2048), "c80008".to_owned()),
        (Value::Int(65_535), "c8ffff".to_owned()),
        (Value::Int(65_536), "c9000001".to_owned()),
        (Value::Int(i64::MAX), "ceffffffffffffff7f".to_owned()),
        (Value::Int(-2049), "cf0008".to_owned()),
        (Value::Int(i64::MIN), "d5ffffffffffffff7f".to_owned()),
        (Value::from("99"), "023939".to_owned()),
        (Value::from("100"), "d664".to_owned()),
        (Value::from("007"), "03303037".to_owned()),
        (Value::from("9223372036854775807"), "ddffffffffffffff7f".to_owned()),
        (Value::from("9223372036854775808"), format!("13{}", hex(b"9223372036854775808"))),
        (Value::Null, "de".to_owned()),
        (Value::Bool(false), "df".to_owned()),
        (Value::Bool(true), "e0".to_owned()),
        (Value::Float(0.1), "e19a9999999999b93f".to_owned()),
        (Value::Float(f64::from_bits(0x7ff8_0000_0000_0001)), "e1010000000000f87f".to_owned()),
        (Value::Float(f64::NAN), "e1000000000000f87f".to_owned()),
        (Value::Float(1.5), "e20000c03f".to_owned()),
        (Value::Float(-0.0), "e200000080".to_owned()),
        (Value::Float(f64::INFINITY), "e20000807f".to_owned()),
        (time(1), "e302".to_owned()),
        (time(-1000), "e401".to_owned()),
        (time(1_000_000), "e502".to_owned()),
        (time(0), "e500".to_owned()),
        (Value::Bytes(Bytes::new()), "e700".to_owned()),
        (Value::Bytes(vec![9; 256].into()), format!("e80001{}", "09".repeat(256))),
        (Value::Bytes(vec![9; 65_536].into()), format!("e900000100{}", "09".repeat(65_536))),
        (Value::List(vec![]), "b8".to_owned()),
        (Value::List(vec![Value::List(vec![])]), "f6b8".to_owned()),
        (json("[[1,2]]"), "f6ba696a".to_owned()),
        (json(&format!("[[{}]]", ["1"; 16].join(","))), format!("f6ea10{}", "69".repeat(16))),
        (json(&format!("[[{}]]", ["1"; 256].join(","))), format!("f6eb0001{}", "69".repeat(256))),
        (json(&format!("[[{}]]", ["1"; 65_536].join(","))), format!("f6ec00000100{}", "69".repeat(65_536))),
        (json("{}"), "ed".to_owned()),
        (json("[{}]"), "f6ed".to_owned()),
        (json(r#"{"a":1,"b":null}"#), "f7020161016269de".to_owned()),
        (json(r#"[{"a":1}]"#), "f6ee0401016169".to_owned()),
        // The second map has the shape: the first one's stands 3 bytes behind its own distance.
        (json(r#"[{"a":1},{"a":2}]"#), "f6f1020369ee040101616a".to_owned()),
        (json(r#"["abc","abc"]"#), "f6980003616263".to_owned()),
        (json(r#"["12345","12345"]"#), "f69800d73930".to_owned()),
        // A key may be the text of a value, and the value may be that of a key.
        (json(r#"{"abc":"abc"}"#), "f701980003616263".to_owned()),
    ] {
        assert_eq!(hex(&survives(&document)), body, "{document:?}");
    }
}

fn json(text: &str) -> Value {
    parse_value(text.as_bytes()).unwrap()
}

#[test]
fn forms_that_the_writer_does_not_choose_are_read() {
    for (body, text) in [
        ("ce0000000000000000", "0"),
        ("e60100000061", r#""a""#),
        ("d700 00", r#""0""#),
        ("f6 f40100 de 0161", r#"["a",null,"a"]"#),
        ("f6 f500000000 0161", r#"["a","a"]"#),
        ("f6 9801 de d664", r#"["100",null,"100"]"#),
        ("ee04 01 0161 69", r#"{"a":1}"#),
        ("f00400 0000 01 0161 69", r#"{"a":1}"#),
        ("ec00000000", "[]"),
        // A length written with a continuation that adds nothing.
        ("f7 8100 0161 69", r#"{"a":1}"#),
        // Two maps with the shape of a third.
        ("f6 f10207 69 f10203 6a ee04 01 0161 6b", r#"[{"a":1},{"a":2},{"a":3}]"#),
    ] {
        assert_eq!(decode(&unhex(body)).unwrap(), json(text), "{body}");
    }
}

#[test]
fn what_does_not_read_says_where_and_why() {
    for (body, words) in [
        ("", "at byte 0 of the body: the end inside a value"),
        ("0261", "at byte 1 of the body: the end inside a value"),
        ("f8", "at byte 0 of the body: unknown tag 0xf8"),
        ("f6 de ff", "at byte 2 of the body: unknown tag 0xff"),
        ("de de", "at byte 1 of the body: bytes after the document"),
        ("01ff", "at byte 1 of the body: text that is not UTF-8"),
        ("f6 9802 0161", "at byte 1 of the body: a distance beyond the end"),
        ("f6 9800 de", "at byte 1 of the body: a distance to what is no text"),
        ("f6 9800 9800 0161", "at byte 1 of the body: a distance to what is no text"),
        ("f7 00", "at byte 1 of the body: a shape with more keys than values, or none"),
        ("f7 09 0161 69", "at byte 1 of the body: a shape with more keys than values, or none"),
        (
            "f7 ffffffffffffffffff01 0161 69",
            "at byte 1 of the body: a shape with more keys than values, or none",
        ),
        ("f7 01 69 69", "at byte 2 of the body: a key that is no text"),
        ("f7 01 d664 69", "at byte 2 of the body: a key that is no text"),
        ("f7 02 0161 0161 69 69", "at byte 1 of the body: key \"a\" stands twice in one map"),
        ("f7 01 0161 69 69", "at byte 5 of the body: more values than keys"),
        ("f7 02 0161 0162 69", "at byte 1 of the body: a shape with more keys than values, or none"),
        ("ee00", "at byte 2 of the body: a number that does not end"),
        ("f6 f10102 ee04 01 0161 69", "at byte 6 of the body: a shape with more keys than values, or none"),
        // A map at a distance to a shape that reaches beyond the map which has it.
        (
            "f6 f103046969 ee02 020161 0162 6969",
            "at byte 8 of the body: a shape with more keys than values, or none",
        ),
        // Many maps of one value with the shape of one that has two.
        (
            "f6 f102036a ee07 02 0161 0162 69 69",
            "at byte 7 of the body: a shape with more keys than values, or none",
        ),
        ("f6 f1 02 7f 69", "at byte 1 of the body: a shape beyond the end"),
        ("ceffffffffffffffff", "at byte 1 of the body: an integer of more than 63 bits"),
        ("ddffffffffffffffff", "at byte 1 of the body: an integer of more than 63 bits"),
        ("e20000c07f", "at byte 0 of the body: a NaN in four bytes"),
        ("e5ffffffffffffffffff01", "at byte 1 of the body: a time outside the years 0000 to 9999"),
        ("e3ffffffffffffffffffff", "at byte 1 of the body: a number that does not end"),
    ] {
        assert_eq!(fault(body), words, "{body}");
    }
}

#[test]
fn depth_64_survives_and_65_is_refused() {
    survives(&nested(DEPTH_MAX));
    let mut body = Bytes::from(encode(&nested(DEPTH_MAX + 1)));
    assert!(decode(&body).unwrap_err().to_string().contains("deeper than 64 levels"));
    assert!(to_protobuf(&body).unwrap_err().to_string().contains("deeper than 64 levels"));
    // However deep the bytes go, the reader does not.
    body = std::iter::repeat_n(0xf6, 1_000_000).chain([0xde]).collect();
    assert!(decode(&body).unwrap_err().to_string().contains("deeper than 64 levels"));
    assert!(project(&body, &[Path::parse(&["0"; DEPTH_MAX].join(".")).unwrap()]).is_err());
}

#[test]
fn a_text_is_found_again_near_and_far() {
    // Distances on both sides of each form's end, and a table of texts that overflows.
    for between in [0, 8000, 8190, 8191, 8192, 8193, 65_530, 65_535, 65_536, 70_000] {
        let far = vec![
            Value::from("again and again"),
            Value::Bytes(vec![0; between].into()),
            Value::from("again and again"),
        ];
        let body = survives(&Value::List(far));
        assert!(body.len() < between + 30, "{between}: {}", body.len());
    }
    let many: Vec<Value> = (0..5000).map(|n| Value::Text(format!("text {}", n % 2500))).collect();
    survives(&Value::List(many));
}

#[test]
fn like_maps_share_their_keys_and_many_shapes_are_forgotten_in_turn() {
    let row =
        |n: i64| map([("identifier".to_owned(), Value::Int(n)), ("description".to_owned(), Value::Int(n))]);
    let body = survives(&Value::List((0..100).map(row).collect()));
    assert!(body.len() < 100 * 9 + 30, "{}", body.len());
    let shaped = |n: usize| map([(format!("key {n}"), Value::Int(1)), ("other".to_owned(), Value::Null)]);
    let shapes = SHAPES_MAX * 3;
    survives(&Value::List((0..shapes * 3).map(|n| shaped(n % shapes)).collect()));
}

/// Few bytes must not become many: texts that stand in a document a million times have a limit together.
#[test]
fn what_sharing_adds_has_a_limit() {
    let text = 8000;
    let refs = SHARED_BYTES_MAX / text;
    let body = |refs: usize| {
        let mut body = vec![0xf6];
        for at in 0..refs {
            body.push(0xf5);
            body.extend_from_slice(&(((refs - at - 1) * 5) as u32).to_le_bytes());
        }
        body.extend_from_slice(&[0x40 + ((text - 64) >> 8) as u8, (text - 64) as u8]);
        body.resize(body.len() + text, b'x');
        Bytes::from(body)
    };
    assert!(decode(&body(refs)).is_ok());
    assert!(to_protobuf(&body(refs)).is_ok());
    let fault = decode(&body(refs + 1)).unwrap_err();
    assert!(fault.to_string().contains("add more than 67108864 bytes"), "{fault}");
    assert!(to_protobuf(&body(refs + 1)).is_err());
}

/// The largest document that is taken, most of it keys of shapes that do not fit the memory of writer and reader:
/// what is counted when it is read is not more than what is in it.
#[test]
fn the_largest_document_of_shared_keys_reads_back() {
    let key = "k".repeat(8000);
    for shapes in [SHAPES_MAX, SHAPES_MAX * 3] {
        let rows = SHARED_BYTES_MAX / (key.len() + 8);
        let row = |n: usize| map([(key.clone(), Value::Int(1)), (format!("{:03}", n % shapes), Value::Null)]);
        let document = Value::List((0..rows).map(row).collect());
        let body = Bytes::from(encode(&document));
        assert!(body.len() < SHARED_BYTES_MAX / 8, "{shapes}: {}", body.len());
        assert!(decode(&body).unwrap() == document, "{shapes}");
        to_protobuf(&body).unwrap();
    }
}

/// A shape whose keys are all the same long text must not be read to its end before that is noticed.
#[test]
fn keys_of_a_shape_elsewhere_are_bounded_while_they_are_read() {
    let (keys, text) = (20_000_u32, 8000_usize);
    // A list: a map of as many values with a shape behind it, whose keys all lead to one text.
    let mut body = vec![0xf6, 0xf3];
    body.extend_from_slice(&(keys + 1).to_le_bytes());
    body.push(0);
    body.extend(std::iter::repeat_n(0xde, keys as usize));
    // The distance leads over the values, and takes three bytes itself.
    let distance = keys;
    let varint = [distance as u8 | 0x80, (distance >> 7) as u8 | 0x80, (distance >> 14) as u8];
    body.splice(6..7, varint);
    body[2..6].copy_from_slice(&(keys + 3).to_le_bytes());
    body.extend_from_slice(&[keys as u8 | 0x80, (keys >> 7) as u8 | 0x80, (keys >> 14) as u8]);
    for key in 0..keys {
        body.push(0xf5);
        body.extend_from_slice(&((keys - key - 1) * 5).to_le_bytes());
    }
    body.extend_from_slice(&[0x40 + ((text - 64) >> 8) as u8, (text - 64) as u8]);
    body.resize(body.len() + text, b'x');
    let fault = decode(&body.into()).unwrap_err();
    assert!(fault.to_string().contains("add more than 67108864 bytes"), "{fault}");
}

/// A body whose maps stand in one another, all with the keys of one shape: few bytes that ask for much room.
fn nested_maps(levels: usize, keys: usize) -> Vec<u8> {
    let varint = |number: usize| vec![number as u8 | 0x80, (number >> 7) as u8 | 0x80, (number >> 14) as u8];
    let sized = |length: usize| (length as u32).to_le_bytes();
    let mut body = vec![0xde; keys];
    for _ in 0..levels {
        // The distance leads over the values and the head of the bytes behind them.
        let distance = body.len() + 5;
        let inside = [varint(distance), body].concat();
        body = [&[0xf3][..], &sized(inside.len()), &inside].concat();
    }
    let mut shape = varint(keys);
    for key in 0..keys {
        let text = format!("{key:x}");
        shape.push(text.len() as u8);
        shape.extend_from_slice(text.as_bytes());
    }
    [&[0xf6][..], &body, &[0xe9], &sized(shape.len()), &shape].concat()
}

#[test]
fn maps_in_one_another_cannot_claim_the_same_bytes() {
    decode(&nested_maps(1, 100).into()).unwrap();
    for (levels, keys) in [(62, 128), (62, 20_000)] {
        let body = Bytes::from(nested_maps(levels, keys));
        for fault in [decode(&body).unwrap_err(), to_protobuf(&body).unwrap_err()] {
            assert!(fault.to_string().contains("more elements and entries than it can hold"), "{fault}");
        }
    }
}

#[test]
fn a_fault_does_not_repeat_a_long_key() {
    let key = [&[0xe6][..], &(1_u32 << 20).to_le_bytes(), &vec![1; 1 << 20]].concat();
    let body = [&[0xf7, 2][..], &key, &key, &[0xde, 0xde]].concat();
    let fault = decode(&body.into()).unwrap_err().to_string();
    assert!(fault.contains("stands twice") && fault.len() < 1000, "{} bytes", fault.len());
}

#[test]
fn a_projection_to_the_whole_takes_no_bytes_after_it() {
    let body = Bytes::from_static(&[0x69, 0x69]);
    assert!(decode(&body).is_err());
    assert!(project(&body, &[Path::parse("").unwrap()]).is_err());
}
