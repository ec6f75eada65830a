//! How results and failures look.

use std::io::{self, BufWriter, Stdout, Write};
use std::process::ExitCode;

use crate::codec::json;
use crate::model::reply::{Reply, WriteReply};
use crate::model::{Error, Value};

/// The operation failed.
const FAILED: u8 = 1;
/// The command line is wrong.
pub(super) const USAGE: u8 = 2;
/// Stopped by Ctrl-C, as shells count it.
pub(super) const INTERRUPTED: u8 = 130;

/// How a command ended; a fault is yet to be told.
pub(super) type Ended = Result<ExitCode, Fault>;

/// Why a command ended early.
#[derive(Debug)]
pub(super) enum Fault {
    /// What a worker or the client says.
    Failed(Error),
    /// What an input or the machine says, and the command's exit code.
    Told(String, u8),
    /// Whoever read our output has gone.
    Unread,
}

/// Standard output.
pub(super) struct Output {
    /// Whether reply messages are asked for.
    pub(super) json: bool,
    out: BufWriter<Stdout>,
}

/// Tells a fault; the exit code of the process.
pub(super) fn end(ended: Ended) -> ExitCode {
    match ended {
        Ok(code) => code,
        Err(fault) => {
            fault.tell();
            fault.exit_code()
        }
    }
}

/// The exit code of an operation that failed and said so.
pub(super) fn failed() -> ExitCode {
    ExitCode::from(FAILED)
}

/// One line for the person at the terminal. Nobody may be there.
pub(super) fn tell(line: &str) {
    drop(writeln!(io::stderr(), "{line}"));
}

/// What, and whether to retry.
pub(super) fn error_line(error: &Error) -> String {
    let message: String =
        error.message.chars().map(|char| if char.is_control() { ' ' } else { char }).collect();
    let details = match error.details.as_slice() {
        [] => String::new(),
        details => format!(" [{}]", details.join(", ")),
    };
    format!("{}: {message}{details} ({})", error.code, error.retry().word())
}

/// What a write came to.
pub(super) fn write_line(reply: &WriteReply) -> String {
    if let Some(error) = &reply.error {
        return format!("error: {}", error_line(error));
    }
    let mut line = reply.outcome.word().to_owned();
    if let Some(version) = reply.version {
        line.push_str(&format!(" {version}"));
    }
    if reply.duplicate {
        line.push_str(" (duplicate)");
    }
    if reply.existed == Some(false) {
        line.push_str(" (no such key)");
    }
    line
}

/// A key as one word of a line: as it stands, or as JSON text where it could be taken for something else.
pub(super) fn key_word(key: &str) -> String {
    if !key.starts_with('"') && !key.contains(char::is_control) {
        return key.to_owned();
    }
    json_text(key)
}

/// JSON text without any control character in it, the ones that JSON allows included: terminals obey them.
pub(super) fn json_text(text: &str) -> String {
    let json = json::value_to_string(&Value::from(text), false);
    let mut safe = String::with_capacity(json.len());
    for char in json.chars() {
        if char.is_control() {
            safe.push_str(&format!("\\u{:04x}", u32::from(char)));
        } else {
            safe.push(char);
        }
    }
    safe
}

// === impl Output ===

impl Output {
    pub(super) fn new(json: bool) -> Self {
        Self { json, out: BufWriter::new(io::stdout()) }
    }

    pub(super) fn line(&mut self, line: &str) -> Result<(), Fault> {
        self.out.write_all(line.as_bytes())?;
        Ok(self.out.write_all(b"\n")?)
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        Ok(self.out.write_all(bytes)?)
    }

    /// A reply message, if they are asked for.
    pub(super) fn message(&mut self, reply: &Reply) -> Result<(), Fault> {
        if self.json {
            self.out.write_all(&json::encode_reply(reply, false))?;
            self.out.write_all(b"\n")?;
            self.flush()?;
        }
        Ok(())
    }

    pub(super) fn flush(&mut self) -> Result<(), Fault> {
        Ok(self.out.flush()?)
    }
}

// === impl Fault ===

impl Fault {
    /// Something about an input.
    pub(super) fn input(message: impl Into<String>) -> Self {
        Self::Told(message.into(), FAILED)
    }

    /// Something about the command line.
    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::Told(message.into(), USAGE)
    }

    /// Tells it on standard error.
    pub(super) fn tell(&self) {
        match self {
            Self::Failed(error) => tell(&format!("error: {}", error_line(error))),
            Self::Told(message, _) => tell(&format!("error: {message}")),
            Self::Unread => {}
        }
    }

    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Failed(_) | Self::Unread => failed(),
            Self::Told(_, code) => ExitCode::from(*code),
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Unread,
            _ => Self::input(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_one_word_of_one_line() {
        for (key, word) in [
            ("user:1", "user:1"),
            ("a b \u{20ac}", "a b \u{20ac}"),
            ("a\"b", "a\"b"),
            ("\"a\"", "\"\\\"a\\\"\""),
            ("a\tb\nc", "\"a\\tb\\nc\""),
            ("a\u{1b}[2J", "\"a\\u001b[2J\""),
            ("a\u{9b}b\u{7f}", "\"a\\u009bb\\u007f\""),
        ] {
            assert_eq!(key_word(key), word);
        }
    }

    #[test]
    fn a_failure_is_one_line_that_says_whether_to_retry() {
        let error = Error { details: vec!["3".into()], ..Error::conflict("a\nb", None) };
        assert_eq!(error_line(&error), "conflict: a b [3] (final)");
        assert_eq!(error_line(&Error::unavailable("x", 5)), "unavailable: x (retryable)");
    }
}
