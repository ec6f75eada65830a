//! `queue purge`: page after page of dead letters goes into a file, and when that is on disk, exactly these are removed.
//!
//! A page stays at the front of the queue while it is written, so that removing it need not go round all others. A letter that
//! does not come whole is left, and said so: what the file does not hold in full is not removed, whatever a worker says of it.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use indicatif::ProgressBar;
use serde_json::{Value as Json, json};

use super::{Control, STEP, counting_bar, number, one_line, text};
use crate::cli::output::{Ended, Fault, INTERRUPTED, Output, failed, json_text, tell};
use crate::cli::transfer;

/// Letters that are left at most; where more cannot be exported, something else is wrong.
const LEFT_MAX: usize = 10_000;

/// What a purge came to.
#[derive(Default)]
struct Purged {
    exported: u64,
    removed: u64,
    /// Letters that could not be exported in full.
    left: HashSet<String>,
    /// Letters that were asked to be removed where the broker went away meanwhile.
    doubtful: u64,
}

pub(super) async fn purge(control: &Control, output: &mut Output, expect: u64, export: &Path) -> Ended {
    let there = control.dead_letters().await?;
    if there != expect {
        return Err(Fault::input(format!(
            "there are {there} dead letters, not {expect}: nothing was removed"
        )));
    }
    let mut file = open(export).map_err(|error| cannot_write(export, &error))?;
    let bar = counting_bar(expect);
    let (mut purged, mut interrupt) = (Purged::default(), std::pin::pin!(transfer::interrupt()));
    // Letters seen again, one after the other, that were left before: once round the queue and all were seen.
    let mut seen_again = 0;
    let ended = loop {
        let done = purged.exported + purged.left.len() as u64;
        bar.set_position(done);
        if done >= expect || seen_again >= expect {
            break Ok(false);
        }
        let asked = json!({"limit": (expect - done).min(STEP), "values": true, "stay": true});
        let page = tokio::select! {
            page = control.ask("queue_list", &asked) => match page {
                Ok(page) => page["letters"].as_array().cloned().unwrap_or_default(),
                Err(fault) => break Err(fault),
            },
            () = &mut interrupt => break Ok(true),
        };
        if page.is_empty() {
            break Ok(false);
        }
        if let Err(fault) = one_page(control, &mut file, export, &page, expect, &bar, &mut purged).await {
            break Err(fault);
        }
        match purged.exported + purged.left.len() as u64 > done {
            true => seen_again = 0,
            false => seen_again += page.len() as u64,
        }
    };
    bar.finish_and_clear();
    let Purged { exported, removed, left, doubtful } = purged;
    let left = left.len();
    match output.json {
        true => {
            output.line(&json!({"exported": exported, "removed": removed, "left": left}).to_string())?;
        }
        false => output.line(&format!("{removed} dead letters removed; they are in {}", export.display()))?,
    }
    output.flush()?;
    if left > 0 {
        tell(&format!("{left} dead letters were left, because they cannot be exported in full"));
    }
    if doubtful > 0 {
        tell(&format!("RabbitMQ was lost meanwhile: up to {doubtful} of those removed may be there still"));
    }
    match ended? {
        true => {
            tell("stopped; what was removed is in the file");
            Ok(ExitCode::from(INTERRUPTED))
        }
        false if removed == expect && doubtful == 0 => Ok(ExitCode::SUCCESS),
        false => Ok(failed()),
    }
}

/// Writes what is whole of a page, and removes that once it is on disk. Of the queue no more than `expect` letters are looked at
/// for it.
async fn one_page(
    control: &Control,
    file: &mut File,
    export: &Path,
    page: &[Json],
    expect: u64,
    bar: &ProgressBar,
    purged: &mut Purged,
) -> Result<(), Fault> {
    let (mut ids, mut lines, mut whole) = (BTreeSet::new(), String::new(), 0);
    for letter in page {
        let id = text(letter, "id");
        if is_whole(letter) {
            lines.push_str(&letter.to_string());
            lines.push('\n');
            ids.insert(id);
            whole += 1;
        } else {
            let why = match letter["left_out"].as_str() {
                Some(why) => one_line(why),
                None => "it came without its value".to_owned(),
            };
            let line = format!("{}: left, it cannot be exported in full: {why}", json_text(&id));
            if purged.left.len() >= LEFT_MAX {
                return Err(Fault::input(format!("more than {LEFT_MAX} letters cannot be exported in full")));
            }
            if purged.left.insert(id) {
                bar.suspend(|| tell(&line));
            }
        }
    }
    file.write_all(lines.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(|error| cannot_write(export, &error))?;
    purged.exported += whole;
    // The first step finds them all, and moves what was left out of the way of the next page. More are needed only where the
    // step was cut off, or another operator worked on the queue.
    let (mut missing, mut looked, mut limit) = (whole, 0, page.len() as u64);
    while looked < expect && (looked == 0 || missing > 0) {
        let done = control.ask("queue_purge", &json!({"ids": ids, "limit": limit})).await?;
        let (looked_at, removed) = (number(&done, "looked_at"), number(&done, "removed"));
        purged.removed += removed;
        if done["ended_early"].is_string() {
            purged.doubtful += removed;
        }
        if looked_at == 0 {
            break;
        }
        looked += looked_at;
        missing = missing.saturating_sub(removed);
        limit = if limit > looked_at { limit - looked_at } else { STEP };
    }
    Ok(())
}

/// Whether a letter tells all that there is of it.
fn is_whole(letter: &Json) -> bool {
    letter["left_out"].is_null()
        && (letter["kind"] == "delete" || letter["record"].is_object() || letter["body"].is_string())
}

/// A new file, whose name is on disk too.
fn open(path: &Path) -> std::io::Result<File> {
    let file = File::create_new(path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(file)
}

fn cannot_write(path: &Path, error: &std::io::Error) -> Fault {
    Fault::input(format!("cannot write {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_came_in_full_counts_as_exported() {
        let whole = [
            json!({"id": "1", "kind": "put", "record": {"key": "k", "value": 1}}),
            json!({"id": "2", "kind": "delete"}),
            json!({"id": "3", "unreadable": true, "body": "00ff"}),
            json!({"id": "4", "kind": "put", "damaged": "a checksum", "body": "00ff"}),
        ];
        assert!(whole.iter().all(is_whole));
        let parts = [
            json!({"id": "1", "kind": "put"}),
            json!({"id": "1", "kind": "put", "record": null}),
            json!({"id": "1", "kind": "put", "left_out": "too_large"}),
            json!({"id": "1", "kind": "delete", "left_out": "too_large"}),
            json!({"id": "3", "unreadable": true}),
        ];
        assert!(!parts.iter().any(is_whole));
    }
}
