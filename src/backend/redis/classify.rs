//! What a failed call means: the one place that knows Redis' error codes.
//!
//! Two questions decide: can it have happened, and is it worth another try. A script that the server answered with an error
//! was refused before it changed anything (see [`scripts`](super::scripts)), so nothing happened; where no answer came,
//! nobody knows.

use crate::backend::remote::{Fault, RETRY_AFTER_MS, Remedy};
use crate::link;
use crate::model::{Code, Error, Scope};

/// What a caller is told to wait while a server is only busy, milliseconds.
const BUSY_AFTER_MS: i64 = 100;

/// What a call may have done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// It only reads, or doing it twice is as once: whatever becomes of it, nothing is lost.
    Read,
    /// It writes.
    Write,
}

/// Judges a failed call to shard `shard`.
pub(super) fn classify(shard: &str, stage: Stage, fault: &link::redis::Fault) -> Fault {
    let at = |message: &str| format!("Redis {shard:?}: {message}");
    match fault {
        link::redis::Fault::Away(why) => {
            Fault { error: Error::unavailable(at(&login(why)), RETRY_AFTER_MS), remedy: Remedy::Again }
        }
        link::redis::Fault::Silent(why) => match stage {
            Stage::Write => Fault { error: Error::indeterminate(at(why)), remedy: Remedy::None },
            Stage::Read => {
                Fault { error: Error::unavailable(at(why), RETRY_AFTER_MS), remedy: Remedy::Again }
            }
        },
        link::redis::Fault::Refused { code, message } => refused(shard, code, message),
    }
}

/// Judges an error that the server, or a script of ours on it, answered with.
pub(super) fn refused(shard: &str, code: &str, message: &str) -> Fault {
    let Verdict { code: judged, hint, remedy } = verdict(code, message);
    let told = format!("{code} {message}");
    let told = if hint.is_empty() { told } else { format!("{hint}: {told}") };
    let message = format!("Redis {shard:?}: {told}");
    let error = match judged {
        Code::Unavailable => Error::unavailable(message, RETRY_AFTER_MS),
        Code::Overloaded => Error::overloaded(message, BUSY_AFTER_MS),
        code => Error::new(code, message),
    };
    // Where there is no room, deletes and reads go on.
    let scope = if code == "OOM" { Scope::Part } else { Scope::Server };
    Fault { error: error.of(scope), remedy }
}

/// The word that a script gives for one row: an error as the server writes them.
pub(super) fn refused_row(shard: &str, text: &str) -> Fault {
    let (code, message) = text.split_once(' ').unwrap_or((text, ""));
    refused(shard, code, message)
}

/// Why there is no connection, with what to look at where the server said it.
fn login(why: &str) -> String {
    // The library has words of its own for a password that was refused.
    let code = match why.contains("AuthenticationFailed") {
        true => "WRONGPASS",
        false => why.split(' ').next().unwrap_or_default(),
    };
    match verdict(code, why) {
        Verdict { hint, code: Code::Unavailable, .. } if !hint.is_empty() => format!("{hint}: {why}"),
        _ => why.to_owned(),
    }
}

struct Verdict {
    code: Code,
    /// What an operator should look at.
    hint: &'static str,
    remedy: Remedy,
}

/// What an error code means (Redis 7.0; its first word, and for `ERR` the words behind it).
fn verdict(code: &str, message: &str) -> Verdict {
    let says = |code, hint, remedy| Verdict { code, hint, remedy };
    match code {
        "WRONGTYPE" => {
            says(Code::Corrupt, "what lies under this key was written by another program", Remedy::None)
        }
        "CORRUPT" => says(Code::Corrupt, "", Remedy::None),
        "OOM" => says(Code::Unavailable, "maxmemory is reached; deletes still free some", Remedy::None),
        "READONLY" => {
            says(Code::Unavailable, "read-only, as a replica is: is this the primary?", Remedy::None)
        }
        "LOADING" => says(Code::Unavailable, "it loads its data", Remedy::Again),
        "MASTERDOWN" => says(Code::Unavailable, "a replica that lost its primary", Remedy::Again),
        "BUSY" | "UNKILLABLE" => says(Code::Overloaded, "somebody's script takes its time", Remedy::Again),
        "NOAUTH" => says(Code::Unavailable, "it wants a password", Remedy::None),
        "WRONGPASS" | "AUTH" => says(Code::Unavailable, "wrong user or password", Remedy::None),
        "NOPERM" => says(Code::Unavailable, "the user lacks a right (ACL)", Remedy::None),
        "MISCONF" => {
            says(Code::Unavailable, "it takes no writes because it cannot save to its disk", Remedy::None)
        }
        "NOREPLICAS" => {
            says(Code::Unavailable, "it has fewer replicas than min-replicas-to-write", Remedy::None)
        }
        "CLUSTERDOWN" | "MOVED" | "ASK" | "CROSSSLOT" | "TRYAGAIN" => says(
            Code::Unavailable,
            "it is part of a Redis Cluster; a shard is one server by itself",
            Remedy::None,
        ),
        "ERR" if message.contains("max number of clients") => {
            says(Code::Overloaded, "out of connections: lower pool_size or raise maxclients", Remedy::Again)
        }
        "ERR" if message.contains("DB index") => {
            says(Code::Unavailable, "no such database (the number behind the `/` of its url)", Remedy::None)
        }
        "ERR" if message.contains("unknown command") => {
            says(Code::Unavailable, "it lacks a command; Redis 7.0 or later is needed", Remedy::None)
        }
        "EXECABORT" => says(Code::Unavailable, "", Remedy::Again),
        _ => says(Code::Internal, "", Remedy::None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Outcome, Retry};

    /// What a write and its caller are told for each code that an operator meets.
    #[test]
    fn codes_are_told_apart() {
        for (code, message, judged, remedy, words) in [
            ("WRONGTYPE", "Operation against a key", Code::Corrupt, Remedy::None, "another program"),
            ("OOM", "command not allowed", Code::Unavailable, Remedy::None, "maxmemory"),
            ("READONLY", "You can't write", Code::Unavailable, Remedy::None, "is this the primary?"),
            ("LOADING", "Redis is loading", Code::Unavailable, Remedy::Again, "loads its data"),
            ("MASTERDOWN", "Link with MASTER", Code::Unavailable, Remedy::Again, "lost its primary"),
            ("BUSY", "Redis is busy", Code::Overloaded, Remedy::Again, "script"),
            ("NOAUTH", "Authentication required.", Code::Unavailable, Remedy::None, "wants a password"),
            ("WRONGPASS", "invalid username", Code::Unavailable, Remedy::None, "wrong user or password"),
            ("NOPERM", "this user has no", Code::Unavailable, Remedy::None, "lacks a right"),
            ("MISCONF", "Redis is configured", Code::Unavailable, Remedy::None, "cannot save"),
            ("NOREPLICAS", "Not enough good", Code::Unavailable, Remedy::None, "min-replicas-to-write"),
            ("CLUSTERDOWN", "Hash slot not served", Code::Unavailable, Remedy::None, "Redis Cluster"),
            ("MOVED", "3999 127.0.0.1:6381", Code::Unavailable, Remedy::None, "Redis Cluster"),
            ("ERR", "max number of clients reached", Code::Overloaded, Remedy::Again, "maxclients"),
            ("ERR", "DB index is out of range", Code::Unavailable, Remedy::None, "no such database"),
            ("ERR", "unknown command 'EVALSHA_RO'", Code::Unavailable, Remedy::None, "7.0"),
            ("ERR", "syntax error", Code::Internal, Remedy::None, ""),
            ("WHATEVER", "", Code::Internal, Remedy::None, ""),
        ] {
            let fault = refused("main", code, message);
            assert_eq!((fault.error.code, fault.remedy), (judged, remedy), "{code} {message}");
            assert!(fault.error.message.contains(words), "{}", fault.error.message);
        }
    }

    #[test]
    fn a_silent_server_leaves_a_write_unknown_and_nothing_else() {
        let silent = link::redis::Fault::Silent("no answer in time".to_owned());
        let write = classify("main", Stage::Write, &silent);
        assert_eq!((write.error.retry(), write.remedy), (Retry::UnknownOutcome, Remedy::None));
        let read = classify("main", Stage::Read, &silent);
        assert_eq!((read.error.code, read.remedy), (Code::Unavailable, Remedy::Again));
        // Nothing was sent, so nothing happened.
        let away = classify("main", Stage::Write, &link::redis::Fault::Away("WRONGPASS x".to_owned()));
        assert_eq!((away.error.code.outcome(), away.remedy), (Outcome::Refused, Remedy::Again));
        assert!(away.error.message.contains("wrong user or password"), "{}", away.error.message);
    }
}
