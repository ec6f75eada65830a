//! Namespace and key: parsed at the door, right everywhere behind it.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use super::limits::{KEY_BYTES_MAX, NAMESPACE_BYTES_MAX};
use super::{Error, Result};

/// The name of a namespace: `[a-z0-9][a-z0-9_-]{0,62}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Namespace(Arc<str>);

/// A record's key: 1 to 1024 bytes of UTF-8 without NUL. Ordered by its bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

// === impl Namespace ===

impl Namespace {
    /// Checks a name. `invalid_argument` names what is wrong with it.
    pub fn parse(name: &str) -> Result<Self> {
        let first = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let rest = |byte: u8| first(byte) || byte == b'_' || byte == b'-';
        let bytes = name.as_bytes();
        let valid = bytes.len() <= NAMESPACE_BYTES_MAX
            && bytes.first().is_some_and(|byte| first(*byte))
            && bytes.iter().all(|byte| rest(*byte));
        if !valid {
            let shown = shorten(name);
            return Err(Error::invalid(format!(
                "bad namespace name {shown:?}: it must be 1 to {NAMESPACE_BYTES_MAX} of a-z 0-9 _ - and start with a letter or digit"
            )));
        }
        Ok(Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for Namespace {
    fn borrow(&self) -> &str {
        &self.0
    }
}

// === impl Key ===

impl Key {
    /// Checks a key: a length over the limit is `too_large`, anything else `invalid_argument`.
    pub fn parse(key: &str) -> Result<Self> {
        if key.is_empty() {
            return Err(Error::invalid("key is empty"));
        }
        if key.len() > KEY_BYTES_MAX {
            return Err(Error::too_large(format!(
                "key has {} bytes, the limit is {KEY_BYTES_MAX}",
                key.len()
            )));
        }
        if let Some(at) = key.bytes().position(|byte| byte == 0) {
            return Err(Error::invalid(format!("key holds a NUL byte at offset {at}")));
        }
        Ok(Self(key.into()))
    }

    /// The key's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// A text short enough to stand in an error message: at most 64 characters, then `...`.
pub fn shorten(text: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 64;
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Code;

    #[test]
    fn namespace_names_follow_the_pattern() {
        for good in ["a", "0", "profiles", "a-b_c", &"x".repeat(63)] {
            assert!(Namespace::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "A", "-a", "_a", "a.b", "a b", "ä", "*", &"x".repeat(64)] {
            assert_eq!(Namespace::parse(bad).unwrap_err().code, Code::InvalidArgument, "{bad}");
        }
    }

    #[test]
    fn keys_are_bounded_on_each_side() {
        assert!(Key::parse(&"k".repeat(KEY_BYTES_MAX)).is_ok());
        assert_eq!(Key::parse(&"k".repeat(KEY_BYTES_MAX + 1)).unwrap_err().code, Code::TooLarge);
        assert_eq!(Key::parse("").unwrap_err().code, Code::InvalidArgument);
        assert_eq!(Key::parse("a\0b").unwrap_err().code, Code::InvalidArgument);
        assert!(Key::parse("\u{10ffff}/€ x").is_ok());
    }
}
