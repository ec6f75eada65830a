//! What workers tell each other on the invalidation bus, subject `{prefix}.inv`.
//!
//! ```text
//! offset size   numbers big-endian
//!      0    1  format: 1
//!      1    1  kind: 1 announcements, 2 heartbeat, 3 goodbye
//!      2    8  origin of the sender, as in its versions
//!     10    8  sequence number: of announcements their own, else that of the last ones
//!     18    8  the sender's hybrid logical clock
//!     26    8  when it was sent, by the sender's own clock: means something to the sender alone
//!     34    -  of announcements: one behind another
//!
//!      0    1  flags: bit 0 = the version is not known, bit 1 = the shared tier could not be told, names follow
//!      1    8  hash of namespace and key
//!      9   16  version: hlc, origin
//!     25    -  bit 1: length of the namespace (1), namespace, length of the key (2), key
//! ```
//!
//! A message of another format is let alone: its sender counts as silent, so nobody relies on what it may have said.

use super::Micros;
use crate::model::{Key, Namespace, Version};

const FORMAT: u8 = 1;
const HEAD_BYTES: usize = 34;
/// Most bytes of an announcement.
pub(super) const ANNOUNCED_BYTES_MAX: usize =
    28 + crate::model::limits::NAMESPACE_BYTES_MAX + crate::model::limits::KEY_BYTES_MAX;
const UNKNOWN: u8 = 1;
const MISSED: u8 = 2;

/// A key was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Announced {
    /// Hash of namespace and key.
    pub(super) hash: u64,
    /// What it is at now; `None` = nobody knows.
    pub(super) version: Option<Version>,
    /// Its names, where the shared tier may still have an older copy.
    pub(super) missed: Option<(Namespace, Key)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Announcements = 1,
    Heartbeat = 2,
    Goodbye = 3,
}

/// The part that every message has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) kind: Kind,
    pub(super) origin: u64,
    pub(super) sequence: u64,
    pub(super) clock: u64,
    pub(super) sent: Micros,
}

/// Writes a message.
pub(super) fn encode(head: Head, announced: &[Announced]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_BYTES + announced.len() * 32);
    out.extend([FORMAT, head.kind as u8]);
    for number in [head.origin, head.sequence, head.clock, head.sent.0] {
        out.extend(number.to_be_bytes());
    }
    for each in announced {
        let unknown = if each.version.is_none() { UNKNOWN } else { 0 };
        out.push(unknown | if each.missed.is_some() { MISSED } else { 0 });
        let version = each.version.unwrap_or(Version { hlc: 0, origin: 0 });
        for number in [each.hash, version.hlc, version.origin] {
            out.extend(number.to_be_bytes());
        }
        if let Some((namespace, key)) = &each.missed {
            out.push(u8::try_from(namespace.as_str().len()).expect("a namespace has at most 63 bytes"));
            out.extend(namespace.as_str().as_bytes());
            out.extend(
                u16::try_from(key.as_str().len()).expect("a key has at most 1024 bytes").to_be_bytes(),
            );
            out.extend(key.as_str().as_bytes());
        }
    }
    out
}

/// Reads a message; `None` where it is none of this format.
pub(super) fn decode(bytes: &[u8]) -> Option<(Head, Vec<Announced>)> {
    let mut rest = bytes;
    if take::<1>(&mut rest)? != [FORMAT] {
        return None;
    }
    let kind = match take::<1>(&mut rest)? {
        [1] => Kind::Announcements,
        [2] => Kind::Heartbeat,
        [3] => Kind::Goodbye,
        _ => return None,
    };
    let mut number = || take::<8>(&mut rest).map(u64::from_be_bytes);
    let head =
        Head { kind, origin: number()?, sequence: number()?, clock: number()?, sent: Micros(number()?) };
    let mut announced = Vec::new();
    while !rest.is_empty() {
        announced.push(one(&mut rest)?);
    }
    Some((head, announced))
}

fn one(rest: &mut &[u8]) -> Option<Announced> {
    let [flags] = take::<1>(rest)?;
    let mut number = || take::<8>(rest).map(u64::from_be_bytes);
    let (hash, version) = (number()?, Version { hlc: number()?, origin: number()? });
    let missed = match flags & MISSED {
        0 => None,
        _ => {
            let [namespace_len] = take::<1>(rest)?;
            let namespace = Namespace::parse(text(rest, usize::from(namespace_len))?).ok()?;
            let key_len = u16::from_be_bytes(take::<2>(rest)?);
            Some((namespace, Key::parse(text(rest, usize::from(key_len))?).ok()?))
        }
    };
    Some(Announced { hash, version: (flags & UNKNOWN == 0).then_some(version), missed })
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (first, behind) = rest.split_first_chunk()?;
    *rest = behind;
    Some(*first)
}

fn text<'b>(rest: &mut &'b [u8], len: usize) -> Option<&'b str> {
    let (first, behind) = rest.split_at_checked(len)?;
    *rest = behind;
    std::str::from_utf8(first).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(kind: Kind) -> Head {
        Head { kind, origin: 0x0102, sequence: 3, clock: 4, sent: Micros(5) }
    }

    #[test]
    fn messages_never_change_because_workers_of_two_releases_speak_to_each_other() {
        let names = (Namespace::parse("n").unwrap(), Key::parse("k").unwrap());
        let announced = [
            Announced { hash: 6, version: Some(Version { hlc: 7, origin: 8 }), missed: None },
            Announced { hash: 9, version: None, missed: Some(names) },
        ];
        let golden = "01010000000000000102000000000000000300000000000000040000000000000005\
                      00000000000000000600000000000000070000000000000008\
                      03000000000000000900000000000000000000000000000000016e00016b";
        let bytes = encode(head(Kind::Announcements), &announced);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, golden.replace(char::is_whitespace, ""));
        assert_eq!(decode(&bytes), Some((head(Kind::Announcements), announced.to_vec())));
    }

    #[test]
    fn what_is_cut_off_or_of_another_format_is_no_message() {
        let names = (Namespace::parse("n").unwrap(), Key::parse("k").unwrap());
        let announced = [Announced { hash: 9, version: None, missed: Some(names) }];
        let bytes = encode(head(Kind::Announcements), &announced);
        for end in (0..bytes.len()).filter(|end| *end != HEAD_BYTES) {
            assert_eq!(decode(&bytes[..end]), None, "{end}");
        }
        let mut other = encode(head(Kind::Heartbeat), &[]);
        other[0] = 2;
        assert_eq!(decode(&other), None);
    }
}
