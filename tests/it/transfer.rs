//! Import and export: everything arrives, nothing is written twice, and a stop loses nothing.

use crate::cli::{Run, datastore};
use crate::crash::row;
use crate::support::nats::Nats;
use crate::support::process::until;
use crate::support::worker::{Backend, Setup, Worker};
use serde_json::{Value as Json, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Real records, or `None` with a printed word where the folder is absent.
fn real(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("DATASTORE_DATA").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"));
    let file = folder.join(name);
    if !file.exists() {
        println!("skipped: no real records at {}", file.display());
        return None;
    }
    Some(file)
}

fn records(file: &Path) -> Vec<Json> {
    let plain: Box<dyn Read> = if file.extension().is_some_and(|extension| extension == "gz") {
        let unpacked = std::process::Command::new("gzip").arg("-dc").arg(file).output().unwrap();
        Box::new(std::io::Cursor::new(unpacked.stdout))
    } else {
        Box::new(std::fs::File::open(file).unwrap())
    };
    BufReader::new(plain).lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect()
}

fn sorted(mut records: Vec<Json>) -> Vec<Json> {
    records.sort_by(|a, b| a["key"].as_str().unwrap().as_bytes().cmp(b["key"].as_str().unwrap().as_bytes()));
    records
}

fn summary(run: &Run) -> String {
    format!("{}{}", run.stdout, run.stderr)
}

#[test]
fn real_records_arrive_and_a_second_import_writes_none() {
    let Some(movies) = real("movies.ndjson.gz") else { return };
    let nats = Nats::start();
    let worker = Worker::start(Setup::new(&nats, Backend::Local));
    let run = |arguments: &[&str]| datastore(&worker, arguments);
    let file = movies.display().to_string();
    let first = run(&["import", "movies", &file]);
    assert!(first.code == 0 && summary(&first).contains("12319 written, 0 unchanged"), "{first:?}");
    let second = run(&["import", "movies", &file]);
    assert!(second.code == 0 && summary(&second).contains("0 written, 12319 unchanged"), "{second:?}");
    let folder = tempfile::tempdir().unwrap();
    for name in ["m.ndjson", "m.ndjson.gz"] {
        let exported = folder.path().join(name);
        assert_eq!(run(&["export", "movies", &exported.display().to_string()]).code, 0);
        assert!(records(&exported) == sorted(records(&movies)), "{name}: the same records, in key order");
    }
    row(
        "movies imported, exported, compared, imported again",
        "12319 equal, 0 written",
        "12319 equal, 0 written",
    );
}

#[test]
fn an_import_stopped_by_ctrl_c_is_finished_by_the_next() {
    let nats = Nats::start();
    let worker = Worker::start(Setup::new(&nats, Backend::Local));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("many.ndjson");
    const RECORDS: usize = 40_000;
    let mut out = std::io::BufWriter::new(std::fs::File::create(&file).unwrap());
    let many: Vec<Json> = (0..RECORDS)
        .map(|n| json!({"key": format!("k{n:06}"), "value": {"n": n, "text": "x".repeat(200)}}))
        .collect();
    for record in &many {
        writeln!(out, "{record}").unwrap();
    }
    out.flush().unwrap();
    let path = file.display().to_string();

    let mut import = crate::cli::command(&worker, &["import", "many", &path]).spawn().unwrap();
    until("some records are there", Duration::from_secs(20), || {
        (!datastore(&worker, &["scan", "many", "--limit", "1", "--keys-only"]).stdout.is_empty())
            .then_some(())
    });
    assert!(
        std::process::Command::new("kill")
            .args(["-INT", &import.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
    let mut told = String::new();
    import.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert_eq!(import.wait().unwrap().code(), Some(130), "{told}");

    let second = summary(&datastore(&worker, &["import", "many", &path]));
    let numbers: Vec<usize> =
        second.split(|char: char| !char.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect();
    let [written, unchanged, ..] = numbers[..] else { panic!("{second}") };
    assert_eq!(written + unchanged, RECORDS, "{second}");
    assert!(written > 0 && unchanged > 0, "the stop came in the middle: {second}");
    let exported = folder.path().join("out.ndjson");
    assert_eq!(datastore(&worker, &["export", "many", &exported.display().to_string()]).code, 0);
    assert!(records(&exported) == many, "what a stopped and a second import made equals the file");
    row(
        "import stopped by Ctrl-C and run again",
        "ends equal",
        &format!("{unchanged} + {written} of {RECORDS}, equal"),
    );
}

#[test]
fn what_a_record_carries_survives_a_round_trip() {
    let nats = Nats::start();
    let worker = Worker::start(Setup::new(&nats, Backend::Local));
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (folder.path().join("in.ndjson"), folder.path().join("out.ndjson.zst"));
    let lines = [
        r#"{"key":"a","value":{"z":1,"a":1.0,"n":null,"$x":{"$map":{"$bytes":"no"}}}}"#,
        r#"{"key":"b","value":{"$bytes":"AAH/"},"content_type":"image/png"}"#,
        r#"{"key":"c","value":{"$time":"2026-01-02T03:04:05.000006Z"},"expires_at_ms":4102444800000}"#,
        r#"{"key":"d\u0007","value":-0.0}"#,
    ];
    std::fs::write(&file, lines.join("\n")).unwrap();
    let run = |arguments: &[&str]| datastore(&worker, arguments);
    assert_eq!(run(&["import", "n", &file.display().to_string()]).code, 0);
    assert_eq!(run(&["export", "n", &out.display().to_string()]).code, 0);
    assert_eq!(run(&["import", "m", &out.display().to_string()]).code, 0);
    let shown = run(&["export", "m", "-"]);
    for (line, wanted) in shown.stdout.lines().zip(lines) {
        let parse = |text: &str| serde_json::from_str::<Json>(text).unwrap();
        let (mut line, wanted) = (parse(line), parse(wanted));
        if let Some(end) = wanted.get("expires_at_ms") {
            // A lifetime travels as a duration, so its end may move by the time a request takes.
            let moved = line["expires_at_ms"].as_i64().unwrap() - end.as_i64().unwrap();
            assert!((0..5000).contains(&moved), "{shown:?}");
            line["expires_at_ms"] = end.clone();
        }
        assert_eq!(line.to_string(), wanted.to_string(), "{shown:?}");
    }
    assert_eq!(shown.stdout.lines().count(), lines.len());
}

#[test]
fn a_bad_line_is_named_and_what_stood_before_it_is_written() {
    let nats = Nats::start();
    let worker = Worker::start(Setup::new(&nats, Backend::Memory));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bad.ndjson");
    std::fs::write(
        &file,
        "{\"key\":\"a\",\"value\":1}\n{\"key\":\"b\",\"value\":}\n{\"key\":\"c\",\"value\":3}\n",
    )
    .unwrap();
    let import = datastore(&worker, &["import", "n", &file.display().to_string()]);
    assert_eq!(import.code, 1);
    assert!(import.stderr.contains("line 2"), "{import:?}");
    assert_eq!(datastore(&worker, &["scan", "n"]).stdout, "a\t1\n");
}
