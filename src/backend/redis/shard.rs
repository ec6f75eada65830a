//! One Redis server: its connections, and each script as a function.

mod put;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use redis::{Cmd, Value};
use tokio::time::Instant;

use super::classify::{Stage, classify, refused_row};
use super::rows;
use super::scripts::{self, SCRIPTS, SLOTS_KEY, Script};
use crate::backend::decide::Now;
use crate::backend::remote::clock::ServerClock;
use crate::backend::remote::{Fault, RETRY_AFTER_MS, Remedy};
use crate::backend::{Row, RowKey};
use crate::link;
use crate::model::budget::Budget;
use crate::model::{Error, Result};
pub(super) use put::{Committed, Decided, Proposal, Wants, Word};

/// Bytes of rows after which the script of a read tells no more of them: it stops the whole server, which holds all that it tells.
/// The last row may go beyond.
pub(super) const READ_BYTES_MAX: usize = 4 * 1024 * 1024;

/// See the module.
pub(super) struct Shard {
    pub(super) name: String,
    links: Vec<Arc<link::redis::Redis>>,
    next: AtomicUsize,
    /// Calls that may be repeated here.
    pub(super) budget: Budget,
    pub(super) clock: ServerClock,
    /// Why it is not there, as it was last seen.
    fault: Mutex<Option<String>>,
    /// Drawn when it was given its slots ("" = it owns none); with another one, it is not the server that it was. `None` = it has
    /// to be found out where the slots lie.
    mark: Mutex<Option<String>>,
    /// Whether what it answers is on its disk.
    pub(super) durable: AtomicBool,
}

/// What stands under a key.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) now: Now,
    pub(super) row: Result<Option<Row>, Fault>,
}

impl Shard {
    /// A server that so many connections are kept to.
    pub(super) fn open(name: &str, url: &str, connections: usize) -> Result<Self> {
        let unreadable = |why| Error::invalid(format!("a url of Redis {name:?} cannot be read: {why}"));
        let link = |_| link::redis::Redis::open(url).map_err(unreadable);
        Ok(Self {
            name: name.to_owned(),
            links: (0..connections.max(1)).map(link).collect::<Result<_>>()?,
            next: AtomicUsize::new(0),
            budget: Budget::default(),
            clock: ServerClock::default(),
            fault: Mutex::new(Some("not connected yet".to_owned())),
            mark: Mutex::default(),
            durable: AtomicBool::new(false),
        })
    }

    /// Why it is not there, if so.
    pub(super) fn fault(&self) -> Option<String> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes whether it is there; tells the log when that changes.
    pub(super) fn note(&self, fault: Option<String>) {
        let mut noted = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*noted, &fault) {
            (Some(_), None) => tracing::info!(shard = self.name, "Redis is there"),
            (was, Some(fault)) if was.as_ref() != Some(fault) => {
                tracing::warn!(shard = self.name, "Redis is not there: {fault}");
            }
            _ => {}
        }
        if fault.is_some() {
            self.clock.forget();
        }
        *noted = fault;
    }

    /// What says that it is the server it was.
    pub(super) fn mark(&self) -> Option<String> {
        self.mark.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_mark(&self, mark: Option<String>) {
        *self.mark.lock().unwrap_or_else(PoisonError::into_inner) = mark;
    }

    /// A failure of this shard, judged.
    pub(super) fn judge(&self, stage: Stage, fault: &link::redis::Fault) -> Fault {
        classify(&self.name, stage, fault)
    }

    /// The connection that looks are made over.
    pub(super) fn link(&self) -> &link::redis::Redis {
        &self.links[0]
    }

    /// All of its connections.
    pub(super) fn links(&self) -> &[Arc<link::redis::Redis>] {
        &self.links
    }

    /// Connections, each call over the next one that stands.
    pub(super) fn any_link(&self) -> &link::redis::Redis {
        let (links, first) = (&self.links, self.next.fetch_add(1, Ordering::Relaxed));
        let link = |at: usize| &links[(first.wrapping_add(at)) % links.len()];
        (0..links.len()).map(link).find(|link| link.health().is_ok()).unwrap_or_else(|| link(0))
    }

    /// One command.
    pub(super) async fn call(&self, stage: Stage, command: &Cmd, deadline: Instant) -> Result<Value, Fault> {
        let answer = self.any_link().call(command, deadline).await;
        let value = answer.map_err(|fault| self.judge(stage, &fault))?;
        self.budget.succeeded();
        Ok(value)
    }

    /// A script, which is loaded where the server does not know it.
    pub(super) async fn run(
        &self,
        stage: Stage,
        script: &Script,
        command: &Cmd,
        deadline: Instant,
    ) -> Result<Value, Fault> {
        self.unless_full(stage, script, command, deadline).await?
    }

    /// A script; the inner fault is that the server is full, so that nothing of it happened.
    async fn unless_full(
        &self,
        stage: Stage,
        script: &Script,
        command: &Cmd,
        deadline: Instant,
    ) -> Result<Result<Value, Fault>, Fault> {
        let link = self.any_link();
        let mut answer = link.call(command, deadline).await;
        if matches!(&answer, Err(link::redis::Fault::Refused { code, .. }) if code == "NOSCRIPT") {
            let load = scripts::load(script);
            link.call(&load, deadline).await.map_err(|fault| self.judge(Stage::Read, &fault))?;
            answer = link.call(command, deadline).await;
        }
        match answer {
            Ok(value) => {
                self.budget.succeeded();
                Ok(Ok(value))
            }
            Err(fault) => {
                let full = matches!(&fault, link::redis::Fault::Refused { code, .. } if code == "OOM");
                let fault = self.judge(stage, &fault);
                if full { Ok(Err(fault)) } else { Err(fault) }
            }
        }
    }

    /// A deadline by the server's clock.
    fn deadline_ms(&self, deadline: Instant) -> Result<i64, Fault> {
        self.clock.deadline_ms(deadline).ok_or_else(|| {
            let message = format!("Redis {:?}: not connected yet", self.name);
            Fault { error: Error::unavailable(message, RETRY_AFTER_MS), remedy: Remedy::Again }
        })
    }

    /// Reads rows; `None` where the slot is not this server's. Small ones stand so at one moment, large ones each at its own.
    pub(super) async fn read(&self, keys: &[RowKey], deadline: Instant) -> Result<Vec<Option<Seen>>, Fault> {
        Ok(self.read_told(keys, deadline).await?.0)
    }

    /// [`Self::read`], and how many scripts it took.
    pub(super) async fn read_told(
        &self,
        keys: &[RowKey],
        deadline: Instant,
    ) -> Result<(Vec<Option<Seen>>, usize), Fault> {
        let (mut each, mut scripts) = (Vec::with_capacity(keys.len()), 0);
        while each.len() < keys.len() {
            scripts += 1;
            let rest = &keys[each.len()..];
            let value = self.run(Stage::Read, &SCRIPTS.read, &read(rest), deadline).await?;
            each.extend(self.seen(rest.len(), value)?);
        }
        Ok((each, scripts))
    }

    /// What the script that reads says of the first of so many keys, of one at least.
    pub(super) fn seen(&self, asked: usize, value: Value) -> Result<Vec<Option<Seen>>, Fault> {
        let count = match &value {
            Value::Array(told) => (told.len() / 2).clamp(1, asked),
            _ => asked,
        };
        let mut told = self.array(value, 2 * count + 1)?.into_iter();
        let wall_ms = match told.next() {
            Some(Value::Int(ms)) => ms,
            _ => return Err(self.odd("no time")),
        };
        let mut each = Vec::with_capacity(count);
        while let (Some(slot), Some(row)) = (told.next(), told.next()) {
            let Some(gc_floor) = floor(&slot) else {
                each.push(None);
                continue;
            };
            each.push(Some(Seen { now: Now { wall_ms, gc_floor }, row: self.row(row) }));
        }
        Ok(each)
    }

    /// A row as a script gives it.
    pub(super) fn row(&self, value: Value) -> Result<Option<Row>, Fault> {
        match value {
            Value::Nil => Ok(None),
            Value::BulkString(text) if text.first() == Some(&b'E') => {
                Err(refused_row(&self.name, &String::from_utf8_lossy(&text[1..])))
            }
            Value::BulkString(bytes) => match rows::decode(&Bytes::from(bytes)) {
                Some(row) => Ok(Some(row)),
                None => Err(refused_row(&self.name, "CORRUPT it is no row of this format")),
            },
            other => Err(self.odd(&format!("{other:?} in place of a row"))),
        }
    }

    /// An answer that has so many parts.
    pub(super) fn array(&self, value: Value, count: usize) -> Result<Vec<Value>, Fault> {
        match value {
            Value::Array(parts) if parts.len() == count => Ok(parts),
            Value::Array(parts) => Err(self.odd(&format!("{} parts in place of {count}", parts.len()))),
            other => Err(self.odd(&format!("{other:?} in place of a list"))),
        }
    }

    pub(super) fn text<'v>(&self, value: &'v Value) -> Result<std::borrow::Cow<'v, str>, Fault> {
        match value {
            Value::BulkString(bytes) => Ok(String::from_utf8_lossy(bytes)),
            Value::SimpleString(text) => Ok(text.into()),
            other => Err(self.odd(&format!("{other:?} in place of text"))),
        }
    }

    /// The fault of an answer that fits no script of ours: a defect, and what was asked for may have happened.
    pub(super) fn odd(&self, what: &str) -> Fault {
        let error = Error::internal(format!("Redis {:?} answered {what}", self.name));
        Fault { error, remedy: Remedy::None }
    }
}

/// The script whose answer [`Shard::seen`] reads.
pub(super) fn read(keys: &[RowKey]) -> Cmd {
    let records = keys.iter().map(scripts::record);
    let mut ask = scripts::ask(&SCRIPTS.read, std::iter::once(SLOTS_KEY.to_owned()).chain(records));
    ask.arg(READ_BYTES_MAX);
    for at in keys {
        ask.arg(format!("{:04}", at.slot));
    }
    ask
}

/// The floor in what is noted of a slot; `None` where it is not owned.
fn floor(noted: &Value) -> Option<u64> {
    let Value::BulkString(bytes) = noted else { return None };
    let text = std::str::from_utf8(bytes).ok()?;
    u64::from_str_radix(text.strip_prefix('1')?, 16).ok()
}
