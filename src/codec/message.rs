//! The protobuf form of requests and replies: `proto/datastore/v1/datastore.proto` <-> `model`.
//!
//! The generated structs stay inside. They hold documents as encoded bytes, which [`crate::codec::value`] reads, so
//! that a document's own faults can be told from those of the message around it: the former fail one operation
//! and are kept in the request, the latter fail all of the payload. Whether a request makes sense is not
//! judged here.

mod glance;
mod reply;
mod request;

use bytes::Bytes;
use prost::Message;

use crate::model::request::Request;
use crate::model::{Error, Result};

pub use glance::{glance_batch, glance_get};
pub use reply::{
    decode_record, decode_reply, encode_found, encode_record, encode_reply, encode_results, error_len,
    record_len, result_len,
};

/// The code that `build.rs` generates.
#[expect(unreachable_pub, reason = "generated from proto/datastore/v1/datastore.proto")]
mod wire {
    include!(concat!(env!("OUT_DIR"), "/datastore.v1.rs"));
}

/// Reads the request of an operation, named as in subjects.
pub fn decode_request(op: &str, payload: &Bytes) -> Result<Request> {
    Ok(match op {
        "get" => Request::Get(request::get(read(payload)?)?),
        "put" => Request::Put(request::put(read(payload)?)?),
        "delete" => Request::Delete(request::delete(read(payload)?)),
        "update" => Request::Update(request::update(read(payload)?)?),
        "touch" => Request::Touch(request::touch(read(payload)?)),
        "batch" => Request::Batch(request::batch(payload)?),
        "scan" => Request::Scan(request::scan(read(payload)?)?),
        other => return Err(Error::invalid(format!("unknown operation {other:?}"))),
    })
}

/// Writes a request. A document that is at fault is written as one that is absent.
///
/// A message of nothing but defaults has no bytes, and an empty payload would be an empty JSON object: such
/// a request says one of its defaults.
pub fn encode_request(request: &Request) -> Vec<u8> {
    /// Field 1, a text or message of length 0.
    const EMPTY_FIRST_FIELD: [u8; 2] = [1 << 3 | 2, 0];
    /// Field 2 of a batch: `atomic` is false. Its field 1 would be an operation of no kind.
    const NOT_ATOMIC: [u8; 2] = [2 << 3, 0];
    let bytes = encode_fields(request);
    match request {
        _ if !bytes.is_empty() => bytes,
        Request::Batch(_) => NOT_ATOMIC.to_vec(),
        _ => EMPTY_FIRST_FIELD.to_vec(),
    }
}

fn encode_fields(request: &Request) -> Vec<u8> {
    match request {
        Request::Get(get) => request::to_get(get).encode_to_vec(),
        Request::Put(put) => request::to_put(put).encode_to_vec(),
        Request::Delete(delete) => request::to_delete(delete).encode_to_vec(),
        Request::Update(update) => request::to_update(update).encode_to_vec(),
        Request::Touch(touch) => request::to_touch(touch).encode_to_vec(),
        Request::Batch(batch) => request::to_batch(batch).encode_to_vec(),
        Request::Scan(scan) => request::to_scan(scan).encode_to_vec(),
    }
}

/// Reads a message; its `bytes` fields share `payload`.
fn read<M: Message + Default>(payload: &Bytes) -> Result<M> {
    M::decode(payload.clone()).map_err(|fault| Error::invalid(fault.to_string()))
}

#[cfg(test)]
mod tests;
