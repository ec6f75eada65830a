//! Writes the inputs that the corpus grew from: `cargo run --example seeds FOLDER`, one folder inside for each
//! target. Requests and documents are those of the tests, in both encodings, with edge cases made by hand.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use datastore::codec::stored::{self, Compression};
use datastore::codec::{body, json, message, value};
use datastore::model::limits::{BATCH_OPS_MAX, DEPTH_MAX};
use datastore::model::reply::{
    BatchReply, BatchResult, Durability, GetReply, Reply, ScanReply, Source, WriteReply,
};
use datastore::model::{Code, Document, Error, Key, Outcome, Record, Value, Version};
use datastore::store::cursor;

const OPS: [&str; 7] = ["get", "put", "delete", "update", "touch", "batch", "scan"];
const OP_ALONE: u8 = 7;
const DOCUMENT: u8 = 8;
const REPLIES_FROM: u8 = 9;

const REQUESTS: [(&str, &str); 28] = [
    ("get", ""),
    ("get", r#"{"key":"a"}"#),
    (
        "get",
        r#"{"key":"k","consistency":"bounded","max_staleness_ms":5,"min_version":"01a20a6ce34400003cc06ae31282eff1","head_only":true,"fields":["a",""]}"#,
    ),
    ("get", r#"{"key":null,"consistency":"strong","fields":null}"#),
    ("put", r#"{"key":"a","value":1}"#),
    (
        "put",
        r#"{"key":"user:1","value":{"name":"Ada","logins":1,"langs":["analytical engine"]},"content_type":"application/json","ttl_ms":60000}"#,
    ),
    (
        "put",
        r#"{"key":"k","value":null,"content_type":"c","precondition":{"absent":true,"version":"v"},"ttl_ms":-1,"keep_ttl":true,"op_id":"o","op_age_ms":2}"#,
    ),
    ("put", r#"{"key":"k","value":1e999}"#),
    ("put", r#"{"key":"k","value":{"$time":"2024-02-30T00:00:00Z"}}"#),
    ("put", r#"{"key":"a","value":1,"precondition":{"absent":true}}"#),
    ("delete", r#"{"key":"k","precondition":{"exists":false},"op_id":"o","op_age_ms":2}"#),
    ("delete", r#"{"key":"k","precondition":{"version":"01a20a6ce34400003cc06ae31282eff1"}}"#),
    ("delete", r#"{"key":"k","precondition":{}}"#),
    (
        "update",
        r#"{"key":"k","changes":[{"path":"p","set":null}],"precondition":{},"create":true,"return_record":true,"ttl_ms":3,"op_id":"o","op_age_ms":2}"#,
    ),
    (
        "update",
        r#"{"key":"c","changes":[{"path":"n","increment":1},{"path":"l","append":"x"},{"path":"m","min":1.5},{"path":"m","max":-0.0},{"path":"s","add_to_set":[1]},{"path":"s","remove_from_set":{"a":{}}},{"path":"a\\.b.0","unset":true}]}"#,
    ),
    ("update", r#"{"key":"c","changes":[{"path":"n"},{"unset":false},{"set":{"$int":"x"}}]}"#),
    ("touch", r#"{"key":"k","ttl_ms":3,"op_id":"o","op_age_ms":2}"#),
    ("touch", r#"{"key":"k","ttl_ms":-9223372036854775808}"#),
    ("batch", r#"{"ops":[],"atomic":true}"#),
    ("batch", r#"{"ops":[{"get":{"key":"a"}},{"touch":{"key":"missing","ttl_ms":1}}]}"#),
    (
        "batch",
        r#"{"ops":[{"put":{"key":"a","value":{"$bytes":"+/8="}}},{"delete":{"key":"b"}},{"update":{"key":"c","changes":[{"path":"a","set":1}]}}],"atomic":true}"#,
    ),
    ("batch", r#"{"ops":[{"put":{"key":"a","value":{"$bytes":"+"}}},{"put":null,"get":{}}]}"#),
    ("batch", r#"{"ops":[{"scan":{}}]}"#),
    ("scan", r#"{"limit":10}"#),
    (
        "scan",
        r#"{"prefix":"p","start":"s","end":"e","limit":4294967295,"max_bytes":7,"cursor":"c","reverse":true,"keys_only":true,"consistency":"eventual"}"#,
    ),
    ("scan", r#"{"limit":-1}"#),
    ("scan", r#"{"consistency":"STRONG"}"#),
    ("put", r#"{"key":"k","foo":{"deep":[[[]]]}}"#),
];

const DOCUMENTS: [&str; 46] = [
    "null",
    "true",
    "false",
    "0",
    "-0",
    "9223372036854775807",
    "-9223372036854775808",
    "9223372036854775808",
    "9007199254740993",
    "1.0",
    "-0.0",
    "1E2",
    "-1.5e+0",
    "1e-999",
    "1e309",
    "5e-324",
    "1.7976931348623157e308",
    r#""""#,
    r#""a\"\\\/\b\f\n\r\t\u0001é😀""#,
    r#""\ud83d\ude00\u20ac""#,
    r#""\ud83d""#,
    r#""\u00""#,
    r#"{"$bytes":""}"#,
    r#"{"$bytes":"+/+/AA=="}"#,
    r#"{"$bytes":"+/9="}"#,
    r#"{"$bytes":1}"#,
    r#"{"$time":"1970-01-01T00:00:00Z"}"#,
    r#"{"$time":"2024-02-29T12:30:00.5+02:30"}"#,
    r#"{"$time":"0000-01-01T00:00:00Z"}"#,
    r#"{"$time":"9999-12-31t23:59:59.999999z"}"#,
    r#"{"$float":"nan"}"#,
    r#"{"$float":"-inf"}"#,
    r#"{"$float":"1.5e3"}"#,
    r#"{"$int":"-9223372036854775808"}"#,
    r#"{"$int":"01"}"#,
    r#"{"$map":{"$map":{"$int":"x"}}}"#,
    r#"{"$map":{}}"#,
    r#"{"$foo":1}"#,
    r#"{"\u0024int":"1"}"#,
    r#"{"a":1,"a":2}"#,
    "[]",
    "{}",
    " [ 1 , { } , [ null ] ] ",
    r#"{"b":1,"a":null,"":[{"x":{"y":[1,2,3.5,"z"]}}]}"#,
    "[1,]",
    "{\"a\" 1}",
];

fn main() {
    let folder = PathBuf::from(std::env::args().nth(1).expect("usage: seeds FOLDER"));
    let mut seeds = Seeds { folder, written: 0 };
    requests(&mut seeds);
    documents(&mut seeds);
    replies(&mut seeds);
    cursors(&mut seeds);
}

struct Seeds {
    folder: PathBuf,
    written: usize,
}

impl Seeds {
    fn add(&mut self, target: &str, parts: &[&[u8]]) {
        let folder = self.folder.join(target);
        fs::create_dir_all(&folder).expect("the folder can be made");
        fs::write(Path::new(&folder).join(format!("seed-{:03}", self.written)), parts.concat())
            .expect("the seed can be written");
        self.written += 1;
    }
}

fn op_number(op: &str) -> u8 {
    let found = OPS.iter().position(|name| *name == op).expect("one of seven");
    u8::try_from(found).expect("one of seven")
}

fn requests(seeds: &mut Seeds) {
    for (op, text) in REQUESTS {
        seeds.add("json", &[&[op_number(op)], text.as_bytes()]);
        if let Ok(request) = json::decode_request(op, text.as_bytes()) {
            seeds.add("wire", &[&[op_number(op)], &message::encode_request(&request)]);
        }
        if op == "put" || op == "update" {
            seeds.add("json", &[&[OP_ALONE], format!(" {{\"{op}\":{text}}}\r\n").as_bytes()]);
        }
    }
    // More operations than a batch may hold, then many of what is short on the wire and large in memory.
    let past = BATCH_OPS_MAX + 25;
    seeds.add(
        "json",
        &[&[5], format!(r#"{{"ops":[{}{{"get":{{}}}}]}}"#, r#"{"get":{}},"#.repeat(past)).as_bytes()],
    );
    for empty in [[10, 2, 10, 0], [10, 2, 18, 0], [10, 2, 34, 0]] {
        seeds.add("wire", &[&[5], &empty.repeat(past)]);
    }
    for (op, field) in [("update", [18, 0]), ("get", [50, 0])] {
        seeds.add("wire", &[&[op_number(op)], &field.repeat(past)]);
    }
    let changes = |change: &str| format!(r#"{{"changes":[{}{change}]}}"#, format!("{change},").repeat(past));
    for change in ["{}", r#"{"set":[[1]]}"#] {
        seeds.add("json", &[&[op_number("update")], changes(change).as_bytes()]);
    }
    seeds.add("json", &[&[0], format!(r#"{{"fields":[{}""]}}"#, "\"\",".repeat(past)).as_bytes()]);
}

fn documents(seeds: &mut Seeds) {
    let mut texts: Vec<String> = DOCUMENTS.map(str::to_owned).to_vec();
    for levels in [DEPTH_MAX, DEPTH_MAX + 1, 170] {
        texts.push(format!("{}{}", "[".repeat(levels), "]".repeat(levels)));
        texts.push(format!("{}1{}", "{\"k\":".repeat(levels), "}".repeat(levels)));
        texts.push(format!("{}1{}", "{\"$map\":{\"$map\":".repeat(levels / 2), "}}".repeat(levels / 2)));
    }
    texts.push(format!("[{}1]", "1,".repeat(1030)));
    texts.push(format!("[{}1]", "[[[[1]]]],".repeat(260)));
    let entries: Vec<String> = (0..20).map(|number| format!("\"{number}\":{number}")).collect();
    texts.push(format!("{{{}}}", entries.join(",")));
    texts.push(format!("{{{},\"0\":0}}", entries.join(",")));
    for text in texts {
        seeds.add("json", &[&[DOCUMENT], text.as_bytes()]);
        let Ok(value) = json::parse_value(text.as_bytes()) else { continue };
        seeds.add("wire", &[&[1], &value::encode(&value)]);
        let content_type = if text.len() % 2 == 0 { "application/json" } else { "" };
        let document = Document {
            value,
            content_type: content_type.to_owned(),
            updated_at_ms: 1_700_000_000_000,
            schema: u32::from(text.len() % 3 == 0),
        };
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
            seeds.add("record", &[&stored::encode(&document, compression)]);
        }
        // As the target reads a body: not packed, and no length.
        seeds.add("record", &[&[0; 3], &body::encode(&document.value)]);
    }
    // Bytes that are no document: a value of no kind, twice the same key, groups, numbers of too many bits,
    // and entries of two bytes, which are what takes the most memory.
    let entries = |count: usize| {
        let length = 2 * count;
        let map = [vec![0x4a, (length & 0x7f) as u8 | 0x80, (length >> 7) as u8], [0x0a, 0].repeat(count)];
        map.concat()
    };
    for bytes in [
        &[0x42, 2, 0x0a, 0][..],
        &[0x4a, 18, 0x0a, 7, 0x0a, 1, b'a', 0x12, 2, 0x18, 1, 0x0a, 7, 0x0a, 1, b'a', 0x12, 2, 0x18, 1],
        &[0x7b, 0x08, 1, 0x73, 0x74, 0x7c, 0x18, 2],
        &[0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02],
        &[0x7a, 1, 0xff, 0x18, 2, 0x7d, 1, 2, 3, 4, 0x79, 1, 2, 3, 4, 5, 6, 7, 8],
        &[0x21, 1, 0, 0, 0, 0, 0, 0xf8, 0x7f],
        &[0x38, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
        &entries(1025),
        &[0x7b].repeat(1025),
    ] {
        seeds.add("wire", &[&[0], bytes]);
        let length = u8::try_from(bytes.len() & 0x7f).expect("seven bits");
        let value = [&[0x0a, length | 0x80, (bytes.len() >> 7) as u8][..], bytes].concat();
        let body = u32::try_from(value.len()).expect("short").to_le_bytes();
        seeds.add("record", &[&[0xda, 1, 0, 0, 0, 0, 0, 0], &body, &[0; 4], &value]);
    }
    for header in [[0xda, 2, 0, 0], [0xda, 1, 1, 0], [0xda, 9, 0, 0], [0, 1, 0, 0]] {
        seeds.add("record", &[&header, &[0; 16]]);
    }
}

fn replies(seeds: &mut Seeds) {
    let version = Version { hlc: 0x01a2_0a6c_e344_0000, origin: 0x3cc0_6ae3_1282_eff1 };
    let document = json::parse_value(br#"{"a":[1,1.0,null,{"$bytes":"AA=="},9007199254740993]}"#);
    let record = |value: Option<Value>| Record {
        key: Key::parse("user:1").expect("a good key"),
        value,
        version,
        updated_at_ms: 12,
        expires_at_ms: 9,
        content_type: "t".to_owned(),
        schema: 4,
    };
    let full = record(Some(document.expect("a good document")));
    let mut error = Error::conflict("the precondition on \"user:1\" failed", Some(version));
    (error.retry_after_ms, error.details) = (3, vec!["0".to_owned(), String::new()]);
    let found =
        GetReply { found: true, record: Some(full.clone()), source: Source::Pending, ..GetReply::default() };
    let applied = WriteReply {
        error: None,
        outcome: Outcome::Applied,
        version: Some(version),
        durability: Durability::Backend,
        duplicate: true,
        read_your_write: true,
        record: Some(record(None)),
        existed: Some(false),
    };
    let results = vec![
        BatchResult::Get(found.clone()),
        BatchResult::Write(applied.clone()),
        BatchResult::Write(Error::new(Code::NotFound, "m").into()),
    ];
    let scan = ScanReply {
        records: vec![full, record(None)],
        cursor: "c".to_owned(),
        age_ms: -1,
        stale: true,
        pending: true,
        ..ScanReply::default()
    };
    let past = BATCH_OPS_MAX + 25;
    let many = |each: [u8; 4]| Bytes::from(each.repeat(past));
    for (op, reply) in [
        ("get", Reply::Get(GetReply::default())),
        ("get", Reply::Get(found)),
        ("get", Reply::Get(error.clone().into())),
        ("put", Reply::Write(applied.clone())),
        ("delete", Reply::Write(applied)),
        ("update", Reply::Write(error.clone().into())),
        ("touch", Reply::Write(Error::new(Code::Indeterminate, "m").into())),
        ("batch", Reply::Batch(BatchReply { error: None, results })),
        ("scan", Reply::Scan(scan)),
        ("scan", Reply::Scan(error.into())),
    ] {
        let bytes = message::encode_reply(&reply);
        seeds.add("wire", &[&[op_number(op)], &bytes]);
        seeds.add("json", &[&[REPLIES_FROM + op_number(op)], &bytes]);
    }
    for each in [[18, 2, 10, 0], [18, 2, 18, 0]] {
        seeds.add("wire", &[&[op_number("batch")], &many(each)]);
        seeds.add("json", &[&[REPLIES_FROM + op_number("batch")], &many(each)]);
    }
    seeds.add("wire", &[&[op_number("scan")], &[18, 0].repeat(past)]);
}

fn cursors(seeds: &mut Seeds) {
    for key in ["a", "user:1", "\u{10ffff}/€ x", &"k".repeat(1024)] {
        let key = Key::parse(key).expect("a good key");
        let text = cursor::write(&key, 0x0102_0304_0506_0708);
        seeds.add("cursor", &[text.as_bytes()]);
        seeds.add("cursor", &[&[1, 8, 7, 6, 5, 4, 3, 2, 1], key.as_str().as_bytes(), &[0; 4]]);
    }
    let long = [b'k'; 1025];
    for bytes in [
        &b"+/=="[..],
        b"AA",
        b"\x01\0\0\0\0\0\0\0\0\0\0\0\0",
        b"\x02bindings-key-crc",
        b"\x01bindings\xff-crc",
    ] {
        seeds.add("cursor", &[bytes]);
    }
    seeds.add("cursor", &[b"\x01bindings", &long, &[0; 4]]);
}
