//! Batch: many operations in one request, each for itself or all or nothing.
//!
//! Operations on different keys run together; those on the same key take effect in their order, and a get
//! sees the writes before it. So operations are laid out in rounds: a new round begins for a key when it
//! changes from writing to reading or back. Within a round a key is only read or only written, and the
//! backend keeps the order of writes to one key.

use std::collections::HashMap;

use futures_util::future::join;

use crate::backend::Written;
use crate::cache::Ended;
use crate::codec::{Encoding, json, message};
use crate::model::key::shorten;
use crate::model::limits::{BATCH_MESSAGE_BYTES_MAX, BATCH_RESULT_BYTES_MIN};
use crate::model::op::{Batch, BatchOp, Get, Write};
use crate::model::reply::{BatchReply, BatchResult, GetReply, WriteReply};
use crate::model::{Error, Key, Result};

use super::copies::ended;
use super::write::Asked;
use super::{Call, Got, Store};

/// Records read at once: bounds what a batch holds in memory before it is known what fits the reply.
pub(super) const READS_AT_ONCE_MAX: usize = 64;
/// What a result takes beside key, content type and document, in either encoding.
const RESULT_FIXED_BYTES: usize = 448;

/// What a result takes beside a reply that is encoded already: two tags and two lengths.
const BETWEEN_RESULTS: usize = 12;

const _: () = assert!(RESULT_FIXED_BYTES < BATCH_RESULT_BYTES_MIN);

/// The answer to a batch.
#[derive(Debug)]
pub enum Batched {
    /// As a message.
    Reply(BatchReply),
    /// As the bytes of its reply in the request's encoding, because records among it had that form already.
    Encoded(Vec<u8>),
}

/// One result.
enum Piece {
    /// The reply to a get that found a record, in the request's encoding.
    Found(Vec<u8>),
    Result(Box<BatchResult>),
}

impl Piece {
    fn result(result: BatchResult) -> Self {
        Self::Result(Box::new(result))
    }
}

/// All results as one reply.
fn join_pieces(call: &Call, pieces: Vec<Piece>) -> Batched {
    if pieces.iter().all(|piece| matches!(piece, Piece::Result(_))) {
        let results = pieces.into_iter().filter_map(|piece| match piece {
            Piece::Result(result) => Some(*result),
            Piece::Found(_) => None,
        });
        return Batched::Reply(BatchReply { error: None, results: results.collect() });
    }
    let parts = pieces.iter().map(|piece| match piece {
        Piece::Found(reply) => Ok(reply.as_slice()),
        Piece::Result(result) => Err(&**result),
    });
    Batched::Encoded(match call.encoding {
        Encoding::Protobuf => message::encode_results(parts),
        Encoding::Json { exact } => json::encode_results(parts, exact),
    })
}

impl Store {
    /// Runs a batch. An error is one of the whole batch: then nothing was done (or, of an atomic one,
    /// what the error's code says).
    pub async fn batch(&self, call: &Call, batch: Batch) -> Result<Batched> {
        let promised = batch.ops.len() * BATCH_RESULT_BYTES_MIN;
        let Some(spare) = call.reply_bytes_max.checked_sub(promised) else {
            let most = call.reply_bytes_max / BATCH_RESULT_BYTES_MIN;
            return Err(Error::too_large(format!(
                "a batch of {} operations; what one reply can carry here allows {most}",
                batch.ops.len()
            )));
        };
        let mut room = Room { spare };
        if batch.atomic {
            return self.atomic(call, batch.ops, &mut room).await.map(Batched::Reply);
        }
        call.check_deadline()?;
        let writes = batch.ops.iter().any(|op| matches!(op, BatchOp::Write(Ok(_))));
        // Writes that may be queued ask for themselves, each with what it means for it that nobody answers.
        if self.queue_of(call).is_none() {
            self.check_agreed(call, writes).await?;
        }
        let mut results: Vec<Option<Piece>> = Vec::new();
        results.resize_with(batch.ops.len(), || None);
        for (number, round) in rounds(batch.ops, &mut results).into_iter().enumerate() {
            // A get behind the first round has a write of its key before it, and must see it.
            let newest = number > 0;
            let (gets, writes) =
                join(self.gets(call, round.gets, newest, &mut room), self.writes(call, round.writes)).await;
            for (at, reply) in gets {
                results[at] = Some(reply);
            }
            for (at, reply) in writes {
                results[at] = Some(Piece::result(BatchResult::Write(room.fit_write(call, reply))));
            }
        }
        let pieces: Vec<Piece> =
            results.into_iter().map(|result| result.expect("every operation lies in one round")).collect();
        Ok(join_pieces(call, pieces))
    }

    async fn gets(
        &self,
        call: &Call,
        gets: Vec<(usize, Get)>,
        newest: bool,
        room: &mut Room,
    ) -> Vec<(usize, Piece)> {
        let mut replies = Vec::with_capacity(gets.len());
        for chunk in gets.chunks(READS_AT_ONCE_MAX) {
            let asked: Vec<&Get> = chunk.iter().map(|(_, get)| get).collect();
            let found = self.find(call, &asked, newest).await;
            for ((at, get), found) in chunk.iter().zip(found) {
                let got = found.and_then(|read| self.answer(call, get, read));
                let got = got.unwrap_or_else(|error| Got::Reply(brief(error).into()));
                replies.push((*at, room.fit_get(call, get, got)));
            }
        }
        replies
    }

    async fn writes(&self, call: &Call, writes: Vec<(usize, Write)>) -> Vec<(usize, WriteReply)> {
        let mut replies = Vec::with_capacity(writes.len());
        let (mut asked, mut prepared) = (Vec::new(), Vec::new());
        for (at, write) in writes {
            match self.prepare(call, write) {
                Ok((one, write)) => {
                    asked.push((at, one));
                    prepared.push(write);
                }
                Err(error) => replies.push((at, brief(error).into())),
            }
        }
        if prepared.is_empty() {
            return replies;
        }
        if let Some(waiting) = self.queue_of(call) {
            let written = self.write_or_queue_all(call, waiting, asked, prepared).await;
            let short = |(at, mut reply): (usize, WriteReply)| {
                reply.error = reply.error.map(brief);
                (at, reply)
            };
            replies.extend(written.into_iter().map(short));
            return replies;
        }
        let writing = self.begin_writing(call, asked.iter().map(|(_, one)| &one.key)).await;
        let written = call.policy.backend.write(prepared, call.deadline).await;
        let keeps = writing.keeps_records();
        let ends: Vec<Ended> = asked
            .iter()
            .zip(&written)
            .map(|((_, one), written)| ended(call, &one.key, keeps, written))
            .collect();
        writing.finish(ends).await;
        for ((at, asked), written) in asked.into_iter().zip(written) {
            let mut reply = self.reply(call, asked, written).await;
            reply.error = reply.error.map(brief);
            replies.push((at, reply));
        }
        replies
    }

    async fn atomic(&self, call: &Call, ops: Vec<BatchOp>, room: &mut Room) -> Result<BatchReply> {
        let mut writes = Vec::with_capacity(ops.len());
        for (at, op) in ops.into_iter().enumerate() {
            match op {
                BatchOp::Write(Ok(write)) => writes.push(write),
                BatchOp::Write(Err(error)) => return Err(failed(at, error)),
                BatchOp::Get(_) => {
                    return Err(failed(at, Error::invalid("an atomic batch holds writes alone")));
                }
            }
        }
        let mut partitions =
            writes.iter().map(|write| call.policy.partitioning.partition(write.key.as_str()));
        if let Some(first) = partitions.next()
            && let Some(at) = partitions.position(|partition| partition != first)
        {
            let (key, first) = (shorten(writes[at + 1].key.as_str()), shorten(first));
            let message = format!(
                "key {key:?} lies outside the batch's partition {first:?}; an atomic batch has one partition"
            );
            return Err(failed(at + 1, Error::invalid(message)));
        }
        if !call.policy.capability.atomic {
            return Err(call.unsupported("atomic batches"));
        }
        if writes.is_empty() {
            return Ok(BatchReply::default());
        }
        self.check_agreed(call, true).await?;
        let (mut asked, mut prepared) = (Vec::new(), Vec::new());
        for (at, write) in writes.into_iter().enumerate() {
            let (one, write) = self.prepare(call, write).map_err(|error| failed(at, error))?;
            asked.push(one);
            prepared.push(write);
        }
        if let Some(waiting) = self.queue_of(call) {
            self.nothing_pending(call, waiting, &mut prepared).await?;
        }
        let writing = self.begin_writing(call, asked.iter().map(|one| &one.key)).await;
        let written = call.policy.backend.write_atomic(prepared, call.deadline).await;
        let keeps = writing.keeps_records();
        let ends: Vec<Ended> = match &written {
            Ok(all) => {
                let end =
                    |(one, written): (&Asked, &Written)| ended(call, &one.key, keeps, &Ok(written.clone()));
                asked.iter().zip(all).map(end).collect()
            }
            Err((_, error)) => {
                asked.iter().map(|one| ended(call, &one.key, keeps, &Err(error.clone()))).collect()
            }
        };
        writing.finish(ends).await;
        let written = written.map_err(|(at, error)| failed(at, error))?;
        let mut results = Vec::with_capacity(asked.len());
        for (asked, written) in asked.into_iter().zip(written) {
            let reply = self.reply(call, asked, Ok(written)).await;
            results.push(BatchResult::Write(room.fit_write(call, reply)));
        }
        Ok(BatchReply { error: None, results })
    }
}

/// Operations that can run together.
#[derive(Default)]
struct Round {
    gets: Vec<(usize, Get)>,
    writes: Vec<(usize, Write)>,
}

/// Lays operations out in rounds. Those at fault are answered at once.
fn rounds(ops: Vec<BatchOp>, results: &mut [Option<Piece>]) -> Vec<Round> {
    let mut rounds: Vec<Round> = Vec::new();
    // The round and kind of the last operation on each key.
    let mut last: HashMap<Key, (usize, bool)> = HashMap::new();
    let mut place = |key: &Key, is_get: bool, rounds: &mut Vec<Round>| {
        let round = match last.get(key) {
            None => 0,
            Some((round, was_get)) => round + usize::from(*was_get != is_get),
        };
        last.insert(key.clone(), (round, is_get));
        if rounds.len() <= round {
            rounds.resize_with(round + 1, Round::default);
        }
        round
    };
    for (at, op) in ops.into_iter().enumerate() {
        match op {
            BatchOp::Get(Ok(get)) => {
                let round = place(&get.key, true, &mut rounds);
                rounds[round].gets.push((at, get));
            }
            BatchOp::Write(Ok(write)) => {
                let round = place(&write.key, false, &mut rounds);
                rounds[round].writes.push((at, write));
            }
            BatchOp::Get(Err(error)) => {
                results[at] = Some(Piece::result(BatchResult::Get(brief(error).into())))
            }
            BatchOp::Write(Err(error)) => {
                results[at] = Some(Piece::result(BatchResult::Write(brief(error).into())))
            }
        }
    }
    rounds
}

/// The error of a whole atomic batch: that of the first failing operation, its index beside it.
pub(super) fn failed(at: usize, mut error: Error) -> Error {
    error.details.insert(0, at.to_string());
    error.at(&format!("ops[{at}]"))
}

/// An error as short as a result's promised room.
fn brief(mut error: Error) -> Error {
    if error.message.len() > BATCH_MESSAGE_BYTES_MAX {
        let end = error.message.floor_char_boundary(BATCH_MESSAGE_BYTES_MAX - 3);
        error.message.truncate(end);
        error.message.push_str("...");
    }
    error
}

/// How much of the reply is left beyond what every result is promised.
struct Room {
    spare: usize,
}

impl Room {
    /// A get whose record does not fit any more is told to ask for it alone.
    fn fit_get(&mut self, call: &Call, get: &Get, got: Got) -> Piece {
        let fits = match &got {
            Got::Encoded(reply) => self.take(reply.len() + BETWEEN_RESULTS),
            Got::Reply(GetReply { record: Some(record), .. }) => {
                self.take(RESULT_FIXED_BYTES + call.encoding.record_len(record))
            }
            Got::Reply(_) => true,
        };
        if !fits {
            let key = shorten(get.key.as_str());
            let message =
                format!("record {key:?} does not fit in what is left of this reply; ask for it alone");
            return Piece::result(BatchResult::Get(brief(Error::too_large(message)).into()));
        }
        match got {
            Got::Encoded(reply) => Piece::Found(reply),
            Got::Reply(reply) => Piece::result(BatchResult::Get(reply)),
        }
    }

    /// A write's record that does not fit any more is left out: the write stands.
    fn fit_write(&mut self, call: &Call, mut reply: WriteReply) -> WriteReply {
        let record_len = |record| RESULT_FIXED_BYTES + call.encoding.record_len(record);
        if reply.record.as_ref().is_some_and(|record| !self.take(record_len(record))) {
            reply.record = None;
        }
        reply
    }

    fn take(&mut self, needed: usize) -> bool {
        let spare = (self.spare + BATCH_RESULT_BYTES_MIN).checked_sub(needed);
        if let Some(spare) = spare {
            self.spare = spare;
        }
        spare.is_some()
    }
}
