//! The calls of the overlay: what its keys are called, its functions, and how they are loaded.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use redis::{Cmd, Pipeline, Value};
use tokio::time::Instant;

use super::mark::OPEN;
use super::note::{Front, NOTE_BYTES, pending_of};
use super::{
    Ahead, Away, Epoch, Gone, HOLD_TIMEOUT, LOOK_TIMEOUT, PENDING_SECONDS, RECEIPT_SECONDS, TOLD_TOGETHER,
    away, version_of,
};
use crate::backend::RowKey;
use crate::link::redis::{Fault, Redis};
use crate::model::{Key, Namespace, Version, hex};
use crate::queue::message::Queued;

/// About as long as names are.
pub(super) const NAME_BYTES: usize = 128;

/// What the name of a document has behind that of its receipt.
const DOCUMENT: &str = "b";
/// What the name of a worker's document of a key ends with.
const PLACE: &str = "s";
/// What the name of the versions of a key that wait and are not noted any more has in place of a version.
const UNSEEN: &str = "o";

/// The library of functions. Its name carries the protocol's number.
const LIBRARY: &str = include_str!("overlay.lua");
/// Its functions: what became of writes is noted; they are taken away; what is noted first goes; an epoch begins.
pub(super) const SETTLE: &str = "ds8r_settle";
pub(super) const FORGET: &str = "ds8r_forget";
const PUSH_OUT: &str = "ds8r_push_out";
const BEGIN: &str = "ds8r_begin";

/// See the module.
pub(super) struct Calls {
    pub(super) redis: Arc<Redis>,
    prefix: String,
    /// Name of the epoch.
    pub(super) epoch: String,
    /// The connection over which the functions were loaded.
    pub(super) loaded: AtomicU64,
    /// Whether it has been told that Redis forgets pending writes when it is full.
    warned: AtomicBool,
}

impl Calls {
    pub(super) fn new(redis: Arc<Redis>, prefix: &str) -> Self {
        Self {
            redis,
            prefix: prefix.to_owned(),
            epoch: format!("{prefix}:z"),
            loaded: AtomicU64::new(0),
            warned: AtomicBool::new(false),
        }
    }

    /// See [`super::Overlay::ahead`].
    pub(super) async fn ahead(&self, keys: &[(Namespace, Key)]) -> Result<Vec<Ahead>, Away> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut steps = redis::pipe();
        // Before the rest: what is settled while the rest is asked counts as settled later.
        steps.cmd("GET").arg(&self.epoch);
        let calls = self.ask_waits(&mut steps, keys.iter().map(|(namespace, key)| (namespace, key)));
        for (namespace, key) in keys {
            // The version in the head of the shared tier's copy.
            let name = self.name("e", namespace, key);
            steps.add_command(command("GETRANGE", 3, name.len() + 3)).arg(name).arg(2).arg(33);
        }
        let mut namespaces: Vec<&Namespace> = keys.iter().map(|(namespace, _)| namespace).collect();
        namespaces.sort_unstable();
        namespaces.dedup();
        for namespace in &namespaces {
            steps.cmd("GET").arg(self.mark(namespace));
        }
        let connection = self.redis.count();
        let mut answers = self.send(&steps, LOOK_TIMEOUT).await?;
        let rest = answers.split_off((1 + calls).min(answers.len()));
        let mut answers = answers.into_iter();
        let epoch = answers.next().as_ref().and_then(|epoch| Epoch::of(epoch, connection));
        let found: Vec<Value> = answers.flat_map(some_of).collect();
        let (copies, marks) = rest.split_at(keys.len().min(rest.len()));
        if found.len() != keys.len() || copies.len() != keys.len() {
            return Err(Away("half an answer".to_owned()));
        }
        let open = |namespace: &Namespace| match marks.get(namespaces.binary_search(&namespace).ok()?)? {
            Value::BulkString(mark) => Some(mark == OPEN.as_bytes()),
            _ => None,
        };
        let of = |((found, copy), (namespace, _)): ((&Value, &Value), &(Namespace, Key))| Ahead {
            pending: pending_of(found).map(|read| read.waits),
            copy: version_of(copy),
            open: open(namespace),
            epoch,
        };
        Ok(found.iter().zip(copies).zip(keys).map(of).collect())
    }

    pub(super) fn name(&self, part: &str, namespace: &Namespace, key: &Key) -> String {
        let parts = [&*self.prefix, ":", part, ":", namespace.as_str(), ":", key.as_str()];
        // Room for what makes it the name of a document.
        let mut name =
            String::with_capacity(self.prefix.len() + namespace.as_str().len() + key.as_str().len() + 48);
        parts.iter().for_each(|part| name.push_str(part));
        name
    }

    /// The index of a namespace's keys that have a pending write.
    pub(super) fn index(&self, namespace: &Namespace) -> String {
        format!("{}:n:{}", self.prefix, namespace.as_str())
    }

    /// What closes the queue to a namespace.
    pub(super) fn mark(&self, namespace: &Namespace) -> String {
        format!("{}:m:{}", self.prefix, namespace.as_str())
    }

    pub(super) fn receipt(&self, namespace: &Namespace, key: &Key, version: Version) -> String {
        let mut name = self.name("r", namespace, key);
        name.push(':');
        version.push_to(&mut name);
        name
    }

    /// The versions of a key that wait and are not noted any more.
    pub(super) fn unseen(&self, namespace: &Namespace, key: &Key) -> String {
        self.name("r", namespace, key) + ":" + UNSEEN
    }

    /// The newest document of a key that a worker queued, where it is kept in place of those before it.
    pub(super) fn place(&self, namespace: &Namespace, key: &Key, origin: u64) -> String {
        let mut name = self.name("r", namespace, key);
        name.push(':');
        hex::push(&mut name, origin);
        name + PLACE
    }

    /// The stored document of a queued write.
    pub(super) fn document(&self, namespace: &Namespace, key: &Key, version: Version) -> String {
        self.receipt(namespace, key, version) + DOCUMENT
    }

    /// What waits of each key.
    pub(super) async fn waits<'k>(
        &self,
        keys: impl Iterator<Item = (&'k Namespace, &'k Key)>,
        within: Duration,
    ) -> Result<Vec<Value>, Away> {
        let mut steps = redis::pipe();
        self.ask_waits(&mut steps, keys);
        Ok(self.send(&steps, within).await?.into_iter().flat_map(some_of).collect())
    }

    /// Asks what waits of each key; in how many calls, each of which is answered by an array.
    fn ask_waits<'k>(
        &self,
        steps: &mut Pipeline,
        keys: impl Iterator<Item = (&'k Namespace, &'k Key)>,
    ) -> usize {
        let (mut calls, mut asked) = (0, TOLD_TOGETHER);
        let some = || command("MGET", TOLD_TOGETHER, TOLD_TOGETHER * NAME_BYTES);
        let mut ask = some();
        for (namespace, key) in keys {
            if asked == TOLD_TOGETHER && calls > 0 {
                steps.add_command(std::mem::replace(&mut ask, some()));
            }
            if asked == TOLD_TOGETHER {
                (calls, asked) = (calls + 1, 0);
            }
            ask.arg(self.name("v", namespace, key));
            asked += 1;
        }
        if calls > 0 {
            steps.add_command(ask);
        }
        calls
    }

    /// What is under each name.
    pub(super) async fn get_all(&self, names: &[String], within: Duration) -> Result<Vec<Value>, Away> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let mut steps = redis::pipe();
        // Not so many in one command that Redis does nothing else for long.
        for together in names.chunks(TOLD_TOGETHER) {
            steps.cmd("MGET").arg(together);
        }
        Ok(self.send(&steps, within).await?.into_iter().flat_map(some_of).collect())
    }

    /// Takes writes away, and notes what became of them.
    pub(super) fn forget(&self, steps: &mut Pipeline, function: &str, gone: &[Gone]) {
        let call = steps.cmd("FCALL").arg(function).arg(3 * gone.len() + 1);
        for Gone { at: RowKey { namespace, key, .. }, version, .. } in gone {
            call.arg(self.name("v", namespace, key))
                .arg(self.receipt(namespace, key, *version))
                .arg(self.index(namespace));
        }
        call.arg(&self.epoch).arg(RECEIPT_SECONDS).arg(PENDING_SECONDS);
        for Gone { version, fate, older, .. } in gone {
            call.arg(version.to_string()).arg(fate.noted()).arg(u8::from(*older));
        }
    }

    /// Pushes out what is noted first of each key.
    pub(super) fn push_out(&self, steps: &mut Pipeline, fronts: &[(&RowKey, &Front)]) {
        let call = steps.cmd("FCALL").arg(PUSH_OUT).arg(2 * fronts.len());
        for (RowKey { namespace, key, .. }, _) in fronts {
            call.arg(self.name("v", namespace, key)).arg(self.unseen(namespace, key));
        }
        call.arg(PENDING_SECONDS);
        for (_, Front { notes, first, last }) in fronts {
            call.arg(notes * NOTE_BYTES).arg(first.to_string()).arg(last.to_string());
        }
    }

    /// What receipts say of writes; begins an epoch where there is none.
    pub(super) async fn receipts(
        &self,
        writes: &[Queued],
        has_epoch: bool,
        within: Duration,
    ) -> Result<Vec<Value>, Away> {
        let mut steps = redis::pipe();
        if !has_epoch {
            steps.cmd("FCALL").arg(BEGIN).arg(1).arg(&self.epoch);
        }
        for together in writes.chunks(TOLD_TOGETHER) {
            let mut ask = command("MGET", together.len(), together.len() * NAME_BYTES);
            for Queued { entry, .. } in together {
                ask.arg(self.receipt(&entry.at.namespace, &entry.at.key, entry.row.version));
            }
            steps.add_command(ask);
        }
        let answers = self.send(&steps, within).await?;
        Ok(answers.into_iter().flat_map(some_of).collect())
    }

    /// Sends steps; loads the functions where Redis has lost them, and tries once more.
    pub(super) async fn send(&self, steps: &Pipeline, within: Duration) -> Result<Vec<Value>, Away> {
        if steps.is_empty() {
            return Ok(Vec::new());
        }
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

    pub(super) async fn load(&self) -> Result<(), Away> {
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

/// A command with room for its arguments: their number, and bytes of all.
pub(super) fn command(name: &str, arguments: usize, bytes: usize) -> Cmd {
    let mut command = Cmd::with_capacity(1 + arguments, name.len() + bytes);
    command.arg(name);
    command
}

/// The parts of an answer that has some.
pub(super) fn some_of(answer: Value) -> Vec<Value> {
    match answer {
        Value::Array(some) => some,
        _ => Vec::new(),
    }
}
