//! Documents: [`Node`] -> [`Value`] -> text.
//!
//! What JSON has no type for is an object of exactly one key out of five: `$bytes`, `$time`, `$float`, `$int`,
//! `$map`. Every other object is a map. A map that would be read as a special form is written inside `$map`,
//! so that whatever is written is read back as it was.
//!
//! One thing does not survive: which NaN it was. JSON has no NaN and `"nan"` has no room for its other bits.

use std::borrow::Cow;
use std::fmt::{self, Write};

use base64::Engine;
use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;

use super::parse::{Fields, Node, is_float, is_number};
use super::{time, write as json};
use crate::model::key::shorten;
use crate::model::value::too_deep;
use crate::model::{Error, Map, Result, Value};

const BYTES: &str = "$bytes";
const TIME: &str = "$time";
const FLOAT: &str = "$float";
const INT: &str = "$int";
const MAP: &str = "$map";

/// The largest integer up to which a double tells each from its neighbours.
const DOUBLE_INT_MAX: u64 = 1 << 53;

// === reading ===

/// Reads a document of at most so many levels. An error here is the document's own, not its payload's.
pub(super) fn read(node: Node<'_>, levels_left: usize) -> Result<Value> {
    match node {
        Node::Null => Ok(Value::Null),
        Node::Bool(flag) => Ok(Value::Bool(flag)),
        Node::Number(number) if is_float(number) => float(number),
        Node::Number(number) => int(number),
        Node::Text(text) => Ok(Value::Text(text.into_owned())),
        Node::List(items) => list(items, levels_left),
        Node::Object(fields) => object(fields, levels_left),
        Node::TooDeep => Err(too_deep()),
    }
}

fn list(items: Vec<Node<'_>>, levels_left: usize) -> Result<Value> {
    let inside = levels_left.checked_sub(1).ok_or_else(too_deep)?;
    items.into_iter().map(|item| read(item, inside)).collect::<Result<_>>().map(Value::List)
}

fn object(mut fields: Fields<'_>, levels_left: usize) -> Result<Value> {
    if fields.len() != 1 || !is_special(&fields[0].0) {
        return map(fields, levels_left);
    }
    let (form, content) = fields.pop().expect("exactly one, as checked above");
    match (&*form, content) {
        (MAP, Node::Object(literal)) => map(literal, levels_left),
        (MAP, Node::TooDeep) => Err(too_deep()),
        (MAP, other) => Err(Error::invalid(format!("{MAP} holds {}, expected an object", other.type_name()))),
        (_, Node::Text(text)) => scalar(&form, &text),
        (_, other) => Err(Error::invalid(format!("{form} holds {}, expected text", other.type_name()))),
    }
}

fn map(fields: Fields<'_>, levels_left: usize) -> Result<Value> {
    let inside = levels_left.checked_sub(1).ok_or_else(too_deep)?;
    let entry = |(key, node): (Cow<'_, str>, Node<'_>)| Ok((key.into_owned(), read(node, inside)?));
    let entries = fields.into_iter().map(entry).collect::<Result<_>>()?;
    Map::from_entries(entries).map(Value::Map)
}

/// The special forms whose content is text.
fn scalar(form: &str, text: &str) -> Result<Value> {
    match form {
        BYTES => match STANDARD.decode(text) {
            Ok(bytes) => Ok(Value::Bytes(bytes.into())),
            Err(fault) => Err(Error::invalid(format!("{BYTES} is not standard padded base64: {fault}"))),
        },
        TIME => time::read(text).map(Value::Time),
        FLOAT => match text {
            "nan" => Ok(Value::Float(f64::NAN)),
            "inf" => Ok(Value::Float(f64::INFINITY)),
            "-inf" => Ok(Value::Float(f64::NEG_INFINITY)),
            number if is_number(number) => float(number),
            other => Err(malformed(FLOAT, other, "\"nan\", \"inf\", \"-inf\" or a number")),
        },
        // INT: the only one left of the five.
        _ if is_number(text) && !is_float(text) => int(text),
        _ => Err(malformed(INT, text, "an integer")),
    }
}

fn float(number: &str) -> Result<Value> {
    match number.parse::<f64>() {
        Ok(float) if float.is_finite() => Ok(Value::Float(float)),
        _ => Err(Error::invalid(format!("number {} is beyond 64-bit floats", shorten(number)))),
    }
}

fn int(number: &str) -> Result<Value> {
    let beyond = |_| Error::invalid(format!("integer {} is beyond 64 bits", shorten(number)));
    number.parse().map(Value::Int).map_err(beyond)
}

fn malformed(form: &str, found: &str, expected: &str) -> Error {
    Error::invalid(format!("{form} holds {:?}, expected {expected}", shorten(found)))
}

fn is_special(key: &str) -> bool {
    matches!(key, BYTES | TIME | FLOAT | INT | MAP)
}

// === writing ===

/// Writes a document. `exact` marks the numbers that a reader whose numbers are doubles would change.
pub(super) fn write<W: Write>(out: &mut W, value: &Value, exact: bool) -> fmt::Result {
    match value {
        Value::Null => out.write_str("null"),
        Value::Bool(flag) => write!(out, "{flag}"),
        Value::Int(number) if exact && number.unsigned_abs() > DOUBLE_INT_MAX => {
            write!(out, "{{\"{INT}\":\"{number}\"}}")
        }
        Value::Int(number) => write!(out, "{number}"),
        Value::Float(number) => write_float(out, *number, exact),
        Value::Text(text) => json::string(out, text),
        Value::Bytes(bytes) => write!(out, "{{\"{BYTES}\":\"{}\"}}", Base64Display::new(bytes, &STANDARD)),
        Value::Time(us) => {
            write!(out, "{{\"{TIME}\":\"")?;
            time::write(out, *us)?;
            out.write_str("\"}")
        }
        Value::List(items) => json::list(out, items, |out, item| write(out, item, exact)),
        Value::Map(map) if reads_as_special(map) => {
            write!(out, "{{\"{MAP}\":")?;
            write_map(out, map, exact)?;
            out.write_char('}')
        }
        Value::Map(map) => write_map(out, map, exact),
    }
}

fn write_map<W: Write>(out: &mut W, map: &Map, exact: bool) -> fmt::Result {
    out.write_char('{')?;
    for (index, (key, value)) in map.iter().enumerate() {
        if index > 0 {
            out.write_char(',')?;
        }
        json::string(out, key)?;
        out.write_char(':')?;
        write(out, value, exact)?;
    }
    out.write_char('}')
}

/// `Debug` writes the shortest digits that read back the same bits, always with a `.` or an `e`.
fn write_float(out: &mut impl Write, number: f64, exact: bool) -> fmt::Result {
    if number.is_nan() {
        write!(out, "{{\"{FLOAT}\":\"nan\"}}")
    } else if number.is_infinite() || exact && number.fract() == 0.0 {
        // An infinity is written `inf` or `-inf`.
        write!(out, "{{\"{FLOAT}\":\"{number:?}\"}}")
    } else {
        write!(out, "{number:?}")
    }
}

fn reads_as_special(map: &Map) -> bool {
    map.len() == 1 && map.iter().all(|(key, _)| is_special(key))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::codec::json::{parse_value, value_len, value_to_string};
    use crate::codec::value::tests::{any_value, nested};
    use crate::model::limits::DEPTH_MAX;
    use crate::model::{Code, Map, Value};

    fn read(json: &str) -> Value {
        parse_value(json.as_bytes()).unwrap_or_else(|error| panic!("{json}: {error}"))
    }

    fn fails(json: &str, words: &str) {
        match parse_value(json.as_bytes()) {
            Ok(value) => panic!("{json} gave {value:?}"),
            Err(error) => {
                assert_eq!(error.code, Code::InvalidArgument);
                assert!(error.message.contains(words), "{json}: {error}");
            }
        }
    }

    fn map(entries: Vec<(&str, Value)>) -> Value {
        let entries = entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        Value::Map(Map::from_entries(entries).unwrap())
    }

    /// The document with every NaN the one that JSON gives back.
    fn one_nan(value: Value) -> Value {
        match value {
            Value::Float(number) if number.is_nan() => Value::Float(f64::NAN),
            Value::List(items) => Value::List(items.into_iter().map(one_nan).collect()),
            Value::Map(map) => {
                let entries = map.into_iter().map(|(key, value)| (key, one_nan(value))).collect();
                Value::Map(Map::from_entries(entries).unwrap())
            }
            other => other,
        }
    }

    proptest! {
        #[test]
        fn any_document_survives_and_its_length_is_foretold(value in any_value(), exact: bool) {
            let json = value_to_string(&value, exact);
            prop_assert_eq!(json.len(), value_len(&value, exact));
            prop_assert_eq!(parse_value(json.as_bytes()).unwrap(), one_nan(value), "{}", json);
        }

        #[test]
        fn exact_documents_survive_a_reader_of_doubles(number: i64) {
            let json = value_to_string(&Value::Int(number), true);
            if let Ok(double) = json.parse::<f64>() {
                prop_assert_eq!(double as i64, number);
            }
        }
    }

    #[test]
    fn the_same_value_is_read_and_written() {
        for (value, json) in [
            (Value::Null, "null"),
            (Value::Bool(true), "true"),
            (Value::Int(0), "0"),
            (Value::Int(i64::MIN), "-9223372036854775808"),
            (Value::Int(i64::MAX), "9223372036854775807"),
            (Value::Float(1.0), "1.0"),
            (Value::Float(-0.0), "-0.0"),
            (Value::Float(0.1), "0.1"),
            (Value::Float(1e300), "1e300"),
            (Value::Float(1e16), "1e16"),
            (Value::Float(f64::MAX), "1.7976931348623157e308"),
            (Value::Float(5e-324), "5e-324"),
            (Value::Float(f64::NAN), r#"{"$float":"nan"}"#),
            (Value::Float(f64::INFINITY), r#"{"$float":"inf"}"#),
            (Value::Float(f64::NEG_INFINITY), r#"{"$float":"-inf"}"#),
            (Value::from("a\"\u{1}é"), r#""a\"\u0001é""#),
            (Value::Bytes(vec![0xfb, 0xff].into()), r#"{"$bytes":"+/8="}"#),
            (Value::Bytes(vec![].into()), r#"{"$bytes":""}"#),
            (Value::Time(1), r#"{"$time":"1970-01-01T00:00:00.000001Z"}"#),
            (Value::List(vec![Value::Int(1), Value::List(vec![])]), "[1,[]]"),
            (map(vec![]), "{}"),
            (map(vec![("b", Value::Int(1)), ("a", Value::Null)]), r#"{"b":1,"a":null}"#),
            (map(vec![("$foo", Value::Int(1))]), r#"{"$foo":1}"#),
            (map(vec![("$bytes", Value::from("..")), ("x", Value::Int(1))]), r#"{"$bytes":"..","x":1}"#),
            (map(vec![("$bytes", Value::from("x"))]), r#"{"$map":{"$bytes":"x"}}"#),
            (map(vec![("$map", map(vec![]))]), r#"{"$map":{"$map":{}}}"#),
            (map(vec![("$int", Value::Bytes(vec![].into()))]), r#"{"$map":{"$int":{"$bytes":""}}}"#),
        ] {
            assert_eq!(value_to_string(&value, false), json);
            assert_eq!(read(json), value, "{json}");
        }
    }

    #[test]
    fn other_spellings_are_read() {
        for (json, value) in [
            ("-0", Value::Int(0)),
            (" 1\n", Value::Int(1)),
            ("1E2", Value::Float(100.0)),
            ("1e-999", Value::Float(0.0)),
            ("-1.5e+0", Value::Float(-1.5)),
            (r#"{"$float":"1"}"#, Value::Float(1.0)),
            (r#"{"$float":"-0"}"#, Value::Float(-0.0)),
            (r#"{"$float":"1.5e3"}"#, Value::Float(1500.0)),
            (r#"{"$int":"-0"}"#, Value::Int(0)),
            (r#"{"$int":"-9223372036854775808"}"#, Value::Int(i64::MIN)),
            (r#"{"$map":{}}"#, map(vec![])),
            (r#"{"$map":{"a":1}}"#, map(vec![("a", Value::Int(1))])),
            (r#"{"$map":{"$map":{"$map":{}}}}"#, map(vec![("$map", map(vec![]))])),
            (r#"{"\u0024int":"1"}"#, Value::Int(1)),
            (r#"{"$time":"1970-01-01T01:00:00+01:00"}"#, Value::Time(0)),
        ] {
            assert_eq!(read(json), value, "{json}");
        }
    }

    #[test]
    fn what_is_no_document_is_refused() {
        for (json, words) in [
            ("9223372036854775808", "beyond 64 bits"),
            ("-9223372036854775809", "beyond 64 bits"),
            ("1e999", "beyond 64-bit floats"),
            ("-1e309", "beyond 64-bit floats"),
            (r#"{"$bytes":"+/8"}"#, "base64"),
            (r#"{"$bytes":"-_8="}"#, "base64"),
            (r#"{"$bytes":"+/9="}"#, "base64"),
            (r#"{"$bytes":"+/8=\n"}"#, "base64"),
            (r#"{"$bytes":1}"#, "$bytes holds an integer, expected text"),
            (r#"{"$bytes":null}"#, "$bytes holds null"),
            (r#"{"$time":"1970-01-01"}"#, "bad time"),
            (r#"{"$time":0}"#, "$time holds an integer"),
            (r#"{"$float":"NaN"}"#, "$float holds \"NaN\""),
            (r#"{"$float":"+inf"}"#, "$float"),
            (r#"{"$float":"infinity"}"#, "$float"),
            (r#"{"$float":""}"#, "$float"),
            (r#"{"$float":" 1"}"#, "$float"),
            (r#"{"$float":"1e999"}"#, "beyond 64-bit floats"),
            (r#"{"$float":1.5}"#, "$float holds a float, expected text"),
            (r#"{"$int":"1.0"}"#, "$int"),
            (r#"{"$int":"+1"}"#, "$int"),
            (r#"{"$int":"01"}"#, "$int"),
            (r#"{"$int":"9223372036854775808"}"#, "beyond 64 bits"),
            (r#"{"$int":1}"#, "$int holds an integer, expected text"),
            (r#"{"$map":[]}"#, "$map holds a list, expected an object"),
            (r#"{"$map":{"a":{"$int":"x"}}}"#, "$int"),
            (r#"{"a":1,"a":2}"#, "stands twice"),
        ] {
            fails(json, words);
        }
    }

    #[test]
    fn depth_64_passes_and_65_does_not() {
        assert_eq!(read(&value_to_string(&nested(DEPTH_MAX), false)), nested(DEPTH_MAX));
        for levels in [DEPTH_MAX + 1, 200, 100_000] {
            fails(&format!("{}{}", "[".repeat(levels), "]".repeat(levels)), "deeper than 64");
        }
        // Each level takes two of JSON, the scalar inside one more.
        let mapped = |levels: usize| {
            format!("{}{{\"$int\":\"1\"}}{}", "{\"$map\":{\"$map\":".repeat(levels), "}}".repeat(levels))
        };
        let deepest = read(&mapped(DEPTH_MAX));
        assert!(deepest.check_depth().is_ok());
        assert_eq!(read(&value_to_string(&deepest, true)), deepest);
        fails(&mapped(DEPTH_MAX + 1), "deeper than 64");
        fails(&mapped(200), "deeper than 64");
    }

    #[test]
    fn exact_marks_what_a_double_would_change() {
        const EDGE: i64 = 1 << 53;
        for (value, json) in [
            (Value::Int(EDGE), "9007199254740992"),
            (Value::Int(-EDGE), "-9007199254740992"),
            (Value::Int(EDGE + 1), r#"{"$int":"9007199254740993"}"#),
            (Value::Int(-EDGE - 1), r#"{"$int":"-9007199254740993"}"#),
            (Value::Int(i64::MIN), r#"{"$int":"-9223372036854775808"}"#),
            (Value::Float(1.0), r#"{"$float":"1.0"}"#),
            (Value::Float(-0.0), r#"{"$float":"-0.0"}"#),
            (Value::Float(1e300), r#"{"$float":"1e300"}"#),
            (Value::Float(1.5), "1.5"),
            (Value::Float(f64::INFINITY), r#"{"$float":"inf"}"#),
        ] {
            assert_eq!(value_to_string(&value, true), json);
            assert_eq!(read(json), value);
        }
    }
}
