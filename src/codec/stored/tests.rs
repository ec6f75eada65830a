//! Tests of frames.

use proptest::prelude::*;

use super::*;
use crate::codec::value::tests::any_value;

fn document(value: Value) -> Document {
    Document {
        value,
        content_type: "application/json".to_owned(),
        updated_at_ms: 1_700_000_000_000,
        schema: 0,
    }
}

fn small() -> Document {
    document(Value::List(vec![Value::Int(-5), Value::from("text"), Value::Float(f64::NAN)]))
}

fn words() -> Document {
    document(Value::from("the same words again and again, ".repeat(100).as_str()))
}

/// A frame whose checksum is right, whatever else is not.
fn sealed(mut frame: Vec<u8>) -> Bytes {
    header::seal(&mut frame);
    frame.into()
}

fn any_compression() -> impl Strategy<Value = Compression<'static>> {
    prop_oneof![Just(Compression::None), Just(Compression::Lz4), Just(Compression::Zstd)]
}

proptest! {
    #[test]
    fn any_document_survives(
        value in any_value(),
        updated_at_ms: i64,
        schema: u32,
        content_type in "[ -~]{0,255}",
        compression in any_compression(),
    ) {
        let document = Document { value, content_type, updated_at_ms, schema };
        prop_assert_eq!(decode(&encode(&document, compression)).unwrap(), document);
    }
}

#[test]
fn a_record_of_a_small_document_costs_14_bytes_beside_it() {
    let document = Document { content_type: String::new(), ..small() };
    let body = crate::codec::body::encode(&document.value);
    assert_eq!(encode(&document, Compression::None).len(), body.len() + 14);
}

#[test]
fn a_cut_frame_is_detected_at_every_length_and_a_longer_one_too() {
    for frame in [encode(&small(), Compression::None), encode(&words(), Compression::Zstd)] {
        for length in 0..frame.len() {
            assert!(decode(&frame.slice(..length)).is_err(), "length {length}");
        }
        let longer = [&frame[..], &[0]].concat();
        assert!(matches!(decode(&longer.clone().into()), Err(Fault::Checksum { .. })));
        assert_eq!(
            decode(&sealed(longer)),
            Err(Fault::Length { found: frame.len() + 1, needed: frame.len() })
        );
    }
}

#[test]
fn what_a_newer_version_wrote_is_named() {
    let frame = encode(&small(), Compression::None).to_vec();
    let with = |at: usize, byte: u8| {
        let mut frame = frame.clone();
        frame[at] = byte;
        decode(&sealed(frame)).unwrap_err().to_string()
    };
    assert_eq!(with(0, 0xD5), "the first byte is 0xd5, a record starts with 0xda");
    assert_eq!(with(1, 3), "record format 3 is not known to this version, which reads 1 and 2");
    assert_eq!(with(2, 0x07), "packing 3 in flags 0x07 of record format 2 is not known to this version");
    assert_eq!(with(2, 0x24), "the kind in flags 0x24 of record format 2 is not known to this version");
    // The schema's id is read where the content type's length stood: 16, its version where its first letter did.
    assert_eq!(with(2, 0x0c), "version 97 of schema 16 is not known to this version");
    // The same for the dictionary's id.
    assert_eq!(with(2, 0x14), "dictionary 16 is not known to this version");
}

#[test]
fn a_declared_length_above_the_limit_is_refused_before_the_body() {
    for (flags, lengths, declared) in [
        (0, &[0x81, 0x80, 0x80, 0x80, 0x01][..], BODY_BYTES_MAX as u64 + 1),
        (2, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], u64::MAX),
    ] {
        let frame = [&[0xDA, 2, flags, 0, 0, 0, 0, 0], lengths, &[0; 40]].concat();
        assert_eq!(decode(&sealed(frame)), Err(Fault::TooLarge { declared }));
    }
}

#[test]
fn a_packed_body_of_another_length_than_declared_is_refused() {
    for compression in [Compression::Lz4, Compression::Zstd] {
        let frame = encode(&words(), compression);
        let (header, body) = Header::read(&frame).unwrap();
        assert_ne!(header.packing, Packing::None);
        for length in [header.body_bytes - 1, header.body_bytes + 1] {
            let mut frame = frame.to_vec();
            let at = body.start - if body.len() < 128 { 3 } else { 4 };
            frame[at..at + 2].copy_from_slice(&[length as u8 | 0x80, (length >> 7) as u8]);
            assert!(matches!(decode(&sealed(frame)), Err(Fault::Packed(_))), "{compression:?} {length}");
        }
    }
}

#[test]
fn the_head_is_read_without_the_document() {
    let mut frame = encode(&small(), Compression::None).to_vec();
    // A tag that nobody knows, with a right checksum.
    let body = Header::read(&frame).unwrap().1;
    frame[body.start] = 0xff;
    let stored = open(&sealed(frame)).unwrap();
    assert_eq!((stored.updated_at_ms, stored.content_type.as_str()), (1_700_000_000_000, "application/json"));
    assert!(matches!(stored.value(), Err(Fault::Body(_))));
}

#[test]
fn explaining_covers_every_byte_once_and_goes_on_behind_a_frame() {
    for compression in [Compression::None, Compression::Lz4] {
        let document = Document { schema: 7, ..words() };
        let frame = encode(&document, compression);
        let two = Bytes::from([&frame[..], &frame[..]].concat());
        let explained = explain(&two).unwrap();
        assert_eq!(explained.frame_bytes, frame.len());
        assert_eq!(explained.value, document.value);
        let mut fields = explained.fields;
        fields.sort_by_key(|field| field.range.start);
        let mut at = 0;
        for field in fields {
            assert_eq!(field.range.start, at, "{field:?}");
            at = field.range.end;
        }
        assert_eq!(at, frame.len());
    }
}

#[test]
fn what_does_not_read_is_explained_up_to_its_fault() {
    let frame = encode(&small(), Compression::None);
    for length in 0..frame.len() {
        let damaged = explain(&frame.slice(..length)).unwrap_err();
        assert_eq!(damaged.at, length, "{damaged:?}");
    }
    let mut flipped = frame.to_vec();
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    let damaged = explain(&flipped.clone().into()).unwrap_err();
    assert!(matches!(damaged.fault, Fault::Checksum { .. }) && damaged.at == 3, "{damaged:?}");
    let body = Header::read(&frame).unwrap().1;
    flipped[body.start + 1] = 0xff;
    let damaged = explain(&sealed(flipped)).unwrap_err();
    assert_eq!(damaged.at, body.start + 1, "{damaged:?}");
}

/// Records of every kind as each format has them. Lines are never changed or taken away: what is stored somewhere must
/// keep its meaning. `value_protobuf` tells what JSON cannot: the bits of a NaN.
const GOLDEN: [(u8, &str); 2] = [
    (1, include_str!("../../../tests/golden/format-1.ndjson")),
    (2, include_str!("../../../tests/golden/format-2.ndjson")),
];

#[test]
fn records_of_every_format_keep_their_meaning() {
    let unhex = |text: &serde_json::Value| -> Bytes {
        let text = text.as_str().unwrap();
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    };
    for (format, file) in GOLDEN {
        let mut names = std::collections::HashSet::new();
        for line in file.lines() {
            let golden: serde_json::Value = serde_json::from_str(line).unwrap();
            let name = golden["name"].as_str().unwrap();
            assert!(names.insert(name.to_owned()), "{name} stands twice");
            let frame = unhex(&golden["record"]);
            assert_eq!(frame[1], format, "{name}");
            let document = decode(&frame).unwrap_or_else(|fault| panic!("{name}: {fault}"));
            assert_eq!(document.updated_at_ms, golden["updated_at_ms"].as_i64().unwrap(), "{name}");
            assert_eq!(document.content_type, golden["content_type"].as_str().unwrap(), "{name}");
            assert_eq!(u64::from(document.schema), golden["schema"].as_u64().unwrap(), "{name}");
            let protobuf = unhex(&golden["value_protobuf"]);
            assert_eq!(document.value, value::decode(&protobuf).unwrap(), "{name}");
            assert_eq!(open(&frame).unwrap().protobuf().unwrap(), protobuf, "{name}");
            assert_eq!(explain(&frame).unwrap().value, document.value, "{name}");
            // What is read of an old format is written in the newest.
            assert_eq!(decode(&encode(&document, Compression::None)).unwrap(), document, "{name}");
        }
    }
}

/// Lines of each file, and the XXH3-64 of their bytes.
const SHIPPED: [(usize, u64); 2] = [(16, 4_040_374_648_083_812_281), (42, 14_674_123_491_235_153_820)];

/// Lines are added at the end, with a new number here: those that are there stay as they are.
#[test]
fn no_golden_record_was_changed_or_taken_away() {
    for ((format, file), (lines, hash)) in GOLDEN.into_iter().zip(SHIPPED) {
        let shipped: String = file.split_inclusive('\n').take(lines).collect();
        assert_eq!(shipped.lines().count(), file.lines().count(), "format {format}: lines");
        assert_eq!(xxhash_rust::xxh3::xxh3_64(shipped.as_bytes()), hash, "format {format}: their bytes");
    }
}

const REFUSED_LINES: usize = 42;
/// Frames and bodies that no reader may take, and a part of what it must say. Each has a right checksum.
const REFUSED: &str = include_str!("../../../tests/golden/refused-2.ndjson");

#[test]
fn what_must_be_refused_is_refused_by_name() {
    let mut lines = 0;
    for line in REFUSED.lines() {
        let golden: serde_json::Value = serde_json::from_str(line).unwrap();
        let name = &golden["name"];
        let text = golden["record"].as_str().unwrap();
        let frame: Vec<u8> =
            (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect();
        assert!(frame[1] != FORMAT || header::check(&frame).is_ok(), "{name}: refused for its checksum");
        let fault = decode(&frame.into()).expect_err(&name.to_string());
        assert!(fault.to_string().contains(golden["says"].as_str().unwrap()), "{name}: {fault}");
        lines += 1;
    }
    assert_eq!(lines, REFUSED_LINES);
}
