//! Every saved input of the fuzz targets, through the very functions that the engine calls, without an engine.
//!
//! The one part of these tests that uses the crate's own codec: the targets compare it with itself. Memory is
//! counted under the engine alone (`make fuzz`).

use std::io::Write;
use std::path::Path;

#[path = "../../fuzz/targets/bounds.rs"]
mod bounds;
#[path = "../../fuzz/targets/cursor.rs"]
#[expect(unreachable_pub, reason = "the engine calls it from another crate")]
mod cursor;
#[path = "../../fuzz/targets/json.rs"]
#[expect(unreachable_pub, reason = "the engine calls it from another crate")]
mod json;
#[path = "../../fuzz/targets/record.rs"]
#[expect(unreachable_pub, reason = "the engine calls it from another crate")]
mod record;
#[path = "../../fuzz/targets/same.rs"]
mod same;
#[path = "../../fuzz/targets/wire.rs"]
#[expect(unreachable_pub, reason = "the engine calls it from another crate")]
mod wire;

/// Stands for the function that counts memory in `fuzz/src/lib.rs`.
fn within<T>(_what: &str, _bound: usize, work: impl FnOnce() -> T) -> T {
    work()
}

/// Runs a target on each file of its corpus.
fn replay(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    for file in &files {
        let input = std::fs::read(file).unwrap();
        if let Err(panic) = std::panic::catch_unwind(|| run(&input)) {
            eprintln!("target {target}, file {}", file.display());
            std::panic::resume_unwind(panic);
        }
    }
    // Not `println`, which is shown of failing tests alone.
    let line = format!("fuzz target {target}: {} corpus files\n", files.len());
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

#[test]
fn the_corpus_of_record_passes() {
    replay("record", record::run);
}

#[test]
fn the_corpus_of_wire_passes() {
    replay("wire", wire::run);
}

#[test]
fn the_corpus_of_json_passes() {
    replay("json", json::run);
}

#[test]
fn the_corpus_of_cursor_passes() {
    replay("cursor", cursor::run);
}
