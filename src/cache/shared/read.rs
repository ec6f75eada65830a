//! The tier as its readers see it: a copy that serves, or the right to fill in one.

use std::sync::Weak;
use std::time::Duration;

use redis::Value;
use tokio::time::Instant;

use super::form::decode;
use super::{CALL_TIMEOUT, JOB_TIMEOUT, Shared};
use crate::cache::looks::{Seen, Waiting};
use crate::cache::{Id, Item, Micros};
use crate::link::redis::Fault;

/// Bound on a look with all its waits.
const LOOK_TIMEOUT: Duration = Duration::from_millis(120);
/// How long a reader has for its read before another may try.
const LEASE: Duration = Duration::from_secs(3);
/// How often and how far apart somebody else's fill is waited for.
const WAITS: u32 = 3;
const WAIT: Duration = Duration::from_millis(15);

/// What a reader finds.
#[derive(Debug)]
pub enum Looked {
    /// A copy that serves.
    Hit(Item),
    /// None, and this reader may fill.
    Lease(Lease),
    /// None, and this reader may not fill.
    Busy,
}

/// What a reader sees at a glance.
#[derive(Debug)]
pub enum Glanced {
    /// A copy that serves.
    Hit(Item),
    /// None; whether there is one that does not serve.
    Miss {
        /// A copy lies there.
        any: bool,
    },
    /// The tier is passed by.
    Away,
}

/// The right to fill.
#[derive(Debug)]
pub struct Lease {
    pub(super) id: Id,
    pub(super) token: String,
    pub(super) as_of: u64,
}

impl Shared {
    /// A copy that serves, or not.
    pub(in crate::cache) async fn glance(
        &self,
        id: &Id,
        serves: impl Fn(&Item) -> bool,
        deadline: Instant,
    ) -> Glanced {
        let now = Instant::now();
        match self.read(id, now + LOOK_TIMEOUT.min(deadline.saturating_duration_since(now) / 4)).await {
            Err(()) => Glanced::Away,
            Ok(Some(item)) if serves(&item) => Glanced::Hit(item),
            Ok(there) => Glanced::Miss { any: there.is_some() },
        }
    }

    /// A copy that serves, or the right to fill in one, or neither. Somebody else's fill is waited for only where `waits`. All of it
    /// takes a part of the time that is left, so that the backend can still be asked. `glanced`: what was seen there just now,
    /// a copy that does not serve or none.
    pub(in crate::cache) async fn look(
        &self,
        id: &Id,
        serves: impl Fn(&Item) -> bool,
        waits: bool,
        glanced: Option<bool>,
        deadline: Instant,
    ) -> Looked {
        let begun = Instant::now();
        let left = deadline.saturating_duration_since(begun);
        let until = begun + LOOK_TIMEOUT.min(left / 4);
        for round in 0..=WAITS {
            let there = match (glanced, round) {
                (Some(there), 0) => there,
                _ => match self.read(id, until).await {
                    Err(()) => return Looked::Busy,
                    Ok(Some(item)) if serves(&item) => return Looked::Hit(item),
                    Ok(there) => there.is_some(),
                },
            };
            if round == WAITS {
                break;
            }
            match self.lease(id, there, until).await {
                Ok(Asked::Copy(item)) if serves(&item) => return Looked::Hit(item),
                Ok(Asked::Lease(lease)) => return Looked::Lease(lease),
                Ok(Asked::Wait) if waits => tokio::time::sleep(WAIT).await,
                Ok(Asked::Copy(_) | Asked::Wait | Asked::Busy) | Err(()) => return Looked::Busy,
            }
        }
        Looked::Busy
    }

    /// The copy, however old, also of a tier that is passed by otherwise: whoever asks has nothing else to ask.
    pub(in crate::cache) async fn peek(&self, id: &Id, deadline: Instant) -> Option<Item> {
        self.get(id, deadline.min(Instant::now() + JOB_TIMEOUT)).await.ok()?
    }

    async fn read(&self, id: &Id, deadline: Instant) -> Result<Option<Item>, ()> {
        if self.is_away() {
            return Err(());
        }
        self.get(id, deadline.min(Instant::now() + CALL_TIMEOUT)).await
    }

    async fn get(&self, id: &Id, deadline: Instant) -> Result<Option<Item>, ()> {
        let name = self.name("e", id);
        let seen = match self.looks.way() {
            Some(_way) => self.see([name.as_str()].into_iter(), deadline).await?.pop().unwrap_or(Err(()))?,
            None => self.looks.ask(name, deadline).await?,
        };
        Ok(seen.copy.and_then(|copy| decode(copy, seen.now, seen.before)))
    }

    /// What lies under several names, in their order.
    async fn see(
        &self,
        names: impl Iterator<Item = &str>,
        deadline: Instant,
    ) -> Result<Vec<Result<Seen, ()>>, ()> {
        let mut steps = redis::pipe();
        for name in names {
            steps.cmd("GET").arg(name);
        }
        // Last: what was read before is as old as this says, or younger.
        steps.cmd("TIME");
        let before = Micros::now();
        let mut answers = self.calls(&steps, deadline).await?;
        let now = match answers.pop() {
            Some(Ok(time)) => time_of(&time).ok_or(())?,
            _ => return Err(()),
        };
        let seen = |answer: Result<Value, Fault>| match answer {
            Ok(Value::BulkString(copy)) => Ok(Seen { copy: Some(copy), now, before }),
            Ok(_) => Ok(Seen { copy: None, now, before }),
            Err(_) => Err(()),
        };
        Ok(answers.into_iter().map(seen).collect())
    }

    async fn lease(&self, id: &Id, force: bool, deadline: Instant) -> Result<Asked, ()> {
        let token = self.token();
        // A copy that came since it was looked for may serve; one that was looked at does not.
        let age_max = if force { "-1" } else { "9e15" };
        let mut steps = redis::pipe();
        let life = LEASE.as_millis().to_string();
        self.step(&mut steps, "ds1_lease", id, &[token.as_bytes(), age_max.as_bytes(), life.as_bytes()]);
        let before = Micros::now();
        let answers = self.calls(&steps, deadline.min(Instant::now() + CALL_TIMEOUT)).await?;
        let Some(Ok(Value::Array(answer))) = answers.first() else { return Err(()) };
        let (word, now) = match answer.as_slice() {
            [Value::BulkString(word), Value::Int(now), ..] => (word.as_slice(), now.unsigned_abs()),
            _ => return Err(()),
        };
        Ok(match (word, answer.get(2)) {
            (b"lease", _) => Asked::Lease(Lease { id: id.clone(), token, as_of: now }),
            (b"wait", _) => Asked::Wait,
            (b"hit", Some(Value::BulkString(copy))) => {
                decode(copy.clone(), now, before).map_or(Asked::Busy, Asked::Copy)
            }
            _ => Asked::Busy,
        })
    }
}

/// What `ds1_lease` answers.
enum Asked {
    Copy(Item),
    Lease(Lease),
    Wait,
    Busy,
}

pub(super) async fn look(shared: Weak<Shared>, mut looking: Waiting) {
    while let Some(together) = looking.next().await {
        let Some(shared) = shared.upgrade() else { return };
        tokio::spawn(async move {
            let seen = shared.see(together.names(), together.until()).await;
            together.tell(seen);
        });
    }
}

/// Microseconds of an answer to `TIME`.
fn time_of(answer: &Value) -> Option<u64> {
    let Value::Array(parts) = answer else { return None };
    let part = |part: &Value| match part {
        Value::BulkString(digits) => std::str::from_utf8(digits).ok()?.parse::<u64>().ok(),
        _ => None,
    };
    Some(part(parts.first()?)? * 1_000_000 + part(parts.get(1)?)?)
}
