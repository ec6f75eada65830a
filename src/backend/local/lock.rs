//! One process owns a directory: an advisory lock on a file in it, which ends with the process.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::model::{Error, Result};

use super::shown;

/// How long a second process waits for the first to go: a rolling restart takes less.
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// Between two tries.
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// A directory that this process owns until this is dropped.
#[derive(Debug)]
pub struct DirectoryLock {
    directory: PathBuf,
    _file: File,
}

impl DirectoryLock {
    /// Makes the directory if it is missing and locks it. If another process holds it, says so at once and
    /// tries again for 10 seconds.
    pub async fn acquire(directory: &Path) -> Result<Self> {
        let give_up = tokio::time::Instant::now() + LOCK_WAIT;
        let mut told = false;
        loop {
            match Self::try_acquire(directory)? {
                Ok(lock) => return Ok(lock),
                Err(owner) => {
                    let message = format!(
                        "{0} is locked by process {owner}: {0} is in use by another worker",
                        shown(directory)
                    );
                    if tokio::time::Instant::now() >= give_up {
                        return Err(Error::unavailable(message, 0));
                    }
                    if !told {
                        tracing::warn!("{message}; trying again for {} s", LOCK_WAIT.as_secs());
                        told = true;
                    }
                }
            }
            tokio::time::sleep(LOCK_PAUSE).await;
        }
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The lock, or the process that holds it.
    fn try_acquire(directory: &Path) -> Result<Result<Self, String>> {
        let failed = |what: &str, error: std::io::Error| {
            Error::unavailable(format!("cannot {what} {}: {error}", shown(directory)), 0)
        };
        std::fs::create_dir_all(directory).map_err(|error| failed("make the directory", error))?;
        let path = directory.join("LOCK");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|error| failed("open the lock file in", error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                // The owner writes its number right after locking; until then it is unknown.
                let read = file.read_to_string(&mut owner);
                let known = read.is_ok() && !owner.trim().is_empty();
                return Ok(Err(if known { owner.trim().to_owned() } else { "(unknown)".to_owned() }));
            }
            Err(TryLockError::Error(error)) => return Err(failed("lock", error)),
        }
        let write_owner = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            write!(file, "{}", std::process::id())
        };
        write_owner(&mut file).map_err(|error| failed("write the lock file in", error))?;
        Ok(Ok(Self { directory: directory.to_owned(), _file: file }))
    }
}
