//! Arguments of `bench`, and of the echo that it compares with.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::data::Level;
use super::values::{exponent, positive, timeout};

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
