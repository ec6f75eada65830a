//! The formats compared, each as one pass of encoding and one of decoding over a set.

use std::hint::black_box;

use bytes::Bytes;
use datastore::codec::{json, value};
use datastore::model::{Document, Value};

use super::data::Set;
use super::ours::{self, Compression};
use super::peer::{Decoded, Peer};

/// Room that the peers' buffers start with, as much as our own writer's: most records fit, and growing from nothing costs
/// up to half of an encode.
const ROOM_BYTES: usize = 8 * 1024;

const ROUND_TRIP: &str = "what this format wrote a moment ago reads back";

/// One format on one set.
pub(crate) struct Format<'s> {
    /// As in the tables.
    pub(crate) name: &'static str,
    /// Each record as this format writes it.
    pub(crate) encoded: Vec<Bytes>,
    encode: Box<dyn Fn() + 's>,
    decode: DecodePass<'s>,
}

type DecodePass<'s> = Box<dyn Fn(&[Bytes]) + 's>;

impl Format<'_> {
    /// Encodes every record of the set once, and drops what comes out.
    pub(crate) fn encode_all(&self) {
        (self.encode)();
    }

    /// Decodes every record of the set once, and drops what comes out.
    pub(crate) fn decode_all(&self) {
        (self.decode)(&self.encoded);
    }

    /// Bytes of the whole set.
    pub(crate) fn bytes(&self) -> usize {
        self.encoded.iter().map(Bytes::len).sum()
    }
}

/// What of a document a format gives back; the rest comes back as what it is written as.
#[derive(Clone, Copy)]
enum Keeps {
    Everything,
    /// A time is an integer.
    AllButTime,
    /// A time is an integer, and bytes are a list of integers.
    JsonOnly,
}

/// The formats of the tables. The first is our body, and [`MESSAGE_PACK`] is among them.
pub(crate) fn compared(set: &Set) -> Vec<Format<'_>> {
    let mut formats = vec![body(set), message_pack(set), cbor(set), json(set), protobuf(set)];
    formats.extend(ours::compressions().map(|compression| frame(set, compression)));
    formats
}

/// The name of our body.
pub(crate) const BODY: &str = "ours: body";
/// The name of what all others are compared with.
pub(crate) const MESSAGE_PACK: &str = "MessagePack";
/// The name of what serde_json writes.
pub(crate) const JSON: &str = "JSON";

/// Our body alone: what has neither checksum nor time nor content type, as the peers have none.
pub(crate) fn body(set: &Set) -> Format<'_> {
    format(set, BODY, Keeps::Everything, |document| ours::body_encode(&document.value), ours::body_decode)
}

/// Our whole record.
pub(crate) fn frame<'s>(set: &'s Set, compression: Compression<'static>) -> Format<'s> {
    let name = match compression {
        Compression::None => "ours: frame",
        Compression::Lz4 => "ours: frame, lz4",
        Compression::Zstd => "ours: frame, zstd",
        Compression::Auto(_) => "ours: frame, auto",
    };
    let encode = move |document: &Document| ours::encode(document, compression);
    format(set, name, Keeps::Everything, encode, ours::decode)
}

pub(crate) fn message_pack(set: &Set) -> Format<'_> {
    let encode = |document: &Document| {
        let mut out = Vec::with_capacity(ROOM_BYTES);
        rmp_serde::encode::write_named(&mut out, &Peer(&document.value)).expect("a vector grows");
        out
    };
    format(set, MESSAGE_PACK, Keeps::AllButTime, encode, from_message_pack)
}

/// The same bytes from rmp-serde's own buffer, which starts empty: the usual call, and a slower one.
pub(crate) fn message_pack_to_vec(set: &Set) -> Format<'_> {
    let encode =
        |document: &Document| rmp_serde::to_vec_named(&Peer(&document.value)).expect("a vector grows");
    format(set, "MessagePack, `to_vec_named`", Keeps::AllButTime, encode, from_message_pack)
}

fn from_message_pack(bytes: &Bytes) -> Value {
    rmp_serde::from_slice::<Decoded>(bytes).expect(ROUND_TRIP).0
}

fn cbor(set: &Set) -> Format<'_> {
    let encode = |document: &Document| {
        let mut out = Vec::with_capacity(ROOM_BYTES);
        ciborium::into_writer(&Peer(&document.value), &mut out).expect("a vector grows");
        out
    };
    let decode = |bytes: &Bytes| ciborium::from_reader::<Decoded, _>(&bytes[..]).expect(ROUND_TRIP).0;
    format(set, "CBOR", Keeps::AllButTime, encode, decode)
}

fn json(set: &Set) -> Format<'_> {
    let encode = |document: &Document| serde_json::to_vec(&Peer(&document.value)).expect("every key is text");
    let decode = |bytes: &Bytes| serde_json::from_slice::<Decoded>(bytes).expect(ROUND_TRIP).0;
    format(set, JSON, Keeps::JsonOnly, encode, decode)
}

/// The product's hand-written protobuf of its wire.
pub(crate) fn protobuf(set: &Set) -> Format<'_> {
    let encode = |document: &Document| value::encode(&document.value);
    let decode = |bytes: &Bytes| value::decode(bytes).expect(ROUND_TRIP);
    format(set, "protobuf Value", Keeps::Everything, encode, decode)
}

/// The product's own JSON of its wire.
pub(crate) fn wire_json(set: &Set) -> Format<'_> {
    let encode = |document: &Document| json::value_to_string(&document.value, false);
    let decode = |bytes: &Bytes| json::parse_value(bytes).expect(ROUND_TRIP);
    format(set, "wire JSON", Keeps::Everything, encode, decode)
}

/// A decoded record, as a format gives it.
trait IntoValue {
    fn into_value(self) -> Value;
}

impl IntoValue for Value {
    fn into_value(self) -> Value {
        self
    }
}

impl IntoValue for Document {
    fn into_value(self) -> Value {
        self.value
    }
}

/// Puts a format together, and holds it to give back every record of the set exactly.
fn format<'s, Written, Read>(
    set: &'s Set,
    name: &'static str,
    keeps: Keeps,
    encode: impl Fn(&Document) -> Written + 's,
    decode: impl Fn(&Bytes) -> Read + 's,
) -> Format<'s>
where
    Written: AsRef<[u8]>,
    Read: IntoValue,
{
    let encoded: Vec<Bytes> =
        set.documents.iter().map(|document| Bytes::copy_from_slice(encode(document).as_ref())).collect();
    for (at, (document, bytes)) in set.documents.iter().zip(&encoded).enumerate() {
        assert!(
            decode(bytes).into_value() == kept(&document.value, keeps),
            "{name} changes record {at} of {}",
            set.name
        );
    }
    Format {
        name,
        encoded,
        encode: Box::new(move || {
            for document in &set.documents {
                black_box(encode(black_box(document)));
            }
        }),
        decode: Box::new(move |encoded| {
            for bytes in encoded {
                black_box(decode(black_box(bytes)));
            }
        }),
    }
}

/// A value as a format is to give it back. The real records hold neither times nor bytes, made-up ones do.
fn kept(value: &Value, keeps: Keeps) -> Value {
    match (value, keeps) {
        (Value::Time(us), Keeps::AllButTime | Keeps::JsonOnly) => Value::Int(*us),
        (Value::Bytes(bytes), Keeps::JsonOnly) => {
            Value::List(bytes.iter().map(|byte| Value::Int((*byte).into())).collect())
        }
        (Value::List(items), _) => Value::List(items.iter().map(|item| kept(item, keeps)).collect()),
        (Value::Map(map), _) => {
            let entries = map.iter().map(|(key, value)| (key.to_owned(), kept(value, keeps))).collect();
            Value::Map(datastore::model::Map::from_entries(entries).expect("keys of a map differ"))
        }
        _ => value.clone(),
    }
}
