//! `encode` and `decode` as a user meets them: no worker, no server.

use crate::cli::Run;
use crate::support::process::own_environment;
use serde_json::Value as Json;
use std::io::Write;
use std::process::{Command, Stdio};

fn run(arguments: &[&str], input: &[u8]) -> (Run, Vec<u8>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_datastore"));
    let mut child = own_environment(&mut command)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let run = Run {
        code: output.status.code().unwrap_or(-1),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    };
    (run, output.stdout)
}

fn text(arguments: &[&str], input: &str) -> Run {
    run(arguments, input.as_bytes()).0
}

/// The values among the lines that decode prints.
fn values(run: &Run) -> Vec<&str> {
    run.stdout.lines().filter(|line| !line.starts_with([' ', 'r'])).collect()
}

#[test]
fn what_encode_writes_decode_reads_in_every_way() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("record");
    let at_path = format!("@{}", path.display());
    let long = format!("\"{}\"", "the same words again and again, ".repeat(50));
    for document in [r#"{"a":[1,1.0,null],"b":{"$bytes":"AP8="}}"#, "-5", &long] {
        for method in ["auto", "none", "lz4", "zstd"] {
            let hex = text(&["encode", document, "--compression", method], "");
            assert!(
                hex.code == 0 && hex.stdout.starts_with("da02") && hex.stdout.lines().count() == 1,
                "{hex:?}"
            );
            let (_, raw) = run(&["encode", "-", "--compression", method, "--raw"], document.as_bytes());
            assert_eq!(raw[..2], [0xda, 2]);
            std::fs::write(&path, document).unwrap();
            assert_eq!(text(&["encode", &at_path], "").code, 0);

            assert_eq!(values(&text(&["decode", hex.stdout.trim()], "")), [document]);
            assert_eq!(values(&text(&["decode", "-"], &format!("\\x{}", hex.stdout))), [document]);
            assert_eq!(values(&text(&["decode", "-"], &hex.stdout.repeat(3))), [document; 3]);
            std::fs::write(&path, raw.repeat(2)).unwrap();
            assert_eq!(values(&text(&["decode", &at_path], "")), [document; 2]);
        }
    }
}

#[test]
fn every_field_of_the_header_is_explained() {
    let hex =
        text(&["encode", "1", "--content-type", "text/plain", "--updated-at", "2026-01-01T00:00:00Z"], "");
    let decoded = text(&["decode", hex.stdout.trim()], "");
    for line in [
        "magic          0xda, a stored record",
        "format         2, the newest",
        "flags          0x04: not packed; content type; kind 0, document",
        "checksum       0x",
        "updated at     1767225600000 ms, 2026-01-01T00:00:00.000000Z",
        "content type   text/plain",
        "body length    1 bytes",
    ] {
        assert!(decoded.stdout.contains(line), "{line}: {}", decoded.stdout);
    }
    let json = text(&["decode", hex.stdout.trim(), "--json"], "");
    let json: Json = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(
        (&json["value"], &json["updated_at_ms"]),
        (&Json::from(1), &Json::from(1_767_225_600_000_i64))
    );
    let joined: String =
        json["fields"].as_array().unwrap().iter().map(|field| field["hex"].as_str().unwrap()).collect();
    assert_eq!(joined, hex.stdout.trim());
}

#[test]
fn records_of_the_first_format_are_explained() {
    let golden = include_str!("../golden/format-1.ndjson").lines().next().unwrap();
    let golden: Json = serde_json::from_str(golden).unwrap();
    let decoded = text(&["decode", golden["record"].as_str().unwrap()], "");
    assert_eq!((decoded.code, values(&decoded)), (0, vec!["null"]), "{decoded:?}");
    assert!(decoded.stdout.contains("1, the first version's"), "{decoded:?}");
}

#[test]
fn damage_is_told_with_its_place_and_the_rest_is_printed() {
    let hex = text(&["encode", "[1,2,3]", "--compression", "none"], "").stdout;
    let hex = hex.trim();
    let flipped = format!("{}0", &hex[..hex.len() - 1]);
    let bad = text(&["decode", "-"], &format!("{hex}\n{flipped}\nno hex\n{hex}\n"));
    assert_eq!((bad.code, values(&bad)), (1, vec!["[1,2,3]"; 2]), "{bad:?}");
    assert!(bad.stderr.contains("record 2 at line 2, byte 3: checksum"), "{bad:?}");
    assert!(bad.stderr.contains("line 3: character 1 is no hex digit"), "{bad:?}");
    // Raw and damaged: its length still says where the next one starts.
    let bytes = |text: &str| -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    };
    let raw = [bytes(&flipped), bytes(hex)].concat();
    let bad = run(&["decode", "-"], &raw).0;
    assert_eq!((bad.code, values(&bad)), (1, vec!["[1,2,3]"]), "{bad:?}");
    for (record, words) in [
        ("da02", "at byte 2: 2 bytes where the frame needs 7"),
        ("db020000", "at byte 0: the first byte is 0xdb"),
        ("da070000", "at byte 1: record format 7 is not known"),
        ("da0", "an odd number of hex digits"),
        ("", "there is no record"),
    ] {
        let bad = text(&["decode", record], "");
        assert!(bad.code == 1 && bad.stderr.contains(words), "{record}: {bad:?}");
    }
    assert_eq!(text(&["decode", "@/no/such/file"], "").code, 1);
}

#[test]
fn what_is_no_document_is_refused() {
    for (arguments, input, code, words) in [
        (&["encode", "{"][..], "", 2, "not JSON"),
        (&["encode", "-"], "{", 1, "not JSON"),
        (&["encode", "1", "--compression", "gzip"], "", 2, "gzip"),
        (&["encode", "1", "--content-type", "\u{e9}"], "", 2, "printable ASCII"),
        (&["encode", "1", "--updated-at", "soon"], "", 2, "bad time"),
    ] {
        let refused = text(arguments, input);
        assert!(refused.code == code && refused.stderr.contains(words), "{arguments:?}: {refused:?}");
    }
}
