//! The two encodings: what they say, what they refuse, and that they say the same.

use super::trials;
use crate::support::caller::{Caller, Json, Protobuf, brief};
use crate::support::wire;
use serde_json::{Value, json};

trials![
    every_kind_of_value_survives,
    both_encodings_say_the_same,
    an_empty_payload_is_an_empty_object,
    numbers_in_json,
    special_forms_in_json,
    malformed_special_forms,
    floats_read_back_the_same_bits,
    json_that_is_refused,
    json_is_one_object,
    null_means_absent,
    exact_numbers_for_languages_with_doubles,
    maps_keep_their_order,
    protobuf_that_is_refused,
    protobuf_ignores_unknown_fields,
    the_last_member_of_a_oneof_wins[Conditional],
    unknown_enum_numbers,
];

/// "Null, bool, integer (i64), float (f64), text (UTF-8), bytes, time (UTC, microseconds), list, map (text keys, order kept)."
async fn every_kind_of_value_survives(c: Caller) {
    for value in kinds() {
        c.put("a", value.clone()).await;
        assert_eq!(c.value("a").await, value);
    }
    let all = json!({"all": kinds()});
    c.put("a", all.clone()).await;
    assert_eq!(c.value("a").await, all);
}

/// "Protobuf ... or JSON ... The reply comes in the request's encoding": one record, two encodings, the same reply.
async fn both_encodings_say_the_same(c: Caller) {
    c.write("put", json!({"key": "a", "value": kinds(), "content_type": "x", "ttl_ms": 60_000})).await;
    let other = c.with_encoding(if c.encoding == Json { Protobuf } else { Json });
    let asked = [
        ("get", json!({"key": "a"})),
        ("get", json!({"key": "a", "head_only": true})),
        ("get", json!({"key": "missing"})),
        ("scan", json!({"limit": 10})),
        ("batch", json!({"ops": [{"get": {"key": "a"}}, {"touch": {"key": "missing", "ttl_ms": 1}}]})),
        ("update", json!({"key": "missing", "changes": [{"path": "a", "set": 1}]})),
        ("put", json!({"key": "a", "value": 1, "precondition": {"absent": true}})),
    ];
    for (op, request) in asked {
        let [mut one, mut two] =
            [c.call(op, request.clone()).await.body, other.call(op, request.clone()).await.body];
        for body in [&mut one, &mut two] {
            if body.get("age_ms").is_some() {
                body["age_ms"] = json!(0); // time passes between the two
            }
        }
        if one.get("error").is_some() {
            // Of a failed reply only the error and the outcome may be relied on.
            assert_eq!((&one["error"], &one["outcome"]), (&two["error"], &two["outcome"]), "{op} {request}");
        } else {
            let same = one == two || op == "batch" && one["results"][0] == two["results"][0];
            assert!(same, "{op} {request}:\n{}\n{}", brief(&one), brief(&two));
        }
    }
}

/// "an empty payload is an empty JSON object".
async fn an_empty_payload_is_an_empty_object(c: Caller) {
    let reply = c.call_raw("get", Vec::new(), &[]).await;
    reply.error("invalid_argument");
    assert_eq!(reply.encoding, Json);
    c.put("a", json!(1)).await;
    let reply = c.call_raw("scan", Vec::new(), &[]).await;
    assert_eq!((reply.encoding, reply.keys()), (Json, vec!["a".to_owned()]));
}

/// "A number with `.`, `e` or `E` is a float, else an integer; `-0` is the integer 0".
async fn numbers_in_json(c: Caller) {
    let (json, protobuf) = (c.with_encoding(Json), c.with_encoding(Protobuf));
    let table = [
        ("0", json!(0)),
        ("-0", json!(0)),
        ("1", json!(1)),
        ("9223372036854775807", json!(i64::MAX)),
        ("-9223372036854775808", json!(i64::MIN)),
        ("1.0", json!(1.0)),
        ("-0.0", json!(-0.0)),
        ("1e2", json!(100.0)),
        ("1E2", json!(100.0)),
        ("1e0", json!(1.0)),
        ("1.7976931348623157e308", json!(f64::MAX)),
        ("5e-324", json!(5e-324)),
        ("9223372036854775808.0", json!(9_223_372_036_854_775_808.0)),
    ];
    for (text, expected) in table {
        put_text(&json, text).await;
        // Read in both encodings: protobuf tells an integer from a float by its kind.
        assert_eq!(json.value("a").await, expected, "{text}");
        let value = protobuf.value("a").await;
        assert_eq!(value, expected, "{text}");
        let sign = |value: &Value| value.as_f64().map(f64::is_sign_negative);
        assert_eq!(sign(&value), sign(&expected), "{text}");
    }
}

/// "Special forms are objects with exactly one key out of `$bytes` (standard padded base64), `$time` (RFC 3339, any
/// offset, at most 6 fraction digits, years 0000-9999; written in UTC with `Z` and exactly 6 digits), `$float`, `$int`,
/// `$map` (... at that one level, are taken literally) ...; every other object is a plain map, `{"$foo":1}` and
/// `{"$bytes":"..","x":1}` included."
#[rustfmt::skip]
async fn special_forms_in_json(c: Caller) {
    let (json, protobuf) = (c.with_encoding(Json), c.with_encoding(Protobuf));
    let same = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let table = [
        (r#"{"$bytes":""}"#, json!({"$bytes": ""})),
        (r#"{"$bytes":"+/+/AA=="}"#, json!({"$bytes": "+/+/AA=="})),
        (r#"{"$time":"1970-01-01T00:00:00Z"}"#, json!({"$time": "1970-01-01T00:00:00.000000Z"})),
        (r#"{"$time":"2024-02-29T12:30:00.5+02:30"}"#, json!({"$time": "2024-02-29T10:00:00.500000Z"})),
        (r#"{"$time":"2024-01-01T00:00:00.123456-00:01"}"#, json!({"$time": "2024-01-01T00:01:00.123456Z"})),
        (r#"{"$time":"0000-01-01T00:00:00Z"}"#, json!({"$time": "0000-01-01T00:00:00.000000Z"})),
        (r#"{"$time":"9999-12-31T23:59:59.999999Z"}"#, json!({"$time": "9999-12-31T23:59:59.999999Z"})),
        (r#"{"$float":"nan"}"#, json!({"$float": "nan"})),
        (r#"{"$float":"inf"}"#, json!({"$float": "inf"})),
        (r#"{"$float":"-inf"}"#, json!({"$float": "-inf"})),
        (r#"{"$float":"1.5"}"#, json!(1.5)),
        (r#"{"$float":"1.0"}"#, json!(1.0)),
        (r#"{"$float":"-1e3"}"#, json!(-1000.0)),
        (r#"{"$int":"9223372036854775807"}"#, json!(i64::MAX)),
        (r#"{"$int":"-5"}"#, json!(-5)),
        (r#"{"$map":{}}"#, json!({})),
        (r#"{"$map":{"a":1,"b":2}}"#, json!({"a": 1, "b": 2})),
        (r#"{"$map":{"$int":"1"}}"#, json!({"$map": {"$int": "1"}})),
        (r#"{"$map":{"$bytes":{"$int":"7"}}}"#, json!({"$map": {"$bytes": 7}})),
        (r#"{"$map":{"$map":{"x":1}}}"#, json!({"$map": {"$map": {"x": 1}}})),
        (r#"{"$foo":1}"#, same(r#"{"$foo":1}"#)),
        (r#"{"$bytes":"..","x":1}"#, same(r#"{"$bytes":"..","x":1}"#)),
        (r#"{"$int":1,"$float":2}"#, same(r#"{"$int":1,"$float":2}"#)),
        (r#"{"$Bytes":5}"#, same(r#"{"$Bytes":5}"#)),
        (r#"{"a":{"$int":"5"}}"#, json!({"a": 5})),
    ];
    for (text, expected) in table {
        put_text(&json, text).await;
        assert_eq!(json.value("a").await, expected, "{text}");
        assert_eq!(protobuf.value("a").await, expected, "{text}");
    }
}

/// "malformed content is `invalid_argument`"; "A `$time` outside the years after conversion, or a leap second, is
/// `invalid_argument`."
#[rustfmt::skip]
async fn malformed_special_forms(c: Caller) {
    let c = c.with_encoding(Json);
    let wrong = [
        r#"{"$bytes":"A"}"#, r#"{"$bytes":"AAA"}"#, r#"{"$bytes":"AA"}"#, r#"{"$bytes":"-_-_AA=="}"#,
        r#"{"$bytes":"AA==\n"}"#, r#"{"$bytes":5}"#, r#"{"$bytes":null}"#,
        r#"{"$time":"2024-01-01"}"#, r#"{"$time":"2024-01-01T00:00:00"}"#, r#"{"$time":"2024-13-01T00:00:00Z"}"#,
        r#"{"$time":"2023-02-29T00:00:00Z"}"#, r#"{"$time":"2024-01-01T24:00:00Z"}"#,
        r#"{"$time":"2024-01-01T00:00:00.1234567Z"}"#, r#"{"$time":"2016-12-31T23:59:60Z"}"#,
        r#"{"$time":"0000-01-01T00:00:00+00:01"}"#, r#"{"$time":"9999-12-31T23:59:59-00:01"}"#,
        r#"{"$time":"10000-01-01T00:00:00Z"}"#, r#"{"$time":0}"#, r#"{"$time":""}"#,
        r#"{"$float":"x"}"#, r#"{"$float":""}"#, r#"{"$float":1.5}"#, r#"{"$float":"1e999"}"#,
        r#"{"$int":"1.5"}"#, r#"{"$int":""}"#, r#"{"$int":5}"#, r#"{"$int":"9223372036854775808"}"#,
        r#"{"$map":[]}"#, r#"{"$map":1}"#, r#"{"$map":null}"#, r#"{"$map":{"a":{"$int":"x"}}}"#,
    ];
    for text in wrong {
        refuse_text(&c, text).await;
    }
    // In protobuf a time is a number: one outside the years is no time either.
    let mut beyond = Vec::new();
    wire::varint_field(&mut beyond, 7, ((253_402_300_800_i64 * 1_000_000) << 1) as u64);
    c.call_raw("put", put_bytes("a", &beyond), &[]).await.error("invalid_argument");
}

/// "Floats are written so that they read back the same bits and as floats (`1.0`)."
async fn floats_read_back_the_same_bits(c: Caller) {
    let mut floats =
        vec![0.1, 1.0, -0.0, 1e16, 1e17, 1e22, 1e300, f64::MIN_POSITIVE, 5e-324, f64::MAX, 0.3, 2.5e-8];
    floats.extend(
        std::iter::repeat_with(|| f64::from_bits(fastrand::u64(..))).filter(|f| f.is_finite()).take(300),
    );
    c.put("a", json!(floats)).await;
    for c in [c.with_encoding(Json), c.with_encoding(Protobuf)] {
        let value = c.value("a").await;
        let read = value.as_array().unwrap();
        for (float, read) in floats.iter().zip(read) {
            assert!(read.is_f64(), "{float:?} is written as a float, not as {read}");
            assert_eq!(read.as_f64().map(f64::to_bits), Some(float.to_bits()), "{float:?}");
        }
    }
}

/// "An unknown field is `invalid_argument` and is named"; "Duplicate keys in any object ...: `invalid_argument`"; "an
/// integer beyond i64 or a float that overflows is `invalid_argument`, never rounded".
#[rustfmt::skip]
async fn json_that_is_refused(c: Caller) {
    let c = c.with_encoding(Json);
    let requests = [
        r#"{"#, r#"{"key"}"#, r#"{"key":}"#, r#"{"key":"a",}"#, r#"{"key":"a" "value":1}"#, r#"{key:"a"}"#,
        r#"{'key':'a'}"#, r#"{"key":"a","value":1"#, r#"{"key":"a","value":[1}"#, r#"{"key":"a","value":tru}"#,
        r#"{"key":"a","value":01}"#, r#"{"key":"a","value":1.}"#, r#"{"key":"a","value":.5}"#, r#"{"key":"a","value":+1}"#,
        r#"{"key":"a","value":NaN}"#, r#"{"key":"a","value":Infinity}"#, r#"{"key":"a","value":"\x"}"#,
        r#"{"key":"a","value":"\ud800"}"#, r#"{"key":"a","value":1}/**/"#, "{\"key\":\"a\",\"value\":\"\n\"}",
        r#"{"key":"a","key":"a","value":1}"#, r#"{"key":"a","value":1,"value":1}"#, r#"{"key":"a","value":{"x":1,"x":1}}"#,
        r#"{"key":"a","value":[{"b":{"x":1,"\u0078":1}}]}"#, r#"{"key":"a","value":{"$map":{"x":1,"x":1}}}"#,
        r#"{"key":"a","value":1,"precondition":{"exists":true,"exists":true}}"#,
        r#"{"key":"a","value":9223372036854775808}"#, r#"{"key":"a","value":-9223372036854775809}"#,
        r#"{"key":"a","value":123456789012345678901234567890}"#, r#"{"key":"a","value":1e309}"#,
        r#"{"key":"a","value":-1e309}"#, r#"{"key":"a","value":[1e99999]}"#,
        r#"{"key":1,"value":1}"#, r#"{"key":["a"],"value":1}"#, r#"{"key":"a","value":1,"ttl_ms":"5"}"#,
        r#"{"key":"a","value":1,"ttl_ms":1.5}"#, r#"{"key":"a","value":1,"ttl_ms":9223372036854775808}"#,
        r#"{"key":"a","value":1,"keep_ttl":1}"#, r#"{"key":"a","value":1,"keep_ttl":"true"}"#,
        r#"{"key":"a","value":1,"op_id":5}"#, r#"{"key":"a","value":1,"precondition":[]}"#,
    ];
    for request in requests {
        refuse(&c, request.as_bytes()).await;
    }
    for (request, field) in [
        (r#"{"key":"a","value":1,"colour":1}"#, "colour"),
        (r#"{"key":"a","value":1,"Key":"a"}"#, "Key"),
        (r#"{"key":"a","value":1,"opId":"a"}"#, "opId"),
        (r#"{"key":"a","value":1,"colour":null}"#, "colour"),
        (r#"{"key":"a","value":1,"precondition":{"missing":true}}"#, "missing"),
    ] {
        let reply = c.call_raw("put", request.as_bytes().to_vec(), &[]).await;
        reply.error("invalid_argument");
        assert!(reply.message().contains(field), "{field} is named: {}", reply.message());
    }
    for request in [r#"{"key":"a","consistency":"STRONG"}"#, r#"{"key":"a","consistency":1}"#, r#"{"key":"a","fields":"a"}"#,
        r#"{"key":"a","fields":[1]}"#] {
        c.call_raw("get", request.as_bytes().to_vec(), &[]).await.error("invalid_argument");
    }
    for request in [r#"{"limit":-1}"#, r#"{"limit":4294967296}"#, r#"{"limit":1.0}"#] {
        c.call_raw("scan", request.as_bytes().to_vec(), &[]).await.error("invalid_argument");
    }
    assert!(!c.found("a").await);
}

/// "white space or a BOM before the `{`, bytes after the object: `invalid_argument`."
async fn json_is_one_object(c: Caller) {
    let object = r#"{"key":"a","value":1}"#;
    for before in [" ", "\n", "\t", "\r\n", "\u{feff}", "["] {
        let reply = c.call_raw("put", format!("{before}{object}").into_bytes(), &[]).await;
        reply.error("invalid_argument");
    }
    for after in ["{}", "\n", "x", "\0", "]", ",", "1"] {
        refuse(&c, format!("{object}{after}").as_bytes()).await;
    }
    refuse(&c, b"{\"key\":\"a\",\"value\":\"\xff\"}").await;
    assert!(!c.found("a").await);
}

/// "`null` for a field that is not a Value means absent."
async fn null_means_absent(c: Caller) {
    let c = c.with_encoding(Json);
    let put = json!({"key": "a", "value": null, "content_type": null, "precondition": null, "ttl_ms": null,
        "keep_ttl": null, "op_id": null, "op_age_ms": null});
    c.call("put", put).await.applied();
    let get = json!({"key": "a", "consistency": null, "max_staleness_ms": null, "min_version": null,
        "head_only": null, "fields": null});
    assert_eq!(c.call("get", get).await.record().get("value"), Some(&Value::Null));
    let scan = json!({"prefix": null, "start": null, "end": null, "limit": null, "max_bytes": null, "cursor": null,
        "reverse": null, "keys_only": null, "consistency": null});
    assert_eq!(c.keys(scan).await, ["a"]);
    c.call("get", json!({"key": null})).await.error("invalid_argument");
}

/// "With the request header `Ds-Json: exact` replies use `$int` for integers beyond ±2^53 and `$float` for whole floats".
async fn exact_numbers_for_languages_with_doubles(c: Caller) {
    const EXACT: i64 = 1 << 53;
    let value = json!([1, EXACT - 1, EXACT + 1, -EXACT - 1, i64::MIN, 1.5, 1.0, -3.0]);
    c.put("a", value.clone()).await;
    let reply = c.call_with("get", json!({"key": "a"}), &[("Ds-Json", "exact")]).await;
    if c.encoding == Protobuf {
        assert_eq!(reply.record()["value"], value, "protobuf is exact as it is");
        return;
    }
    let read = &reply.record()["value"];
    let int = |int: i64| json!({"$int": int.to_string()});
    let exact = json!([1, EXACT - 1, int(EXACT + 1), int(-EXACT - 1), int(i64::MIN), 1.5]);
    assert_eq!(read.as_array().unwrap()[..6], exact.as_array().unwrap()[..]);
    for (at, float) in [(6, 1.0), (7, -3.0)] {
        let text = read[at]["$float"].as_str().unwrap_or_else(|| panic!("{} is a $float", read[at]));
        assert_eq!(text.parse(), Ok(float));
    }
    // What was read so can be sent back so.
    c.put("b", read.clone()).await;
    assert_eq!(c.value("b").await, value);
}

/// "map (text keys, order kept)".
async fn maps_keep_their_order(c: Caller) {
    let (json, protobuf) = (c.with_encoding(Json), c.with_encoding(Protobuf));
    let text = r#"{"z":1,"a":{"y":[],"b":null},"m":true,"":0}"#;
    let inner = map(&[("y", b"\x42\x00".to_vec()), ("b", b"\x08\x01".to_vec())]);
    let entries = [("z", int(1)), ("a", inner), ("m", b"\x10\x01".to_vec()), ("", int(0))];
    match c.encoding {
        Json => put_text(&json, text).await,
        Protobuf => _ = c.call_raw("put", put_of_map("a", &entries), &[]).await.applied(),
    }
    let reply = json.call("get", json!({"key": "a"})).await;
    let compact: String = String::from_utf8_lossy(&reply.bytes).split_whitespace().collect();
    assert!(compact.contains(text), "the order is kept: {compact}");
    let reply = protobuf.call("get", json!({"key": "a"})).await;
    let keys: Vec<_> = [&b"\x0a\x01z"[..], b"\x0a\x01y", b"\x0a\x01b", b"\x0a\x01m"].into();
    let at = keys.iter().map(|key| reply.bytes.windows(3).position(|bytes| bytes == *key).expect("each key"));
    assert!(at.collect::<Vec<_>>().is_sorted(), "the order is kept");
}

/// "A Value of no kind, or a key twice in one map, is `invalid_argument`"; truncated and nonsensical payloads too.
async fn protobuf_that_is_refused(c: Caller) {
    let c = c.with_encoding(Protobuf);
    let twice = map(&[("x", int(1)), ("x", int(1))]);
    let list_of_nothing = b"\x42\x02\x0a\x00".to_vec();
    let entry_of_nothing = b"\x4a\x05\x0a\x03\x0a\x01k".to_vec();
    let bad_text = b"\x2a\x02\xc3\x28".to_vec();
    let bad_key = b"\x4a\x09\x0a\x07\x0a\x01\xff\x12\x02\x18\x02".to_vec();
    for value in [vec![], twice, list_of_nothing, entry_of_nothing, bad_text, bad_key] {
        let reply = c.call_raw("put", put_bytes("a", &value), &[]).await;
        reply.error("invalid_argument");
        assert_eq!(reply.encoding, Protobuf);
    }
    let whole = put_bytes("a", &int(300));
    for cut in [1, 2, 4, 5, whole.len() - 1] {
        c.call_raw("put", whole[..cut].to_vec(), &[]).await.error("invalid_argument");
    }
    let nonsense: [&[u8]; 5] =
        [b"\xff\xff\xff", b"\x0a", b"\x0a\xff\xff\xff\xff\x0f", b"\x07\x00", b"\x08\xff"];
    for request in nonsense {
        c.call_raw("put", request.to_vec(), &[]).await.error("invalid_argument");
    }
    assert!(!c.found("a").await);
}

/// "Unknown protobuf fields are ignored, as proto3 does."
async fn protobuf_ignores_unknown_fields(c: Caller) {
    let c = c.with_encoding(Protobuf);
    let mut request = put_bytes("a", &int(5));
    wire::varint_field(&mut request, 99, 7);
    wire::bytes_field(&mut request, 1000, b"from the future");
    wire::double_field(&mut request, 98, 1.0);
    c.call_raw("put", request, &[]).await.applied();
    assert_eq!(c.value("a").await, 5);
}

/// "In protobuf the last of two oneof members wins".
async fn the_last_member_of_a_oneof_wins(c: Caller) {
    let c = c.with_encoding(Protobuf);
    // A value that is first an integer, then a text.
    let mut value = int(5);
    wire::bytes_field(&mut value, 5, b"text");
    c.call_raw("put", put_bytes("a", &value), &[]).await.applied();
    assert_eq!(c.value("a").await, "text");
    // A precondition that is first `absent`, then `exists`.
    let mut precondition = Vec::new();
    wire::varint_field(&mut precondition, 1, 1);
    wire::varint_field(&mut precondition, 2, 1);
    let mut request = put_bytes("a", &int(6));
    wire::bytes_field(&mut request, 4, &precondition);
    c.call_raw("put", request, &[]).await.applied();
    assert_eq!(c.value("a").await, 6);
}

/// "... and an unknown enum number are `invalid_argument`."
async fn unknown_enum_numbers(c: Caller) {
    let c = c.with_encoding(Protobuf);
    c.put("a", json!(1)).await;
    for number in [4, 99, 1_u32 << 31] {
        c.call("get", json!({"key": "a", "consistency": number})).await.error("invalid_argument");
        c.call("scan", json!({"limit": 5, "consistency": number})).await.error("invalid_argument");
    }
}

/// A value of every kind, and of each its corners.
#[rustfmt::skip]
fn kinds() -> Vec<Value> {
    vec![
        json!(null), json!(true), json!(false),
        json!(0), json!(-1), json!(i64::MAX), json!(i64::MIN), json!((1_i64 << 53) + 1),
        json!(0.0), json!(-1.5), json!(1e300), json!({"$float": "nan"}), json!({"$float": "inf"}), json!({"$float": "-inf"}),
        json!(""), json!("text"), json!("é 中 🦀 \u{0} \n \" \\ \u{7f} \u{2028}"),
        json!({"$bytes": ""}), json!({"$bytes": "AAH+/w=="}),
        json!({"$time": "1970-01-01T00:00:00.000000Z"}), json!({"$time": "1969-12-31T23:59:59.999999Z"}),
        json!({"$time": "0000-01-01T00:00:00.000000Z"}), json!({"$time": "9999-12-31T23:59:59.999999Z"}),
        json!([]), json!([[], [null, 1, 1.0, "1"]]),
        json!({}), json!({"": 0, "a": {"b": {}}, "$": 1, "$foo": 2}), json!({"$map": {"$time": "not a time"}}),
    ]
}

/// Lists in lists, `depth` of them; the innermost is empty.
pub(super) fn nested(depth: usize) -> Value {
    (1..depth).fold(json!([]), |inner, _| json!([inner]))
}

/// The protobuf Value of an integer.
pub(super) fn int(int: i64) -> Vec<u8> {
    wire::encode_value(&json!(int))
}

/// The protobuf Value of a map, its entries in this order.
pub(super) fn map(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut value = Vec::new();
    wire::bytes_field(&mut value, 9, &wire::map_bytes(entries));
    value
}

/// A PutRequest of such a map.
pub(super) fn put_of_map(key: &str, entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    put_bytes(key, &map(entries))
}

/// A PutRequest of a Value that is already encoded.
fn put_bytes(key: &str, value: &[u8]) -> Vec<u8> {
    let mut request = Vec::new();
    wire::bytes_field(&mut request, 1, key.as_bytes());
    wire::bytes_field(&mut request, 2, value);
    request
}

/// Puts JSON text as the value of key `a`, as it stands.
async fn put_text(c: &Caller, value: &str) {
    let reply = c.call_raw("put", format!(r#"{{"key":"a","value":{value}}}"#).into_bytes(), &[]).await;
    assert!(reply.body.get("error").is_none(), "{value}: {}", reply.message());
}

async fn refuse_text(c: &Caller, value: &str) {
    refuse(c, format!(r#"{{"key":"a","value":{value}}}"#).as_bytes()).await;
}

/// A put that is refused as malformed, in JSON.
async fn refuse(c: &Caller, request: &[u8]) {
    let reply = c.call_raw("put", request.to_vec(), &[]).await;
    let code = &reply.body["error"]["code"];
    assert_eq!(code, "invalid_argument", "{}", String::from_utf8_lossy(request));
    assert_eq!((&reply.body["outcome"], reply.encoding), (&json!("refused"), Json));
}
