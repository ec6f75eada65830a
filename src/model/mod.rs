//! Words and limits of the product: plain types, no I/O, no async.
//!
//! Everything above speaks in these types. Bytes on the wire or on disk are the business of `codec`.

pub mod budget;
pub mod clock;
pub mod error;
pub mod hex;
pub mod key;
pub mod op;
pub mod record;
pub mod reply;
pub mod request;
pub mod sabotage;
pub mod value;
pub mod version;

pub use error::{Code, Error, Outcome, Retry, Scope};
pub use key::{Key, Namespace};
pub use record::{Document, Record};
pub use value::{Map, Value};
pub use version::Version;

/// Result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every public limit, once. A test stands on each side of each.
pub mod limits {
    /// Bytes of a key.
    pub const KEY_BYTES_MAX: usize = 1024;
    /// Bytes of a namespace name.
    pub const NAMESPACE_BYTES_MAX: usize = 63;
    /// Bytes of an operation id.
    pub const OP_ID_BYTES_MAX: usize = 64;
    /// Bytes of a content type, which is printable ASCII.
    pub const CONTENT_TYPE_BYTES_MAX: usize = 255;
    /// Encoded bytes of a document, whatever else allows more: what stored records are built for.
    pub const VALUE_BYTES_MAX: usize = 64 * 1024 * 1024;
    /// Nesting of a document: a scalar has depth 0, `[]` has 1.
    pub const DEPTH_MAX: usize = 64;
    /// Operations of one batch.
    pub const BATCH_OPS_MAX: usize = 1000;
    /// Changes of one update.
    pub const CHANGES_MAX: usize = 1000;
    /// Paths in the `fields` of one get.
    pub const FIELDS_MAX: usize = 1000;
    /// Records of one scan page.
    pub const SCAN_LIMIT_MAX: u32 = 10_000;
    /// Records of one scan page when the request names no number.
    pub const SCAN_LIMIT_DEFAULT: u32 = 100;
    /// Encoded reply bytes of one scan page when the request names no number.
    pub const SCAN_BYTES_DEFAULT: usize = 512 * 1024;
    /// What a reply needs beside its document: headers, key, version, times. A document is limited to
    /// the server's `max_payload` less this, so that whatever was written can be read back.
    pub const REPLY_ROOM_BYTES: usize = 8 * 1024;
    /// The part of [`REPLY_ROOM_BYTES`] that a reply's headers may take.
    pub const HEADER_ROOM_BYTES: usize = 1024;
    /// Room that each result of a batch is promised, whatever its neighbours take: enough for an error.
    pub const BATCH_RESULT_BYTES_MIN: usize = 640;
    /// Longest error message inside a batch result, in bytes.
    pub const BATCH_MESSAGE_BYTES_MAX: usize = 190;
    /// Shortest and longest `Ds-Timeout-Ms`, and what holds without the header.
    pub const TIMEOUT_MS_MIN: i64 = 1;
    /// See [`TIMEOUT_MS_MIN`].
    pub const TIMEOUT_MS_MAX: i64 = 60_000;
    /// See [`TIMEOUT_MS_MIN`].
    pub const TIMEOUT_MS_DEFAULT: i64 = 5_000;
    /// How far two clocks of one deployment may differ (assumption A3 of the consistency protocol).
    pub const CLOCK_EPSILON_MS: i64 = 250;
    /// How far ahead of the worker a client's `Ds-Clock` may be and still be merged.
    pub const CLOCK_AHEAD_MS_MAX: i64 = 500;
    /// Operation ids that a record remembers.
    pub const OP_RING_ENTRIES: usize = 4;

    const _: () = {
        // The longest key, escaped as JSON (`\u00XX` for each byte), a content type whose every byte is
        // escaped, and the fixed part of a reply fit beside the document.
        assert!(KEY_BYTES_MAX * 6 + CONTENT_TYPE_BYTES_MAX * 2 + 512 + HEADER_ROOM_BYTES <= REPLY_ROOM_BYTES);
        // A message escaped as JSON, and the fixed part of an error.
        assert!(BATCH_MESSAGE_BYTES_MAX * 2 + 256 < BATCH_RESULT_BYTES_MIN);
        assert!(TIMEOUT_MS_MIN < TIMEOUT_MS_DEFAULT && TIMEOUT_MS_DEFAULT < TIMEOUT_MS_MAX);
    };
}
