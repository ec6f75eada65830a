//! Writing JSON text: strings, objects, and where it goes.
//!
//! Everything is written to a `fmt::Write`, so that a length can be counted by the code that writes.

use std::fmt::{self, Write};

/// What `body` writes, as text.
pub(super) fn to_string(body: impl FnOnce(&mut String) -> fmt::Result) -> String {
    let mut out = String::new();
    body(&mut out).expect("a string grows");
    out
}

/// How many bytes `body` writes.
pub(super) fn count(body: impl FnOnce(&mut Counter) -> fmt::Result) -> usize {
    let mut out = Counter(0);
    body(&mut out).expect("counting does not fail");
    out.0
}

/// Counts what is written to it.
pub(super) struct Counter(usize);

impl Write for Counter {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 += text.len();
        Ok(())
    }
}

/// Writes a text in quotes. Escaped is what RFC 8259 demands: the quote, the backslash, control characters.
pub(super) fn string(out: &mut impl Write, text: &str) -> fmt::Result {
    out.write_char('"')?;
    let mut rest = text;
    while let Some(at) = rest.bytes().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20)) {
        out.write_str(&rest[..at])?;
        match rest.as_bytes()[at] {
            b'"' => out.write_str("\\\"")?,
            b'\\' => out.write_str("\\\\")?,
            b'\n' => out.write_str("\\n")?,
            b'\r' => out.write_str("\\r")?,
            b'\t' => out.write_str("\\t")?,
            control => write!(out, "\\u{control:04x}")?,
        }
        rest = &rest[at + 1..];
    }
    out.write_str(rest)?;
    out.write_char('"')
}

/// Writes elements with commas between them, in brackets.
pub(super) fn list<W: Write, T>(
    out: &mut W,
    items: impl IntoIterator<Item = T>,
    mut item: impl FnMut(&mut W, T) -> fmt::Result,
) -> fmt::Result {
    out.write_char('[')?;
    for (index, each) in items.into_iter().enumerate() {
        if index > 0 {
            out.write_char(',')?;
        }
        item(out, each)?;
    }
    out.write_char(']')
}

/// An object whose fields are written one after the other.
pub(super) struct Object<'w, W> {
    out: &'w mut W,
    empty: bool,
}

impl<'w, W: Write> Object<'w, W> {
    pub(super) fn open(out: &'w mut W) -> Result<Self, fmt::Error> {
        out.write_char('{')?;
        Ok(Self { out, empty: true })
    }

    /// Writes the name of a field of ours, which needs no escapes; its value is to follow.
    pub(super) fn field(&mut self, name: &str) -> Result<&mut W, fmt::Error> {
        self.out.write_str(if self.empty { "\"" } else { ",\"" })?;
        self.empty = false;
        self.out.write_str(name)?;
        self.out.write_str("\":")?;
        Ok(self.out)
    }

    /// Writes a field whose value needs no quotes: a number or a bool.
    pub(super) fn plain(&mut self, name: &str, value: impl fmt::Display) -> fmt::Result {
        write!(self.field(name)?, "{value}")
    }

    pub(super) fn text(&mut self, name: &str, value: &str) -> fmt::Result {
        string(self.field(name)?, value)
    }

    pub(super) fn close(self) -> fmt::Result {
        self.out.write_char('}')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_must_be_is_escaped() {
        let text = "a\"\\/\n\r\t\u{8}\0\u{1f}\u{7f}é😀";
        let json = "\"a\\\"\\\\/\\n\\r\\t\\u0008\\u0000\\u001f\u{7f}é😀\"";
        assert_eq!(to_string(|out| string(out, text)), json);
        assert_eq!(count(|out| string(out, text)), json.len());
    }
}
