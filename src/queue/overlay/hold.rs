//! How queued writes are noted: in one transaction for some, told what there was before.

use std::sync::atomic::Ordering;

use redis::{Cmd, Pipeline, Value};

use super::calls::{Calls, DOCUMENT, some_of};
use super::note::{CROWDED, NOTE_BYTES, note, placed};
use super::{Away, Fate, Gone, HOLD_TIMEOUT, LOOK_TIMEOUT, TOLD_TOGETHER};
use crate::backend::RowKey;
use crate::model::{Namespace, Version};
use crate::queue::message::Queued;

/// Bytes of documents of one call, one more not counted.
const HELD_BYTES_MAX: usize = 256 * 1024;

/// What is known of a write when it is noted; nothing by default.
#[derive(Debug, Clone, Copy, Default)]
pub struct Known {
    /// It is newer than all that is noted of its key, and no other call of its worker that says so of the key is under way, nor
    /// may one come late. Then its document takes the place of the one before: Redis is quick with names that it has had in hand.
    pub is_newest: bool,
    /// Something is noted of its key, as a look told a moment ago.
    pub is_listed: bool,
}

impl Calls {
    /// See [`super::Overlay::hold`]. Those that had been settled before. Of writes beyond `known` nothing is known.
    pub(super) async fn hold(
        &self,
        writes: &[Queued],
        known: &[Known],
        surplus: &[(RowKey, Version)],
    ) -> Result<Vec<(RowKey, Version)>, Away> {
        // What takes it away again must be there before: nothing can be loaded any more where memory is full.
        let connection = self.redis.count();
        if self.loaded.load(Ordering::Relaxed) != connection {
            self.load().await?;
            self.loaded.store(connection, Ordering::Relaxed);
        }
        let known = |at: usize| known.get(at).copied().unwrap_or_default();
        let mut steps = redis::pipe();
        let (mut from, mut bytes) = (0, 0);
        for (at, next) in writes.iter().enumerate() {
            bytes += next.entry.row.body.as_ref().map_or(0, bytes::Bytes::len);
            if at > from && (at - from == TOLD_TOGETHER || bytes > HELD_BYTES_MAX) {
                self.hold_some(&mut steps, &writes[from..at], |place| known(from + place));
                (from, bytes) = (at, 0);
            }
        }
        if from < writes.len() {
            self.hold_some(&mut steps, &writes[from..], |place| known(from + place));
        }
        let surplus = surplus.iter().map(|(at, version)| Gone {
            at: at.clone(),
            version: *version,
            fate: Fate::Unknown,
            older: true,
        });
        let surplus: Vec<Gone> = surplus.collect();
        for together in surplus.chunks(TOLD_TOGETHER) {
            self.forget(&mut steps, "ds8q_forget", together);
        }
        let answers = self.send(&steps, HOLD_TIMEOUT).await?;
        // Each of a transaction begins with how much is noted of each key, and ends with the receipts.
        let (mut receipts, mut lengths) =
            (Vec::with_capacity(writes.len()), Vec::with_capacity(writes.len()));
        for mut told in answers.into_iter().map(some_of) {
            let its = told.pop().map(some_of).unwrap_or_default();
            lengths.extend(told.into_iter().take(its.len()));
            receipts.extend(its);
        }
        if receipts.len() != writes.len() || lengths.len() != writes.len() {
            return Err(Away("half an answer".to_owned()));
        }
        // What was noted is settled since.
        let is_first =
            |length: &Value| matches!(length, Value::Int(bytes) if bytes.unsigned_abs() == NOTE_BYTES as u64);
        let unlisted = writes.iter().zip(&lengths).enumerate();
        let unlisted = unlisted.filter(|(at, (_, length))| known(*at).is_listed && is_first(length));
        self.list(unlisted.map(|(_, (write, _))| &write.entry.at).collect()).await?;
        self.clear(writes, &lengths).await;
        let is_settled = |receipt: &Value| matches!(receipt, Value::BulkString(_));
        let settled = writes.iter().zip(&receipts).filter(|(_, receipt)| is_settled(receipt));
        Ok(settled.map(|(write, _)| (write.entry.at.clone(), write.entry.row.version)).collect())
    }

    /// Lists keys that have something noted.
    async fn list(&self, keys: Vec<&RowKey>) -> Result<(), Away> {
        let mut steps = redis::pipe();
        for together in keys.chunks(TOLD_TOGETHER) {
            let call = steps.cmd("FCALL").arg("ds8q_list").arg(2 * together.len());
            for RowKey { namespace, key, .. } in together {
                call.arg(self.name("v", namespace, key)).arg(self.index(namespace));
            }
            for at in together {
                call.arg(at.key.as_str());
            }
        }
        self.send(&steps, HOLD_TIMEOUT).await.map(drop)
    }

    /// Pushes out what is older than a write whose key has far too much noted, because nobody could look at it for a while.
    async fn clear(&self, writes: &[Queued], lengths: &[Value]) {
        let crowded = |length: &Value| matches!(length, Value::Int(bytes) if bytes.unsigned_abs() > (CROWDED * NOTE_BYTES) as u64);
        let crowded = writes.iter().zip(lengths).filter(|(_, length)| crowded(length));
        let older = crowded.map(|(Queued { entry, .. }, _)| Gone {
            at: entry.at.clone(),
            // All that is older than the write, and not the write.
            version: Version { hlc: entry.row.version.hlc.saturating_sub(1), origin: u64::MAX },
            fate: Fate::Unknown,
            older: true,
        });
        let older: Vec<Gone> = older.collect();
        let mut steps = redis::pipe();
        for together in older.chunks(TOLD_TOGETHER) {
            self.forget(&mut steps, "ds8q_forget", together);
        }
        // If they stay, the next write takes them away.
        drop(self.send(&steps, LOOK_TIMEOUT).await);
    }

    /// One transaction: what waits, where it is listed, and what the receipts of the same writes say.
    fn hold_some(&self, steps: &mut Pipeline, writes: &[Queued], known: impl Fn(usize) -> Known) {
        steps.cmd("MULTI");
        let mut receipts = redis::cmd("MGET");
        let mut documents = redis::cmd("MSET");
        let mut indexed: Vec<(&Namespace, Cmd)> = Vec::new();
        let mut has_documents = false;
        for (place, queued) in writes.iter().enumerate() {
            let (at, row) = (&queued.entry.at, &queued.entry.row);
            let Known { is_newest, is_listed } = known(place);
            let mut receipt = self.receipt(&at.namespace, &at.key, row.version);
            receipts.arg(&receipt);
            match &row.body {
                Some(body) if is_newest => {
                    let place = self.place(&at.namespace, &at.key, row.version.origin);
                    documents.arg(place).arg(placed(row.version, body));
                    has_documents = true;
                }
                Some(body) => {
                    receipt.push_str(DOCUMENT);
                    documents.arg(receipt).arg(&body[..]);
                    has_documents = true;
                }
                None => {}
            }
            steps.cmd("APPEND").arg(self.name("v", &at.namespace, &at.key)).arg(note(queued, is_newest));
            if is_listed {
                continue;
            }
            let of = indexed.iter().position(|(namespace, _)| **namespace == at.namespace);
            let of = of.unwrap_or_else(|| {
                let mut index = redis::cmd("ZADD");
                index.arg(self.index(&at.namespace));
                indexed.push((&at.namespace, index));
                indexed.len() - 1
            });
            indexed[of].1.arg(0).arg(at.key.as_str());
        }
        if has_documents {
            steps.add_command(documents);
        }
        for (_, index) in indexed {
            steps.add_command(index);
        }
        steps.add_command(receipts);
        steps.cmd("EXEC");
    }
}
