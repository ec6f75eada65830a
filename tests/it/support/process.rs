//! A child process that never outlives the test process, however that one ends.
//!
//! The child is started through a shell that leaves a watchdog behind and then becomes the child (`exec`), so the
//! pid, signals and exit code are the child's own. The watchdog reads from a pipe that this process holds: end of
//! file means that the test process is gone, so it kills the child and removes its scratch folder; a line means
//! that the child has been waited for, so nothing is left to do.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const WATCHDOG: &str = r#"
exec 3<&0
scratch=$1; shift
{ read -r _ || { kill -9 $$; sleep 0.2; [ -z "$scratch" ] || rm -rf "$scratch"; }; } <&3 >/dev/null 2>&1 &
exec "$@" 3<&- </dev/null
"#;

/// Takes the settings of whoever runs the tests from a command's environment: they would reach his real parts.
pub(crate) fn own_environment(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().to_uppercase().starts_with("DATASTORE__") {
            command.env_remove(name);
        }
    }
    command
}

/// A running (or ended) child with everything it printed.
pub(crate) struct Process {
    child: Child,
    output: Arc<Mutex<Vec<u8>>>,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `program` with `args`; `scratch` is removed should this process die without dropping the child.
    pub(crate) fn spawn(program: &str, args: &[String], scratch: Option<&Path>) -> Process {
        let mut child = own_environment(&mut Command::new("sh"))
            .args(["-c", WATCHDOG, "watchdog"])
            .arg(scratch.map(|path| path.display().to_string()).unwrap_or_default())
            .arg(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a shell to start children with");
        let output = Arc::new(Mutex::new(Vec::new()));
        collect(child.stdout.take().unwrap(), &output);
        collect(child.stderr.take().unwrap(), &output);
        Process { child, output, ended: None }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All that the child has printed so far, standard output and error together.
    pub(crate) fn output(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().unwrap()).into_owned()
    }

    /// Whether the child still runs.
    pub(crate) fn running(&mut self) -> bool {
        self.reap().is_none()
    }

    /// SIGKILL: the child has no chance to tidy up.
    pub(crate) fn kill9(&mut self) {
        if self.running() {
            let _ = self.child.kill();
            self.wait(Duration::from_secs(10)).expect("a killed process ends");
        }
    }

    /// Sends a signal by name (`TERM`, `STOP`, `CONT`, ...), never to a pid that is not ours any more.
    pub(crate) fn signal(&mut self, name: &str) {
        if self.running() {
            let kill = format!("kill -{name} {}", self.pid());
            assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success(), "{kill}");
        }
    }

    /// Waits for the end of the child; `None` when it still runs after `bound`.
    pub(crate) fn wait(&mut self, bound: Duration) -> Option<ExitStatus> {
        let begun = Instant::now();
        loop {
            match self.reap() {
                None if begun.elapsed() < bound => std::thread::sleep(Duration::from_millis(10)),
                ended => return ended,
            }
        }
    }

    /// SIGTERM, then the exit code (128 + n for signal n); panics when the child still runs after `bound`.
    pub(crate) fn terminate(&mut self, bound: Duration) -> i32 {
        self.signal("TERM");
        let status = self.wait(bound).unwrap_or_else(|| panic!("still runs {bound:?} after SIGTERM"));
        status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
    }

    fn reap(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("a child of ours can be waited for");
            if self.ended.is_some()
                && let Some(mut stdin) = self.child.stdin.take()
            {
                let _ = stdin.write_all(b"\n"); // the watchdog may go: the pid is no longer ours
            }
        }
        self.ended
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        self.wait(Duration::from_secs(5));
    }
}

/// Copies a pipe to the shared buffer until its end, on a thread of its own so that no child ever blocks on us.
fn collect(mut pipe: impl Read + Send + 'static, output: &Arc<Mutex<Vec<u8>>>) {
    let output = output.clone();
    std::thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(read @ 1..) = pipe.read(&mut chunk) {
            output.lock().unwrap().extend_from_slice(&chunk[..read]);
        }
    });
}

/// A port of 127.0.0.1 that nobody listens on, handed out once per run.
pub(crate) fn free_port() -> u16 {
    static GIVEN: Mutex<Vec<u16>> = Mutex::new(Vec::new());
    let mut given = GIVEN.lock().unwrap();
    loop {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if !given.contains(&port) {
            given.push(port);
            return port;
        }
    }
}

/// Asks `probe` every 20 ms until it gives something; panics with `what` after `bound`.
pub(crate) fn until<T>(what: &str, bound: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        match probe() {
            Some(found) => return found,
            None => assert!(begun.elapsed() < bound, "not within {bound:?}: {what}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
