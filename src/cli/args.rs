//! What can be said on the command line.

mod record;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::model::request::{Consistency, PreconditionRequest};

pub(crate) use record::{Decode, Encode, Method};

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
pub(crate) struct Get {
    /// Namespace
    #[arg(value_name = "NS")]
    pub(crate) namespace: String,
    /// Key
    pub(crate) key: String,
    /// Print these parts of the value alone (paths, comma separated)
    #[arg(long, value_name = "PATHS", value_delimiter = ',')]
    pub(crate) fields: Vec<String>,
    /// Print what belongs to the record instead of its value
    #[arg(long)]
    pub(crate) head_only: bool,
    /// Level of the read [default: the namespace's]
    #[arg(long, value_name = "LEVEL")]
    pub(crate) consistency: Option<Level>,
    /// How old the answer may be, for bounded reads
    #[arg(long, value_name = "D", value_parser = positive)]
    pub(crate) max_staleness: Option<i64>,
    /// Nothing older than this version
    #[arg(long, value_name = "V", default_value = "", hide_default_value = true)]
    pub(crate) min_version: String,
}

/// A consistency level.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Level {
    Strong,
    Bounded,
    Eventual,
}

/// What must hold for a write to happen.
#[derive(Debug, Clone, Args)]
#[group(multiple = false)]
pub(crate) struct Precondition {
    /// Only if the key is absent
    #[arg(long)]
    if_absent: bool,
    /// Only if the key is there
    #[arg(long)]
    if_exists: bool,
    /// Only if the key is at this version
    #[arg(long, value_name = "V")]
    if_version: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Put {
    /// Namespace
    #[arg(value_name = "NS")]
    pub(crate) namespace: String,
    /// Key
    pub(crate) key: String,
    /// JSON; `-` reads standard input
    #[arg(allow_negative_numbers = true)]
    pub(crate) value: String,
    /// VALUE is text, taken literally
    #[arg(long, conflicts_with = "file")]
    pub(crate) text: bool,
    /// VALUE is a file whose bytes are stored
    #[arg(long)]
    pub(crate) file: bool,
    #[command(flatten)]
    pub(crate) precondition: Precondition,
    /// Lifetime: 90s, 2h, never [default: the namespace's]
    #[arg(long, value_name = "D", value_parser = lifetime, conflicts_with = "keep_ttl")]
    pub(crate) ttl: Option<i64>,
    /// Keep the present expiry
    #[arg(long)]
    pub(crate) keep_ttl: bool,
    /// What the value is, e.g. image/png
    #[arg(long, value_name = "T", default_value = "", hide_default_value = true)]
    pub(crate) content_type: String,
    #[command(flatten)]
    pub(crate) identity: Identity,
}

/// The identity of a write.
#[derive(Debug, Args)]
pub(crate) struct Identity {
    /// Sent again with the same id, the write takes effect once [default: a new one]
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    pub(crate) op_id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// Namespace
    #[arg(value_name = "NS")]
    pub(crate) namespace: String,
    /// Key
    pub(crate) key: String,
    #[command(flatten)]
    pub(crate) precondition: Precondition,
    #[command(flatten)]
    pub(crate) identity: Identity,
}

#[derive(Debug, Args)]
pub(crate) struct Update {
    /// Namespace
    #[arg(value_name = "NS")]
    pub(crate) namespace: String,
    /// Key
    pub(crate) key: String,
    #[command(flatten)]
    pub(crate) changes: Changes,
    /// Start from an empty map where there is no record
    #[arg(long)]
    pub(crate) create: bool,
    /// Print the value after the update
    #[arg(long = "return")]
    pub(crate) return_record: bool,
    #[command(flatten)]
    pub(crate) precondition: Precondition,
    /// Lifetime: 90s, 2h, never [default: stays as it is]
    #[arg(long, value_name = "D", value_parser = lifetime)]
    pub(crate) ttl: Option<i64>,
    #[command(flatten)]
    pub(crate) identity: Identity,
}

/// The changes of an update. Their order among each other is that of the command line, see `update`.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct Changes {
    /// Put a value there
    #[arg(long, value_name = "PATH=JSON")]
    set: Vec<String>,
    /// Add a number; starts from 0
    #[arg(long, value_name = "PATH=N")]
    increment: Vec<String>,
    /// Add one element at a list's end
    #[arg(long, value_name = "PATH=JSON")]
    append: Vec<String>,
    /// Keep the smaller
    #[arg(long, value_name = "PATH=JSON")]
    min: Vec<String>,
    /// Keep the larger
    #[arg(long, value_name = "PATH=JSON")]
    max: Vec<String>,
    /// Add one element unless the list has it
    #[arg(long, value_name = "PATH=JSON")]
    add_to_set: Vec<String>,
    /// Take every equal element away
    #[arg(long, value_name = "PATH=JSON")]
    remove_from_set: Vec<String>,
    /// Take what stands there away
    #[arg(long, value_name = "PATH")]
    unset: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Touch {
    /// Namespace
    #[arg(value_name = "NS")]
    pub(crate) namespace: String,
    /// Key
    pub(crate) key: String,
    /// New lifetime from now: 90s, 2h, never, or default for the namespace's
    #[arg(long, value_name = "D", value_parser = lifetime)]
    pub(crate) ttl: i64,
    #[command(flatten)]
    pub(crate) identity: Identity,
}

#[derive(Debug, Args)]
pub(crate) struct Batch {
    /// Namespace
    #[arg(value_name = "NS")]
    pub(crate) namespace: String,
    /// Operations, one JSON object per line; `-` reads standard input
    pub(crate) file: String,
    /// All or nothing; must fit one request
    #[arg(long)]
    pub(crate) atomic: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Scan {
    /// Namespace
    #[arg(value_name = "NS")]
    pub(crate) namespace: String,
    /// Keys that start with this
    #[arg(long, value_name = "P", default_value = "", hide_default_value = true)]
    pub(crate) prefix: String,
    /// First key, inclusive
    #[arg(long, value_name = "S", default_value = "", hide_default_value = true)]
    pub(crate) start: String,
    /// Last key, exclusive
    #[arg(long, value_name = "E", default_value = "", hide_default_value = true)]
    pub(crate) end: String,
    /// Most records [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: Option<u64>,
    /// From the last key to the first
    #[arg(long)]
    pub(crate) reverse: bool,
    /// Print keys alone
    #[arg(long)]
    pub(crate) keys_only: bool,
    /// Level of the reads [default: the namespace's]
    #[arg(long, value_name = "LEVEL")]
    pub(crate) consistency: Option<Level>,
}

#[derive(Debug, Args)]
pub(crate) struct Transfer {
    /// Namespace
    #[arg(value_name = "NS")]
    pub(crate) namespace: String,
    /// NDJSON, also .gz and .zst; `-` is standard input or output
    pub(crate) file: String,
}

#[derive(Debug, Args)]
pub(crate) struct Warm {
    /// Namespace
    #[arg(value_name = "NS")]
    pub(crate) namespace: String,
    /// Keys that begin with this
    #[arg(long, default_value = "")]
    pub(crate) prefix: String,
}

#[derive(Debug, Args)]
pub(crate) struct Queue {
    #[command(subcommand)]
    pub(crate) command: QueueCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum QueueCommand {
    /// What waits in each lane, how old it is, how fast it goes, and how many dead letters there are
    Status {
        /// Every lane, those with nothing in them too
        #[arg(long)]
        all: bool,
    },
    /// Print dead letters: id, namespace, key, reason; those looked at move to the end of the queue
    List {
        /// How many
        #[arg(long, default_value = "100")]
        limit: usize,
    },
    /// Print a dead letter with its value, and what a replay would come to now
    Show {
        /// Its id: the version that `queued` answered
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Apply dead letters again, under the versions they have: what is newer stays
    Replay(Replay),
    /// Apply all dead letters again, at a rate
    Drain {
        /// Letters a second at most
        #[arg(long, value_name = "N")]
        rate: Option<u32>,
    },
    /// Remove all dead letters, once they are in a file
    Purge {
        /// How many there must be
        #[arg(long, value_name = "N")]
        expect: u64,
        /// Where they are written first, one JSON object per line
        #[arg(long, value_name = "FILE")]
        export: PathBuf,
    },
    /// Change the durability in force of a namespace, while workers run; see it through to its end
    Switch {
        /// Namespace
        #[arg(value_name = "NS")]
        namespace: String,
        /// The durability to be in force
        #[arg(value_name = "DURABILITY", value_parser = ["through", "outage_queue"])]
        durability: String,
    },
    /// What became of a write that was answered `queued`: pending, applied, superseded, dead_lettered or unknown
    Receipt {
        /// Namespace
        #[arg(value_name = "NS")]
        namespace: String,
        /// Key
        #[arg(value_name = "KEY")]
        key: String,
        /// The version that `queued` answered
        #[arg(value_name = "VERSION")]
        version: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Replay {
    /// Only those of a namespace
    #[arg(long, default_value = "", value_name = "NS")]
    pub(crate) namespace: String,
    /// Only those whose keys begin with this
    #[arg(long, default_value = "", value_name = "PREFIX")]
    pub(crate) prefix: String,
    /// Only this one
    #[arg(long, default_value = "", value_name = "ID")]
    pub(crate) id: String,
    /// Only those whose reason holds this text
    #[arg(long, default_value = "", value_name = "TEXT")]
    pub(crate) reason: String,
    /// Give each a new version, so that it wins over what stands there
    #[arg(long)]
    pub(crate) force: bool,
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

#[derive(Debug, Clone, Args)]
pub(crate) struct Bench {
    /// Namespace
    #[arg(value_name = "NS", default_value = "bench")]
    pub(crate) namespace: String,
    /// What to send
    #[arg(long, default_value = "get")]
    pub(crate) workload: Workload,
    /// Requests in flight
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) concurrency: u32,
    /// How long, all rounds together
    #[arg(long, value_name = "D", default_value = "10s", value_parser = timeout)]
    pub(crate) duration: Duration,
    /// How long the same is sent before anything is measured [default: not]
    #[arg(long, value_name = "D", value_parser = timeout)]
    pub(crate) warm_up: Option<Duration>,
    /// Keys in use
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) keys: u32,
    /// Bytes of a made-up value, and of an echoed message
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=8_388_608))]
    pub(crate) value_bytes: u32,
    /// Prefer some keys: the exponent of a Zipf distribution, 0 = all alike [default: 0; 0.99 for ycsb-*]
    #[arg(long, value_name = "THETA", value_parser = exponent)]
    pub(crate) zipf: Option<f64>,
    /// Level of the reads [default: the namespace's]
    #[arg(long, value_name = "LEVEL")]
    pub(crate) consistency: Option<Level>,
    /// How old the answer may be, for bounded reads
    #[arg(long, value_name = "D", value_parser = positive)]
    pub(crate) max_staleness: Option<i64>,
    /// Records of a file (as for import) instead of made-up ones
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Option<String>,
    /// Requests per second; latency counts from the intended start [default: as fast as they are answered]
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rate: Option<u32>,
    /// Operations of one batch, records of one scan page; of ycsb-e at most
    #[arg(long = "batch", visible_alias = "batch-size", value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) batch_size: u32,
    /// Measure an echo over the same NATS server in the same run, round by round, and compare
    #[arg(long, group = "rival")]
    pub(crate) echo: bool,
    /// The same with a JetStream key-value bucket of that server, files on its disk (gets and puts of single records)
    #[arg(long, group = "rival")]
    pub(crate) peer_kv: bool,
    /// The same with one GET for each request on this Redis, and an echo (gets)
    #[arg(long, value_name = "URL", group = "rival")]
    pub(crate) peer_redis: Option<String>,
    /// The same with one confirmed message for each request to a quorum queue of this RabbitMQ (put, outage)
    #[arg(long, value_name = "URL", group = "rival")]
    pub(crate) peer_rabbitmq: Option<String>,
    /// The same with what a service would write by hand on this PostgreSQL (get, put, ycsb-*)
    #[arg(long, value_name = "URL", group = "rival")]
    pub(crate) peer_postgres: Option<String>,
    /// Requests in flight to what is compared with [default: as many]
    #[arg(long, value_name = "N", requires = "rival", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) peer_concurrency: Option<u32>,
    /// Rounds of a comparison
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) rounds: u32,
    /// The records of the bench stand already: do not store them first
    #[arg(long)]
    pub(crate) no_load: bool,
}

/// What the load generator sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Workload {
    /// Gets of single records
    Get,
    /// Puts of single records
    Put,
    /// The same while the backend may be down: the report says how many were applied and how many queued
    Outage,
    /// Batches of puts
    Batch,
    /// Batches of gets
    BatchGet,
    /// Scan pages
    Scan,
    /// Half reads, half updates
    YcsbA,
    /// 95 % reads, 5 % updates
    YcsbB,
    /// Reads
    YcsbC,
    /// 95 % reads, rather of the newest records; 5 % inserts
    YcsbD,
    /// 95 % short scans, 5 % inserts
    YcsbE,
    /// Half reads, half read-modify-writes
    YcsbF,
    /// A put, and gets until all workers show it: how long after its acknowledgement an old record was still answered
    Staleness,
}

#[derive(Debug, Args)]
pub(crate) struct BenchEcho {
    pub(crate) subject: String,
}

// === values ===

impl Precondition {
    pub(crate) fn request(&self) -> Option<PreconditionRequest> {
        let none = PreconditionRequest::default();
        if self.if_absent {
            return Some(PreconditionRequest { absent: Some(true), ..none });
        }
        if self.if_exists {
            return Some(PreconditionRequest { exists: Some(true), ..none });
        }
        self.if_version.clone().map(|version| PreconditionRequest { version: Some(version), ..none })
    }
}

impl Level {
    pub(crate) fn request(level: Option<Self>) -> Consistency {
        match level {
            None => Consistency::Default,
            Some(Self::Strong) => Consistency::Strong,
            Some(Self::Bounded) => Consistency::Bounded,
            Some(Self::Eventual) => Consistency::Eventual,
        }
    }
}

/// A duration of at least a millisecond.
fn timeout(text: &str) -> Result<Duration, String> {
    positive(text).map(|ms| Duration::from_millis(ms.unsigned_abs()))
}

fn positive(text: &str) -> Result<i64, String> {
    let duration =
        humantime::parse_duration(text).map_err(|error| format!("{error}; write e.g. 500ms, 90s or 2h"))?;
    match i64::try_from(duration.as_millis()) {
        Ok(ms @ 1..) => Ok(ms),
        Ok(_) => Err("must be at least 1ms".to_owned()),
        Err(_) => Err("is too long".to_owned()),
    }
}

/// A lifetime as in messages: milliseconds, 0 = the namespace's default, -1 = never ends.
fn lifetime(text: &str) -> Result<i64, String> {
    match text {
        "never" => Ok(-1),
        "default" => Ok(0),
        _ => positive(text).map_err(|error| format!("{error}; or never, or default")),
    }
}

fn exponent(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(exponent) if (0.0..=10.0).contains(&exponent) => Ok(exponent),
        _ => Err("must be a number from 0 to 10".to_owned()),
    }
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

    #[test]
    fn a_lifetime_is_never_silently_the_default() {
        assert_eq!(lifetime("90s"), Ok(90_000));
        assert_eq!(lifetime("never"), Ok(-1));
        assert_eq!(lifetime("default"), Ok(0));
        assert!(lifetime("0s").is_err());
        assert!(lifetime("10us").is_err());
        assert!(lifetime("-1").is_err());
    }
}
