//! Update and touch: the next document as a pure function of the present one, run by the backend.

use bytes::Bytes;

use crate::backend::{Change, Live};
use crate::codec::stored;
use crate::model::key::shorten;
use crate::model::op::{self, Expiry, Lifetime};
use crate::model::value::Map;
use crate::model::{Code, Document, Error, Key, Result, Value};

use super::{Call, paths};

/// Changes to a document, all or none.
pub(super) struct Update {
    pub(super) call: Call,
    pub(super) key: Key,
    pub(super) changes: Vec<op::Change>,
    pub(super) create: bool,
    pub(super) expiry: Expiry,
}

/// A new lifetime for the same document.
pub(super) struct Touch {
    pub(super) call: Call,
    pub(super) key: Key,
    pub(super) lifetime: Lifetime,
}

impl Change for Update {
    fn change(&self, present: Option<&Live>) -> Result<(Bytes, Expiry)> {
        let mut document = match present {
            Some(live) => self.call.document(&self.key, live)?,
            None if self.create => empty(),
            None => return Err(not_found(&self.key)),
        };
        let mut work = paths::Work::new();
        for (at, change) in self.changes.iter().enumerate() {
            paths::change(&mut document.value, change, &mut work)
                .map_err(|error| error.at(&format!("changes[{at}]")))?;
        }
        document.value.check_depth()?;
        check_size(&self.call, &document.value)?;
        document.updated_at_ms = self.call.now_ms;
        Ok((stored::encode(&document, self.call.compression()), self.expiry))
    }
}

impl Change for Touch {
    fn change(&self, present: Option<&Live>) -> Result<(Bytes, Expiry)> {
        let live = present.ok_or_else(|| not_found(&self.key))?;
        let mut document = self.call.document(&self.key, live)?;
        document.updated_at_ms = self.call.now_ms;
        Ok((stored::encode(&document, self.call.compression()), Expiry::New(self.lifetime)))
    }
}

/// `too_large`, if the document could not be read back in one reply of the request's encoding.
pub fn check_size(call: &Call, value: &Value) -> Result<()> {
    let (bytes, limit) = (call.encoding.value_len(value), call.value_bytes_max());
    if bytes <= limit {
        return Ok(());
    }
    Err(Error::too_large(format!(
        "the value takes {bytes} bytes in this encoding, the limit is {limit} bytes"
    )))
}

fn empty() -> Document {
    Document { value: Value::Map(Map::new()), content_type: String::new(), updated_at_ms: 0, schema: 0 }
}

fn not_found(key: &Key) -> Error {
    Error::new(Code::NotFound, format!("no record {:?}", shorten(key.as_str())))
}
