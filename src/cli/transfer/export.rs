//! `export`: page by page in key order into a file that appears when it is complete.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::Session;
use crate::cli::args::Transfer;
use crate::cli::output::{Ended, Fault, INTERRUPTED, Output, error_line, tell};
use crate::cli::record_file::{Entry, Packed};
use crate::client::NamespaceClient;
use crate::model::reply::{Reply, ScanReply};
use crate::model::request::{Request, ScanRequest};

/// Records of one page; bytes bound it too, at the worker.
const PAGE_RECORDS: u32 = 1000;

/// Writes every record of a namespace. Ends with a count on standard error.
pub(in crate::cli) async fn export(session: &Session, _output: &mut Output, transfer: &Transfer) -> Ended {
    let namespace = session.namespace(&transfer.namespace).await?;
    let target = Target::create(&transfer.file)?;
    let bar = super::bar(None);
    let mut packed = Packed::new(&transfer.file, target.writer()?)?;
    let mut interrupt = std::pin::pin!(super::interrupt());
    let (mut count, mut left_out) = (0_u64, 0_u64);
    let mut asked = tokio::spawn(page(namespace.clone(), String::new()));
    loop {
        let page = tokio::select! {
            biased;
            () = &mut interrupt => {
                bar.finish_and_clear();
                tell("export stopped; nothing was kept");
                return Ok(ExitCode::from(INTERRUPTED));
            }
            page = &mut asked => page.map_err(|panic| Fault::input(format!("a part of the export failed: {panic}")))??,
        };
        match page.error {
            Some(error) if page.cursor.is_empty() => return Err(Fault::Failed(error)),
            Some(error) => {
                // One record fits no page: told here, and the export cannot be complete.
                tell(&format!("error: {}", error_line(&error)));
                left_out += 1;
            }
            None => {}
        }
        let done = page.cursor.is_empty();
        // The next page is on its way while this one is written.
        if !done {
            asked = tokio::spawn(self::page(namespace.clone(), page.cursor));
        }
        for record in &page.records {
            let line = Entry::line(record).ok_or_else(|| Fault::input("a record came without its value"))?;
            packed.line(&line)?;
            count += 1;
        }
        bar.set_message(format!("{count} records"));
        if done {
            break;
        }
    }
    bar.finish_and_clear();
    let out = packed.finish()?;
    if left_out > 0 {
        let kept = target.keep();
        return Err(Fault::input(format!(
            "{left_out} records are left out; the {count} others are in {kept}"
        )));
    }
    target.complete(out)?;
    tell(&format!("{count} records exported"));
    Ok(ExitCode::SUCCESS)
}

async fn page(namespace: NamespaceClient, cursor: String) -> Result<ScanReply, Fault> {
    let request = ScanRequest { limit: PAGE_RECORDS, cursor, ..ScanRequest::default() };
    match namespace.request(Request::Scan(request)).await? {
        Reply::Scan(page) => Ok(page),
        _ => Err(Fault::input("the reply is not one to scan")),
    }
}

/// Where an export goes: standard output, something that is no regular file (a pipe, a device), or a file under
/// another name until it is complete. Left early, that file is removed.
enum Target {
    Out,
    Stream(File),
    File { partial: Option<PathBuf>, path: PathBuf, file: File },
}

impl Target {
    fn create(name: &str) -> Result<Self, Fault> {
        if name == "-" {
            return Ok(Self::Out);
        }
        let failed = |error: io::Error| Fault::input(format!("cannot write {name}: {error}"));
        // A link is followed: what it points to is replaced, not the link.
        let path = std::fs::canonicalize(name).unwrap_or_else(|_| PathBuf::from(name));
        if let Ok(found) = std::fs::metadata(&path) {
            if found.is_dir() {
                return Err(Fault::input(format!("cannot write {name}: it is a directory")));
            }
            if !found.is_file() {
                return File::options().write(true).open(&path).map(Self::Stream).map_err(failed);
            }
        }
        let mut partial = path.clone().into_os_string();
        partial.push(format!(".{}.partial", std::process::id()));
        let partial = PathBuf::from(partial);
        let file = File::create(&partial);
        let file =
            file.map_err(|error| Fault::input(format!("cannot write {}: {error}", partial.display())))?;
        Ok(Self::File { partial: Some(partial), path, file })
    }

    fn writer(&self) -> io::Result<Box<dyn Write + Send>> {
        Ok(match self {
            Self::Out => Box::new(io::stdout()),
            Self::Stream(file) => Box::new(file.try_clone()?),
            Self::File { file, .. } => Box::new(file.try_clone()?),
        })
    }

    /// Puts the file in its place, once its bytes are safe.
    fn complete(mut self, mut out: Box<dyn Write + Send>) -> io::Result<()> {
        out.flush()?;
        if let Self::File { partial, path, file } = &mut self {
            file.sync_all()?;
            if let Some(from) = partial.as_ref() {
                std::fs::rename(from, path)?;
            }
            *partial = None;
        }
        Ok(())
    }

    /// Leaves the file under its other name, which is given back.
    fn keep(mut self) -> String {
        match &mut self {
            Self::Out => "standard output".to_owned(),
            Self::Stream(_) => "the stream".to_owned(),
            Self::File { partial, .. } => partial.take().unwrap_or_default().display().to_string(),
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Self::File { partial: Some(partial), .. } = self {
            drop(std::fs::remove_file(partial));
        }
    }
}
