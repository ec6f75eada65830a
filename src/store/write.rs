//! Put, delete, update, touch: one record.

use std::sync::Arc;

use crate::backend::{self, Live, OpStamp, Written};
use crate::codec::stored;
use crate::model::key::shorten;
use crate::model::op::{Action, Expiry, Write};
use crate::model::reply::{Durability, WriteReply};
use crate::model::{Document, Error, Key, Outcome, Record, Result, Version};

use super::copies::ended;
use super::intake::Made;
use super::update::{Touch, Update};
use super::{Call, Store};

/// What of a write its reply needs.
pub(super) struct Asked {
    pub(super) key: Key,
    is_delete: bool,
    return_record: bool,
}

impl Store {
    /// Writes one record.
    pub async fn write(&self, call: &Call, write: Write) -> WriteReply {
        let (asked, write) = match self.prepare(call, write) {
            Ok(prepared) => prepared,
            Err(error) => return error.into(),
        };
        match self.queue_of(call) {
            // While the backend is down this is all that happens, so it has no room for more.
            Some(waiting) if self.queues_at_once(call, waiting, &write) => {
                self.enqueue(call, waiting, write, Made::Nothing).await
            }
            Some(waiting) => Box::pin(self.write_or_queue(call, waiting, asked, write)).await,
            None => Box::pin(self.write_one(call, asked, write)).await,
        }
    }

    async fn write_one(&self, call: &Call, asked: Asked, write: backend::Write) -> WriteReply {
        if let Err(error) = self.check_agreed(call, true).await {
            return error.into();
        }
        let writing = self.begin_writing(call, std::iter::once(&asked.key)).await;
        let written = call.policy.backend.write(vec![write], call.deadline).await;
        let written =
            written.into_iter().next().unwrap_or_else(|| Err(Error::internal("the backend lost a write")));
        let end = ended(call, &asked.key, writing.keeps_records(), &written);
        writing.finish([end]).await;
        self.reply(call, asked, written).await
    }

    /// A write as the backend takes it. Nothing has happened yet when this fails.
    pub(super) fn prepare(&self, call: &Call, write: Write) -> Result<(Asked, backend::Write)> {
        let Write { key, action, precondition, op, return_record } = write;
        let is_delete = matches!(action, Action::Delete);
        let depends_on_present = match &action {
            Action::Put { expiry, .. } => precondition.is_some() || matches!(expiry, Expiry::KeepOr(_)),
            Action::Delete => precondition.is_some(),
            Action::Update { .. } | Action::Touch { .. } => true,
        };
        if depends_on_present && !call.policy.capability.conditional {
            return Err(call.unsupported("preconditions, update, touch or keep_ttl"));
        }
        call.check_deadline()?;
        let action = match action {
            Action::Put { value, content_type, expiry } => {
                let document = Document { value, content_type, updated_at_ms: call.now_ms, schema: 0 };
                backend::Action::Put { body: stored::encode(&document, call.compression()), expiry }
            }
            Action::Delete => backend::Action::Delete,
            Action::Update { changes, create, expiry } => {
                let update = Update { call: call.clone(), key: key.clone(), changes, create, expiry };
                backend::Action::Change(Arc::new(update))
            }
            Action::Touch { lifetime } => {
                backend::Action::Change(Arc::new(Touch { call: call.clone(), key: key.clone(), lifetime }))
            }
        };
        let write = backend::Write {
            at: call.row_key(&key),
            action,
            precondition,
            op: op.map(|op| OpStamp::new(&op, call.timeout_ms)),
            proposed: self.mint(call.now_ms),
            taken_at_ms: call.now_ms,
        };
        Ok((Asked { key, is_delete, return_record }, write))
    }

    /// The reply to a write, from what the backend made of it.
    pub(super) async fn reply(&self, call: &Call, asked: Asked, written: Result<Written>) -> WriteReply {
        match written {
            Err(error) => call.located(&asked.key, error).into(),
            Ok(Written::Applied { version, existed, live }) => {
                self.saw(version, call.now_ms);
                let mut reply = applied(call, Some(version), false);
                reply.existed = asked.is_delete.then_some(existed);
                if asked.return_record {
                    reply.record = live.and_then(|live| record(call, &asked.key, version, &live));
                }
                reply
            }
            Ok(Written::Duplicate { version, existed }) => {
                let mut reply = applied(call, version, true);
                reply.existed = asked.is_delete.then_some(existed);
                if asked.return_record {
                    reply.record = self.present(call, &asked.key).await;
                }
                reply
            }
            Ok(Written::Conflict { present }) => conflict(&asked.key, present).into(),
            Ok(Written::Forgotten) => Error::indeterminate(format!(
                "an earlier attempt of this operation on {:?} may have taken effect: too many others have since",
                shorten(asked.key.as_str())
            ))
            .into(),
        }
    }

    /// The present record, for a duplicate that asked for it. The write stands whether this succeeds or not.
    async fn present(&self, call: &Call, key: &Key) -> Option<Record> {
        let read = call.policy.backend.read(vec![call.row_key(key)], call.deadline).await;
        let found = read.into_iter().next()?.ok()??;
        record(call, key, found.version, &found.live?)
    }
}

fn applied(call: &Call, version: Option<Version>, duplicate: bool) -> WriteReply {
    let durable = call.policy.backend.durable();
    WriteReply {
        error: None,
        outcome: Outcome::Applied,
        version,
        durability: if durable { Durability::Backend } else { Durability::None },
        duplicate,
        read_your_write: true,
        record: None,
        existed: None,
    }
}

fn conflict(key: &Key, present: Option<Version>) -> Error {
    let found = present.map_or_else(|| "it is absent".to_owned(), |version| format!("it is at {version}"));
    Error::conflict(format!("the precondition on {:?} failed: {found}", shorten(key.as_str())), present)
}

fn record(call: &Call, key: &Key, version: Version, live: &Live) -> Option<Record> {
    let document = call.document(key, live).ok()?;
    Some(Record::new(key.clone(), version, live.expires_at_ms, document))
}
