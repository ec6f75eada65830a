//! A private `nats-server` on 127.0.0.1: one shared by the whole run, and others for tests that break theirs.

use super::process::{Process, free_port, until};
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;
use tempfile::TempDir;

/// A server that can be killed and started again on the same port.
pub(crate) struct Nats {
    process: Process,
    port: u16,
    config: Option<String>,
    scratch: TempDir,
}

impl Nats {
    /// The server of this run; every test keeps to a subject prefix of its own.
    pub(crate) fn shared() -> &'static Nats {
        static SHARED: OnceLock<Nats> = OnceLock::new();
        SHARED.get_or_init(Nats::start)
    }

    /// A server for one test alone, with the defaults (`max_payload` 1 MiB).
    pub(crate) fn start() -> Nats {
        Nats::launch(free_port(), None)
    }

    /// A server with further configuration, such as `max_payload = 65536`.
    pub(crate) fn with_config(config: &str) -> Nats {
        Nats::launch(free_port(), Some(config.to_owned()))
    }

    /// A server on a port chosen by the caller.
    pub(crate) fn on_port(port: u16) -> Nats {
        Nats::launch(port, None)
    }

    fn launch(port: u16, config: Option<String>) -> Nats {
        let scratch = tempfile::tempdir().unwrap();
        let process = run(port, config.as_deref(), &scratch);
        Nats { process, port, config, scratch }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// A connection that belongs to the runtime of the calling test.
    pub(crate) async fn client(&self) -> async_nats::Client {
        async_nats::connect(self.url()).await.expect("the private NATS server accepts connections")
    }

    /// Ends the server without warning; its port stays ours for [`Nats::restart`].
    pub(crate) fn kill(&mut self) {
        self.process.kill9();
    }

    /// Starts it again, on the same port with the same configuration.
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.process = run(self.port, self.config.as_deref(), &self.scratch);
    }

    /// Starts it again on the same port with another configuration.
    pub(crate) fn restart_with(&mut self, config: &str) {
        self.config = Some(config.to_owned());
        self.restart();
    }

    /// Halts the server without closing its connections: what a frozen network looks like.
    pub(crate) fn freeze(&mut self) {
        self.process.signal("STOP");
    }

    /// Ends [`Nats::freeze`].
    pub(crate) fn thaw(&mut self) {
        self.process.signal("CONT");
    }
}

fn run(port: u16, config: Option<&str>, scratch: &TempDir) -> Process {
    let mut args: Vec<String> = ["-a", "127.0.0.1", "-p", &port.to_string()].map(str::to_owned).into();
    if let Some(config) = config {
        let file = scratch.path().join("nats.conf");
        std::fs::write(&file, config).unwrap();
        args.extend(["-c".to_owned(), file.display().to_string()]);
    }
    let mut process = Process::spawn(&binary(), &args, Some(scratch.path()));
    until("nats-server greets", Duration::from_secs(10), || {
        assert!(process.running(), "nats-server ended:\n{}", process.output());
        greets(port).then_some(())
    });
    process
}

/// A NATS server greets every connection with an INFO line.
fn greets(port: u16) -> bool {
    let Ok(stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).is_ok() && line.starts_with("INFO ")
}

fn binary() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    let folders = path.split(':').chain(["/usr/sbin", "/usr/bin", "/usr/local/bin"]);
    let found = folders.map(|folder| Path::new(folder).join("nats-server")).find(|file| file.is_file());
    found.expect("nats-server is not installed: run `make deps-test`").display().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_can_be_killed_and_started_again() {
    let mut nats = Nats::with_config("max_payload = 65536\n");
    assert_eq!(nats.client().await.server_info().max_payload, 65536);
    nats.kill();
    assert!(TcpStream::connect(("127.0.0.1", nats.port())).is_err(), "nobody listens any more");
    nats.restart();
    assert_eq!(nats.client().await.server_info().max_payload, 65536);
    assert!(Nats::shared().client().await.server_info().max_payload > 65536);
}
