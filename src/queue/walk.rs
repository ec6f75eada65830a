//! Walks along the dead letters, from the front of their queue on.
//!
//! The queue has one consumer at a time, so a letter is in the hands of one operator. Each walk is bounded and may be cut off
//! anywhere: a letter that is kept moves to the end of the queue, with the broker's word for the copy before the original is let
//! go, so it may be seen twice and is never lost; the last few that were removed may be seen again as well. A letter that stays is not
//! acknowledged at all, and lies at the front again when the walk is over.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::Channel;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use tokio::time::{Instant, timeout};

use super::connection::{Link, bounded};
use super::dead::DeadLetter;
use super::group::{self, is_group};
use super::letters::{Held, Unreadable, read};
use super::{Notes, PREFETCH, Queue};
use crate::backend::Boxed;
use crate::model::{Error, Result};

/// Letters that one walk looks at: it has them all in hand.
pub const STEP_MAX: usize = PREFETCH as usize;
/// How long a walk waits for the next letter; another operator may have it.
const NEXT_WAIT: Duration = Duration::from_secs(2);
/// Bound on one walk.
const STEP_TIME: Duration = Duration::from_secs(3);
/// Letters that one acknowledgement covers. The broker's channel holds back all beyond some thirty acknowledgements that the queue
/// has not taken, and forgets these when it is closed: then what was removed would be there again.
const ACK_EVERY: usize = 20;
const ACKS_MAX: usize = 30;
/// How long a walk waits until what it gives back lies in the queue again, and between two looks.
const RETURN_WAIT: Duration = Duration::from_millis(500);
const RETURN_LOOK: Duration = Duration::from_millis(5);
/// What a caller is told to wait while another operator is at work, milliseconds.
const BUSY_RETRY_MS: i64 = 1000;

const _: () = assert!(STEP_MAX / ACK_EVERY < ACKS_MAX, "a walk has no acknowledgement held back");

/// What an operator does with a letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Moves it to the end of the queue.
    Keep,
    /// The same, and looks at no other.
    KeepAndEnd,
    /// Leaves it where it lies. A walk that lets letters stay does nothing else: what it acknowledged later would go with them.
    Stay,
    /// Lets it go.
    Remove,
    /// Has not looked at it, nor looks at any other.
    End,
}

/// How far a walk came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Walked {
    /// Letters that were looked at, and done with as was said.
    pub looked_at: usize,
    /// Why it was cut off, where it was: what was done last may not have reached the broker.
    pub ended_early: Option<String>,
}

/// Whoever decides on letters, one after the other.
pub(super) trait Actor: Send {
    fn act<'a>(&'a mut self, letter: &'a DeadLetter) -> Boxed<'a, Act>;
}

/// One who needs to look at a letter only.
struct Decides<F>(F);

impl<F: FnMut(&DeadLetter) -> Act + Send> Actor for Decides<F> {
    fn act<'a>(&'a mut self, letter: &'a DeadLetter) -> Boxed<'a, Act> {
        let act = (self.0)(letter);
        Box::pin(async move { act })
    }
}

impl Queue {
    /// Looks at up to `most` letters from the front of the queue on, and does with each as `act` says. An error says that
    /// none was looked at.
    pub async fn walk(&self, most: usize, act: impl FnMut(&DeadLetter) -> Act + Send) -> Result<Walked> {
        self.walk_with(most, &mut Decides(act)).await
    }

    pub(super) async fn walk_with(&self, most: usize, actor: &mut dyn Actor) -> Result<Walked> {
        let unavailable = |why: String| Error::unavailable(why, BUSY_RETRY_MS);
        let link = self.broker.connect("operator").await.map_err(unavailable)?;
        let mut looked_at = 0;
        let ended = self.walk_along(&link, most, actor, &mut looked_at, Instant::now()).await;
        link.close().await;
        match ended {
            Err(why) if looked_at == 0 => Err(unavailable(why)),
            ended => Ok(Walked { looked_at, ended_early: ended.err() }),
        }
    }

    async fn walk_along(
        &self,
        link: &Link,
        most: usize,
        actor: &mut dyn Actor,
        looked_at: &mut usize,
        begun: Instant,
    ) -> Result<(), String> {
        let most = most.clamp(1, STEP_MAX);
        let channel = link.consuming(u16::try_from(most).unwrap_or(PREFETCH)).await?;
        let there = held(&channel, &self.topology.dead()).await?.ready;
        let letters = most.min(usize::try_from(there).unwrap_or(usize::MAX));
        let deliveries = take(&channel, &self.topology.dead(), letters).await?;
        if let Some(more) = self.take_apart(&channel, &deliveries, begun).await? {
            self.give_back(link, &channel, there + more).await?;
            if begun.elapsed() >= STEP_TIME {
                return Err("groups of dead letters are being taken apart".to_owned());
            }
            return Box::pin(self.walk_along(link, most, actor, looked_at, begun)).await;
        }
        let (mut removed, begun) = (0, Instant::now());
        // Letters done with since the last acknowledgement, and the number of the last of them.
        let (mut done, mut last) = (0, 0);
        for delivery in deliveries {
            if begun.elapsed() >= STEP_TIME {
                break;
            }
            let (bytes, tag) = (delivery.data.len(), delivery.delivery_tag);
            let read = read(delivery);
            let act = actor.act(&DeadLetter::of(&read, bytes)).await;
            if act == Act::End {
                break;
            }
            *looked_at += 1;
            match act {
                Act::Stay | Act::End => continue,
                Act::Remove => removed += 1,
                Act::Keep | Act::KeepAndEnd => self.move_to_end(&read).await?,
            }
            (done, last) = (done + 1, tag);
            if done == ACK_EVERY {
                acknowledge(&channel, last).await?;
                done = 0;
            }
            if act == Act::KeepAndEnd {
                break;
            }
        }
        if done > 0 {
            acknowledge(&channel, last).await?;
        }
        self.give_back(link, &channel, there.saturating_sub(removed)).await
    }

    /// Groups that the broker gave up become letters of their own, at the end of the queue: by how many there are more of them then,
    /// if there was any. One that cannot be read is shown as it is. After [`STEP_TIME`] the rest stays as it is for now.
    async fn take_apart(
        &self,
        channel: &Channel,
        deliveries: &[Delivery],
        begun: Instant,
    ) -> Result<Option<u64>, String> {
        let mut more = None;
        for delivery in deliveries.iter().filter(|delivery| is_group(&delivery.data)) {
            if more.is_some() && begun.elapsed() >= STEP_TIME {
                break;
            }
            let Ok(writes) = group::decode(&delivery.data) else { continue };
            let notes = Notes::of(&delivery.properties);
            for write in &writes {
                let moved = self.send(self.topology.dead(), write, &notes).await;
                moved.map_err(|unqueued| format!("a dead letter could not be taken apart: {unqueued:?}"))?;
            }
            let acked = channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default()).await;
            acked.map_err(|error| format!("RabbitMQ: acknowledge: {error}"))?;
            more = Some(more.unwrap_or(0) + writes.len() as u64 - 1);
        }
        Ok(more)
    }

    async fn move_to_end(&self, read: &Result<Held, Box<Unreadable>>) -> Result<(), String> {
        let moved = match read {
            Ok(held) => self.send(self.topology.dead(), &held.write, &held.notes).await,
            Err(unreadable) => self.bury_unreadable(unreadable, &unreadable.notes.lane).await,
        };
        moved.map_err(|unqueued| format!("a dead letter could not be moved: {unqueued:?}"))
    }

    /// Gives back what was delivered and not acknowledged, and waits until that is counted among the others again: whoever asks
    /// next would find fewer letters than there are. Closing the channel is what keeps their order; a broker that is given many
    /// back by name puts them in any. Its answer also says that it has had all acknowledgements.
    async fn give_back(&self, link: &Link, channel: &Channel, at_least: u64) -> Result<(), String> {
        bounded("channel", channel.close(200, "done".into())).await?;
        let (counting, begun) = (link.consuming(1).await?, Instant::now());
        while held(&counting, &self.topology.dead()).await?.ready < at_least && begun.elapsed() < RETURN_WAIT
        {
            tokio::time::sleep(RETURN_LOOK).await;
        }
        Ok(())
    }
}

/// What a queue holds, as the broker counts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Holds {
    /// Messages that no consumer has.
    pub(super) ready: u64,
    pub(super) consumers: u64,
}

pub(super) async fn held(channel: &Channel, name: &str) -> Result<Holds, String> {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
    let declared = channel.queue_declare(name.into(), passive, FieldTable::default());
    let declared = bounded(&format!("queue {name}"), declared).await?;
    Ok(Holds { ready: declared.message_count().into(), consumers: declared.consumer_count().into() })
}

/// Acknowledges a message and all before it.
async fn acknowledge(channel: &Channel, tag: u64) -> Result<(), String> {
    let acked = channel.basic_ack(tag, BasicAckOptions { multiple: true }).await;
    acked.map_err(|error| format!("RabbitMQ: acknowledge: {error}"))
}

/// Takes `most` letters from the front, and no more: those that are given back go behind what was given back before, which would
/// come into disorder.
async fn take(channel: &Channel, name: &str, most: usize) -> Result<Vec<Delivery>, String> {
    let mut deliveries = Vec::with_capacity(most);
    if most == 0 {
        return Ok(deliveries);
    }
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    let consuming = channel.basic_consume(name.into(), "".into(), options, arguments);
    let mut consumer = bounded("consume", consuming).await?;
    while deliveries.len() < most {
        match timeout(NEXT_WAIT, consumer.next()).await {
            Ok(Some(delivery)) => deliveries.push(delivery.map_err(|error| error.to_string())?),
            Ok(None) => return Err("the connection to RabbitMQ is lost".to_owned()),
            Err(_) if deliveries.is_empty() => {
                return Err("another operator works on the dead letters".to_owned());
            }
            Err(_) => break,
        }
    }
    bounded("cancel", channel.basic_cancel(consumer.tag(), BasicCancelOptions::default())).await?;
    Ok(deliveries)
}
