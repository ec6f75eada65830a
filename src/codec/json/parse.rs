//! JSON text -> [`Node`], a tree that borrows from the text.
//!
//! Strict RFC 8259 and nothing beyond it. Keys stand once in each object and text holds no lone surrogates.
//! Recursion ends at [`LEVELS_MAX`]; what lies deeper is checked for its syntax without recursion and becomes
//! [`Node::TooDeep`], so that a deep document fails its own operation and not the batch around it.
//! (Duplicate keys down there are not looked for: the operation is refused all the same.)

use std::borrow::Cow;
use std::collections::HashSet;

use crate::model::key::shorten;
use crate::model::limits::DEPTH_MAX;
use crate::model::{Error, Result};

/// One JSON value.
#[derive(Debug, PartialEq)]
pub(super) enum Node<'t> {
    Null,
    Bool(bool),
    /// The number as it stands: only its reader knows what it may be.
    Number(&'t str),
    Text(Cow<'t, str>),
    List(Vec<Node<'t>>),
    /// Fields in order, each key once.
    Object(Fields<'t>),
    /// A list or an object below [`LEVELS_MAX`].
    TooDeep,
}

pub(super) type Fields<'t> = Vec<(Cow<'t, str>, Node<'t>)>;

/// Nested lists and objects that become nodes. A level of a document can take two (`{"$map":{...}}`), a scalar
/// inside the last one more (`{"$int":"1"}`), and the request around it six
/// (`{"ops":[{"update":{"changes":[{"set":...`): whatever lies deeper holds a document that is too deep.
pub(super) const LEVELS_MAX: usize = 160;
const _: () = assert!(LEVELS_MAX > 2 * DEPTH_MAX + 1 + 6);

/// From how many fields on an object looks for repeated keys by hash and not by comparing all pairs.
const HASHED_FROM: usize = 16;

/// Reads a payload that is one object and nothing else: not even white space may surround it.
pub(super) fn object(payload: &[u8]) -> Result<Node<'_>> {
    let mut parser = Parser::new(payload)?;
    if parser.peek() != Some(b'{') {
        return Err(parser.fault("a request must start with '{'"));
    }
    let node = parser.value(LEVELS_MAX)?;
    parser.end("bytes after the request")?;
    Ok(node)
}

/// Reads a text of one value, which white space may surround.
pub(super) fn text(text: &[u8]) -> Result<Node<'_>> {
    let mut parser = Parser::new(text)?;
    parser.space();
    let node = parser.value(LEVELS_MAX)?;
    parser.space();
    parser.end("something after the value")?;
    Ok(node)
}

/// Whether a text is one JSON number.
pub(super) fn is_number(text: &str) -> bool {
    let mut parser = Parser { text, at: 0 };
    parser.number().is_ok() && parser.at == text.len()
}

/// Whether a JSON number is a float: so written, whatever its value.
pub(super) fn is_float(number: &str) -> bool {
    number.contains(['.', 'e', 'E'])
}

impl Node<'_> {
    /// What this is, for messages to people.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a bool",
            Self::Number(number) if is_float(number) => "a float",
            Self::Number(_) => "an integer",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Object(_) => "an object",
            Self::TooDeep => "something nested too deep",
        }
    }
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Parser<'t> {
    fn new(text: &'t [u8]) -> Result<Self> {
        match str::from_utf8(text) {
            Ok(text) => Ok(Self { text, at: 0 }),
            Err(fault) => Err(fault_at(fault.valid_up_to(), "not UTF-8")),
        }
    }

    fn value(&mut self, levels_left: usize) -> Result<Node<'t>> {
        match self.peek() {
            Some(b'[' | b'{') if levels_left == 0 => self.skip(),
            Some(b'[') => self.list(levels_left - 1),
            Some(b'{') => self.object(levels_left - 1),
            _ => self.scalar(),
        }
    }

    fn scalar(&mut self) -> Result<Node<'t>> {
        match self.peek() {
            Some(b'"') => self.string().map(Node::Text),
            Some(b'-' | b'0'..=b'9') => self.number().map(Node::Number),
            Some(b'n') => self.word("null", Node::Null),
            Some(b't') => self.word("true", Node::Bool(true)),
            Some(b'f') => self.word("false", Node::Bool(false)),
            _ => Err(self.fault("expected a value")),
        }
    }

    fn list(&mut self, levels_left: usize) -> Result<Node<'t>> {
        let mut items = Vec::new();
        if self.opens_empty(b']') {
            return Ok(Node::List(items));
        }
        loop {
            items.push(self.value(levels_left)?);
            if self.closes(b']')? {
                return Ok(Node::List(items));
            }
        }
    }

    fn object(&mut self, levels_left: usize) -> Result<Node<'t>> {
        let start = self.at;
        let mut fields = Vec::new();
        if self.opens_empty(b'}') {
            return Ok(Node::Object(fields));
        }
        loop {
            let name = self.name()?;
            fields.push((name, self.value(levels_left)?));
            if self.closes(b'}')? {
                break;
            }
        }
        match repeated(&fields) {
            None => Ok(Node::Object(fields)),
            Some(name) => {
                let name = shorten(name);
                Err(fault_at(start, &format!("key {name:?} stands twice in the object that starts here")))
            }
        }
    }

    /// Steps over a list or an object without recursion, checking its syntax.
    fn skip(&mut self) -> Result<Node<'t>> {
        let mut closing = Vec::new();
        loop {
            // A value starts here: it ends at once, or opens one more level.
            let opened = match self.peek() {
                Some(b'[') => Some(b']'),
                Some(b'{') => Some(b'}'),
                _ => None,
            };
            match opened {
                None => {
                    self.scalar()?;
                }
                Some(bracket) if self.opens_empty(bracket) => {}
                Some(bracket) => {
                    closing.push(bracket);
                    if bracket == b'}' {
                        self.name()?;
                    }
                    continue;
                }
            }
            // A value has ended here, and with it each level of which it was the last.
            loop {
                let Some(bracket) = closing.last().copied() else { return Ok(Node::TooDeep) };
                if !self.closes(bracket)? {
                    if bracket == b'}' {
                        self.name()?;
                    }
                    break;
                }
                closing.pop();
            }
        }
    }

    /// Steps over an opening bracket, and over the closing one if nothing stands between.
    fn opens_empty(&mut self, bracket: u8) -> bool {
        self.at += 1;
        self.space();
        let empty = self.peek() == Some(bracket);
        self.at += usize::from(empty);
        empty
    }

    /// Steps over what follows an element: `true` for the closing bracket, `false` for a comma, behind which
    /// the next element starts.
    fn closes(&mut self, bracket: u8) -> Result<bool> {
        self.space();
        let closed = match self.peek() {
            Some(b',') => false,
            Some(byte) if byte == bracket => true,
            _ => return Err(self.fault(&format!("expected ',' or '{}'", char::from(bracket)))),
        };
        self.at += 1;
        if !closed {
            self.space();
        }
        Ok(closed)
    }

    /// A field's name, the colon and the white space around it.
    fn name(&mut self) -> Result<Cow<'t, str>> {
        if self.peek() != Some(b'"') {
            return Err(self.fault("expected a key in quotes"));
        }
        let name = self.string()?;
        self.space();
        if self.peek() != Some(b':') {
            return Err(self.fault("expected ':'"));
        }
        self.at += 1;
        self.space();
        Ok(name)
    }

    fn word(&mut self, word: &str, node: Node<'t>) -> Result<Node<'t>> {
        if !self.text[self.at..].starts_with(word) {
            return Err(self.fault("expected a value"));
        }
        self.at += word.len();
        Ok(node)
    }

    fn number(&mut self) -> Result<&'t str> {
        let start = self.at;
        self.accept(|byte| byte == b'-');
        if !self.accept(|byte| byte == b'0') {
            self.digits()?;
        }
        if self.accept(|byte| byte == b'.') {
            self.digits()?;
        }
        if self.accept(|byte| matches!(byte, b'e' | b'E')) {
            self.accept(|byte| matches!(byte, b'+' | b'-'));
            self.digits()?;
        }
        Ok(&self.text[start..self.at])
    }

    fn digits(&mut self) -> Result<()> {
        if !self.accept(|byte| byte.is_ascii_digit()) {
            return Err(self.fault("expected a digit"));
        }
        while self.accept(|byte| byte.is_ascii_digit()) {}
        Ok(())
    }

    /// A text in quotes. Borrowed where no escape stands in it.
    fn string(&mut self) -> Result<Cow<'t, str>> {
        self.at += 1;
        let plain = self.plain();
        if self.accept(|byte| byte == b'"') {
            return Ok(Cow::Borrowed(plain));
        }
        let mut text = plain.to_owned();
        while !self.accept(|byte| byte == b'"') {
            text.push(self.escape()?);
            text.push_str(self.plain());
        }
        Ok(Cow::Owned(text))
    }

    /// Text up to a quote, an escape, or what may not stand in a text.
    fn plain(&mut self) -> &'t str {
        let rest = &self.text[self.at..];
        let end = rest.bytes().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn escape(&mut self) -> Result<char> {
        match self.peek() {
            Some(b'\\') => {}
            Some(_) => return Err(self.fault("a control character must be escaped")),
            None => return Err(self.fault("the text does not end")),
        }
        let start = self.at;
        self.at += 1;
        let char = match self.peek() {
            Some(byte @ (b'"' | b'\\' | b'/')) => char::from(byte),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode_escape(start),
            _ => return Err(fault_at(start, "an unknown escape")),
        };
        self.at += 1;
        Ok(char)
    }

    /// `\uXXXX`, or two of them that are a surrogate pair; `at` is on the `u`.
    fn unicode_escape(&mut self, start: usize) -> Result<char> {
        let lone = || fault_at(start, "a lone surrogate");
        let unit = self.code_unit(start)?;
        if let Some(char) = char::from_u32(unit) {
            return Ok(char);
        }
        if unit >= 0xdc00 || !self.text[self.at..].starts_with("\\u") {
            return Err(lone());
        }
        self.at += 1;
        let low = self.code_unit(start)?;
        if !(0xdc00..0xe000).contains(&low) {
            return Err(lone());
        }
        char::from_u32(0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00)).ok_or_else(lone)
    }

    fn code_unit(&mut self, start: usize) -> Result<u32> {
        const DIGITS: usize = 4;
        let from = self.at + 1;
        let digits = self.text.as_bytes().get(from..from + DIGITS);
        let digits = digits.filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let digits = digits.ok_or_else(|| fault_at(start, "an escape \\u needs four hex digits"))?;
        self.at = from + DIGITS;
        let value = |digit: &u8| char::from(*digit).to_digit(16).expect("hex digits, as checked above");
        Ok(digits.iter().fold(0, |unit, digit| unit << 4 | value(digit)))
    }

    fn space(&mut self) {
        while self.accept(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')) {}
    }

    fn end(&self, otherwise: &str) -> Result<()> {
        if self.at == self.text.len() { Ok(()) } else { Err(self.fault(otherwise)) }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Steps over one byte, if it is such a one.
    fn accept(&mut self, such: impl Fn(u8) -> bool) -> bool {
        let accepted = self.peek().is_some_and(such);
        self.at += usize::from(accepted);
        accepted
    }

    fn fault(&self, what: &str) -> Error {
        fault_at(self.at, what)
    }
}

fn fault_at(at: usize, what: &str) -> Error {
    Error::invalid(format!("malformed JSON at byte {at}: {what}"))
}

/// A key that stands twice, if there is one.
fn repeated<'f>(fields: &'f Fields<'_>) -> Option<&'f str> {
    if fields.len() < HASHED_FROM {
        let earlier = |at: usize| fields[..at].iter().any(|(name, _)| *name == fields[at].0);
        return (1..fields.len()).find(|at| earlier(*at)).map(|at| &*fields[at].0);
    }
    let mut seen = HashSet::with_capacity(fields.len());
    fields.iter().map(|(name, _)| &**name).find(|name| !seen.insert(*name))
}

#[cfg(test)]
mod tests {
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
}
