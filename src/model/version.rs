//! Versions: who wrote last, decided without asking anybody.

use std::fmt;
use std::str::FromStr;

use super::{Error, Result, hex};

/// A record's version: `(hlc, origin)`, totally ordered and unique for each write.
///
/// `hlc` is a hybrid logical clock reading (48 bits of milliseconds, 16 of counter). `origin` is 62 random
/// bits drawn when the worker's process started, and a flag bit (62) that is set when the store raised or
/// clamped the proposed clock, so that such a version never equals one a worker minted itself. Both numbers
/// fit a signed 64-bit column.
///
/// On the wire a version is 32 lower-case hex digits, whose order as a string is the order of the pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Hybrid logical clock reading.
    pub hlc: u64,
    /// Who wrote, and whether the store changed the clock reading.
    pub origin: u64,
}

/// The bit of `origin` that says the store changed the clock reading.
pub const RAISED: u64 = 1 << 62;

/// How many hex digits a version has.
const DIGITS: usize = 2 * hex::DIGITS;

impl Version {
    /// A 63-bit fingerprint, kept in the op ring to recognise the version that an operation got.
    pub fn fingerprint(self) -> u64 {
        self.hlc ^ self.origin
    }

    /// Puts its digits behind a text.
    pub fn push_to(self, text: &mut String) {
        hex::push(text, self.hlc);
        hex::push(text, self.origin);
    }

    /// Reads its digits, and nothing else.
    pub fn read(digits: &[u8]) -> Option<Self> {
        let (hlc, origin) = digits.split_at_checked(hex::DIGITS)?;
        Some(Self { hlc: hex::read(hlc)?, origin: hex::read(origin)? })
    }

    /// Draws a worker's origin.
    pub fn draw_origin() -> u64 {
        fastrand::u64(..) & (RAISED - 1)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::with_capacity(DIGITS);
        self.push_to(&mut text);
        f.write_str(&text)
    }
}

impl FromStr for Version {
    type Err = Error;

    /// Reads 32 lower-case hex digits; anything else is `invalid_argument`.
    fn from_str(text: &str) -> Result<Self> {
        Self::read(text.as_bytes()).ok_or_else(|| {
            let shown = super::key::shorten(text);
            Error::invalid(format!("bad version {shown:?}: a version is {DIGITS} lower-case hex digits"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_order_is_version_order() {
        let mut previous = Version { hlc: 0, origin: 0 };
        for step in 1..1000_u64 {
            let version =
                Version { hlc: step / 3, origin: step.wrapping_mul(0x9e37_79b9) | (step % 3) << 62 >> 1 };
            assert_eq!(version.cmp(&previous), version.to_string().cmp(&previous.to_string()));
            assert_eq!(version.to_string().parse::<Version>().unwrap(), version);
            previous = version;
        }
    }

    #[test]
    fn a_malformed_version_is_refused() {
        let good = Version { hlc: 1, origin: 2 }.to_string();
        for bad in [
            "",
            "0",
            &good[1..],
            &good.to_uppercase().replace('0', "A"),
            &format!("{good}0"),
            &good.replace('0', "g"),
        ] {
            assert!(bad.parse::<Version>().is_err(), "{bad}");
        }
    }
}
