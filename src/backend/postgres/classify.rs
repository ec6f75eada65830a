//! What an error of the driver or the server means: the one place that knows SQLSTATE.
//!
//! Two questions decide: can it have happened, and is it worth another try. A statement that the server answered with an
//! error was rolled back, so nothing happened; where the connection broke behind it, or the server ended it while it was at
//! work, nobody knows.

use std::borrow::Cow;
use std::io::ErrorKind;

use crate::backend::remote::{Fault, RETRY_AFTER_MS, Remedy};
use crate::model::{Code, Error};

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
            let Verdict { code, hint, remedy, unknown } = verdict(&state);
            let mut message = format!("{} (SQLSTATE {state})", database.message());
            if !hint.is_empty() {
                message = format!("{hint}: {message}");
            }
            if unknown && stage == Stage::Write {
                return lost(message);
            }
            let error = match code {
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
            Stage::Read | Stage::Before => fault(Error::internal(at(other.to_string())), Remedy::None),
        },
    }
}

struct Verdict {
    code: Code,
    /// What an operator should look at.
    hint: &'static str,
    remedy: Remedy,
    /// Whether a write may have taken effect all the same: the server ended it from outside.
    unknown: bool,
}

/// What a SQLSTATE means (PostgreSQL 15, appendix A).
fn verdict(state: &str) -> Verdict {
    let says = |code, hint, remedy| Verdict { code, hint, remedy, unknown: false };
    match state {
        // Serialization failure, deadlock: one of several, and rolled back.
        "40001" | "40P01" => says(Code::Unavailable, "lost against another transaction", Remedy::Again),
        "55P03" => says(Code::Overloaded, "a lock was not to be had in time", Remedy::None),
        "57014" => says(Code::Overloaded, "statement_timeout", Remedy::None),
        "25P03" | "57P05" => says(Code::Unavailable, "ended while idle", Remedy::Again),
        // The server's end may come between the commit and its word.
        "57P01" | "57P02" => {
            Verdict { unknown: true, ..says(Code::Unavailable, "shutting down", Remedy::Again) }
        }
        "57P03" => says(Code::Unavailable, "starting or stopping", Remedy::Again),
        "25006" => says(Code::Unavailable, "read-only, as a standby is: is this the primary?", Remedy::None),
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
        state => match &state[..state.len().min(2)] {
            "08" => Verdict { unknown: true, ..says(Code::Unavailable, "connection", Remedy::Again) },
            "22" | "23" => says(Code::Internal, "it refuses the row", Remedy::Apart),
            "53" => says(Code::Overloaded, "out of resources", Remedy::None),
            "57" | "58" | "XX" => Verdict { unknown: true, ..says(Code::Unavailable, "", Remedy::None) },
            _ => says(Code::Internal, "", Remedy::None),
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
        for (state, code, remedy, unknown, words) in [
            ("40001", Code::Unavailable, Remedy::Again, false, "another transaction"),
            ("40P01", Code::Unavailable, Remedy::Again, false, "another transaction"),
            ("55P03", Code::Overloaded, Remedy::None, false, "lock"),
            ("57014", Code::Overloaded, Remedy::None, false, "statement_timeout"),
            ("57P01", Code::Unavailable, Remedy::Again, true, "shutting down"),
            ("57P02", Code::Unavailable, Remedy::Again, true, "shutting down"),
            ("57P03", Code::Unavailable, Remedy::Again, false, "starting"),
            ("25006", Code::Unavailable, Remedy::None, false, "primary"),
            ("53100", Code::Unavailable, Remedy::None, false, "disk is full"),
            ("53200", Code::Unavailable, Remedy::None, false, "memory"),
            ("53300", Code::Overloaded, Remedy::Again, false, "pool_size"),
            ("53400", Code::Overloaded, Remedy::None, false, "resources"),
            ("28P01", Code::Unavailable, Remedy::None, false, "password"),
            ("28000", Code::Unavailable, Remedy::None, false, "pg_hba.conf"),
            ("3D000", Code::Unavailable, Remedy::None, false, "no such database"),
            ("42501", Code::Unavailable, Remedy::None, false, "right"),
            ("42P01", Code::Unavailable, Remedy::None, false, "schema"),
            ("54000", Code::TooLarge, Remedy::Apart, false, ""),
            ("22021", Code::Internal, Remedy::Apart, false, "row"),
            ("23514", Code::Internal, Remedy::Apart, false, "row"),
            ("08006", Code::Unavailable, Remedy::Again, true, "connection"),
            ("XX000", Code::Unavailable, Remedy::None, true, ""),
            ("", Code::Internal, Remedy::None, false, ""),
        ] {
            let verdict = verdict(state);
            assert_eq!((verdict.code, verdict.remedy, verdict.unknown), (code, remedy, unknown), "{state}");
            assert!(verdict.hint.contains(words), "{state}: {}", verdict.hint);
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
    }
}
