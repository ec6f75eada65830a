//! A private PostgreSQL on 127.0.0.1: one shared by the whole run with a database for each test, and others for tests that
//! break theirs.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use super::process::{Process, free_port, until};

/// A server that can be killed and started again on the same port.
pub(crate) struct Postgres {
    process: Process,
    port: u16,
    settings: Vec<String>,
    scratch: TempDir,
}

impl Postgres {
    /// The server of this run; every test takes a [`Self::database`] of its own.
    pub(crate) fn shared() -> &'static Postgres {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(|| Postgres::start(&[]))
    }

    /// A server for one test alone, with further settings such as `max_connections=20`.
    pub(crate) fn start(settings: &[&str]) -> Postgres {
        // A short path for its socket, which its user can reach wherever temporary folders are otherwise.
        let (scratch, port) = (tempfile::tempdir_in("/tmp").unwrap(), free_port());
        if let Some((user, group)) = postgres_ids() {
            chown(scratch.path(), Some(user), Some(group)).unwrap();
        }
        let data = scratch.path().join("data");
        let init = as_postgres(
            &binary("initdb"),
            &["--no-sync", "--auth=trust", "--username=test", "--no-locale", "-E", "UTF8", "-D"],
        );
        let made = Command::new(&init[0]).args(&init[1..]).arg(&data).output().unwrap();
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let settings: Vec<String> = settings.iter().map(|each| (*each).to_owned()).collect();
        let process = run(port, &settings, &scratch);
        Postgres { process, port, settings, scratch }
    }

    /// A streaming replica of this server: reads alone, and behind by as little as it can.
    pub(crate) fn replica(&self) -> Postgres {
        let (scratch, port) = (tempfile::tempdir_in("/tmp").unwrap(), free_port());
        if let Some((user, group)) = postgres_ids() {
            chown(scratch.path(), Some(user), Some(group)).unwrap();
        }
        let data = scratch.path().join("data").display().to_string();
        let from = self.url("postgres");
        let copy = as_postgres(
            &binary("pg_basebackup"),
            &["--no-sync", "-R", "-X", "stream", "-c", "fast", "-d", &from, "-D", &data],
        );
        let made = Command::new(&copy[0]).args(&copy[1..]).output().unwrap();
        assert!(made.status.success(), "pg_basebackup: {}", String::from_utf8_lossy(&made.stderr));
        // By default it waits 5 s before it asks a primary again that it lost.
        let settings = vec!["wal_retrieve_retry_interval=100ms".to_owned()];
        let process = run(port, &settings, &scratch);
        Postgres { process, port, settings, scratch }
    }

    /// A URL of a new, empty database.
    pub(crate) fn database(&self) -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("d{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        self.url(&name)
    }

    /// The URL of a database.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://test@127.0.0.1:{}/{database}", self.port)
    }

    /// Runs a statement by `psql`; gives what it prints, unaligned.
    pub(crate) fn sql(&self, database: &str, statement: &str) -> String {
        let done = Command::new(binary("psql"))
            .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", &self.url(database), "-c", statement])
            .output()
            .unwrap();
        assert!(done.status.success(), "{statement}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8_lossy(&done.stdout).trim_end().to_owned()
    }

    /// SIGKILL, as when the machine goes: gives back once all its processes are gone. The first is killed, and the others end when
    /// they notice; one that is in the middle of a statement does at its end.
    pub(crate) fn kill9(&mut self) {
        let children = children(self.process.pid());
        self.signal_all("KILL");
        self.process.kill9();
        until("all processes of PostgreSQL are gone", Duration::from_secs(20), || {
            children.iter().all(|pid| !runs(pid)).then_some(())
        });
    }

    /// A signal to all its processes, the first one before those it started (`STOP`, `CONT`, `KILL`).
    pub(crate) fn signal_all(&self, signal: &str) {
        let first = self.process.pid();
        for pid in [first.to_string()].iter().chain(&children(first)) {
            // Each is one that the server had a moment ago.
            let signal = format!("-{signal}");
            let _ = Command::new("kill").args([&signal, pid]).stderr(std::process::Stdio::null()).status();
        }
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Starts it again after [`Self::kill9`]; gives back once it answers.
    pub(crate) fn restart(&mut self) {
        self.process = run(self.port, &self.settings, &self.scratch);
    }
}

fn run(port: u16, settings: &[String], scratch: &TempDir) -> Process {
    let data = scratch.path().join("data").display().to_string();
    // What a killed server left is its own, and of no use to the next.
    let _ = std::fs::remove_file(scratch.path().join("data/postmaster.pid"));
    let port_text = port.to_string();
    let socket = scratch.path().display().to_string();
    let mut args = vec!["-D", &data, "-p", &port_text, "-k", &socket, "-c", "listen_addresses=127.0.0.1"];
    for setting in settings {
        args.extend(["-c", setting]);
    }
    let command = as_postgres(&binary("postgres"), &args);
    let mut process = Process::spawn(&command[0], &command[1..], Some(scratch.path()));
    until("PostgreSQL answers", Duration::from_secs(60), || {
        assert!(process.running(), "PostgreSQL ended: {}", process.output());
        let asked =
            Command::new(binary("pg_isready")).args(["-q", "-h", "127.0.0.1", "-p", &port_text]).status();
        asked.is_ok_and(|status| status.success()).then_some(())
    });
    process
}

/// The processes that a process started.
fn children(parent: u32) -> Vec<String> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = all.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let of_parent = |pid: &String| state(pid).is_some_and(|(_, of)| of == parent.to_string());
    pids.filter(of_parent).collect()
}

/// Whether a process runs; one that has ended and was not waited for does not.
fn runs(pid: &str) -> bool {
    state(pid).is_some_and(|(letter, _)| letter != "Z")
}

/// The letter of a process's state and its parent.
fn state(pid: &str) -> Option<(String, String)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Its name, in brackets, may hold anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ').map(str::to_owned);
    Some((fields.next()?, fields.next()?))
}

/// A command line that runs as the user `postgres` where this is root, which PostgreSQL refuses.
fn as_postgres(program: &Path, args: &[&str]) -> Vec<String> {
    let mut line: Vec<String> = Vec::new();
    if postgres_ids().is_some() {
        line.extend(
            ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--"].map(str::to_owned),
        );
    }
    line.push(program.display().to_string());
    line.extend(args.iter().map(|arg| (*arg).to_owned()));
    line
}

/// User and group `postgres`, where this is root.
fn postgres_ids() -> Option<(u32, u32)> {
    let id = |args: &[&str]| -> Option<u32> {
        String::from_utf8(Command::new("id").args(args).output().ok()?.stdout).ok()?.trim().parse().ok()
    };
    if id(&["-u"])? != 0 {
        return None;
    }
    Some((id(&["-u", "postgres"])?, id(&["-g", "postgres"])?))
}

/// Debian keeps them outside the path.
fn binary(name: &str) -> PathBuf {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.flatten().map(|entry| entry.path().join("bin").join(name)).collect())
        .unwrap_or_default();
    versions.sort();
    versions.into_iter().rfind(|path| path.exists()).unwrap_or_else(|| PathBuf::from(name))
}
