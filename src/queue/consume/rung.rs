//! A rung of the ladder: each message waits until it is due, and goes back to its lane.
//!
//! A rung tells what it has in hand like a lane: the broker counts as waiting only what it has handed to nobody, and these
//! are acknowledged writes that wait for minutes.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::BasicAckOptions;
use lapin::{Channel, Consumer};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{BATCH_MAX, TELL_EVERY, Told, subscribe};
use crate::model::clock::wall_ms;
use crate::queue::connection::{Link, bounded};
use crate::queue::lanes::Word;
use crate::queue::letters::{Held, Unreadable, read};
use crate::queue::{Queue, Target};

/// A rung at work.
struct Rung<'q> {
    queue: &'q Queue,
    target: &'q dyn Target,
    channel: Channel,
    consumer: Consumer,
    name: &'q str,
    /// Messages that were delivered and not acknowledged, at most [`BATCH_MAX`].
    in_hand: VecDeque<Result<Held, Box<Unreadable>>>,
    told: Told,
}

/// Works on a rung until it is told to stop or the connection is lost.
pub(super) async fn rung(
    queue: &Queue,
    target: &dyn Target,
    link: &Link,
    name: &str,
    stop: &CancellationToken,
) -> Result<(), String> {
    let (channel, consumer) = subscribe(link, name).await?;
    let told = Told::nothing();
    let mut rung = Rung { queue, target, channel, consumer, name, in_hand: VecDeque::new(), told };
    while !stop.is_cancelled() {
        rung.tell().await;
        match rung.in_hand.front() {
            Some(first) if wait(first).is_zero() => rung.send_first().await?,
            _ => rung.wait(stop).await?,
        }
    }
    // What is in hand goes back to the broker with the channel.
    bounded("channel", rung.channel.close(200, "stopping".into())).await
}

/// How long a message still waits. What cannot be read waits for nothing.
fn wait(message: &Result<Held, Box<Unreadable>>) -> Duration {
    let due_ms = message.as_ref().map_or(0, |held| held.notes.due_ms);
    Duration::from_millis(u64::try_from(due_ms - wall_ms()).unwrap_or(0))
}

impl Rung<'_> {
    /// Waits until the first message is due, another comes, or it is time to tell.
    async fn wait(&mut self, stop: &CancellationToken) -> Result<(), String> {
        let due = self.in_hand.front().map_or(TELL_EVERY, wait).min(TELL_EVERY);
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(due) => {}
            delivery = self.consumer.next(), if self.in_hand.len() < BATCH_MAX => {
                let delivery = delivery.ok_or("the consumer was cancelled")?.map_err(|error| error.to_string())?;
                self.take(delivery);
            }
        }
        Ok(())
    }

    fn take(&mut self, delivery: Delivery) {
        self.told.saw(&delivery);
        self.in_hand.push_back(read(delivery));
    }

    /// Sends the first message where it belongs; it is acknowledged here once it lies there.
    async fn send_first(&mut self) -> Result<(), String> {
        let Some(first) = self.in_hand.front() else { return Ok(()) };
        let (tag, sent) = match first {
            Err(unreadable) => (unreadable.tag, self.queue.bury_unreadable(unreadable, self.name).await),
            Ok(held) => {
                let sent = match self.target.shard(&held.write.entry.at) {
                    Ok(shard) => self.queue.send_back(held, &shard).await,
                    Err(error) => self.queue.bury(held, self.name, &error.message).await,
                };
                (held.tag, sent)
            }
        };
        sent.map_err(|unqueued| format!("{unqueued:?}"))?;
        let acked = self.channel.basic_ack(tag, BasicAckOptions::default()).await;
        acked.map_err(|error| error.to_string())?;
        self.in_hand.pop_front();
        self.told.settled += 1;
        Ok(())
    }

    /// Tells of this rung, once in a while, and at once where it was said to hold nothing and does.
    async fn tell(&mut self) {
        let elapsed = self.told.at.elapsed();
        if elapsed < TELL_EVERY && !self.told.due {
            return;
        }
        while self.in_hand.len() < BATCH_MAX
            && let Some(Some(Ok(delivery))) = self.consumer.next().now_or_never()
        {
            self.take(delivery);
        }
        if elapsed < TELL_EVERY && self.in_hand.is_empty() {
            return;
        }
        let taken = self.in_hand.iter().filter_map(|message| Some(message.as_ref().ok()?.write.taken_at_ms));
        let word = Word {
            in_hand: self.in_hand.len() as u64,
            oldest_ms: taken.min().unwrap_or(0),
            rate: self.told.rate_now(elapsed),
            bytes: (self.in_hand.len() as f64 * self.told.handed.sizes().bytes_each) as u64,
            bytes_each: self.told.handed.sizes().bytes_each as u64,
            said_ms: wall_ms(),
            writes_each: 1.0,
        };
        self.told =
            Told { at: Instant::now(), due: word.in_hand == 0, settled: 0, rate: word.rate, ..self.told };
        self.queue.lanes.tell(self.name, word).await;
    }
}
