//! How queued writes are noted: in one transaction for some. What was settled before is taken away again: by its receipt, which is asked
//! for only where something was settled since a moment at which none of them was in the queue.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use redis::{Cmd, Pipeline, Value};
use tokio::time::Instant;

use super::calls::{Calls, FORGET, NAME_BYTES, command, some_of};
use super::note::{CROWDED, KEPT_MAX, NOTE_BYTES, PLACED_HEAD_BYTES, Placed, Surplus, note};
use super::{Away, Epoch, Fate, Gone, HOLD_TIMEOUT, LOOK_TIMEOUT, Settlement, TOLD_TOGETHER};
use crate::backend::RowKey;
use crate::model::{Namespace, Version};
use crate::queue::message::Queued;

/// Bytes of documents of one call, one more not counted.
const HELD_BYTES_MAX: usize = 256 * 1024;

/// Where the document of a write is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Document {
    /// Under a name of its own.
    #[default]
    Own,
    /// In its worker's place for the key, which it takes from the one before: Redis is quick with names that it has had in hand. Only
    /// where the write is newer than all that its worker noted there, no other call of the worker that says so of the key is under
    /// way, and none may come late.
    Placed,
}

/// What is known of writes that are noted.
#[derive(Clone, Copy, Default)]
pub struct Known<'k> {
    /// Where the document of each is kept; of those beyond, under a name of its own.
    pub documents: &'k [Document],
    /// What is not kept beside them of their keys.
    pub surplus: &'k [(RowKey, Surplus)],
    /// The epoch before any of them was in the queue.
    pub since: Option<Epoch>,
}

/// What is noted.
#[derive(Debug)]
pub(in crate::queue) enum Noted {
    /// All; some of it, which had been settled before, is to be taken away again.
    All(Vec<Settlement>),
    /// All; whether something had been settled before Redis did not tell.
    Unasked(Away),
}

impl Calls {
    /// See [`super::Overlay::hold`].
    pub(super) async fn hold(&self, writes: &[Queued], known: Known<'_>) -> Result<Noted, Away> {
        // What takes it away again must be there before: nothing can be loaded any more where memory is full.
        let connection = self.redis.count();
        if self.loaded.load(Ordering::Relaxed) != connection {
            self.load().await?;
            self.loaded.store(connection, Ordering::Relaxed);
        }
        let until = Instant::now() + HOLD_TIMEOUT;
        let left = || until.saturating_duration_since(Instant::now());
        let document = |at: usize| known.documents.get(at).copied().unwrap_or_default();
        let (mut steps, mut counts) = (redis::pipe(), Vec::new());
        let (mut from, mut bytes) = (0, 0);
        for (at, next) in writes.iter().enumerate() {
            bytes += next.entry.row.body.as_ref().map_or(0, bytes::Bytes::len);
            if at > from && (at - from == TOLD_TOGETHER || bytes > HELD_BYTES_MAX) {
                self.hold_some(&mut steps, &writes[from..at], |place| document(from + place));
                counts.push(at - from);
                (from, bytes) = (at, 0);
            }
        }
        if from < writes.len() {
            self.hold_some(&mut steps, &writes[from..], |place| document(from + place));
            counts.push(writes.len() - from);
        }
        // Behind what is noted: what was settled before shows, and what is settled later finds its note.
        let asks_epoch = steps.len();
        steps.cmd("GET").arg(&self.epoch);
        self.push_out_surplus(&mut steps, known.surplus);
        let answers = self.send(&steps, left()).await?;
        let connection = self.redis.count();
        let epoch = answers.get(asks_epoch).and_then(|epoch| Epoch::of(epoch, connection));
        // That of each transaction begins with how much is noted of each key.
        let mut lengths = Vec::with_capacity(writes.len());
        let transactions = answers.into_iter().take(asks_epoch).map(some_of).filter(|told| !told.is_empty());
        for (told, count) in transactions.zip(counts) {
            lengths.extend(told.into_iter().take(count));
        }
        if lengths.len() != writes.len() {
            return Err(Away("half an answer".to_owned()));
        }
        let noted = match epoch.is_some() && epoch == known.since {
            true => Noted::All(Vec::new()),
            false => match self.receipts(writes, epoch.is_some(), left()).await {
                Ok(receipts) if receipts.len() == writes.len() => Noted::All(settled(writes, &receipts)),
                Ok(_) => Noted::Unasked(Away("half an answer".to_owned())),
                Err(away) => Noted::Unasked(away),
            },
        };
        self.clear(writes, &lengths, known.surplus).await;
        Ok(noted)
    }

    fn push_out_surplus(&self, steps: &mut Pipeline, surplus: &[(RowKey, Surplus)]) {
        let (mut fronts, mut others) = (Vec::new(), Vec::new());
        for (at, Surplus { newest, front }) in surplus {
            match front {
                Some(front) => fronts.push((at, front)),
                None => {
                    others.push(Gone { at: at.clone(), version: *newest, fate: Fate::Unknown, older: true });
                }
            }
        }
        for together in fronts.chunks(TOLD_TOGETHER) {
            self.push_out(steps, together);
        }
        for together in others.chunks(TOLD_TOGETHER) {
            self.forget(steps, FORGET, together);
        }
    }

    /// Pushes out what is older than the newest of these, where a key has far too much noted, because nobody could look at it for a
    /// while. It may become twice as long where something was to be pushed out already, after which the lengths are not those of now, and
    /// where these are few: the next one that looks leaves more of it.
    async fn clear(&self, writes: &[Queued], lengths: &[Value], pushed_out: &[(RowKey, Surplus)]) {
        let has_more = |length: &Value, notes: usize| matches!(length, Value::Int(bytes) if bytes.unsigned_abs() > (notes * NOTE_BYTES) as u64);
        let mut crowded: HashMap<&RowKey, (Vec<Version>, bool)> = HashMap::new();
        for (Queued { entry, .. }, length) in writes.iter().zip(lengths) {
            if has_more(length, CROWDED) {
                crowded.entry(&entry.at).or_default().1 |= has_more(length, 2 * CROWDED);
            }
        }
        if crowded.is_empty() {
            return;
        }
        for Queued { entry, .. } in writes {
            if let Some((versions, _)) = crowded.get_mut(&entry.at) {
                versions.push(entry.row.version);
            }
        }
        crowded.retain(|at, (versions, is_twice)| {
            *is_twice || (versions.len() >= KEPT_MAX && !pushed_out.iter().any(|(key, _)| key == *at))
        });
        let older = crowded.into_iter().filter_map(|(at, (mut versions, _))| {
            versions.sort_unstable_by(|one, other| other.cmp(one));
            versions.truncate(KEPT_MAX);
            let oldest = versions.pop()?;
            // All that is older than that, and not itself.
            let version = Version { hlc: oldest.hlc.saturating_sub(1), origin: u64::MAX };
            Some(Gone { at: at.clone(), version, fate: Fate::Unknown, older: true })
        });
        let older: Vec<Gone> = older.collect();
        let mut steps = redis::pipe();
        for together in older.chunks(TOLD_TOGETHER) {
            self.forget(&mut steps, FORGET, together);
        }
        // If they stay, the next write takes them away.
        drop(self.send(&steps, LOOK_TIMEOUT).await);
    }

    /// One transaction: what waits, and where it is listed.
    fn hold_some(&self, steps: &mut Pipeline, writes: &[Queued], document: impl Fn(usize) -> Document) {
        steps.cmd("MULTI");
        let count = writes.len();
        let bodies = writes.iter().filter_map(|write| write.entry.row.body.as_ref());
        let bytes: usize = bodies.map(|body| body.len() + PLACED_HEAD_BYTES + NAME_BYTES).sum();
        let mut documents = command("MSET", 2 * count, bytes);
        let mut indexed: Vec<(&Namespace, Cmd)> = Vec::new();
        let mut has_documents = false;
        for (place, queued) in writes.iter().enumerate() {
            let (at, row) = (&queued.entry.at, &queued.entry.row);
            let is_placed = document(place) == Document::Placed;
            match &row.body {
                Some(body) if is_placed => {
                    let place = self.place(&at.namespace, &at.key, row.version.origin);
                    documents.arg(place).arg(Placed(row.version, row.expires_at_ms, body));
                    has_documents = true;
                }
                Some(body) => {
                    documents.arg(self.document(&at.namespace, &at.key, row.version)).arg(&body[..]);
                    has_documents = true;
                }
                None => {}
            }
            let notes = self.name("v", &at.namespace, &at.key);
            let append = command("APPEND", 2, notes.len() + NOTE_BYTES);
            steps.add_command(append).arg(notes).arg(note(queued, is_placed));
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
        steps.cmd("EXEC");
    }
}

/// Those of which there is a receipt: what was noted of them is to be taken away again.
fn settled(writes: &[Queued], receipts: &[Value]) -> Vec<Settlement> {
    let is_settled = |(_, receipt): &(&Queued, &Value)| matches!(receipt, Value::BulkString(_));
    let again = |(write, _): (&Queued, &Value)| Settlement {
        at: write.entry.at.clone(),
        version: write.entry.row.version,
        fate: Fate::Unknown,
    };
    writes.iter().zip(receipts).filter(is_settled).map(again).collect()
}
