//! The cursor of a scan: the key it stands behind <-> text.
//!
//! ```text
//! offset size
//!      0    1  number of the form: 1
//!      1    8  hash of what the cursor is bound to, little-endian
//!      9    -  the key, UTF-8
//!     -4    4  CRC-32C over every byte before it, little-endian
//! ```
//!
//! All of it in base64 of the alphabet for URLs, without padding. Refused is a text that differs from what is
//! written in any bit, and a cursor of another scan. What is read is written back as the same text.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::model::{Error, Key, Result};

const FORM: u8 = 1;
const HEAD_BYTES: usize = 1 + 8;
const CRC_BYTES: usize = 4;

/// Writes the cursor behind a key, bound to a scan.
pub fn write(key: &Key, binding: u64) -> String {
    let mut bytes = Vec::with_capacity(HEAD_BYTES + key.as_str().len() + CRC_BYTES);
    bytes.push(FORM);
    bytes.extend_from_slice(&binding.to_le_bytes());
    bytes.extend_from_slice(key.as_str().as_bytes());
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Characters of the cursor behind a key, at most.
pub fn len(key: &Key) -> usize {
    (HEAD_BYTES + key.as_str().len() + CRC_BYTES).div_ceil(3) * 4
}

/// The key a cursor stands behind, if it is bound to this scan.
pub fn read(cursor: &str, binding: u64) -> Result<Key> {
    let malformed = || Error::invalid("malformed cursor");
    let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| malformed())?;
    let content = bytes.len().checked_sub(CRC_BYTES).ok_or_else(malformed)?;
    let (content, crc) = bytes.split_at(content);
    if content.len() <= HEAD_BYTES || content[0] != FORM || crc32c::crc32c(content).to_le_bytes() != *crc {
        return Err(malformed());
    }
    let (head, key) = content.split_at(HEAD_BYTES);
    if head[1..] != binding.to_le_bytes() {
        return Err(Error::invalid(
            "the cursor belongs to a scan with another namespace, prefix, start, end or reverse",
        ));
    }
    let key = std::str::from_utf8(key).map_err(|_| malformed())?;
    Key::parse(key).map_err(|_| malformed())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BINDING: u64 = 0x0102_0304_0506_0708;

    #[test]
    fn a_key_survives_and_the_length_is_enough() {
        for key in ["a", "ab", "abc", "user:1/€", &"k".repeat(1024)] {
            let key = Key::parse(key).unwrap();
            let cursor = write(&key, BINDING);
            assert!(cursor.len() <= len(&key) && len(&key) < cursor.len() + 4, "{key}");
            assert_eq!(read(&cursor, BINDING).unwrap(), key);
            assert!(read(&cursor, BINDING ^ 1).unwrap_err().message.contains("another namespace"));
        }
    }

    #[test]
    fn a_changed_or_cut_cursor_is_refused() {
        let cursor = write(&Key::parse("key").unwrap(), BINDING);
        for at in 0..cursor.len() {
            assert!(read(&cursor[..at], BINDING).is_err(), "cut at {at}");
            for other in ["A", "B", "_", "=", "+"] {
                if cursor[at..at + 1] != *other {
                    let changed = format!("{}{other}{}", &cursor[..at], &cursor[at + 1..]);
                    assert!(read(&changed, BINDING).is_err(), "{changed}");
                }
            }
        }
    }
}
