//! A private RabbitMQ on 127.0.0.1: one shared by the whole run, and others for tests that break theirs.
//!
//! Each has a home, a node name and an `epmd` (Erlang's name server) of its own, so that none meets another's, or one
//! that the machine runs. Both end with the test; neither leaves a daemon behind.

use std::net::TcpStream;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use tempfile::TempDir;

use super::process::{Process, free_port, until};

/// Debian's own script changes the user by itself and hides the pid; this is what it starts.
const SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
const CONTROL: &str = "/usr/lib/rabbitmq/bin/rabbitmqctl";

/// A broker that can be killed and started again on the same port.
pub(crate) struct Rabbit {
    process: Process,
    _names: Process,
    port: u16,
    names_port: u16,
    dist_port: u16,
    scratch: TempDir,
}

impl Rabbit {
    /// The broker of this run; every test keeps to a subject prefix of its own, which its queues carry.
    pub(crate) fn shared() -> &'static Rabbit {
        static SHARED: OnceLock<Rabbit> = OnceLock::new();
        SHARED.get_or_init(Rabbit::start)
    }

    /// A broker for one test alone.
    pub(crate) fn start() -> Rabbit {
        let (port, names_port, dist_port) = (free_port(), free_port(), free_port());
        let scratch = tempfile::tempdir_in("/tmp").unwrap();
        let config = format!(
            "listeners.tcp.1 = 127.0.0.1:{port}\nloopback_users = none\ndisk_free_limit.absolute = 64MB\n\
             log.console = false\nlog.file.level = warning\n"
        );
        std::fs::write(scratch.path().join("rabbitmq.conf"), config).unwrap();
        std::fs::write(scratch.path().join("plugins"), "[].\n").unwrap();
        if let Some((user, group)) = ids() {
            chown(scratch.path(), Some(user), Some(group)).unwrap();
        }
        let names_args = ["-port", &names_port.to_string(), "-address", "127.0.0.1"].map(str::to_owned);
        let names = Process::spawn("epmd", &names_args, None);
        let process = run(port, names_port, dist_port, scratch.path());
        let mut rabbit = Rabbit { process, _names: names, port, names_port, dist_port, scratch };
        rabbit.wait();
        rabbit
    }

    pub(crate) fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// SIGKILL, as when the machine goes.
    pub(crate) fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Halts the broker without closing its connections.
    pub(crate) fn freeze(&mut self) {
        self.process.signal("STOP");
    }

    /// Ends [`Rabbit::freeze`].
    pub(crate) fn thaw(&mut self) {
        self.process.signal("CONT");
    }

    /// Starts it again, killing it where it still runs, on the same port with what it kept; gives back at once.
    pub(crate) fn begin_restart(&mut self) {
        self.kill9();
        self.process = run(self.port, self.names_port, self.dist_port, self.scratch.path());
    }

    /// The same; gives back once it answers.
    pub(crate) fn restart(&mut self) {
        self.begin_restart();
        self.wait();
    }

    /// Runs `rabbitmqctl`; gives what it prints.
    pub(crate) fn control(&self, args: &[&str]) -> String {
        let mut line = as_rabbit(CONTROL);
        line.extend(["--quiet", "--node", &node(self.port)].map(str::to_owned));
        line.extend(args.iter().map(|arg| (*arg).to_owned()));
        let environment = environment(self.port, self.names_port, self.dist_port, self.scratch.path());
        let done = Command::new(&line[0]).args(&line[1..]).envs(environment).output().unwrap();
        assert!(done.status.success(), "rabbitmqctl {args:?}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8_lossy(&done.stdout).into_owned()
    }

    fn wait(&mut self) {
        let (process, port, scratch) = (&mut self.process, self.port, self.scratch.path());
        until("RabbitMQ answers", Duration::from_secs(90), || {
            assert!(process.running(), "RabbitMQ ended: {}{}", process.output(), logged(scratch));
            greets(port).then_some(())
        });
    }
}

fn run(port: u16, names_port: u16, dist_port: u16, scratch: &Path) -> Process {
    let mut line: Vec<String> = vec!["env".to_owned()];
    let environment = environment(port, names_port, dist_port, scratch);
    line.extend(environment.into_iter().map(|(name, value)| format!("{name}={value}")));
    line.extend(as_rabbit(SERVER));
    Process::spawn(&line[0], &line[1..], Some(scratch))
}

fn node(port: u16) -> String {
    format!("t{port}@localhost")
}

fn environment(port: u16, names_port: u16, dist_port: u16, scratch: &Path) -> Vec<(&'static str, String)> {
    let home = scratch.display();
    vec![
        ("HOME", home.to_string()),
        ("LC_ALL", "C.UTF-8".to_owned()),
        ("ERL_EPMD_PORT", names_port.to_string()),
        ("RABBITMQ_NODENAME", node(port)),
        ("RABBITMQ_DIST_PORT", dist_port.to_string()),
        ("RABBITMQ_MNESIA_BASE", format!("{home}/mnesia")),
        ("RABBITMQ_LOG_BASE", format!("{home}/log")),
        ("RABBITMQ_CONFIG_FILE", format!("{home}/rabbitmq.conf")),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", format!("{home}/plugins")),
        ("RABBITMQ_PID_FILE", format!("{home}/pid")),
        // It stays what was started, with the pid it was started with.
        ("RABBITMQ_ALLOW_INPUT", "1".to_owned()),
        // Idle threads sleep: the machine has others to serve.
        (
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
            "+sbwt none +sbwtdcpu none +sbwtdio none -noinput -start_epmd false \
             -kernel inet_dist_use_interface {127,0,0,1}"
                .to_owned(),
        ),
    ]
}

/// A broker answers whoever speaks another protocol with its own header, and one of this protocol with a frame.
fn greets(port: u16) -> bool {
    use std::io::{Read, Write};
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut first = [0];
    stream.write_all(b"AMQP\0\0\x09\x01").is_ok() && stream.read_exact(&mut first).is_ok() && first == [1]
}

fn logged(scratch: &Path) -> String {
    let files = std::fs::read_dir(scratch.join("log")).into_iter().flatten().flatten();
    files.filter_map(|file| std::fs::read_to_string(file.path()).ok()).collect()
}

/// The start of a command line that runs as the user `rabbitmq` where this is root.
fn as_rabbit(program: &str) -> Vec<String> {
    let mut line: Vec<String> = Vec::new();
    if ids().is_some() {
        line.extend(
            ["setpriv", "--reuid=rabbitmq", "--regid=rabbitmq", "--clear-groups", "--"].map(str::to_owned),
        );
    }
    line.push(program.to_owned());
    line
}

/// User and group `rabbitmq`, where this is root.
fn ids() -> Option<(u32, u32)> {
    let id = |args: &[&str]| -> Option<u32> {
        String::from_utf8(Command::new("id").args(args).output().ok()?.stdout).ok()?.trim().parse().ok()
    };
    if id(&["-u"])? != 0 {
        return None;
    }
    Some((id(&["-u", "rabbitmq"])?, id(&["-g", "rabbitmq"])?))
}

#[test]
fn a_broker_can_be_killed_and_started_again() {
    let mut rabbit = Rabbit::start();
    assert!(rabbit.control(&["list_queues"]).trim().lines().count() <= 1);
    rabbit.restart();
    assert!(greets(rabbit.port()));
}
