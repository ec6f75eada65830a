//! The stored record: a frame around a document, the same for every backend and tier that stores bytes.
//!
//! Format 2, what is written today. Varints are LEB128, numbers of fixed size little-endian.
//!
//! ```text
//! offset size
//!      0    1  magic 0xDA
//!      1    1  format number: 2
//!      2    1  flags: bits 0-1 packing of the body: 0 none, 1 LZ4 (one block), 2 zstd (one frame)
//!                     bit 2    a content type follows
//!                     bit 3    a schema follows
//!                     bit 4    a dictionary id follows (dictionaries are not built yet: refused by name)
//!                     bits 5-7 kind: 0 = a document whose maps have their keys (`codec::body`)
//!      3    4  CRC-32C over every other byte of the frame
//!      7  1-10 updated at, Unix milliseconds, signed varint
//!      -  2-20 bit 3: schema id and schema version, varints of at most 32 bits; versions are not built yet: all but
//!              0 are refused by name
//!      -  1-10 bit 4: dictionary id, varint of at most 32 bits
//!      - 2-256 bit 2: length of the content type, 1 to 255, and the content type
//!      -  1-10 only where packed: length of the body unpacked, varint, at most 256 MiB
//!      -  1-10 length of the body as it stands here, varint, at most 256 MiB
//!      -    -  the body
//! ```
//!
//! Format numbers are never reused and a reader accepts every format ever written: [`first`] is format 1. What a
//! reader does not know (another magic, format, flag, kind or dictionary) is an error that names it, never a guess.
//! `docs/record-format.md` says the same for those who read records in another language.

mod explain;
mod first;
mod header;
#[cfg(test)]
mod tests;

use bytes::Bytes;

pub use super::compress::{Compression, Packing, Payoff};
pub use explain::{Damaged, Explained, Field, explain};

use super::body::{self, Malformed, Writer};
use super::value::{self, DecodeFault};
use super::{compress, project};
use crate::model::op::Path;
use crate::model::{Document, Value};
use header::Header;

/// First byte of every record.
const MAGIC: u8 = 0xDA;
/// The newest format, which is written.
pub const FORMAT: u8 = 2;
/// Most bytes of a body, as it stands and unpacked. The largest document has 64 MiB as its request encodes it, and what
/// grows the most on its way from there are floats in JSON: four bytes (`0.1,`) become nine.
pub const BODY_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Why stored bytes cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Another number of bytes than the frame says.
    #[error("{found} bytes where the frame needs {needed}")]
    Length {
        /// Bytes there are.
        found: usize,
        /// Bytes there should be, or at least be.
        needed: usize,
    },
    /// Not a frame.
    #[error("the first byte is {0:#04x}, a record starts with 0xda")]
    Magic(u8),
    /// A format of a newer version.
    #[error("record format {0} is not known to this version, which reads 1 and 2")]
    Format(u8),
    /// A flag of a newer version.
    #[error("{what} in flags {flags:#04x} of record format {format} is not known to this version")]
    Flags {
        /// Format number.
        format: u8,
        /// Flags.
        flags: u16,
        /// Which part of them.
        what: &'static str,
    },
    /// A dictionary that is not there.
    #[error("dictionary {0} is not known to this version")]
    Dictionary(u32),
    /// A version of a schema, which would be lost when the record is written again.
    #[error("version {version} of schema {id} is not known to this version")]
    Schema {
        /// Schema id.
        id: u32,
        /// Its version; versions are not built yet, so every one but 0 is unknown.
        version: u32,
    },
    /// The bytes changed after they were written.
    #[error("checksum {computed:#010x} where the record says {stored:#010x}")]
    Checksum {
        /// Over the bytes there are.
        computed: u32,
        /// As written.
        stored: u32,
    },
    /// A field of the header that makes no sense.
    #[error("{0}")]
    Header(&'static str),
    /// A length above its limit: nothing was allocated for it.
    #[error("a body of {declared} bytes, the limit is {BODY_BYTES_MAX}")]
    TooLarge {
        /// As the header says.
        declared: u64,
    },
    /// The checksum holds but the body does not unpack: a defect of the writer.
    #[error("the body does not unpack: {0}")]
    Packed(String),
    /// The checksum holds but the body does not read: a defect of the writer.
    #[error("the document does not read {0}")]
    Body(#[from] Malformed),
    /// The same, in format 1.
    #[error("the document does not read: {0}")]
    FirstBody(String),
}

/// Writes a document as one frame, in the newest format.
pub fn encode(document: &Document, compression: Compression<'_>) -> Bytes {
    Writer::with(|writer| {
        writer.document(&document.value);
        let packed = compress::pack(writer.written(), compression);
        let header =
            Header::of(document, writer.len(), packed.as_ref().map(|(packing, body)| (*packing, body.len())));
        if let Some((_, body)) = packed {
            writer.clear();
            writer.bytes(&body);
        }
        header.write(writer);
        header::seal(writer.written_mut());
        Bytes::copy_from_slice(writer.written())
    })
}

/// Reads a whole frame back. What of the document is bytes shares `frame`, unless it was packed.
pub fn decode(frame: &Bytes) -> Result<Document, Fault> {
    open(frame)?.document()
}

/// Checks a frame and gives what it holds, its document still as it is stored: the checksum vouches for it.
pub fn open(frame: &Bytes) -> Result<Stored, Fault> {
    let [magic, format] = *frame.first_chunk().ok_or(Fault::Length { found: frame.len(), needed: 2 })?;
    match (magic, format) {
        (MAGIC, 1) => first::open(frame),
        (MAGIC, FORMAT) => {
            // First, so that damage is told as damage, whatever it makes the header say.
            header::check(frame)?;
            let (header, body) = Header::read(frame)?;
            if body.end != frame.len() {
                return Err(Fault::Length { found: frame.len(), needed: body.end });
            }
            let Header { updated_at_ms, schema, content_type, packing, body_bytes, .. } = header;
            let form = Form::Body { packed: frame.slice(body), packing, body_bytes };
            Ok(Stored { updated_at_ms, content_type, schema: schema.unwrap_or(0), form })
        }
        (MAGIC, format) => Err(Fault::Format(format)),
        (magic, _) => Err(Fault::Magic(magic)),
    }
}

/// A frame that was checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// As in [`Document`].
    pub updated_at_ms: i64,
    /// As in [`Document`].
    pub content_type: String,
    /// As in [`Document`].
    pub schema: u32,
    form: Form,
}

/// A document as it is stored.
#[derive(Debug, Clone, PartialEq)]
enum Form {
    /// Format 1: `datastore.v1.Value`.
    Protobuf(Bytes),
    /// Format 2.
    Body { packed: Bytes, packing: Packing, body_bytes: usize },
}

impl Stored {
    /// Bytes of the body unpacked, as the frame says.
    pub fn body_bytes(&self) -> usize {
        match &self.form {
            Form::Protobuf(bytes) => bytes.len(),
            Form::Body { body_bytes, .. } => *body_bytes,
        }
    }

    /// The document.
    pub fn value(&self) -> Result<Value, Fault> {
        match &self.form {
            Form::Protobuf(bytes) => value::decode(bytes).map_err(|fault| match fault {
                DecodeFault::Malformed(error) | DecodeFault::Refused(error) => {
                    Fault::FirstBody(error.message)
                }
            }),
            Form::Body { .. } => Ok(body::decode(&self.body()?)?),
        }
    }

    /// The parts of the document that lie under the paths, as [`project::project`] chooses them. The rest is
    /// stepped over, not read.
    pub fn project(&self, fields: &[Path]) -> Result<Value, Fault> {
        match &self.form {
            Form::Protobuf(_) => Ok(project::project(self.value()?, fields)),
            Form::Body { .. } => Ok(body::project(&self.body()?, fields)?),
        }
    }

    /// The document as `datastore.v1.Value` in protobuf.
    pub fn protobuf(&self) -> Result<Bytes, Fault> {
        match &self.form {
            // Read and written again: what leaves has been checked, and has each member once.
            Form::Protobuf(_) => Ok(value::encode(&self.value()?).into()),
            Form::Body { .. } => Ok(body::to_protobuf(&self.body()?)?.into()),
        }
    }

    /// Document and head together.
    pub fn document(self) -> Result<Document, Fault> {
        let value = self.value()?;
        let Self { updated_at_ms, content_type, schema, .. } = self;
        Ok(Document { value, content_type, updated_at_ms, schema })
    }

    /// Whether offsets in the body are not offsets in the frame.
    fn is_packed(&self) -> bool {
        !matches!(self.form, Form::Body { packing: Packing::None, .. })
    }

    fn body(&self) -> Result<Bytes, Fault> {
        match &self.form {
            Form::Protobuf(bytes) => Ok(bytes.clone()),
            Form::Body { packed, packing: Packing::None, .. } => Ok(packed.clone()),
            Form::Body { packed, packing, body_bytes } => {
                compress::unpack(packed, *packing, *body_bytes).map(Bytes::from).map_err(Fault::Packed)
            }
        }
    }
}
