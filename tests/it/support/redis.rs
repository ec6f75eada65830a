//! A private `redis-server` on 127.0.0.1: one shared by the whole run, and others for tests that break theirs.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use tempfile::TempDir;

use super::process::{Process, free_port, until};

/// A server that can be killed and started again on the same port.
pub(crate) struct Redis {
    process: Process,
    port: u16,
    settings: Vec<String>,
    scratch: TempDir,
}

impl Redis {
    /// The server of this run; every test keeps to a prefix of its own.
    pub(crate) fn shared() -> &'static Redis {
        static SHARED: OnceLock<Redis> = OnceLock::new();
        SHARED.get_or_init(|| Redis::start(&[]))
    }

    /// A server for one test alone, with further settings such as `--appendonly yes`. Without them it keeps nothing on disk.
    pub(crate) fn start(settings: &[&str]) -> Redis {
        let (scratch, port) = (tempfile::tempdir().unwrap(), free_port());
        let settings: Vec<String> = settings.iter().map(|each| (*each).to_owned()).collect();
        let process = run(port, &settings, &scratch);
        Redis { process, port, settings, scratch }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// A folder that lives as long as the server: for its sockets and certificates.
    pub(crate) fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Runs a command by `redis-cli`; gives what it prints.
    pub(crate) fn cli(&self, args: &[&str]) -> String {
        let done =
            Command::new("redis-cli").args(["-p", &self.port.to_string()]).args(args).output().unwrap();
        String::from_utf8_lossy(&done.stdout).trim_end().to_owned()
    }

    /// Ends the server without warning; its port stays ours for [`Redis::restart`].
    pub(crate) fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Starts it again on the same folder with the same settings; gives back once it answers.
    pub(crate) fn restart(&mut self) {
        self.kill9();
        self.process = run(self.port, &self.settings, &self.scratch);
    }

    /// Halts the server without closing its connections.
    pub(crate) fn freeze(&mut self) {
        self.process.signal("STOP");
    }

    /// Ends [`Redis::freeze`].
    pub(crate) fn thaw(&mut self) {
        self.process.signal("CONT");
    }
}

fn run(port: u16, settings: &[String], scratch: &TempDir) -> Process {
    let folder = scratch.path().display().to_string();
    let port_text = port.to_string();
    let fixed =
        ["--port", &port_text, "--bind", "127.0.0.1", "--dir", &folder, "--save", "", "--daemonize", "no"];
    let mut args: Vec<String> = fixed.map(str::to_owned).into();
    args.extend(settings.iter().cloned());
    let mut process = Process::spawn("redis-server", &args, Some(scratch.path()));
    until("redis-server answers", Duration::from_secs(10), || {
        assert!(process.running(), "redis-server ended:\n{}", process.output());
        let asked = Command::new("redis-cli").args(["-p", &port_text, "PING"]).output().ok()?;
        // One that wants a password or loads its data answers too.
        (!asked.stdout.is_empty()).then_some(())
    });
    process
}
