//! The most memory that reading may take for each byte that is read, found by looking for the input that takes
//! the most. Every bound here is reached by some input, but for less than one part in a hundred.

use datastore::model::limits::{BATCH_OPS_MAX, CHANGES_MAX};
use datastore::model::reply::BatchResult;
use datastore::model::request::{ChangeRequest, Request};
use datastore::model::{Record, Value};

/// A vector that grows doubles, and while it moves its old place is there as well.
const GROWTH: usize = 3;
/// A vector that has grown has room for at most twice what it holds.
const GROWN: usize = 2;

/// Whatever the input: the first room of vectors, and an error, which quotes at most 64 characters.
pub(crate) const FAULT_BYTES: usize = 4096;

/// A document in protobuf. The shortest entry of a map takes two bytes. It has no value and so is refused, but
/// only once the document has been read to its end, for the sake of graver faults.
pub(crate) const VALUE_PER_BYTE: usize = GROWTH * size_of::<(String, Value)>() / 2;

/// A body of a stored record, with what it takes unpacked. A list of one byte takes room for four values, and holds one
/// that may be such a list; of a map, whose keys are read before its values, each key takes a place of 16 bytes,
/// and a vector that grows is there twice. A text that stands in a body several times takes its bytes each time: a
/// distance has two bytes, so half the body as text and a quarter as many distances take the most.
pub(crate) fn body_bytes(length: usize) -> usize {
    const PER_BYTE: usize = 1 + 4 * size_of::<Value>() + GROWTH * size_of::<&str>();
    let shared = (length * length / 8).min(datastore::codec::body::SHARED_BYTES_MAX);
    PER_BYTE * length + shared + 2 * FAULT_BYTES
}

/// What `prost` makes of a change, and the sentence that says it names no kind, with the room it is written in.
const CHANGE_BYTES: usize = 64;
const CHANGE_FAULT_BYTES: usize = 68;
/// Of operations and of changes, one beyond the limit is kept.
const OPS_BYTES: usize = GROWTH * size_of::<Request>() * BATCH_OPS_MAX.next_power_of_two() / 2;
const CHANGES_BYTES: usize = (size_of::<ChangeRequest>() + CHANGE_FAULT_BYTES) * (CHANGES_MAX + 1);

/// A request in protobuf. While it is short, what takes the most are operations of four bytes; changes of two,
/// which are there as `prost` made them while those of the model are made of them, take nearly as much. Of
/// both so many are kept, and what a longer request takes the most by is a document, or changes that are not.
pub(crate) fn request_bytes(length: usize) -> usize {
    const SHORT_PER_BYTE: usize = GROWTH * size_of::<Request>() / 4;
    const _: () =
        assert!(GROWN * CHANGE_BYTES + size_of::<ChangeRequest>() + CHANGE_FAULT_BYTES <= 2 * SHORT_PER_BYTE);
    const _: () = assert!(GROWTH * CHANGE_BYTES / 2 <= VALUE_PER_BYTE);
    FAULT_BYTES + (SHORT_PER_BYTE * length).min(VALUE_PER_BYTE * length + OPS_BYTES + CHANGES_BYTES)
}

/// A reply in protobuf. A result without a kind takes two bytes; what `prost` makes of one is 8 bytes larger
/// than that of the model.
pub(crate) const REPLY_PER_BYTE: usize = GROWTH * (size_of::<BatchResult>() + 8) / 2;
const _: () = assert!(size_of::<Record>() < size_of::<BatchResult>());

/// A node of the tree between the text and what it says.
const NODE_BYTES: usize = 32;
/// A request or a document in JSON: `1,` is a node while the value is made of it.
pub(crate) const JSON_PER_BYTE: usize = (GROWN * NODE_BYTES + GROWTH * size_of::<Value>()) / 2;
