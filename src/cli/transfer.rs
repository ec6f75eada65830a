//! `import` and `export`.
//!
//! An import needs no notes of how far it came: it compares each record with what is there and writes what
//! differs, so that running it again goes on. [`CHUNKS_MAX`] chunks are in flight; two that hold the same key never
//! are, so that the later line wins.

mod chunk;
mod export;

use std::collections::HashSet;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Session;
use super::args::Transfer;
use super::output::{Ended, Fault, INTERRUPTED, Output, tell};
use super::record_file::{Lines, shown};
use chunk::{Chunk, Tally};

use crate::model::Retry;

pub(super) use export::export;

/// Chunks whose requests are in flight.
const CHUNKS_MAX: usize = 8;
/// Chunks that are read ahead.
const CHUNKS_READ_AHEAD: usize = 4;
/// How often the progress bar moves without news.
const BAR_TICK: Duration = Duration::from_millis(200);

/// Reads, compares, writes what differs.
pub(super) async fn import(session: &Session, output: &mut Output, transfer: &Transfer) -> Ended {
    let lines = Lines::open(&transfer.file)
        .map_err(|error| Fault::input(format!("{}: {error}", shown(&transfer.file))))?;
    let client = session.client().await?;
    let namespace = session.namespace_of(&client, &transfer.namespace)?;
    let bar = bar(lines.bytes_total);
    let bytes_read = lines.bytes_read.clone();
    let mut chunks = read_chunks(lines, client.max_payload());
    let mut interrupt = std::pin::pin!(interrupt());

    let mut tally = Tally::default();
    let mut in_flight = JoinSet::new();
    // Keys of the chunks in flight.
    let mut busy: HashSet<String> = HashSet::new();
    let mut held: Option<Chunk> = None;
    let mut more = true;
    let mut interrupted = false;
    let mut fault: Option<Fault> = None;
    loop {
        if let Some(chunk) = held.take_if(|chunk| in_flight.len() < CHUNKS_MAX && !chunk.touches(&busy)) {
            busy.extend(chunk.keys());
            let namespace = namespace.clone();
            in_flight.spawn(async move { chunk.transfer(&namespace).await });
        }
        if !more && held.is_none() && in_flight.is_empty() {
            break;
        }
        tokio::select! {
            biased;
            () = &mut interrupt, if !interrupted => {
                interrupted = true;
                tell("stopping after the requests in hand; Ctrl-C again stops at once");
                tokio::spawn(async {
                    self::interrupt().await;
                    std::process::exit(i32::from(INTERRUPTED));
                });
                more = false;
                held = None;
            }
            Some(done) = in_flight.join_next(), if !in_flight.is_empty() => match done {
                Ok((chunk, came_to)) => {
                    busy.retain(|key| !chunk.holds(key));
                    tally.add(&came_to);
                    bar.set_position(bytes_read.load(Ordering::Relaxed));
                    bar.set_message(tally.to_string());
                    if let Some(error) = came_to.error {
                        fault.get_or_insert(Fault::Failed(error));
                        (more, held) = (false, None);
                    }
                }
                Err(panic) => return Err(Fault::input(format!("a part of the import failed: {panic}"))),
            },
            next = chunks.recv(), if more && held.is_none() => match next {
                None => more = false,
                Some(Ok(chunk)) => held = Some(chunk),
                Some(Err(line)) => {
                    fault.get_or_insert(Fault::input(format!("{}: {line}", shown(&transfer.file))));
                    more = false;
                }
            },
        }
    }
    bar.finish_and_clear();
    output.line(&if output.json { tally.json() } else { tally.to_string() })?;
    output.flush()?;
    match fault {
        Some(fault) => {
            if matches!(&fault, Fault::Failed(error) if error.retry() != Retry::Final) {
                tell("import stopped; running it again continues");
            }
            if interrupted {
                fault.tell();
                return Ok(ExitCode::from(INTERRUPTED));
            }
            Err(fault)
        }
        None if interrupted => {
            tell("import stopped; running it again continues");
            Ok(ExitCode::from(INTERRUPTED))
        }
        None => Ok(ExitCode::SUCCESS),
    }
}

/// Reads chunks on a thread of its own, which may be stuck in standard input when the process ends. A bad line
/// comes after the chunk of what stands before it, and is the last thing.
fn read_chunks(mut lines: Lines, max_payload: usize) -> mpsc::Receiver<Result<Chunk, String>> {
    let (sender, receiver) = mpsc::channel(CHUNKS_READ_AHEAD);
    std::thread::spawn(move || {
        let mut chunk = Chunk::new(max_payload);
        loop {
            match lines.next_entry() {
                Ok(Some(entry)) => {
                    if let Some(entry) = chunk.push(entry) {
                        let mut next = Chunk::new(max_payload);
                        let refused = next.push(entry);
                        debug_assert!(refused.is_none(), "an empty chunk takes any entry");
                        if sender.blocking_send(Ok(std::mem::replace(&mut chunk, next))).is_err() {
                            return;
                        }
                    }
                }
                Ok(None) => {
                    drop(sender.blocking_send(Ok(chunk)));
                    return;
                }
                Err(line) => {
                    if sender.blocking_send(Ok(chunk)).is_ok() {
                        drop(sender.blocking_send(Err(line)));
                    }
                    return;
                }
            }
        }
    });
    receiver
}

/// Ends at Ctrl-C; never where it cannot be listened for, and then Ctrl-C ends the process as ever.
pub(super) async fn interrupt() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// A progress bar, where somebody sees it.
pub(super) fn bar(total: Option<u64>) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match total {
        Some(total) => (ProgressBar::new(total), "{bar:40} {bytes}/{total_bytes} {eta} {msg}"),
        None => (ProgressBar::new_spinner(), "{spinner} {elapsed} {msg}"),
    };
    let style = ProgressStyle::with_template(template).expect("the template is well formed");
    let bar = bar.with_style(style);
    bar.enable_steady_tick(BAR_TICK);
    bar
}
