//! What can be said on the command line.

mod bench;
mod data;
mod queue;
mod record;
mod values;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

pub(crate) use bench::{Bench, BenchEcho, Workload};
pub(crate) use data::{Batch, Delete, Get, Level, Put, Scan, Touch, Transfer, Update, Warm};
pub(crate) use queue::{Queue, QueueCommand, Replay};
pub(crate) use record::{Decode, Encode, Method};
use values::timeout;

/// One storage API on a NATS bus: the worker, and commands that talk to workers.
#[derive(Debug, Parser)]
#[command(name = "datastore", version, arg_required_else_help = true)]
#[command(
    after_help = "Exit codes: 0 success; 1 the operation failed (also get of a missing key); 2 wrong usage.
NATS authentication comes from the environment: DATASTORE__NATS__CREDENTIALS_FILE, __USER, __PASSWORD, __TOKEN, ..."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) connection: Connection,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How workers are reached, and how results are printed. These may stand anywhere.
#[derive(Debug, Clone, Args)]
pub(crate) struct Connection {
    /// NATS servers, comma separated [env: DATASTORE__NATS__URL] [default: nats://127.0.0.1:4222]
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) nats: Option<String>,
    /// First token of every subject [env: DATASTORE__NATS__SUBJECT_PREFIX] [default: ds]
    #[arg(long, global = true, value_name = "PREFIX")]
    pub(crate) subject_prefix: Option<String>,
    /// How long one request may take, retries included
    #[arg(long, global = true, value_name = "D", default_value = "5s", value_parser = timeout)]
    pub(crate) timeout: Duration,
    /// Print the reply messages as JSON, one object per line
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a worker until SIGTERM or Ctrl-C
    #[command(
        after_help = "Examples:\n  datastore serve\n  datastore serve --config worker.toml\n  DATASTORE__LOG__LEVEL=debug datastore serve --config worker.toml"
    )]
    Serve(Serve),
    /// Print a record's value as JSON
    #[command(
        after_help = "Examples:\n  datastore get users user:1\n  datastore get users user:1 --fields name,address.city"
    )]
    Get(Get),
    /// Store a document
    #[command(after_help = "Examples:
  datastore put users user:1 '{\"name\": \"Ada\"}'
  datastore put users motd 'hello world' --text --ttl 1h
  datastore put files logo.png logo.png --file --content-type image/png
  echo '[1, 2]' | datastore put users list - --if-absent")]
    Put(Put),
    /// Remove a record
    #[command(after_help = "Example:\n  datastore delete users user:1 --if-version 0190c2a5...")]
    Delete(Delete),
    /// Change a record in place; the changes happen in the order given
    #[command(
        after_help = "Paths are map keys joined by dots; a dot inside a key is written \\. and \"\" is the whole value.
Operands are JSON. The path ends at the first `=`.

Examples:
  datastore update users user:1 --increment logins=1 --set 'city=\"London\"' --return
  datastore update users user:2 --create --add-to-set 'tags=\"new\"' --unset draft"
    )]
    Update(Update),
    /// Change a record's lifetime
    #[command(
        after_help = "Examples:\n  datastore touch users user:1 --ttl 30m\n  datastore touch users user:1 --ttl never"
    )]
    Touch(Touch),
    /// Run many operations, one JSON object per line of a file
    #[command(
        after_help = "A line is one operation: {\"put\": {\"key\": \"a\", \"value\": 1}}, likewise get, delete, update, touch.
More than fits one request is sent as several. With --json: one reply message per request.

Example:
  printf '%s\\n' '{\"put\":{\"key\":\"a\",\"value\":1}}' '{\"get\":{\"key\":\"a\"}}' | datastore batch users -"
    )]
    Batch(Batch),
    /// Print records in the order of their keys: key, tab, value
    #[command(
        after_help = "A key with control characters, or with a quote at its start, is printed as JSON text.
With --json: one reply message per page.

Examples:
  datastore scan users --prefix user: --limit 10
  datastore scan users --start b --end d --reverse --keys-only"
    )]
    Scan(Scan),
    /// Write the records of a file that are not there yet
    #[command(
        after_help = "A line is {\"key\", \"value\"}, and \"content_type\" and \"expires_at_ms\" if set (without: never expires).
FILE may end in .gz or .zst. Records that are there already, the same, are left alone, so that an import that was
stopped goes on when it is run again. Expired records are skipped.

Example:
  datastore import users users.ndjson.gz"
    )]
    Import(Transfer),
    /// Write all records of a namespace to a file, in the order of their keys
    #[command(
        after_help = "FILE may end in .gz or .zst. It appears when it is complete.\n\nExample:\n  datastore export users users.ndjson.zst"
    )]
    Export(Transfer),
    /// Bring the records of a namespace into the workers' caches
    #[command(
        after_help = "Every worker reads all of them, page by page, and keeps what its tiers have room for.\n\nExample:\n  datastore warm users --prefix user:"
    )]
    Warm(Warm),
    /// Look after the write-behind queue: what waits, what died, and what became of a write
    #[command(after_help = "Examples:
  datastore queue status
  datastore queue list --limit 20
  datastore queue show 0192f3a4...
  datastore queue replay --namespace users --reason 'refuses the row'
  datastore queue purge --expect 3 --export dead.ndjson
  datastore queue receipt users user:1 0192f3a4...")]
    Queue(Queue),
    /// Print a document as a stored record: one line of hex
    #[command(after_help = "Examples:
  datastore encode '{\"name\": \"Ada\"}'
  datastore encode @document.json --compression zstd --raw > record.bin")]
    Encode(Encode),
    /// Explain stored records: every field of their headers, and their values
    #[command(
        after_help = "Several records may stand one after the other, in hex also one a line. With --json: one object per record.

Examples:
  datastore decode da0200...
  datastore decode @record.bin
  datastore encode '[1, 2]' | datastore decode -"
    )]
    Decode(Decode),
    /// Check or show settings
    #[command(
        after_help = "Examples:\n  datastore config check worker.toml\n  datastore config show --config worker.toml"
    )]
    Config(Config),
    /// Measure throughput and latency
    #[command(
        after_help = "Writes into the namespace: keys of its own, or with --data those of the file. With --rate latency counts from the intended start of each request.

Examples:
  datastore bench --workload get --concurrency 64 --duration 10s --echo
  datastore bench orders --workload put --value-bytes 4096 --rate 2000
  datastore bench --workload batch-get --batch 100 --consistency bounded --max-staleness 1s
  datastore bench --workload ycsb-b --keys 100000 --warm-up 5s --peer-postgres postgres://localhost/shop"
    )]
    Bench(Bench),
    #[command(hide = true)]
    BenchEcho(BenchEcho),
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Settings; without a file the built-in defaults, the environment and the flags alone
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Config {
    #[command(subcommand)]
    pub(crate) command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Say `ok`, or everything that is wrong with a file
    #[command(
        after_help = "Environment and flags are left out.\n\nExample:\n  datastore config check worker.toml"
    )]
    Check {
        /// Settings
        file: PathBuf,
    },
    /// Print the settings that hold: defaults, file, environment and flags together, without secrets
    #[command(
        after_help = "Examples:\n  datastore config show\n  datastore config show --config worker.toml"
    )]
    Show {
        /// Settings
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from([&["datastore"], line].concat())
    }

    #[test]
    fn flags_stand_anywhere() {
        for line in [
            ["--json", "put", "n", "k", "-5", "--text", "--ttl", "never"],
            ["put", "--text", "n", "--ttl", "never", "k", "--json", "-5"],
        ] {
            let cli = parse(&line).unwrap();
            assert!(cli.connection.json);
            let Command::Put(put) = cli.command else { panic!() };
            assert_eq!((put.value.as_str(), put.text, put.ttl), ("-5", true, Some(-1)));
        }
    }

    #[test]
    fn wrong_usage_is_exit_code_2() {
        for line in [
            &["nonsense"] as &[&str],
            &["queue"],
            &["get", "n"],
            &["get", "n", "k", "--consistency", "total"],
            &["put", "n", "k", "1", "--if-absent", "--if-exists"],
            &["put", "n", "k", "1", "--text", "--file"],
            &["put", "n", "k", "1", "--ttl", "0s"],
            &["put", "n", "k", "1", "--ttl", "1h", "--keep-ttl"],
            &["put", "n", "k", "--unknown"],
            &["update", "n", "k"],
            &["touch", "n", "k"],
            &["scan", "n", "--limit", "0"],
            &["get", "n", "k", "--timeout", "soon"],
            &["bench", "--workload", "ycsb-g"],
            &["bench", "--zipf", "-1"],
            &["bench", "--echo", "--peer-kv"],
            &["bench", "--peer-redis", "redis://a", "--peer-postgres", "postgres://a"],
            &["bench", "--peer-concurrency", "8"],
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line:?}");
        }
        assert_eq!(parse(&["--version"]).unwrap_err().exit_code(), 0);
        assert_eq!(parse(&["get", "--help"]).unwrap_err().exit_code(), 0);
    }
}
