//! Compressing the bodies of stored records.
//!
//! A compressed length is never trusted: the frame declares what comes out, and the limit is checked before any
//! memory is taken for it.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, Ordering};

/// Level of zstd. Measured on real bodies above 1 KiB: level 3 takes 1.25 times as long and its output is 0.3 to 2 % smaller.
const ZSTD_LEVEL: i32 = 1;
/// `auto` tries bodies of so many bytes and more: below, what it saves is not worth the time of every reader.
const AUTO_FROM_BYTES: usize = 1024;
/// `auto` keeps a compressed body that saves at least this share, one part in so many: unpacking 1 to 3 KiB takes every
/// reader 2.5 to 4.5 us, half as long as decoding it does.
const AUTO_SAVES_PART: usize = 4;
/// After so many tries in a row that did not pay, `auto` tries rarely.
const MISSES_MAX: u32 = 8;
/// One body of so many is still tried then, so that a namespace whose documents change is noticed.
const RARELY: u32 = 64;

/// A byte of an LZ4 block stands for at most so many (its block format: each further byte of a length adds 255).
const LZ4_EXPANDS_MAX: usize = 255;
/// What the first token of a block may hold beyond that.
const LZ4_LAST_BYTES: usize = 64;

/// How bodies are stored.
#[derive(Debug, Clone, Copy)]
pub enum Compression<'m> {
    /// As they are.
    None,
    /// By LZ4 where that makes them smaller.
    Lz4,
    /// By zstd where that makes them smaller.
    Zstd,
    /// By zstd where that pays, with what is remembered of the namespace.
    Auto(&'m Payoff),
}

/// How a body is packed, as its frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Not at all.
    None,
    /// One block of LZ4, without a length in front.
    Lz4,
    /// One frame of zstd.
    Zstd,
}

/// What `auto` remembers of a namespace.
#[derive(Debug, Default)]
pub struct Payoff {
    /// Tries in a row that did not pay, up to [`MISSES_MAX`]; above, bodies since the last try.
    misses: AtomicU32,
}

impl Payoff {
    /// Whether the next body is worth a try. Several threads may miscount by some: it is a hint.
    fn worth_a_try(&self) -> bool {
        let misses = self.misses.load(Ordering::Relaxed);
        if misses < MISSES_MAX {
            return true;
        }
        let next = if misses + 1 >= MISSES_MAX + RARELY { MISSES_MAX } else { misses + 1 };
        self.misses.store(next, Ordering::Relaxed);
        next == MISSES_MAX
    }

    fn note(&self, paid: bool) {
        if paid {
            self.misses.store(0, Ordering::Relaxed);
        } else {
            let misses = self.misses.load(Ordering::Relaxed);
            self.misses.store((misses + 1).min(MISSES_MAX.max(misses)), Ordering::Relaxed);
        }
    }
}

/// The body, packed, if that is to be stored in place of it.
pub(super) fn pack(body: &[u8], compression: Compression<'_>) -> Option<(Packing, Vec<u8>)> {
    let smaller = |packed: &Vec<u8>| packed.len() < body.len();
    match compression {
        Compression::None => None,
        Compression::Lz4 => {
            Some((Packing::Lz4, lz4_flex::block::compress(body))).filter(|(_, packed)| smaller(packed))
        }
        Compression::Zstd => Some((Packing::Zstd, zstd(body)?)).filter(|(_, packed)| smaller(packed)),
        Compression::Auto(payoff) => {
            if body.len() < AUTO_FROM_BYTES || !payoff.worth_a_try() {
                return None;
            }
            let packed =
                zstd(body).filter(|packed| packed.len() + body.len() / AUTO_SAVES_PART <= body.len());
            payoff.note(packed.is_some());
            packed.map(|packed| (Packing::Zstd, packed))
        }
    }
}

/// The body again. `length` is what the frame declares and was checked against the limit.
pub(super) fn unpack(packed: &[u8], packing: Packing, length: usize) -> Result<Vec<u8>, String> {
    let body = match packing {
        Packing::None => return Ok(packed.to_vec()),
        // Its library takes the room before it looks at what is there.
        Packing::Lz4 if length > LZ4_EXPANDS_MAX * packed.len() + LZ4_LAST_BYTES => {
            return Err(format!("{} bytes of LZ4 cannot hold {length}", packed.len()));
        }
        Packing::Lz4 => lz4_flex::block::decompress(packed, length).map_err(|fault| fault.to_string())?,
        Packing::Zstd => unzstd(packed, length)?,
    };
    if body.len() != length {
        return Err(format!("{} bytes came out where the header says {length}", body.len()));
    }
    Ok(body)
}

thread_local! {
    // Making one costs more than using it: it allocates and clears its tables.
    static ZSTD: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
    static UNZSTD: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

/// `None` where the library has no memory left: the body is stored as it is.
fn zstd(body: &[u8]) -> Option<Vec<u8>> {
    ZSTD.with_borrow_mut(|kept| {
        if kept.is_none() {
            *kept = Some(zstd::bulk::Compressor::new(ZSTD_LEVEL).ok()?);
        }
        kept.as_mut()?.compress(body).ok()
    })
}

fn unzstd(packed: &[u8], length: usize) -> Result<Vec<u8>, String> {
    UNZSTD.with_borrow_mut(|kept| {
        if kept.is_none() {
            *kept = Some(zstd::bulk::Decompressor::new().map_err(|fault| fault.to_string())?);
        }
        let library = kept.as_mut().ok_or("zstd did not start")?;
        library.decompress(packed, length).map_err(|fault| fault.to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: usize) -> Vec<u8> {
        b"the same words again and ".iter().copied().cycle().take(bytes).collect()
    }

    fn noise(bytes: usize) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(7);
        (0..bytes).map(|_| random.u8(..)).collect()
    }

    #[test]
    fn what_was_packed_comes_out_again() {
        for bytes in [1, 100, AUTO_FROM_BYTES, 300_000] {
            for compression in [Compression::Lz4, Compression::Zstd, Compression::Auto(&Payoff::default())] {
                let body = text(bytes);
                if let Some((packing, packed)) = pack(&body, compression) {
                    assert!(packed.len() < body.len());
                    assert_eq!(unpack(&packed, packing, body.len()).unwrap(), body);
                    assert!(unpack(&packed, packing, body.len() - 1).is_err());
                    assert!(unpack(&packed, packing, body.len() + 1).is_err());
                } else {
                    assert!(bytes < AUTO_FROM_BYTES, "{bytes} {compression:?}");
                }
            }
        }
    }

    #[test]
    fn what_does_not_get_smaller_is_stored_as_it_is() {
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
            assert!(pack(&noise(5000), compression).is_none(), "{compression:?}");
        }
    }

    #[test]
    fn auto_remembers_that_it_does_not_pay_and_notices_when_it_does() {
        let payoff = Payoff::default();
        for _ in 0..MISSES_MAX {
            assert!(payoff.worth_a_try());
            assert!(pack(&noise(5000), Compression::Auto(&payoff)).is_none());
        }
        // From here on one body of RARELY is tried, and the first that pays brings the rest back.
        let tried =
            (0..RARELY * 3).filter(|_| pack(&text(5000), Compression::Auto(&payoff)).is_some()).count();
        assert_eq!(tried as u32, RARELY * 2 + 1);
        assert!(pack(&text(AUTO_FROM_BYTES - 1), Compression::Auto(&payoff)).is_none());
    }
}
