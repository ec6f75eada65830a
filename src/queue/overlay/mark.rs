//! The mark that says whether the queue is closed to a namespace, and how it is changed: see the store's `switch`.
//!
//! Key `{prefix}:m:{namespace}`: `through`, `open`, or `closing` or `opening` with a time of Redis's clock. A namespace that was never
//! changed has none.

use redis::Value;

use super::{Away, HOLD_TIMEOUT, LOOK_TIMEOUT, Overlay, away};
use crate::model::Namespace;

/// Sets KEYS[1] to ARGV[2] where it is ARGV[1] ('' = not there); with ARGV[3], milliseconds, and so long after now behind it: when
/// it is set is known to nobody else, since a call that was given up may still be made.
const COMPARE_AND_SET: &str = "if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end \
    local mark = ARGV[2] \
    if ARGV[3] ~= '' then \
        local now = redis.call('TIME') \
        mark = mark .. ' ' .. string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[3]) \
    end \
    redis.call('SET', KEYS[1], mark) return 1";
/// Sets KEYS[1] to ARGV[1] where nothing is, or ARGV[2].
const TELL: &str = "local there = redis.call('GET', KEYS[1]) \
    if not there or there == ARGV[2] then redis.call('SET', KEYS[1], ARGV[1]) end";

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

    /// Changes the mark of a namespace from what it was; whether it was that. A mark with a time gets Redis's own, and what it names
    /// itself is added to it.
    pub async fn set_mark(&self, namespace: &Namespace, from: Option<Mark>, to: Mark) -> Result<bool, Away> {
        let mut set = redis::cmd("EVAL");
        let text = |mark: Option<Mark>| mark.map(Mark::text).unwrap_or_default();
        set.arg(COMPARE_AND_SET)
            .arg(1)
            .arg(self.calls.mark(namespace))
            .arg(text(from))
            .arg(to.word())
            .arg(to.after());
        let deadline = tokio::time::Instant::now() + HOLD_TIMEOUT;
        let answer = self.calls.redis.call(&set, deadline).await.map_err(|fault| away(&fault))?;
        Ok(answer == Value::Int(1))
    }

    /// Tells what a namespace's store has noted: that its writes may be queued, or not. Only a change that an operator makes is
    /// stronger; `through` also takes the place of an older `open`.
    pub async fn tell_mark(&self, namespace: &Namespace, open: bool) -> Result<(), Away> {
        let (mark, instead_of) = if open { (Mark::Open, "") } else { (Mark::Through, OPEN) };
        let mut tell = redis::cmd("EVAL");
        tell.arg(TELL).arg(1).arg(self.calls.mark(namespace)).arg(mark.word()).arg(instead_of);
        let deadline = tokio::time::Instant::now() + LOOK_TIMEOUT;
        self.calls.redis.call(&tell, deadline).await.map(drop).map_err(|fault| away(&fault))
    }
}

impl Mark {
    fn word(self) -> &'static str {
        match self {
            Self::Through => "through",
            Self::Open => OPEN,
            Self::Closing { .. } => "closing",
            Self::Opening { .. } => "opening",
        }
    }

    /// What is added to Redis's time behind the word, if a time stands there.
    fn after(self) -> String {
        match self {
            Self::Through | Self::Open => String::new(),
            Self::Closing { since_ms } | Self::Opening { since_ms } => since_ms.to_string(),
        }
    }

    fn text(self) -> String {
        format!("{} {}", self.word(), self.after()).trim_end().to_owned()
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
