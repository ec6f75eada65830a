//! Where things lie: a bucket for each namespace, and one of our own for what is said of all of them.
//!
//! | bucket | key | what |
//! | --- | --- | --- |
//! | the namespace | the key | its row (`backend::row`), also of a tombstone |
//! | `_datastore` | `floor` | a row whose version is the floor: deletes at or below it may be forgotten |
//! | `_datastore` | `ns/` and a namespace | a row whose document says how its keys are partitioned |
//! | `_datastore` | `durability/` and a namespace | a row whose document says the durability in force |
//!
//! No namespace's name begins with `_`.

use bytes::Bytes;

use crate::backend::RowKey;
use crate::model::Namespace;

/// The bucket of our own.
pub(super) const OWN_BUCKET: &str = "_datastore";
/// What the keys of namespaces' notes begin with.
pub(super) const NOTE_PREFIX: &str = "ns/";
/// The index that finds records whose lifetime has ended: Unix milliseconds.
pub(super) const EXPIRES_INDEX: &str = "expires_int";
/// The index that finds tombstones: Unix milliseconds of their version.
pub(super) const BURIED_INDEX: &str = "buried_int";

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) bucket: Bytes,
    pub(super) key: Bytes,
}

impl Place {
    /// Of a record.
    pub(super) fn of(at: &RowKey) -> Self {
        Self::in_namespace(&at.namespace, at.key.as_str().as_bytes())
    }

    /// Of a key of a namespace.
    pub(super) fn in_namespace(namespace: &Namespace, key: &[u8]) -> Self {
        Self { bucket: bucket(namespace), key: Bytes::copy_from_slice(key) }
    }

    /// Of what is noted of a namespace.
    pub(super) fn note(namespace: &Namespace) -> Self {
        let key = format!("{NOTE_PREFIX}{namespace}");
        Self { bucket: Bytes::from_static(OWN_BUCKET.as_bytes()), key: key.into() }
    }

    /// Of what is noted of a namespace's durability.
    pub(super) fn durability(namespace: &Namespace) -> Self {
        let key = format!("durability/{namespace}");
        Self { bucket: Bytes::from_static(OWN_BUCKET.as_bytes()), key: key.into() }
    }

    /// Of the floor.
    pub(super) fn floor() -> Self {
        Self { bucket: Bytes::from_static(OWN_BUCKET.as_bytes()), key: Bytes::from_static(b"floor") }
    }

    /// What a row's checksum covers beside the row: bucket, NUL, key.
    pub(super) fn stored_key(&self) -> Vec<u8> {
        [&self.bucket[..], &[0], &self.key[..]].concat()
    }
}

/// The bucket of a namespace.
pub(super) fn bucket(namespace: &Namespace) -> Bytes {
    Bytes::copy_from_slice(namespace.as_str().as_bytes())
}
