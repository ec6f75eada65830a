//! What an error of the driver or the server means: the one place that knows SQLSTATE.
//!
//! Two questions decide: can it have happened, and is it worth another try. A statement that the server answered with an
//! `ERROR` was rolled back, so nothing happened, whatever its SQLSTATE. Behind a `FATAL` or `PANIC` the server ends the session,
//! which it also does where it fails after a commit is on its disk (the next file of its log cannot be made, say): of a write
//! that was sent nobody knows then, as where the connection broke.

use std::borrow::Cow;
use std::io::ErrorKind;

use sqlx::postgres::{PgDatabaseError, PgSeverity};

use crate::backend::remote::{Fault, RETRY_AFTER_MS, Remedy};
use crate::model::{Code, Error, Scope};

/// What is said of a server that takes no writes.
pub(super) const READ_ONLY: &str = "read-only, as a standby is: is this the primary?";
/// What a caller is told to wait while a server is only full, milliseconds.
const BUSY_AFTER_MS: i64 = 100;

/// Whether a statement had been sent when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Not yet: no connection was to be had.
    Before,
    /// A statement that only reads: it changes nothing, however it ends.
    Read,
    /// A statement that writes.
    Write,
}

/// Judges a failure of shard `shard`.
pub(super) fn classify(shard: &str, stage: Stage, error: &sqlx::Error) -> Fault {
    let at = |message: String| format!("PostgreSQL {shard:?}: {message}");
    let fault = |error, remedy| Fault { error, remedy };
    let lost = |message: String| match stage {
        Stage::Write => fault(Error::indeterminate(at(message)), Remedy::None),
        Stage::Read | Stage::Before => fault(Error::unavailable(at(message), RETRY_AFTER_MS), Remedy::Again),
    };
    let tls = |error: &dyn std::fmt::Display| {
        let message = at(format!("TLS: {error}; see sslmode and sslrootcert of its url"));
        fault(Error::unavailable(message, RETRY_AFTER_MS), Remedy::None)
    };
    match error {
        sqlx::Error::Database(database) => {
            let state = database.code().unwrap_or(Cow::Borrowed(""));
            let Verdict { code, hint, remedy } = verdict(&state);
            let known = database.try_downcast_ref::<PgDatabaseError>();
            let severity = known.map_or(PgSeverity::Fatal, PgDatabaseError::severity);
            let mut message = format!("{} (SQLSTATE {state})", database.message());
            if !hint.is_empty() {
                message = format!("{hint}: {message}");
            }
            if stage == Stage::Write && ends_unknown(&state, severity) {
                return lost(message);
            }
            let error = match code {
                // Of a write, sent or not, `internal` would say that it may have happened.
                Code::Internal if stage == Stage::Write => {
                    Error::unavailable(at(message), RETRY_AFTER_MS).of(Scope::Row)
                }
                Code::Internal if stage == Stage::Before => Error::unavailable(at(message), RETRY_AFTER_MS),
                Code::Unavailable => Error::unavailable(at(message), RETRY_AFTER_MS),
                Code::Overloaded => Error::overloaded(at(message), BUSY_AFTER_MS),
                code => Error::new(code, at(message)),
            };
            fault(error, remedy)
        }
        sqlx::Error::PoolTimedOut => fault(
            Error::overloaded(at("every connection of the pool was in use".to_owned()), BUSY_AFTER_MS),
            Remedy::None,
        ),
        sqlx::Error::PoolClosed => {
            fault(Error::unavailable(at("closing".to_owned()), RETRY_AFTER_MS), Remedy::None)
        }
        // A certificate that is refused comes as bytes that make no sense.
        sqlx::Error::Io(error) if error.kind() == ErrorKind::InvalidData && stage != Stage::Write => {
            tls(error)
        }
        sqlx::Error::Io(error) => lost(format!("connection: {error}")),
        sqlx::Error::Tls(error) => tls(error),
        sqlx::Error::Configuration(error) => {
            fault(Error::unavailable(at(format!("its settings: {error}")), RETRY_AFTER_MS), Remedy::None)
        }
        sqlx::Error::WorkerCrashed | sqlx::Error::Protocol(_) => lost(error.to_string()),
        // What came back was not what the statement says.
        other => match stage {
            Stage::Write => fault(Error::indeterminate(at(other.to_string())), Remedy::None),
            Stage::Read => fault(Error::internal(at(other.to_string())), Remedy::None),
            Stage::Before => fault(Error::unavailable(at(other.to_string()), RETRY_AFTER_MS), Remedy::None),
        },
    }
}

/// Whether a write that was answered so may have taken effect: the session ended with it, and not because it was idle, which it
/// is before a statement reaches it.
fn ends_unknown(state: &str, severity: PgSeverity) -> bool {
    matches!(severity, PgSeverity::Fatal | PgSeverity::Panic) && !matches!(state, "57P05" | "25P03")
}

struct Verdict {
    code: Code,
    /// What an operator should look at.
    hint: &'static str,
    remedy: Remedy,
}

/// What a SQLSTATE means (PostgreSQL 15, appendix A).
fn verdict(state: &str) -> Verdict {
    let says = |code, hint, remedy| Verdict { code, hint, remedy };
    match state {
        // Serialization failure, deadlock: one of several, and rolled back.
        "40001" | "40P01" => says(Code::Unavailable, "lost against another transaction", Remedy::Again),
        // One row of a statement may be held by somebody for long, and the others need not wait for it.
        "55P03" => says(Code::Overloaded, "a lock was not to be had in time", Remedy::Apart),
        "57014" => says(Code::Overloaded, "statement_timeout", Remedy::Apart),
        "25P03" | "57P05" => says(Code::Unavailable, "ended while idle", Remedy::Again),
        "57P01" | "57P02" => says(Code::Unavailable, "shutting down", Remedy::Again),
        "57P03" => says(Code::Unavailable, "starting or stopping", Remedy::Again),
        "25006" => says(Code::Unavailable, READ_ONLY, Remedy::None),
        "53300" => says(
            Code::Overloaded,
            "out of connections: lower pool_size or raise max_connections",
            Remedy::Again,
        ),
        "53100" => says(Code::Unavailable, "its disk is full", Remedy::None),
        "53200" => says(Code::Unavailable, "out of memory", Remedy::None),
        "28P01" => says(Code::Unavailable, "wrong user or password", Remedy::None),
        "28000" => says(Code::Unavailable, "this user may not connect (pg_hba.conf)", Remedy::None),
        "3D000" => says(Code::Unavailable, "no such database", Remedy::None),
        "42501" => says(Code::Unavailable, "the user lacks a right", Remedy::None),
        "42P01" | "42703" | "42883" => {
            says(Code::Unavailable, "its schema is not the one this version needs", Remedy::None)
        }
        "54000" => says(Code::TooLarge, "", Remedy::Apart),
        // A page that fails its checksum, a document that lacks a part, a broken index.
        "XX001" | "XX002" => says(Code::Corrupt, "its files are damaged", Remedy::Apart),
        state => match &state[..state.len().min(2)] {
            "08" => says(Code::Unavailable, "connection", Remedy::Again),
            // Data, constraints, check options, and what a trigger raises.
            "22" | "23" | "44" | "P0" => says(Code::Unsupported, "it refuses the row", Remedy::Apart),
            "53" => says(Code::Overloaded, "out of resources", Remedy::None),
            // It may be one row that the server trips over.
            "57" | "58" | "XX" => says(Code::Unavailable, "", Remedy::Apart),
            _ => says(Code::Internal, "", Remedy::Apart),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Outcome, Retry};

    /// What a write and its caller are told for each code that an operator meets.
    #[test]
    fn sqlstates_are_told_apart() {
        for (state, code, remedy, words) in [
            ("40001", Code::Unavailable, Remedy::Again, "another transaction"),
            ("40P01", Code::Unavailable, Remedy::Again, "another transaction"),
            ("55P03", Code::Overloaded, Remedy::Apart, "lock"),
            ("57014", Code::Overloaded, Remedy::Apart, "statement_timeout"),
            ("57P01", Code::Unavailable, Remedy::Again, "shutting down"),
            ("57P02", Code::Unavailable, Remedy::Again, "shutting down"),
            ("57P03", Code::Unavailable, Remedy::Again, "starting"),
            ("25006", Code::Unavailable, Remedy::None, "primary"),
            ("53100", Code::Unavailable, Remedy::None, "disk is full"),
            ("53200", Code::Unavailable, Remedy::None, "memory"),
            ("53300", Code::Overloaded, Remedy::Again, "pool_size"),
            ("53400", Code::Overloaded, Remedy::None, "resources"),
            ("28P01", Code::Unavailable, Remedy::None, "password"),
            ("28000", Code::Unavailable, Remedy::None, "pg_hba.conf"),
            ("3D000", Code::Unavailable, Remedy::None, "no such database"),
            ("42501", Code::Unavailable, Remedy::None, "right"),
            ("42P01", Code::Unavailable, Remedy::None, "schema"),
            ("54000", Code::TooLarge, Remedy::Apart, ""),
            ("22021", Code::Unsupported, Remedy::Apart, "row"),
            ("23514", Code::Unsupported, Remedy::Apart, "row"),
            ("08006", Code::Unavailable, Remedy::Again, "connection"),
            ("58030", Code::Unavailable, Remedy::Apart, ""),
            ("P0001", Code::Unsupported, Remedy::Apart, "row"),
            ("44000", Code::Unsupported, Remedy::Apart, "row"),
            ("XX000", Code::Unavailable, Remedy::Apart, ""),
            ("XX001", Code::Corrupt, Remedy::Apart, "damaged"),
            ("XX002", Code::Corrupt, Remedy::Apart, "damaged"),
            ("", Code::Internal, Remedy::Apart, ""),
        ] {
            let verdict = verdict(state);
            assert_eq!((verdict.code, verdict.remedy), (code, remedy), "{state}");
            assert!(verdict.hint.contains(words), "{state}: {}", verdict.hint);
            // What rolls back, and says so, did not happen; what ends the session may have.
            assert!(!ends_unknown(state, PgSeverity::Error), "{state}");
            assert!(ends_unknown(state, PgSeverity::Fatal), "{state}");
            assert!(ends_unknown(state, PgSeverity::Panic), "{state}");
        }
        for idle in ["57P05", "25P03"] {
            assert_eq!(verdict(idle).remedy, Remedy::Again);
            assert!(!ends_unknown(idle, PgSeverity::Fatal), "{idle}: it ended before anything reached it");
        }
    }

    #[test]
    fn a_lost_connection_is_unknown_to_a_write_that_was_sent_and_to_nothing_else() {
        let lost = || sqlx::Error::Io(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
        let write = classify("main", Stage::Write, &lost()).error;
        assert_eq!((write.code, write.retry()), (Code::Indeterminate, Retry::UnknownOutcome));
        for stage in [Stage::Before, Stage::Read] {
            let fault = classify("main", stage, &lost());
            assert_eq!((fault.error.code, fault.remedy), (Code::Unavailable, Remedy::Again));
            assert_eq!(fault.error.code.outcome(), Outcome::Refused);
        }
        let full = classify("main", Stage::Before, &sqlx::Error::PoolTimedOut);
        assert_eq!((full.error.code, full.remedy), (Code::Overloaded, Remedy::None));
        // What came back does not fit the statement: a write may have happened all the same.
        let odd = classify("main", Stage::Write, &sqlx::Error::RowNotFound);
        assert_eq!(odd.error.code, Code::Indeterminate);
        // And where nothing was sent, nothing did.
        let odd = classify("main", Stage::Before, &sqlx::Error::RowNotFound);
        assert_eq!(odd.error.code.outcome(), Outcome::Refused);
    }
}
