//! Operations that were checked: nothing about them can be wrong but the state of the store.

use super::request::{ChangeKind, Consistency};
use super::value::Value;
use super::{Error, Key, Result, Version};
use crate::model::limits::DEPTH_MAX;

/// A read of one record.
#[derive(Debug, Clone)]
pub struct Get {
    /// Key.
    pub key: Key,
    /// Level asked for.
    pub consistency: Consistency,
    /// Bound for `bounded`, if the request names one.
    pub max_staleness_ms: Option<i64>,
    /// The answer must be at least this new.
    pub min_version: Option<Version>,
    /// What of the value to answer.
    pub shape: Shape,
}

/// What of a value to answer.
#[derive(Debug, Clone)]
pub enum Shape {
    /// All of it.
    Whole,
    /// None of it.
    Head,
    /// The parts under these paths.
    Fields(Vec<Path>),
}

/// What must hold for a write to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precondition {
    /// The key is absent.
    Absent,
    /// The key is there.
    Exists,
    /// The key is at this version.
    Version(Version),
}

/// The lifetime a write asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// Never ends.
    Forever,
    /// Ends so many milliseconds after the store took the write; more than 0.
    Millis(i64),
}

/// What a write does to the record's lifetime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// A new lifetime.
    New(Lifetime),
    /// The present one; where there is no record, this.
    KeepOr(Lifetime),
}

/// The identity of a logical write, the same in each attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpId {
    /// Chosen by the client, at most 64 bytes, scoped to the key.
    pub id: String,
    /// How long ago its client first sent it; 0 = this is the first attempt.
    pub age_ms: i64,
}

/// A write of one record.
#[derive(Debug, Clone)]
pub struct Write {
    /// Key.
    pub key: Key,
    /// What it does.
    pub action: Action,
    /// What must hold.
    pub precondition: Option<Precondition>,
    /// Its identity.
    pub op: Option<OpId>,
    /// Answer the record after the write.
    pub return_record: bool,
}

/// What a write does.
#[derive(Debug, Clone)]
pub enum Action {
    /// Store a document.
    Put {
        /// The document.
        value: Value,
        /// Printable ASCII, "" = unset.
        content_type: String,
        /// Lifetime.
        expiry: Expiry,
    },
    /// Leave a tombstone.
    Delete,
    /// Change the document in place.
    Update {
        /// In order, at least one.
        changes: Vec<Change>,
        /// Start from an empty map where there is no record.
        create: bool,
        /// Lifetime.
        expiry: Expiry,
    },
    /// Change the lifetime alone.
    Touch {
        /// Lifetime.
        lifetime: Lifetime,
    },
}

/// One change of an update.
#[derive(Debug, Clone)]
pub struct Change {
    /// Where.
    pub path: Path,
    /// What.
    pub kind: ChangeKind,
}

/// One operation of a batch, or the fault that fails it alone.
#[derive(Debug, Clone)]
pub enum BatchOp {
    /// A read.
    Get(Result<Get>),
    /// A write.
    Write(Result<Write>),
}

/// Many operations.
#[derive(Debug, Clone)]
pub struct Batch {
    /// In order.
    pub ops: Vec<BatchOp>,
    /// All or nothing.
    pub atomic: bool,
}

/// A page of records.
#[derive(Debug, Clone)]
pub struct Scan {
    /// Keys that start with this.
    pub prefix: String,
    /// First key, inclusive; "" = none.
    pub start: String,
    /// Last key, exclusive; "" = none.
    pub end: String,
    /// Most records of the page, at least 1.
    pub limit: usize,
    /// Most encoded bytes of the page, at least 1.
    pub max_bytes: usize,
    /// Where the page before this one ended.
    pub cursor: String,
    /// From the end of the range to its start.
    pub reverse: bool,
    /// Leave the values out.
    pub keys_only: bool,
    /// Level asked for.
    pub consistency: Consistency,
}

/// A place in a document: map keys and list indexes; empty = the whole document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path(Vec<String>);

impl Path {
    /// Reads keys joined by `.`; a dot inside a key is written `\.`; "" is the whole value.
    pub fn parse(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let mut steps = vec![String::new()];
        let mut chars = text.chars().peekable();
        while let Some(char) = chars.next() {
            match char {
                '\\' if chars.peek() == Some(&'.') => {
                    chars.next();
                    steps.last_mut().expect("one step from the start").push('.');
                }
                '.' => steps.push(String::new()),
                other => steps.last_mut().expect("one step from the start").push(other),
            }
        }
        if steps.len() > DEPTH_MAX {
            return Err(Error::invalid(format!(
                "path has {} steps, a document is nested at most {DEPTH_MAX} levels",
                steps.len()
            )));
        }
        Ok(Self(steps))
    }

    /// The steps in order.
    pub fn steps(&self) -> &[String] {
        &self.0
    }
}

impl std::fmt::Display for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let joined = self.0.iter().map(|step| step.replace('.', "\\.")).collect::<Vec<_>>().join(".");
        f.write_str(&super::key::shorten(&joined))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_split_at_unescaped_dots() {
        let steps = |text: &str| Path::parse(text).unwrap().steps().to_vec();
        assert_eq!(steps(""), Vec::<String>::new());
        assert_eq!(steps("a.b.0"), ["a", "b", "0"]);
        assert_eq!(steps(r"a\.b.c"), ["a.b", "c"]);
        assert_eq!(steps(r"a\b"), [r"a\b"]);
        assert_eq!(steps("a..b"), ["a", "", "b"]);
        assert!(Path::parse(&["x"; DEPTH_MAX].join(".")).is_ok());
        assert!(Path::parse(&["x"; DEPTH_MAX + 1].join(".")).is_err());
    }
}
