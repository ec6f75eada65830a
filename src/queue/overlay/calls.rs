//! The calls of the overlay: what its keys are called, its functions, and how they are loaded.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::{Cmd, Pipeline, Value};
use tokio::time::Instant;

use super::mark::OPEN;
use super::{
    Ahead, Away, HOLD_TIMEOUT, LOOK_TIMEOUT, PENDING_SECONDS, TOLD_TOGETHER, away, pending_of, version_of,
};
use crate::backend::{Entry, RowKey};
use crate::link::redis::{Fault, Redis};
use crate::model::{Key, Namespace, Version};
use crate::queue::message::Queued;

/// Bytes of documents of one call, one more not counted.
const HELD_BYTES_MAX: usize = 256 * 1024;

/// The library of functions. Its name carries the protocol's number.
const LIBRARY: &str = include_str!("overlay.lua");

/// See the module.
pub(super) struct Calls {
    pub(super) redis: Arc<Redis>,
    prefix: String,
    /// Whether it has been told that Redis forgets pending writes when it is full.
    warned: AtomicBool,
}

impl Calls {
    pub(super) fn new(redis: Arc<Redis>, prefix: &str) -> Self {
        Self { redis, prefix: prefix.to_owned(), warned: AtomicBool::new(false) }
    }

    /// See [`super::Overlay::ahead`].
    pub(super) async fn ahead(&self, keys: &[(Namespace, Key)]) -> Result<Vec<Ahead>, Away> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut steps = redis::pipe();
        steps.cmd("MGET");
        for (namespace, key) in keys {
            steps.arg(self.name("p", namespace, key));
        }
        for (namespace, key) in keys {
            // The version in the head of the shared tier's copy.
            steps.cmd("GETRANGE").arg(self.name("e", namespace, key)).arg(2).arg(33);
        }
        let mut namespaces: Vec<&Namespace> = keys.iter().map(|(namespace, _)| namespace).collect();
        namespaces.sort_unstable();
        namespaces.dedup();
        for namespace in &namespaces {
            steps.cmd("GET").arg(self.mark(namespace));
        }
        let answers = self.send(&steps, LOOK_TIMEOUT).await?;
        let Some((Value::Array(found), rest)) = answers.split_first() else {
            return Err(Away("half an answer".to_owned()));
        };
        let (copies, marks) = rest.split_at(keys.len().min(rest.len()));
        let open = |namespace: &Namespace| match marks.get(namespaces.binary_search(&namespace).ok()?)? {
            Value::BulkString(mark) => Some(mark == OPEN.as_bytes()),
            _ => None,
        };
        let of = |((found, copy), (namespace, _)): ((&Value, &Value), &(Namespace, Key))| Ahead {
            pending: pending_of(found).map(|read| read.waits),
            copy: version_of(copy),
            open: open(namespace),
        };
        Ok(found.iter().zip(copies).zip(keys).map(of).collect())
    }

    /// See [`super::Overlay::hold`].
    pub(super) async fn hold(&self, writes: &[Queued]) -> Result<(), Away> {
        let mut steps = redis::pipe();
        let (mut count, mut bytes) = (1, 0);
        let fits = |_: &Queued, next: &Queued| {
            count += 1;
            bytes += next.entry.row.body.as_ref().map_or(0, bytes::Bytes::len);
            let fits = count <= TOLD_TOGETHER && bytes <= HELD_BYTES_MAX;
            (count, bytes) = if fits { (count, bytes) } else { (1, 0) };
            fits
        };
        for together in writes.chunk_by(fits) {
            if together.iter().any(|write| write.entry.row.body.is_some()) {
                steps.cmd("MSET");
            }
            for Queued { entry: Entry { at, row }, .. } in together {
                if let Some(body) = &row.body {
                    steps.arg(self.document(&at.namespace, &at.key, row.version)).arg(&body[..]);
                }
            }
            let of = |write: &Queued| (write.entry.at.clone(), write.entry.row.version);
            let call = self.call(&mut steps, "ds5q_hold", together.iter().map(of), PENDING_SECONDS);
            for queued in together {
                let row = &queued.entry.row;
                let kind = if row.body.is_some() { 'r' } else { 'd' };
                let (version, life) = (row.version, row.expires_at_ms);
                call.arg(match queued.op() {
                    Some(op) => format!("3{kind}{version}1{op:016x}{version}{life:016x}"),
                    None => format!("3{kind}{version}0{life:016x}"),
                });
            }
        }
        self.send(&steps, HOLD_TIMEOUT).await.map(drop)
    }

    pub(super) fn name(&self, part: &str, namespace: &Namespace, key: &Key) -> String {
        format!("{}:{part}:{}:{}", self.prefix, namespace.as_str(), key.as_str())
    }

    /// The index of a namespace's keys that have a pending write.
    pub(super) fn index(&self, namespace: &Namespace) -> String {
        format!("{}:i:{}", self.prefix, namespace.as_str())
    }

    /// What closes the queue to a namespace.
    pub(super) fn mark(&self, namespace: &Namespace) -> String {
        format!("{}:m:{}", self.prefix, namespace.as_str())
    }

    pub(super) fn receipt(&self, namespace: &Namespace, key: &Key, version: Version) -> String {
        format!("{}:r:{}:{}:{version}", self.prefix, namespace.as_str(), key.as_str())
    }

    /// The stored document of a queued write.
    pub(super) fn document(&self, namespace: &Namespace, key: &Key, version: Version) -> String {
        format!("{}:b:{}:{}:{version}", self.prefix, namespace.as_str(), key.as_str())
    }

    /// What is under each name.
    pub(super) async fn get_all(&self, names: &[String]) -> Result<Vec<Value>, Away> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let mut steps = redis::pipe();
        // Not so many in one command that Redis does nothing else for long.
        for together in names.chunks(TOLD_TOGETHER) {
            steps.cmd("MGET").arg(together);
        }
        let mut found = Vec::with_capacity(names.len());
        for answer in self.send(&steps, LOOK_TIMEOUT).await? {
            let Value::Array(some) = answer else { return Err(Away("half an answer".to_owned())) };
            found.extend(some);
        }
        Ok(found)
    }

    /// The begin of a call of a function that is about these writes; receipts are kept for so long.
    pub(super) fn call<'p>(
        &self,
        steps: &'p mut Pipeline,
        function: &str,
        writes: impl ExactSizeIterator<Item = (RowKey, Version)>,
        seconds: &str,
    ) -> &'p mut Pipeline {
        steps.cmd("FCALL").arg(function).arg(3 * writes.len());
        for (RowKey { namespace, key, .. }, version) in writes {
            steps
                .arg(self.name("p", &namespace, &key))
                .arg(self.receipt(&namespace, &key, version))
                .arg(self.index(&namespace));
        }
        // Where the name of a receipt has another letter than that of the document beside it, counted from 1.
        steps.arg(seconds).arg(self.prefix.len() + 2)
    }

    /// Sends steps; loads the functions where Redis has lost them, and tries once more.
    pub(super) async fn send(&self, steps: &Pipeline, within: Duration) -> Result<Vec<Value>, Away> {
        for again in [true, false] {
            let deadline = Instant::now() + within;
            let answers = self.redis.calls(steps, deadline).await.map_err(|fault| away(&fault))?;
            let lost = |answer: &Result<Value, Fault>| matches!(answer, Err(Fault::Refused { message, .. }) if message.contains("unction not found"));
            if again && answers.iter().any(lost) {
                self.load().await?;
                continue;
            }
            return answers.into_iter().collect::<Result<Vec<_>, _>>().map_err(|fault| away(&fault));
        }
        Err(Away("Redis does not keep its functions".to_owned()))
    }

    async fn load(&self) -> Result<(), Away> {
        let mut load = Cmd::new();
        load.arg("FUNCTION").arg("LOAD").arg("REPLACE").arg(LIBRARY);
        let deadline = Instant::now() + HOLD_TIMEOUT;
        self.redis.call(&load, deadline).await.map_err(|fault| away(&fault))?;
        self.look_at_eviction().await;
        Ok(())
    }

    /// Pending writes have no lifetime, so a server that evicts what has none may forget them.
    async fn look_at_eviction(&self) {
        let mut ask = redis::cmd("CONFIG");
        ask.arg("GET").arg("maxmemory-policy");
        let Ok(answer) = self.redis.call(&ask, Instant::now() + HOLD_TIMEOUT).await else { return };
        let text = format!("{answer:?}");
        if text.contains("allkeys") && !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "Redis may forget pending writes when it is full: set its maxmemory-policy to volatile-lru"
            );
        }
    }
}
