//! Tests of reading JSON text.

use proptest::prelude::*;

use super::*;

fn fails(json: &[u8]) -> String {
    match text(json) {
        Err(error) => error.message,
        Ok(node) => panic!("{:?} gave {node:?}", String::from_utf8_lossy(json)),
    }
}

/// Whether both readers agree on a text. Duplicate keys are left out: serde_json takes them.
fn agrees(json: &str) -> bool {
    let theirs = serde_json::from_str::<serde_json::Value>(json);
    match (text(json.as_bytes()), theirs) {
        (Ok(node), Ok(value)) => same(&node, &value),
        (Err(error), Ok(_)) => error.message.contains("stands twice"),
        (Ok(_), Err(error)) => error.to_string().contains("number out of range"),
        (Err(_), Err(_)) => true,
    }
}

fn same(node: &Node<'_>, value: &serde_json::Value) -> bool {
    use serde_json::Value as Json;
    match (node, value) {
        (Node::Null, Json::Null) => true,
        (Node::Bool(a), Json::Bool(b)) => a == b,
        (Node::Number(a), Json::Number(b)) => a.parse::<f64>().ok() == b.as_f64(),
        (Node::Text(a), Json::String(b)) => *a == *b,
        (Node::List(a), Json::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Node::Object(a), Json::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(name, a)| b.get(&**name).is_some_and(|b| same(a, b)))
        }
        _ => false,
    }
}

fn any_json() -> impl Strategy<Value = String> {
    let piece = proptest::sample::select(
        &[
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"",
            "\"a\"",
            "\"a\":",
            "null",
            "true",
            "false",
            "0",
            "-",
            "1",
            "12",
            ".5",
            "e",
            "E+2",
            "-0",
            "01",
            " ",
            "\n",
            "\t",
            "\\",
            "\"\\u00e9\"",
            "\"\\ud83d\\ude00\"",
            "\"\\ud83d\"",
            "\\u",
            "\"\\n\"",
            "é",
            "\u{1}",
            "[]",
            "{}",
            "[1,2]",
            "{\"b\":1}",
            "tru",
            "\u{feff}",
        ][..],
    );
    proptest::collection::vec(piece, 0..10).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn it_agrees_with_serde_json_on_random_pieces(json in any_json()) {
        prop_assert!(agrees(&json), "{json}");
    }

    #[test]
    fn it_agrees_with_serde_json_on_damaged_documents(
        value in crate::codec::value::tests::any_value(),
        at in any::<usize>(),
        piece in any_json(),
    ) {
        let mut json = crate::codec::json::value_to_string(&value, false);
        prop_assert!(agrees(&json), "{json}");
        let mut at = at % (json.len() + 1);
        while !json.is_char_boundary(at) {
            at -= 1;
        }
        json.insert_str(at, &piece);
        prop_assert!(agrees(&json), "{json}");
        json.truncate(at);
        prop_assert!(agrees(&json), "{json}");
    }

    #[test]
    fn any_bytes_read_or_fail_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
        let _ = text(&bytes);
        let _ = object(&bytes);
    }

    /// The reader that skips takes exactly what the one that builds takes (but for duplicate keys).
    #[test]
    fn skipping_checks_the_same_syntax(json in any_json()) {
        let read = |levels| {
            let mut parser = Parser::new(json.as_bytes()).unwrap();
            parser.value(levels).map(|_| parser.at)
        };
        match (read(0), read(LEVELS_MAX)) {
            (Ok(skipped), Ok(built)) => prop_assert_eq!(skipped, built),
            (Err(skipped), Err(built)) => prop_assert!(skipped == built || built.message.contains("twice")),
            (Ok(_), Err(built)) => prop_assert!(built.message.contains("twice")),
            (Err(skipped), Ok(_)) => prop_assert!(false, "{}", skipped),
        }
    }
}

#[test]
fn what_is_not_json_names_its_byte() {
    for (json, place) in [
        ("", "at byte 0: expected a value"),
        ("nul", "at byte 0: expected a value"),
        ("+1", "at byte 0: expected a value"),
        ("NaN", "at byte 0: expected a value"),
        ("01", "at byte 1: something after"),
        ("-", "at byte 1: expected a digit"),
        ("1.", "at byte 2: expected a digit"),
        (".5", "at byte 0: expected a value"),
        ("1e", "at byte 2: expected a digit"),
        ("1 2", "at byte 2: something after"),
        ("[1,]", "at byte 3: expected a value"),
        ("[1 2]", "at byte 3: expected ',' or ']'"),
        ("[1", "at byte 2: expected ',' or ']'"),
        ("{\"a\":1,}", "at byte 7: expected a key"),
        ("{a:1}", "at byte 1: expected a key"),
        ("{\"a\" 1}", "at byte 5: expected ':'"),
        ("{\"a\":1]", "at byte 6: expected ',' or '}'"),
        ("\"a", "at byte 2: the text does not end"),
        ("\"a\n\"", "at byte 2: a control character"),
        ("\"\\x\"", "at byte 1: an unknown escape"),
        ("\"\\u12g4\"", "at byte 1: an escape \\u needs"),
        ("\"\\u12", "at byte 1: an escape \\u needs"),
        ("\"\\u12é\"", "at byte 1: an escape \\u needs"),
        ("\"\\ud800\"", "at byte 1: a lone surrogate"),
        ("\"\\udc00\"", "at byte 1: a lone surrogate"),
        ("\"\\ud800\\u0041\"", "at byte 1: a lone surrogate"),
        ("\"\\ud800\\ud800\"", "at byte 1: a lone surrogate"),
        ("[{\"a\":1,\"\\u0061\":2}]", "at byte 1: key \"a\" stands twice"),
        ("\u{feff}1", "at byte 0: expected a value"),
        ("\u{a0}1", "at byte 0: expected a value"),
    ] {
        let message = fails(json.as_bytes());
        assert!(message.contains(place), "{json}: {message}");
    }
    assert!(fails(b"\"a\xff\"").contains("at byte 2: not UTF-8"));
    assert!(fails(b"\"\xed\xa0\x80\"").contains("not UTF-8"), "a surrogate in bytes");
}

#[test]
fn escapes_are_read() {
    let json = r#""\"\\\/\b\f\n\r\t\u0041\u00e9\ud83d\ude00\u0000é""#;
    let expected = "\"\\/\u{8}\u{c}\n\r\tAé😀\0é";
    assert_eq!(text(json.as_bytes()).unwrap(), Node::Text(expected.into()));
}

#[test]
fn nothing_surrounds_a_request() {
    assert!(object(b"{ }").is_ok());
    assert!(object(b"{ \"a\" : [ 1 , { } ] }").is_ok());
    for (json, place) in [
        (" {}", "at byte 0"),
        ("{} ", "at byte 2: bytes after"),
        ("{}\n", "at byte 2: bytes after"),
        ("{}{}", "at byte 2: bytes after"),
        ("\u{feff}{}", "at byte 0"),
        ("[]", "at byte 0: a request must start"),
    ] {
        let message = object(json.as_bytes()).unwrap_err().message;
        assert!(message.contains(place), "{json}: {message}");
    }
    assert!(text(b" \t\r\n1 \t\r\n").is_ok());
}

#[test]
fn duplicates_are_found_in_small_and_large_objects() {
    for size in [2, HASHED_FROM - 1, HASHED_FROM, 100] {
        let fields = (0..size).map(|n| format!("\"{n}\":0,")).collect::<String>();
        assert!(text(format!("{{{fields}\"x\":0}}").as_bytes()).is_ok());
        assert!(fails(format!("{{{fields}\"0\":0}}").as_bytes()).contains("\"0\" stands twice"));
    }
}

#[test]
fn deep_text_is_skipped_with_its_syntax_checked() {
    let deep = |levels: usize, inner: &str| {
        let half = levels / 2;
        let odd = levels % 2;
        format!(
            "{}{}{inner}{}{}",
            "[{\"a\":".repeat(half),
            "[".repeat(odd),
            "]".repeat(odd),
            "}]".repeat(half)
        )
    };
    fn bottom<'n>(node: &'n Node<'n>) -> &'n Node<'n> {
        match node {
            Node::List(items) => bottom(&items[0]),
            Node::Object(fields) => bottom(&fields[0].1),
            other => other,
        }
    }
    assert_eq!(bottom(&text(deep(LEVELS_MAX, "1").as_bytes()).unwrap()), &Node::Number("1"));
    assert_eq!(bottom(&text(deep(LEVELS_MAX + 1, "1").as_bytes()).unwrap()), &Node::TooDeep);
    assert_eq!(bottom(&text(deep(1_000_001, "1, 2").as_bytes()).unwrap()), &Node::TooDeep);
    fails(&deep(1_000_000, "1").as_bytes()[1..]);
    fails(deep(1_000_001, "1 2").as_bytes());
    fails(deep(1_000_001, "\"\\ud800\"").as_bytes());
    fails("[".repeat(1_000_000).as_bytes());
    fails("{\"a\":".repeat(1_000_000).as_bytes());
}
