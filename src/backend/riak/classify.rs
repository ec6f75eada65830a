//! What an answer that is no reply means: the one place that knows Riak's texts.
//!
//! Three questions decide: can a write have happened, may another try meet something else, and is the node to be avoided for
//! a while. Riak answers most failures of a put without saying whether replicas took it, so all but a few count as unknown.
//! Text of a crashed request holds a stack trace: it is never told to anybody.

use std::time::Duration;

use crate::model::{Code, Error};

/// What a caller is told to wait while a node or a quorum is not there, milliseconds.
pub(super) const RETRY_AFTER_MS: i64 = 500;
/// A node that is silent for so long is not well.
const BLAMED_AFTER: Duration = Duration::from_millis(250);
/// Longest text of a node that is repeated.
const TEXT_CHARS_MAX: usize = 120;

/// A failure, judged.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fault {
    /// What the caller is told where nothing has happened.
    pub(super) error: Error,
    /// Whether a write may have happened.
    pub(super) effect: Effect,
    /// What may be done about it.
    pub(super) remedy: Remedy,
    /// Whether the node is avoided for a while.
    pub(super) blames_node: bool,
    /// Whether the connection cannot be used again.
    pub(super) spoils_connection: bool,
    /// Whether the request was still in line at the node. To ask another node then repeats nothing.
    pub(super) in_line: bool,
}

/// What a failed write may have done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Effect {
    /// Nothing.
    None,
    /// Nobody knows.
    Unknown,
}

/// What may be done about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Nothing.
    None,
    /// The same request, elsewhere if possible.
    Again,
    /// The same request without primary replicas: none of them, or too few, are there.
    Fallbacks,
    /// Read the key again, then decide again: nothing happened.
    Reread,
}

// === impl Fault ===

impl Fault {
    /// No connection was to be had: nothing was sent.
    pub(super) fn unreachable(node: &str, why: &str) -> Self {
        let error = Error::unavailable(format!("Riak {node}: {why}"), RETRY_AFTER_MS);
        Self { effect: Effect::None, ..Self::broken(error) }
    }

    /// The same after so long a wait.
    pub(super) fn slow_to_connect(node: &str, waited: Duration) -> Self {
        let blames_node = waited >= BLAMED_AFTER;
        Self { blames_node, ..Self::unreachable(node, "connection: not made in time") }
    }

    /// Every connection of the pool was in use for too long: nothing was sent. Another node may have room.
    pub(super) fn crowded(node: &str) -> Self {
        let message = format!("Riak {node}: every connection of the pool was in use");
        let error = Error::overloaded(message, RETRY_AFTER_MS / 5);
        Self { effect: Effect::None, blames_node: false, in_line: true, ..Self::broken(error) }
    }

    /// While the request was in line another one found that the node is not well: nothing was sent.
    pub(super) fn left_line(node: &str) -> Self {
        Self {
            blames_node: false,
            in_line: true,
            ..Self::unreachable(node, "the node failed other requests")
        }
    }

    /// The connection broke behind the request, or what came over it makes no sense.
    pub(super) fn lost(node: &str, why: &str) -> Self {
        Self::broken(Error::unavailable(format!("Riak {node}: {why}"), RETRY_AFTER_MS))
    }

    /// Nothing was heard for so long. Of a caller in a hurry that says nothing about the node.
    pub(super) fn silent(node: &str, waited: Duration) -> Self {
        Self { blames_node: waited >= BLAMED_AFTER, ..Self::lost(node, "the node does not answer") }
    }

    fn broken(error: Error) -> Self {
        let effect = Effect::Unknown;
        let remedy = Remedy::Again;
        Self { error, effect, remedy, blames_node: true, spoils_connection: true, in_line: false }
    }

    /// What a write that ended so is answered.
    pub(super) fn of_write(self) -> Error {
        match self.effect {
            Effect::None => self.error,
            Effect::Unknown => Error::indeterminate(self.error.message),
        }
    }
}

/// Judges the text of an error frame.
pub(super) fn classify(node: &str, text: &str) -> Fault {
    let verdict = verdict(text);
    let hint = verdict.hint;
    let message = match (verdict.code, hint.is_empty()) {
        // A stack trace belongs to nobody but the node's own log.
        _ if verdict.spoils => format!("Riak {node}: {hint}"),
        (_, true) => format!("Riak {node}: {}", shown(text)),
        (_, false) => format!("Riak {node}: {hint} ({})", shown(text)),
    };
    let error = match verdict.code {
        Code::Unavailable => Error::unavailable(message, RETRY_AFTER_MS),
        code => Error::new(code, message),
    };
    Fault {
        error,
        effect: verdict.effect,
        remedy: verdict.remedy,
        blames_node: verdict.blames_node,
        spoils_connection: verdict.spoils,
        in_line: false,
    }
}

struct Verdict {
    code: Code,
    /// What an operator should look at.
    hint: &'static str,
    effect: Effect,
    remedy: Remedy,
    blames_node: bool,
    spoils: bool,
}

/// What a text means (Riak KV 3.2.3). Texts with numbers in them are told by how they begin.
fn verdict(text: &str) -> Verdict {
    let says = |code, hint, effect, remedy| Verdict {
        code,
        hint,
        effect,
        remedy,
        blames_node: false,
        spoils: false,
    };
    let node = |verdict| Verdict { blames_node: true, ..verdict };
    let crash =
        |hint| Verdict { spoils: true, ..says(Code::Unavailable, hint, Effect::Unknown, Remedy::Again) };
    let unavailable = |hint, effect, remedy| says(Code::Unavailable, hint, effect, remedy);
    let begins = |word: &str| text.starts_with(word);
    match text {
        "no_type" => unavailable(NO_TYPE, Effect::None, Remedy::None),
        _ if begins("No bucket-type named") || begins("Invalid bucket type") => {
            unavailable(NO_TYPE, Effect::None, Remedy::None)
        }
        // Said by a node that is well of replicas that may be elsewhere.
        "timeout" => unavailable("the replicas did not answer in time", Effect::Unknown, Remedy::Again),
        "overload" | "mailbox_overload" => {
            node(unavailable("the node is overloaded", Effect::Unknown, Remedy::Again))
        }
        // Answered before anything is sent to a replica, as while a node starts.
        "all_nodes_down" | "insufficient_vnodes_available" => {
            node(unavailable("too few replicas are up", Effect::None, Remedy::Again))
        }
        _ if begins("{insufficient_vnodes,") || begins("{insufficient_nodes,") => {
            node(unavailable("too few replicas are up", Effect::None, Remedy::Again))
        }
        // The interface listens before the store behind it is there.
        _ if begins("Unknown message code: ") => {
            node(unavailable("the node is starting", Effect::None, Remedy::Again))
        }
        _ if begins("{pr_val_unsatisfied,") => {
            unavailable("too few primary replicas of the key are up", Effect::None, Remedy::Fallbacks)
        }
        _ if begins("{r_val_unsatisfied,") => {
            unavailable("too few replicas answered the read", Effect::None, Remedy::Again)
        }
        _ if begins("{pw_val_unsatisfied,")
            || begins("{w_val_unsatisfied,")
            || begins("{dw_val_unsatisfied,") =>
        {
            unavailable("too few replicas took the write", Effect::Unknown, Remedy::Again)
        }
        _ if begins("{node_confirms_val_unsatisfied,") => {
            unavailable("too few machines took the write", Effect::Unknown, Remedy::Again)
        }
        _ if begins("{n_val_violation,") => {
            unavailable("r, pr, w, dw or pw is more than the bucket type's n_val", Effect::None, Remedy::None)
        }
        _ if begins("{indexes_not_supported,") || begins("{error,{indexes_not_supported,") => unavailable(
            "its storage backend has no indexes: set storage_backend to leveled (or leveldb) in riak.conf",
            Effect::None,
            Remedy::None,
        ),
        _ if begins("{too_large,") => {
            says(Code::TooLarge, "the record is larger than object.size.maximum", Effect::None, Remedy::None)
        }
        _ if begins("{too_many_siblings,") => {
            unavailable("the key has too many siblings", Effect::None, Remedy::Reread)
        }
        _ if begins("{precommit_fail,") => {
            says(Code::Internal, "a pre-commit hook refuses the record", Effect::None, Remedy::None)
        }
        "match_found" | "modified" | "notfound" | "failed" => {
            says(Code::Internal, "the bucket type is not one for records", Effect::None, Remedy::None)
        }
        _ if text.ends_with("cannot be zero-length") => says(Code::Internal, "", Effect::None, Remedy::None),
        _ if begins("Error processing incoming message") => {
            crash("the node failed on the request; its log says why")
        }
        _ if begins("Cannot send another request") || begins("Invalid message packet") => {
            crash("the node and this worker lost step on a connection")
        }
        _ => unavailable("", Effect::Unknown, Remedy::Again),
    }
}

const NO_TYPE: &str =
    "the bucket type does not exist or is not active (riak admin bucket-type create, then activate)";

/// A text as it may be shown: one line, and not long.
fn shown(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).map(|char| if char.is_control() { ' ' } else { char }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Outcome;

    /// What a write and its caller are told for each text that a node was seen to say.
    #[test]
    fn texts_are_told_apart() {
        use Effect::Unknown;
        for (text, code, effect, remedy, words) in [
            ("no_type", Code::Unavailable, Effect::None, Remedy::None, "bucket type"),
            ("Invalid bucket type: <<\"x\">>", Code::Unavailable, Effect::None, Remedy::None, "activate"),
            ("timeout", Code::Unavailable, Unknown, Remedy::Again, "in time"),
            ("all_nodes_down", Code::Unavailable, Effect::None, Remedy::Again, "too few"),
            ("insufficient_vnodes_available", Code::Unavailable, Effect::None, Remedy::Again, "too few"),
            ("{insufficient_vnodes,0,need,2}", Code::Unavailable, Effect::None, Remedy::Again, "too few"),
            ("Unknown message code: 9", Code::Unavailable, Effect::None, Remedy::Again, "starting"),
            ("{pr_val_unsatisfied,1,0}", Code::Unavailable, Effect::None, Remedy::Fallbacks, "primary"),
            ("{r_val_unsatisfied,2,1}", Code::Unavailable, Effect::None, Remedy::Again, "read"),
            ("{pw_val_unsatisfied,2,1}", Code::Unavailable, Unknown, Remedy::Again, "write"),
            ("{node_confirms_val_unsatisfied,2,1}", Code::Unavailable, Unknown, Remedy::Again, "machines"),
            ("{n_val_violation,3}", Code::Unavailable, Effect::None, Remedy::None, "n_val"),
            (
                "{indexes_not_supported,riak_kv_bitcask_backend}",
                Code::Unavailable,
                Effect::None,
                Remedy::None,
                "leveled",
            ),
            ("{too_large,52428843}", Code::TooLarge, Effect::None, Remedy::None, "object.size.maximum"),
            ("{too_many_siblings,101}", Code::Unavailable, Effect::None, Remedy::Reread, "siblings"),
            ("{precommit_fail,[]}", Code::Internal, Effect::None, Remedy::None, "hook"),
            (
                "Error processing incoming message: error:{x}",
                Code::Unavailable,
                Unknown,
                Remedy::Again,
                "log",
            ),
            ("something new", Code::Unavailable, Unknown, Remedy::Again, "something new"),
        ] {
            let fault = classify("a:1", text);
            assert_eq!((fault.error.code, fault.effect, fault.remedy), (code, effect, remedy), "{text}");
            assert!(fault.error.message.contains(words), "{text}: {}", fault.error.message);
            let written = fault.of_write();
            assert_eq!(
                written.code.outcome() == Outcome::Indeterminate,
                effect == Unknown || code == Code::Internal
            );
        }
    }

    #[test]
    fn a_stack_trace_is_told_to_nobody_and_its_connection_is_not_used_again() {
        let fault = classify("a:1", "Error processing incoming message: error:{secret,[{riak_api,1}]}");
        assert!(fault.spoils_connection && !fault.error.message.contains("secret"), "{fault:?}");
        assert!(!classify("a:1", "timeout").spoils_connection);
    }
}
