//! The command line as a user meets it: what is printed where, and the exit codes.

use crate::support::nats::Nats;
use crate::support::postgres::Postgres;
use crate::support::process::own_environment;
use crate::support::rabbit::Rabbit;
use crate::support::redis::Redis;
use crate::support::riak::Riak;
use crate::support::worker::{Backend, Setup, Worker};
use serde_json::Value as Json;
use std::io::Write;
use std::process::{Command, Stdio};

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A command that talks to a worker; its output is piped.
pub(crate) fn command(worker: &Worker, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_datastore"));
    own_environment(&mut command)
        .args(arguments)
        .env("DATASTORE__NATS__URL", &worker.setup().nats_url)
        .env("DATASTORE__NATS__SUBJECT_PREFIX", worker.prefix())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs a command to its end.
pub(crate) fn datastore(worker: &Worker, arguments: &[&str]) -> Run {
    ended(command(worker, arguments).output().unwrap())
}

fn with_input(worker: &Worker, arguments: &[&str], input: &str) -> Run {
    let mut child = command(worker, arguments).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    ended(child.wait_with_output().unwrap())
}

fn ended(output: std::process::Output) -> Run {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Run { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn worker() -> &'static Worker {
    Worker::shared(Backend::Memory)
}

#[test]
fn a_record_is_put_read_changed_and_removed() {
    let run = |arguments: &[&str]| datastore(worker(), arguments);
    let put = run(&["put", "cli1", "k", r#"{"a": 1}"#]);
    assert!(put.code == 0 && put.stdout.starts_with("applied "), "{put:?}");
    assert_eq!(run(&["get", "cli1", "k"]).stdout, "{\"a\":1}\n");
    let update = run(&["update", "cli1", "k", "--increment", "a=2", "--set", r#"b.c="x""#, "--return"]);
    assert!(update.stdout.ends_with("{\"a\":3,\"b\":{\"c\":\"x\"}}\n"), "{update:?}");
    assert_eq!(run(&["get", "cli1", "k", "--fields", "b.c"]).stdout, "{\"b\":{\"c\":\"x\"}}\n");
    assert_eq!(run(&["touch", "cli1", "k", "--ttl", "1h"]).code, 0);
    assert_eq!(run(&["delete", "cli1", "k"]).code, 0);
    let gone = run(&["get", "cli1", "k"]);
    assert_eq!((gone.code, gone.stdout.as_str()), (1, ""), "a missing key: exit 1, nothing on stdout");
}

#[test]
fn values_come_as_json_text_file_or_standard_input() {
    let run = |arguments: &[&str]| datastore(worker(), arguments);
    assert_eq!(run(&["put", "cli2", "text", "hello, you", "--text"]).code, 0);
    assert_eq!(run(&["get", "cli2", "text"]).stdout, "\"hello, you\"\n");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), [0, 1, 255]).unwrap();
    assert_eq!(run(&["put", "cli2", "file", file.path().to_str().unwrap(), "--file"]).code, 0);
    assert_eq!(run(&["get", "cli2", "file"]).stdout, "{\"$bytes\":\"AAH/\"}\n");
    assert_eq!(with_input(worker(), &["put", "cli2", "stdin", "-"], " [1, 2] \n").code, 0);
    assert_eq!(run(&["get", "cli2", "stdin"]).stdout, "[1,2]\n");
}

#[test]
fn exit_codes_tell_failure_from_wrong_usage() {
    let run = |arguments: &[&str]| datastore(worker(), arguments);
    assert_eq!(run(&["put", "cli3", "k", "1", "--if-absent"]).code, 0);
    let conflict = run(&["put", "cli3", "k", "2", "--if-absent"]);
    assert_eq!((conflict.code, conflict.stdout.as_str()), (1, ""));
    assert!(conflict.stderr.contains("conflict") && conflict.stderr.contains("final"), "{conflict:?}");
    assert_eq!(run(&["touch", "cli3", "missing", "--ttl", "1s"]).code, 1);
    for wrong in [
        &["nonsense"][..],
        &["get"],
        &["put", "cli3", "k", "{not json"],
        &["put", "cli3", "k", "1", "--if-absent", "--if-exists"],
        &["touch", "cli3", "k", "--ttl", "soon"],
        &["update", "cli3", "k"],
        &["get", "cli3", "k", "--timeout", "never"],
    ] {
        let run = run(wrong);
        assert_eq!(run.code, 2, "{wrong:?} {run:?}");
        assert!(!run.stderr.is_empty() && run.stdout.is_empty(), "{wrong:?} {run:?}");
    }
}

#[test]
fn json_prints_the_reply_message_wherever_the_flag_stands() {
    for arguments in [
        &["--json", "put", "cli4", "k", "1"][..],
        &["put", "--json", "cli4", "k", "1"],
        &["put", "cli4", "k", "1", "--json"],
    ] {
        let run = datastore(worker(), arguments);
        let reply: Json = serde_json::from_str(&run.stdout).unwrap();
        assert_eq!(reply["outcome"], "applied");
    }
    let get: Json =
        serde_json::from_str(&datastore(worker(), &["get", "cli4", "k", "--json"]).stdout).unwrap();
    assert_eq!((&get["found"], &get["record"]["value"]), (&true.into(), &1.into()));
    let refused = datastore(worker(), &["put", "cli4", "k", "1", "--if-absent", "--json"]);
    let reply: Json = serde_json::from_str(&refused.stdout).unwrap();
    assert_eq!((refused.code, &reply["error"]["code"]), (1, &"conflict".into()));
}

#[test]
fn a_scan_prints_key_and_value_and_follows_its_pages() {
    let ops: String =
        (0..1500).map(|n| format!("{{\"put\":{{\"key\":\"k{n:04}\",\"value\":{n}}}}}\n")).collect();
    let batch = with_input(worker(), &["batch", "cli5", "-"], &ops);
    assert_eq!((batch.code, batch.stdout.lines().count()), (0, 1500), "{}", batch.stderr);
    let all = datastore(worker(), &["scan", "cli5"]).stdout;
    assert_eq!(all.lines().count(), 1500);
    assert_eq!(all.lines().nth(1234), Some("k1234\t1234"));
    let some = datastore(
        worker(),
        &["scan", "cli5", "--prefix", "k0", "--start", "k0500", "--limit", "2", "--reverse", "--keys-only"],
    );
    assert_eq!(some.stdout, "k0999\nk0998\n");
}

#[test]
fn a_failed_operation_of_a_batch_fails_the_command_and_not_its_neighbours() {
    let ops = "{\"put\":{\"key\":\"a\",\"value\":1}}\n{\"touch\":{\"key\":\"no\",\"ttl_ms\":5}}\n{\"get\":{\"key\":\"a\"}}\n";
    let run = with_input(worker(), &["batch", "cli6", "-", "--json"], ops);
    let reply: Json = serde_json::from_str(&run.stdout).unwrap();
    let results = reply["results"].as_array().unwrap();
    assert_eq!((run.code, results.len()), (1, 3));
    assert_eq!(results[1]["write"]["error"]["code"], "not_found");
    assert_eq!(results[2]["get"]["record"]["value"], 1);
}

#[test]
fn nothing_of_a_progress_bar_reaches_a_pipe() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("f.ndjson").display().to_string();
    datastore(worker(), &["put", "cli7", "k", "1"]);
    for arguments in [["export", "cli7", &file], ["import", "cli7", &file]] {
        let run = datastore(worker(), &arguments);
        assert_eq!(run.code, 0, "{run:?}");
        assert!(!run.stderr.contains('\u{1b}') && !run.stderr.contains('\r'), "{run:?}");
    }
}

#[test]
fn help_shows_examples() {
    for command in [
        "get", "put", "delete", "update", "touch", "batch", "scan", "import", "export", "warm", "config",
        "bench", "serve",
    ] {
        let help = datastore(worker(), &[command, "--help"]);
        assert_eq!(help.code, 0);
        let examples = help.stdout.split("Example").nth(1).unwrap_or_default();
        assert!(examples.contains(&format!("datastore {command}")), "{command}: {}", help.stdout);
    }
}

#[test]
fn without_a_worker_the_error_says_so() {
    let nats = Nats::shared();
    let mut command = Command::new(env!("CARGO_BIN_EXE_datastore"));
    let run = ended(
        own_environment(&mut command)
            .args(["get", "n", "k", "--timeout", "1s", "--nats", &nats.url(), "--subject-prefix", "nobody"])
            .output()
            .unwrap(),
    );
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("unavailable") && run.stderr.contains("no worker"), "{run:?}");
    let mut command = Command::new(env!("CARGO_BIN_EXE_datastore"));
    let run = ended(
        own_environment(&mut command)
            .args(["get", "n", "k", "--timeout", "1s", "--nats", "nats://user:hush@127.0.0.1:9"])
            .output()
            .unwrap(),
    );
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("127.0.0.1:9") && !run.stderr.contains("hush"), "{run:?}");
}

#[test]
fn every_settings_file_that_comes_along_is_good() {
    let mut files = 0;
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/config")).unwrap() {
        let path = entry.unwrap().path();
        let run = datastore(worker(), &["config", "check", path.to_str().unwrap()]);
        assert_eq!(run.code, 0, "{}: {run:?}", path.display());
        files += 1;
    }
    assert!(files >= 5, "{files} files");
}

/// The whole of it, on parts of this run's own, and each of its namespaces serves.
#[test]
fn a_worker_with_everything_serves_every_namespace() {
    let mut text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config/full.toml")).unwrap();
    let (copies, sessions) =
        (Redis::start(&[]), Redis::start(&["--appendonly", "yes", "--appendfsync", "always"]));
    let (riak, files) = (Riak::start(1), tempfile::tempdir().unwrap());
    for (stands, ours) in [
        ("amqp://guest:guest@127.0.0.1:5672/%2f", Rabbit::shared().url()),
        ("redis://127.0.0.1:6379", copies.url()),
        ("./data", files.path().display().to_string()),
        ("postgres://datastore@127.0.0.1:5439/datastore", Postgres::shared().database()),
        ("redis://127.0.0.1:6389", sessions.url()),
        ("127.0.0.1:8087", riak.hosts()[0].clone()),
    ] {
        assert_eq!(text.matches(stands).count(), 1, "{stands}");
        text = text.replace(stands, &ours);
    }
    let worker = Worker::start(Setup::new(Nats::shared(), Backend::Memory).rest(&format!("\n{text}")));
    for namespace in ["scratch", "files", "documents", "sessions", "archive", "any-other"] {
        let put = datastore(&worker, &["put", namespace, "k", "\"v\"", "--json"]);
        assert_eq!(put.code, 0, "{namespace}: {put:?}");
        let told: Json = serde_json::from_str(&put.stdout).unwrap();
        // Not `queued`: the store itself is reached.
        assert_eq!(
            (&told["outcome"], &told["durability"]),
            (&"applied".into(), &"backend".into()),
            "{namespace}"
        );
        let get = datastore(&worker, &["get", namespace, "k"]);
        assert_eq!((get.code, get.stdout.trim()), (0, "\"v\""), "{namespace}: {get:?}");
        let delete = datastore(&worker, &["delete", namespace, "k"]);
        assert_eq!(delete.code, 0, "{namespace}: {delete:?}");
    }
}

#[test]
fn config_check_tells_every_fault_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (good, bad) = (folder.path().join("good.toml"), folder.path().join("bad.toml"));
    std::fs::write(&good, "[backends.main]\nkind = \"memory\"\n[namespaces.\"*\"]\n").unwrap();
    std::fs::write(&bad, "[nats]\nmax_in_flight = 0\n[log]\nformat = \"xml\"\n").unwrap();
    assert_eq!(datastore(worker(), &["config", "check", good.to_str().unwrap()]).code, 0);
    let run = datastore(worker(), &["config", "check", bad.to_str().unwrap()]);
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("nats.max_in_flight") && run.stderr.contains("log.format"), "{run:?}");
}
