//! The number of the last group of writes that was acknowledged, beside the engine.
//!
//! The engine cuts a torn journal back to its last whole batch and says nothing. That is right for a batch
//! nobody was told of, and a silent loss for any other. So each group carries its number inside the batch,
//! and after the sync, before the answers, the number is written here. After a start the two are compared:
//! a number here that the engine does not reach is a loss, and is reported.
//!
//! The file is written after the sync and not synced itself: it may be behind after a power cut, never ahead.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// See the module.
#[derive(Debug)]
pub(super) struct Acknowledged {
    file: File,
}

const NUMBER_BYTES: usize = 8;
const FILE_BYTES: usize = NUMBER_BYTES + 4;

impl Acknowledged {
    /// Opens the file in a store's directory.
    pub(super) fn open(directory: &Path) -> std::io::Result<Self> {
        let path = directory.join("acknowledged");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        Ok(Self { file })
    }

    /// The number in the file; `None` where there is none, or a torn one.
    pub(super) fn read(&self) -> Option<u64> {
        let mut bytes = [0; FILE_BYTES];
        self.file.read_exact_at(&mut bytes, 0).ok()?;
        let (number, crc) = bytes.split_at(NUMBER_BYTES);
        let intact = crc32c::crc32c(number).to_le_bytes() == *crc;
        intact.then(|| u64::from_le_bytes(number.try_into().expect("eight bytes")))
    }

    /// Notes a number.
    pub(super) fn write(&self, group: u64) -> std::io::Result<()> {
        let mut bytes = [0; FILE_BYTES];
        bytes[..NUMBER_BYTES].copy_from_slice(&group.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..NUMBER_BYTES]);
        bytes[NUMBER_BYTES..].copy_from_slice(&crc.to_le_bytes());
        self.file.write_all_at(&bytes, 0)
    }
}
