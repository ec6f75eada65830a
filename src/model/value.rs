//! Value: a typed document.

use std::collections::HashSet;

use bytes::Bytes;

use super::limits::DEPTH_MAX;
use super::{Error, Result};

/// A typed document. Types survive exactly: `1` is not `1.0`, null is not absent, empty text is not empty bytes.
#[derive(Debug, Clone)]
pub enum Value {
    /// Null.
    Null,
    /// True or false.
    Bool(bool),
    /// 64-bit signed integer.
    Int(i64),
    /// 64-bit float; every bit pattern survives.
    Float(f64),
    /// UTF-8 text.
    Text(String),
    /// Raw bytes.
    Bytes(Bytes),
    /// Microseconds since 1970-01-01T00:00:00Z, inside [`TIME_US`].
    Time(i64),
    /// Values in order.
    List(Vec<Value>),
    /// Text keys in order, each once.
    Map(Map),
}

/// A map that keeps the order of its keys. A key stands once.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Map(Vec<(String, Value)>);

/// The times a document can hold: years 0000 to 9999, in microseconds since 1970.
pub const TIME_US: std::ops::RangeInclusive<i64> = -62_167_219_200_000_000..=253_402_300_799_999_999;

/// Up to how many keys repeated ones are found by comparing all pairs.
const PAIRS_MAX: usize = 8;
/// Up to how many keys they are found by a bit for each hash; above, by a set.
const BITS_MAX: usize = 256;

// === impl Value ===

impl Value {
    /// The value's type, as named in messages to people.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "bool",
            Self::Int(_) => "integer",
            Self::Float(_) => "float",
            Self::Text(_) => "text",
            Self::Bytes(_) => "bytes",
            Self::Time(_) => "time",
            Self::List(_) => "list",
            Self::Map(_) => "map",
        }
    }

    /// Whether the document is nested no deeper than [`DEPTH_MAX`]. Looks no deeper than that itself.
    pub fn check_depth(&self) -> Result<()> {
        if self.fits_depth(DEPTH_MAX) { Ok(()) } else { Err(too_deep()) }
    }

    fn fits_depth(&self, left: usize) -> bool {
        match self {
            Self::List(items) => left > 0 && items.iter().all(|item| item.fits_depth(left - 1)),
            Self::Map(map) => left > 0 && map.iter().all(|(_, value)| value.fits_depth(left - 1)),
            _ => true,
        }
    }
}

/// Same type and same value: floats by their bits, maps in the same key order.
impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Int(a), Self::Int(b)) | (Self::Time(a), Self::Time(b)) => a == b,
            (Self::Float(a), Self::Float(b)) => a.to_bits() == b.to_bits(),
            (Self::Text(a), Self::Text(b)) => a == b,
            (Self::Bytes(a), Self::Bytes(b)) => a == b,
            (Self::List(a), Self::List(b)) => a == b,
            (Self::Map(a), Self::Map(b)) => a == b,
            _ => false,
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

/// The error of a document nested too deep.
pub fn too_deep() -> Error {
    Error::invalid(format!("the value is nested deeper than {DEPTH_MAX} levels"))
}

/// The index of the first key that stood before.
pub(crate) fn repeated<'k>(count: usize, key: impl Fn(usize) -> &'k str) -> Option<usize> {
    let before = |at: usize| (0..at).any(|other| key(other) == key(at));
    if count <= PAIRS_MAX {
        return (1..count).find(|at| before(*at));
    }
    if count > BITS_MAX {
        let mut seen = HashSet::with_capacity(count);
        return (0..count).find(|at| !seen.insert(key(*at)));
    }
    let mut seen = [0_u64; 16];
    (0..count).find(|at| {
        let hash = quick_hash(key(*at).as_bytes());
        let (word, bit) = (&mut seen[hash as usize >> 6 & 15], 1 << (hash & 63));
        // Two keys may share a bit, so one that is set is only a reason to look.
        let repeated = *word & bit != 0 && before(*at);
        *word |= bit;
        repeated
    })
}

/// A hash of a text, from its length and at most 24 of its bytes: quick, and as good as it needs to be, because
/// texts of one hash are compared.
#[inline]
pub(crate) fn quick_hash(text: &[u8]) -> u64 {
    /// Odd, its bits well mixed: 2^64 divided by the golden ratio.
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let eight = |at: usize| u64::from_le_bytes(text[at..at + 8].try_into().expect("eight bytes"));
    let four = |at: usize| u64::from(u32::from_le_bytes(text[at..at + 4].try_into().expect("four bytes")));
    let length = text.len();
    let (first, last) = match length {
        0 => (0, 0),
        1..4 => {
            (u64::from(text[0]) << 16 | u64::from(text[length / 2]) << 8 | u64::from(text[length - 1]), 0)
        }
        4..8 => (four(0), four(length - 4)),
        _ => (eight(0) ^ eight(length / 2 - 4).rotate_left(29), eight(length - 8)),
    };
    let mixed = u128::from(first ^ FACTOR)
        * u128::from(last.rotate_left(32) ^ (length as u64).wrapping_mul(FACTOR) | 1);
    mixed as u64 ^ (mixed >> 64) as u64
}

// === impl Map ===

impl Map {
    /// An empty map.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Takes entries in order; a key that stands twice is `invalid_argument`.
    pub fn from_entries(entries: Vec<(String, Value)>) -> Result<Self> {
        let repeated = repeated(entries.len(), |at| entries[at].0.as_str());
        match repeated {
            None => Ok(Self(entries)),
            Some(at) => {
                let shown = super::key::shorten(&entries[at].0);
                Err(Error::invalid(format!("key {shown:?} stands twice in one map")))
            }
        }
    }

    /// Takes entries in order, whose keys are known to be distinct.
    #[cfg(feature = "server")]
    pub(crate) const fn from_distinct(entries: Vec<(String, Value)>) -> Self {
        Self(entries)
    }

    /// Entries in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&str, &Value)> + ExactSizeIterator {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// How many entries.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// The value of a key, to change.
    pub fn get_mut(&mut self, key: &str) -> Option<&mut Value> {
        self.0.iter_mut().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// The value of a key, to change; a missing one is put at the end with what `make` gives.
    pub fn get_or_insert_with(&mut self, key: &str, make: impl FnOnce() -> Value) -> &mut Value {
        let at = match self.0.iter().position(|(name, _)| name == key) {
            Some(at) => at,
            None => {
                self.0.push((key.to_owned(), make()));
                self.0.len() - 1
            }
        };
        &mut self.0[at].1
    }

    /// Takes a key out; the order of the rest stays.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let at = self.0.iter().position(|(name, _)| name == key)?;
        Some(self.0.remove(at).1)
    }
}

impl IntoIterator for Map {
    type Item = (String, Value);
    type IntoIter = std::vec::IntoIter<(String, Value)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(levels: usize) -> Value {
        (0..levels).fold(Value::Null, |inner, _| Value::List(vec![inner]))
    }

    #[test]
    fn depth_64_passes_and_65_does_not() {
        assert!(nested(DEPTH_MAX).check_depth().is_ok());
        assert!(nested(DEPTH_MAX + 1).check_depth().is_err());
    }

    #[test]
    fn a_key_stands_once_in_small_and_large_maps() {
        for size in [2, PAIRS_MAX, PAIRS_MAX + 1, BITS_MAX, BITS_MAX + 1, 1000] {
            let mut entries: Vec<_> = (0..size).map(|n| (n.to_string(), Value::Null)).collect();
            assert!(Map::from_entries(entries.clone()).is_ok());
            entries.push(("0".into(), Value::Null));
            assert!(Map::from_entries(entries).is_err(), "{size}");
        }
    }

    #[test]
    fn equality_is_of_type_bits_and_order() {
        assert_ne!(Value::Int(1), Value::Float(1.0));
        assert_ne!(Value::Float(0.0), Value::Float(-0.0));
        assert_eq!(Value::Float(f64::NAN), Value::Float(f64::NAN));
        let map = |keys: [&str; 2]| {
            Map::from_entries(keys.map(|key| (key.to_owned(), Value::Null)).to_vec()).unwrap()
        };
        assert_ne!(map(["a", "b"]), map(["b", "a"]));
    }
}
