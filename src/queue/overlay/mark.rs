//! The mark that says whether the queue is closed to a namespace, and how it is changed: see the store's `switch`.
//!
//! Key `{prefix}:m:{namespace}`: `through`, `open`, or `closing` or `opening` with a time of Redis's clock. A namespace that was never
//! changed has none.

use redis::Value;

use super::{Away, HOLD_TIMEOUT, LOOK_TIMEOUT, Overlay, away};
use crate::model::Namespace;

/// Sets KEYS[1] to ARGV[2] where it is ARGV[1] ('' = not there).
const COMPARE_AND_SET: &str = "if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end \
    redis.call('SET', KEYS[1], ARGV[2]) return 1";

/// The mark of a namespace that the queue is open to.
pub(super) const OPEN: &str = "open";

/// What is said of a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// The queue is closed to it: its durability is `through`.
    Through,
    /// The queue is open to it: its durability was changed to `outage_queue`.
    Open,
    /// The queue is closed to it: its durability is being changed to `through`.
    Closing {
        /// When the queue was closed, Unix milliseconds of Redis's clock.
        since_ms: i64,
    },
    /// The queue is closed to it still: its durability is being changed to `outage_queue`.
    Opening {
        /// When its store noted it, Unix milliseconds of Redis's clock.
        since_ms: i64,
    },
}

/// A look at the mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marked {
    /// What is there.
    pub mark: Option<Mark>,
    /// When that was, Unix milliseconds of Redis's clock.
    pub now_ms: i64,
}

impl Overlay {
    /// The mark of a namespace.
    pub async fn mark(&self, namespace: &Namespace) -> Result<Marked, Away> {
        let mut steps = redis::pipe();
        steps.cmd("GET").arg(self.calls.mark(namespace)).cmd("TIME");
        let answers = self.calls.send(&steps, HOLD_TIMEOUT).await?;
        let [mark, time] = &answers[..] else { return Err(Away("half an answer".to_owned())) };
        let mark = match mark {
            Value::BulkString(text) => Some(Mark::read(&String::from_utf8_lossy(text))?),
            _ => None,
        };
        let now_ms = super::time_ms(time).ok_or_else(|| Away("Redis tells no time".to_owned()))?;
        Ok(Marked { mark, now_ms })
    }

    /// Changes the mark of a namespace from what it was; whether it was that.
    pub async fn set_mark(&self, namespace: &Namespace, from: Option<Mark>, to: Mark) -> Result<bool, Away> {
        let mut set = redis::cmd("EVAL");
        let text = |mark: Option<Mark>| mark.map(Mark::text).unwrap_or_default();
        set.arg(COMPARE_AND_SET).arg(1).arg(self.calls.mark(namespace)).arg(text(from)).arg(to.text());
        let deadline = tokio::time::Instant::now() + HOLD_TIMEOUT;
        let answer = self.calls.redis.call(&set, deadline).await.map_err(|fault| away(&fault))?;
        Ok(answer == Value::Int(1))
    }

    /// Closes the queue to a namespace whose durability is `through`, unless it has a mark.
    pub async fn close(&self, namespace: &Namespace) -> Result<(), Away> {
        let mut set = redis::cmd("SET");
        set.arg(self.calls.mark(namespace)).arg(Mark::Through.text()).arg("NX");
        let deadline = tokio::time::Instant::now() + LOOK_TIMEOUT;
        self.calls.redis.call(&set, deadline).await.map(drop).map_err(|fault| away(&fault))
    }
}

impl Mark {
    fn text(self) -> String {
        match self {
            Self::Through => "through".to_owned(),
            Self::Open => OPEN.to_owned(),
            Self::Closing { since_ms } => format!("closing {since_ms}"),
            Self::Opening { since_ms } => format!("opening {since_ms}"),
        }
    }

    fn read(text: &str) -> Result<Self, Away> {
        let unknown = || Away(format!("the mark {text:?} is of another version"));
        let since = |since: &str| since.parse().map_err(|_| unknown());
        match text.split_once(' ') {
            None if text == "through" => Ok(Self::Through),
            None if text == OPEN => Ok(Self::Open),
            Some(("closing", since_ms)) => Ok(Self::Closing { since_ms: since(since_ms)? }),
            Some(("opening", since_ms)) => Ok(Self::Opening { since_ms: since(since_ms)? }),
            _ => Err(unknown()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        for mark in
            [Mark::Through, Mark::Open, Mark::Closing { since_ms: 5 }, Mark::Opening { since_ms: 1 << 50 }]
        {
            assert_eq!(Mark::read(&mark.text()), Ok(mark));
        }
        for text in ["", "closing", "closing x", "opened 5"] {
            assert!(Mark::read(text).is_err(), "{text}");
        }
    }
}
