//! A record as its reader sees it, and the part of it that the store keeps as one piece of bytes.

use super::{Key, Value, Version};

/// What a writer stores under a key: the document and what belongs to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// The document.
    pub value: Value,
    /// Printable ASCII, "" = unset.
    pub content_type: String,
    /// When the accepting worker took the write, Unix milliseconds.
    pub updated_at_ms: i64,
    /// The schema it was written under, 0 = none.
    pub schema: u32,
}

/// A live record as a reader sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Its key.
    pub key: Key,
    /// Its document; `None` where only the head was asked for.
    pub value: Option<Value>,
    /// Its version.
    pub version: Version,
    /// When the accepting worker took the write, Unix milliseconds.
    pub updated_at_ms: i64,
    /// When it ends by the store's clock, Unix milliseconds; 0 = never.
    pub expires_at_ms: i64,
    /// Printable ASCII, "" = unset.
    pub content_type: String,
    /// The schema it was written under, 0 = none.
    pub schema: u32,
}

impl Record {
    /// A record out of what the store holds.
    pub fn new(key: Key, version: Version, expires_at_ms: i64, document: Document) -> Self {
        let Document { value, content_type, updated_at_ms, schema } = document;
        Self { key, value: Some(value), version, updated_at_ms, expires_at_ms, content_type, schema }
    }
}
