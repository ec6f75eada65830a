//! The one error type. It answers: what happened, may I retry, may it have happened, where.

use std::fmt;

use super::Version;

/// What went wrong. Numbers are those of the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Code {
    /// Malformed payload, key, path, header, op_id, version or cursor; depth; unknown field; impossible option.
    InvalidArgument = 1,
    /// The worker's policy forbids it.
    PermissionDenied = 2,
    /// No policy for that namespace.
    UnknownNamespace = 3,
    /// `update` or `touch` of a missing key without `create`.
    NotFound = 4,
    /// A precondition failed.
    Conflict = 5,
    /// The key has a queued write that is not applied yet.
    ConflictPending = 6,
    /// Nothing as new as `min_version` could be read.
    Behind = 7,
    /// Key, value, batch or page over its limit.
    TooLarge = 8,
    /// The worker or the queue is full.
    Overloaded = 9,
    /// A defect.
    Internal = 10,
    /// The backend or mode cannot promise it.
    Unsupported = 11,
    /// The backend is down and the request did not happen.
    Unavailable = 12,
    /// Out of time before any work was done, or a read cut off.
    DeadlineExceeded = 13,
    /// May or may not have happened.
    Indeterminate = 14,
    /// Stored bytes fail their checksum.
    Corrupt = 15,
}

/// What the caller may do after an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Retry {
    /// The same request will fail again.
    Final = 0,
    /// Nothing happened; the same request may succeed later.
    Retryable = 1,
    /// It may have happened; safe to repeat with the same `op_id`.
    UnknownOutcome = 2,
}

/// What became of a write. There is no fifth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Outcome {
    /// Nothing happened.
    Refused = 0,
    /// Durable in the backend.
    Applied = 1,
    /// Durable in the queue.
    Queued = 2,
    /// Unknown.
    Indeterminate = 3,
}

/// A failed request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Error {
    /// What went wrong.
    pub code: Code,
    /// One sentence for a person, lower case, without a full stop; names the place.
    pub message: String,
    /// When to try again, in milliseconds; 0 = no advice.
    pub retry_after_ms: i64,
    /// The version found: of `conflict` and `behind`.
    pub version: Option<Version>,
    /// More about the error, e.g. the index of the failing operation of an atomic batch.
    pub details: Vec<String>,
    /// How far it says anything of the backend that it came from; not told to callers.
    pub scope: Scope,
}

/// How far an error says anything of its backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scope {
    /// Whatever else is asked of this server will most likely fail, too.
    #[default]
    Server,
    /// A part of what the server holds, or one kind of work, is concerned: other keys, or deletes, go on.
    Part,
    /// This row alone.
    Row,
}

// === impl Code ===

impl Code {
    /// Every code, in the order of its number.
    pub const ALL: [Self; 15] = [
        Self::InvalidArgument,
        Self::PermissionDenied,
        Self::UnknownNamespace,
        Self::NotFound,
        Self::Conflict,
        Self::ConflictPending,
        Self::Behind,
        Self::TooLarge,
        Self::Overloaded,
        Self::Internal,
        Self::Unsupported,
        Self::Unavailable,
        Self::DeadlineExceeded,
        Self::Indeterminate,
        Self::Corrupt,
    ];

    /// The code with this wire number.
    pub fn from_number(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|code| *code as i32 == number)
    }

    /// The word used in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid_argument",
            Self::PermissionDenied => "permission_denied",
            Self::UnknownNamespace => "unknown_namespace",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::ConflictPending => "conflict_pending",
            Self::Behind => "behind",
            Self::TooLarge => "too_large",
            Self::Overloaded => "overloaded",
            Self::Internal => "internal",
            Self::Unsupported => "unsupported",
            Self::Unavailable => "unavailable",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Indeterminate => "indeterminate",
            Self::Corrupt => "corrupt",
        }
    }

    /// The number of the `Nats-Service-Error-Code` header.
    pub fn status(self) -> u16 {
        match self {
            Self::InvalidArgument => 400,
            Self::PermissionDenied => 403,
            Self::UnknownNamespace | Self::NotFound => 404,
            Self::Conflict | Self::ConflictPending => 409,
            Self::Behind => 412,
            Self::TooLarge => 413,
            Self::Overloaded => 429,
            Self::Internal | Self::Indeterminate | Self::Corrupt => 500,
            Self::Unsupported => 501,
            Self::Unavailable => 503,
            Self::DeadlineExceeded => 504,
        }
    }

    /// What the caller may do.
    pub fn retry(self) -> Retry {
        match self {
            Self::InvalidArgument
            | Self::PermissionDenied
            | Self::UnknownNamespace
            | Self::NotFound
            | Self::Conflict
            | Self::TooLarge
            | Self::Unsupported
            | Self::Corrupt => Retry::Final,
            Self::ConflictPending
            | Self::Behind
            | Self::Overloaded
            | Self::Unavailable
            | Self::DeadlineExceeded => Retry::Retryable,
            Self::Internal | Self::Indeterminate => Retry::UnknownOutcome,
        }
    }

    /// What a write that failed with this code came to.
    pub fn outcome(self) -> Outcome {
        match self.retry() {
            Retry::Final | Retry::Retryable => Outcome::Refused,
            Retry::UnknownOutcome => Outcome::Indeterminate,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

// === impl Retry ===

impl Retry {
    /// The word used in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Final => "final",
            Self::Retryable => "retryable",
            Self::UnknownOutcome => "unknown_outcome",
        }
    }
}

// === impl Outcome ===

impl Outcome {
    /// The word used in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Applied => "applied",
            Self::Queued => "queued",
            Self::Indeterminate => "indeterminate",
        }
    }

    /// The outcome with this wire number.
    pub fn from_number(number: i32) -> Option<Self> {
        [Self::Refused, Self::Applied, Self::Queued, Self::Indeterminate]
            .into_iter()
            .find(|outcome| *outcome as i32 == number)
    }
}

// === impl Error ===

impl Error {
    /// An error of a code with a sentence.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            retry_after_ms: 0,
            version: None,
            details: Vec::new(),
            scope: Scope::Server,
        }
    }

    /// The same, said of less than the server.
    #[must_use]
    pub fn of(self, scope: Scope) -> Self {
        Self { scope, ..self }
    }

    /// See [`Code::InvalidArgument`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    /// See [`Code::TooLarge`].
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(Code::TooLarge, message)
    }

    /// See [`Code::Unsupported`].
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(Code::Unsupported, message)
    }

    /// See [`Code::Internal`].
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }

    /// See [`Code::Unavailable`]; says when to come back.
    pub fn unavailable(message: impl Into<String>, retry_after_ms: i64) -> Self {
        Self { retry_after_ms, ..Self::new(Code::Unavailable, message) }
    }

    /// See [`Code::Overloaded`]; says when to come back.
    pub fn overloaded(message: impl Into<String>, retry_after_ms: i64) -> Self {
        Self { retry_after_ms, ..Self::new(Code::Overloaded, message) }
    }

    /// See [`Code::DeadlineExceeded`].
    pub fn deadline(message: impl Into<String>) -> Self {
        Self::new(Code::DeadlineExceeded, message)
    }

    /// See [`Code::Indeterminate`].
    pub fn indeterminate(message: impl Into<String>) -> Self {
        Self::new(Code::Indeterminate, message)
    }

    /// See [`Code::Conflict`]; `present` is the version that stands there, `None` if absent.
    pub fn conflict(message: impl Into<String>, present: Option<Version>) -> Self {
        Self { version: present, ..Self::new(Code::Conflict, message) }
    }

    /// The same error with the place put in front of its sentence.
    #[must_use]
    pub fn at(mut self, place: &str) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }

    /// What the caller may do.
    pub fn retry(&self) -> Retry {
        self.code.retry()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_words_are_those_of_the_contract() {
        let numbers: Vec<i32> = Code::ALL.iter().map(|code| *code as i32).collect();
        assert_eq!(numbers, (1..=15).collect::<Vec<_>>());
        assert_eq!(Code::from_number(16), None);
        assert_eq!(Code::Behind.to_string(), "behind");
    }

    #[test]
    fn only_unknown_outcomes_leave_a_write_indeterminate() {
        for code in Code::ALL {
            let unknown = matches!(code, Code::Internal | Code::Indeterminate);
            assert_eq!(code.outcome() == Outcome::Indeterminate, unknown, "{code}");
        }
    }
}
