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
mod tests;
