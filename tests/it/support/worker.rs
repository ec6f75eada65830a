//! The real binary: `datastore serve --config FILE`, ready before the test goes on, gone when the test is.

use super::nats::Nats;
use super::postgres::Postgres;
use super::process::{Process, free_port, until};
use super::redis::Redis;
use super::riak::Riak;
use super::unique;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tempfile::TempDir;

/// How long a worker may take until `/readyz` answers 200.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// The contract's bound on a stop by SIGTERM, with a little for a slow machine.
const STOPPED_WITHIN: Duration = Duration::from_secs(12);

/// Policies of the shared workers: any name, a small value limit, and a default lifetime.
const NAMESPACES: &str = r#"
[namespaces."*"]
backend = "main"

[namespaces.small]
backend = "main"
max_value_bytes = "64KiB"

[namespaces.aged]
backend = "main"
ttl = "1h"
"#;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Backend {
    Memory,
    Local,
    Postgres,
    Redis,
    Riak,
}

/// What not every backend can promise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Need {
    /// Reads of level `strong`.
    Strong,
    /// Preconditions, `update`, `touch`, `keep_ttl`, and with them that an operation id is known for sure.
    Conditional,
    /// Atomic batches.
    Atomic,
}

impl Backend {
    /// What the contract's table says of it.
    pub(crate) fn can(self, need: Need) -> bool {
        match self {
            Backend::Memory | Backend::Local | Backend::Postgres => true,
            Backend::Redis => need != Need::Strong,
            Backend::Riak => false,
        }
    }

    /// The levels of consistency that it keeps.
    pub(crate) fn levels(self) -> &'static [&'static str] {
        match self.can(Need::Strong) {
            true => &["default", "strong", "bounded", "eventual"],
            false => &["default", "bounded", "eventual"],
        }
    }

    /// [`NAMESPACES`], each at a level that it keeps, and no copies where that level would be answered from them.
    fn namespaces(self) -> String {
        if self.can(Need::Strong) {
            return NAMESPACES.to_owned();
        }
        let weaker = "backend = \"main\"\nconsistency = \"eventual\"";
        format!("{}\n[cache]\nmemory_bytes = 0\n", NAMESPACES.replace("backend = \"main\"", weaker))
    }
}

/// What a worker is started with; a copy starts another worker on the same folder.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) nats_url: String,
    pub(crate) prefix: String,
    pub(crate) backend: Backend,
    /// The `[namespaces.*]` tables and whatever else the test wants in its file.
    pub(crate) rest: String,
    /// Further keys of `[nats]`.
    nats_keys: String,
    /// A program and its arguments in front of the worker's own.
    wrapper: Vec<String>,
    database: Arc<OnceLock<String>>,
    replicas: Vec<String>,
    shards: Vec<(String, String)>,
    hosts: Vec<String>,
    scratch: Arc<TempDir>,
}

impl Setup {
    pub(crate) fn new(nats: &Nats, backend: Backend) -> Setup {
        Setup {
            nats_url: nats.url(),
            prefix: unique("t"),
            backend,
            rest: backend.namespaces(),
            nats_keys: String::new(),
            wrapper: Vec::new(),
            database: Arc::default(),
            replicas: Vec::new(),
            shards: Vec::new(),
            hosts: Vec::new(),
            scratch: Arc::new(tempfile::tempdir().unwrap()),
        }
    }

    /// Replaces the namespaces (and adds any other tables).
    pub(crate) fn rest(self, rest: &str) -> Setup {
        Setup { rest: rest.to_owned(), ..self }
    }

    /// Adds keys to `[nats]`.
    pub(crate) fn nats_settings(self, keys: &str) -> Setup {
        Setup { nats_keys: keys.to_owned(), ..self }
    }

    /// Gives the PostgreSQL or Redis backend another database than one on the server of this run.
    pub(crate) fn on_database(self, url: &str) -> Setup {
        Setup { database: Arc::new(OnceLock::from(url.to_owned())), ..self }
    }

    /// Where the replicas of that database are.
    pub(crate) fn with_replicas(self, urls: &[String]) -> Setup {
        Setup { replicas: urls.to_vec(), ..self }
    }

    /// Spreads the PostgreSQL backend over servers, by name and URL, in place of one database.
    pub(crate) fn with_shards(self, shards: &[(&str, &str)]) -> Setup {
        let shards = shards.iter().map(|(name, url)| ((*name).to_owned(), (*url).to_owned())).collect();
        Setup { shards, ..self }
    }

    /// Gives the Riak backend other nodes than those of this run.
    pub(crate) fn on_nodes(self, hosts: &[String]) -> Setup {
        Setup { hosts: hosts.to_vec(), ..self }
    }

    /// Runs the worker under another program, which must leave it the pid it was started with.
    pub(crate) fn wrapped(self, program: &[String]) -> Setup {
        Setup { wrapper: program.to_vec(), ..self }
    }

    /// The folder of the local backend.
    pub(crate) fn data(&self) -> PathBuf {
        self.scratch.path().join("data")
    }

    /// The database of the PostgreSQL or Redis backend, on the server of this run.
    pub(crate) fn database(&self) -> &str {
        self.database.get_or_init(|| match self.backend {
            Backend::Redis => redis_database(),
            _ => Postgres::shared().database(),
        })
    }

    fn config(&self, http_port: u16) -> PathBuf {
        let backend = match self.backend {
            Backend::Memory => "kind = \"memory\"".to_owned(),
            Backend::Local => format!("kind = \"local\"\npath = \"{}\"", self.data().display()),
            Backend::Postgres if !self.shards.is_empty() => {
                let shard = |(name, url): &(String, String)| format!("{{ name = {name:?}, url = {url:?} }}");
                let shards: Vec<String> = self.shards.iter().map(shard).collect();
                format!("kind = \"postgres\"\nshards = [{}]", shards.join(", "))
            }
            Backend::Redis => {
                format!("kind = \"redis\"\nurl = \"{}\"\nreplica_urls = {:?}", self.database(), self.replicas)
            }
            Backend::Postgres => format!(
                "kind = \"postgres\"\nurl = \"{}\"\nreplica_urls = {:?}",
                self.database(),
                self.replicas
            ),
            Backend::Riak if self.hosts.is_empty() => {
                format!("kind = \"riak\"\nhosts = {:?}", Riak::hosts_of_run())
            }
            Backend::Riak => format!("kind = \"riak\"\nhosts = {:?}", self.hosts),
        };
        let text = format!(
            "[nats]\nurl = \"{}\"\nsubject_prefix = \"{}\"\n{}\n\n[http]\nlisten = \"127.0.0.1:{http_port}\"\n\n\
             [backends.main]\n{backend}\n{}",
            self.nats_url, self.prefix, self.nats_keys, self.rest
        );
        let file = self.scratch.path().join(format!("{http_port}.toml"));
        std::fs::write(&file, text).unwrap();
        file
    }
}

pub(crate) struct Worker {
    setup: Setup,
    process: Process,
    http_port: u16,
}

impl Worker {
    /// The worker of this run for `backend`; trials keep apart by namespace.
    pub(crate) fn shared(backend: Backend) -> &'static Worker {
        static MEMORY: OnceLock<Worker> = OnceLock::new();
        static LOCAL: OnceLock<Worker> = OnceLock::new();
        static POSTGRES: OnceLock<Worker> = OnceLock::new();
        static REDIS: OnceLock<Worker> = OnceLock::new();
        static RIAK: OnceLock<Worker> = OnceLock::new();
        let cell = match backend {
            Backend::Memory => &MEMORY,
            Backend::Local => &LOCAL,
            Backend::Postgres => &POSTGRES,
            Backend::Redis => &REDIS,
            Backend::Riak => &RIAK,
        };
        cell.get_or_init(|| Worker::start(Setup::new(Nats::shared(), backend)))
    }

    /// Starts a worker and waits until it is ready.
    pub(crate) fn start(setup: Setup) -> Worker {
        let mut worker = Worker::launch(setup);
        worker.wait_ready();
        worker
    }

    /// Starts a worker without waiting, for tests of those that refuse to start.
    pub(crate) fn launch(setup: Setup) -> Worker {
        Worker::launch_with_http(setup, free_port())
    }

    /// Starts a worker without waiting, with its HTTP port chosen by the test.
    pub(crate) fn launch_with_http(setup: Setup, http_port: u16) -> Worker {
        let process = spawn(&setup, http_port);
        Worker { setup, process, http_port }
    }

    pub(crate) fn wait_ready(&mut self) {
        let (process, port) = (&mut self.process, self.http_port);
        until("/readyz answers 200", READY_WITHIN, || {
            assert!(process.running(), "the worker ended:\n{}", process.output());
            (http_get(port, "/readyz")?.0 == 200).then_some(())
        });
    }

    pub(crate) fn setup(&self) -> &Setup {
        &self.setup
    }

    pub(crate) fn prefix(&self) -> &str {
        &self.setup.prefix
    }

    pub(crate) fn http_port(&self) -> u16 {
        self.http_port
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub(crate) fn running(&mut self) -> bool {
        self.process.running()
    }

    /// All that the worker has logged and printed.
    pub(crate) fn log(&self) -> String {
        self.process.output()
    }

    /// Status and body of an HTTP page; `None` when nobody answers.
    pub(crate) fn http_get(&self, path: &str) -> Option<(u16, String)> {
        http_get(self.http_port, path)
    }

    pub(crate) fn kill9(&mut self) {
        self.process.kill9();
    }

    pub(crate) fn signal(&mut self, name: &str) {
        self.process.signal(name);
    }

    /// SIGTERM; the exit code.
    pub(crate) fn terminate(&mut self) -> i32 {
        self.process.terminate(STOPPED_WITHIN)
    }

    /// The exit code of a worker that ends by itself; `None` when it still runs after `bound` or died of a signal.
    pub(crate) fn wait_exit(&mut self, bound: Duration) -> Option<i32> {
        self.process.wait(bound)?.code()
    }

    /// Starts the worker again (killing it where it still runs) on the same folder, and waits until it is ready.
    pub(crate) fn restart(&mut self) {
        self.kill9();
        self.http_port = free_port();
        self.process = spawn(&self.setup, self.http_port);
        self.wait_ready();
    }
}

/// A database of its own on a server that keeps what it acknowledges.
fn redis_database() -> String {
    static SERVER: OnceLock<Redis> = OnceLock::new();
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let durable = ["--appendonly", "yes", "--appendfsync", "always", "--databases", "1000"];
    let server = SERVER.get_or_init(|| Redis::start(&durable));
    format!("{}/{}", server.url(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

fn spawn(setup: &Setup, http_port: u16) -> Process {
    let config = setup.config(http_port).display().to_string();
    let mut command = setup.wrapper.clone();
    command.extend([env!("CARGO_BIN_EXE_datastore"), "serve", "--config", &config].map(str::to_owned));
    Process::spawn(&command[0], &command[1..], Some(setup.scratch.path()))
}

/// HTTP/1.1 by hand: one request on a connection of its own.
fn http_get(port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}
