//! A rung of the ladder: each message waits until it is due, and goes back to its lane.
//!
//! What cannot be sent now is tried again from here. It is not given back: the broker counts how often it hands a message out, and buries
//! one that it has handed out too often, while all that is wrong is a full lane, or a disk.
//!
//! A rung tells what it has in hand like a lane: the broker counts as waiting only what it has handed to nobody, and these
//! are acknowledged writes that wait for minutes.

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

/// Between two tries of what could not be sent.
const AGAIN: Duration = Duration::from_secs(1);
/// What could not be sent for so long goes to the end of its rung: the broker takes the channel away from whoever holds a message for half an
/// hour. Sooner where nothing else can be delivered because of it.
const HELD_MAX: Duration = Duration::from_secs(300);
const HELD_FULL_MAX: Duration = Duration::from_secs(5);

/// A message of a rung, in hand.
struct Waiting {
    message: Result<Held, Box<Unreadable>>,
    /// Where it could not be sent: since when, and not before when again.
    since: Option<Instant>,
    again: Option<Instant>,
}

/// A rung at work.
struct Rung<'q> {
    queue: &'q Queue,
    target: &'q dyn Target,
    channel: Channel,
    consumer: Consumer,
    name: &'q str,
    /// Messages that were delivered and not acknowledged, at most [`BATCH_MAX`].
    in_hand: Vec<Waiting>,
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
    let mut rung = Rung { queue, target, channel, consumer, name, in_hand: Vec::new(), told };
    while !stop.is_cancelled() {
        rung.tell().await;
        match rung.next() {
            Some((at, wait)) if wait.is_zero() => rung.send(at).await?,
            next => rung.wait(next.map(|(_, wait)| wait), stop).await?,
        }
    }
    // What is in hand goes back to the broker with the channel.
    bounded("channel", rung.channel.close(200, "stopping".into())).await
}

// === impl Waiting ===

impl Waiting {
    /// How long it still waits. What cannot be read waits for nothing.
    fn wait(&self, now_ms: i64) -> Duration {
        let due_ms = self.message.as_ref().map_or(0, |held| held.notes.due_ms);
        let due = Duration::from_millis(u64::try_from(due_ms - now_ms).unwrap_or(0));
        due.max(self.again.map_or(Duration::ZERO, |again| again.saturating_duration_since(Instant::now())))
    }
}

// === impl Rung ===

impl Rung<'_> {
    /// What is due first, and how long it waits.
    fn next(&self) -> Option<(usize, Duration)> {
        let now_ms = wall_ms();
        let waits = self.in_hand.iter().map(|waiting| waiting.wait(now_ms)).enumerate();
        // Of several that are due those that were not tried yet, then the one that was tried longest ago.
        waits.min_by_key(|(at, wait)| (*wait, self.in_hand[*at].again))
    }

    /// Waits until something is due, another comes, or it is time to tell.
    async fn wait(&mut self, due: Option<Duration>, stop: &CancellationToken) -> Result<(), String> {
        let due = due.map_or(TELL_EVERY, |due| due.min(TELL_EVERY));
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
        self.in_hand.push(Waiting { message: read(delivery), since: None, again: None });
    }

    /// Sends a message where it belongs; it is acknowledged here once it lies there.
    async fn send(&mut self, at: usize) -> Result<(), String> {
        let (tag, sent) = match &self.in_hand[at].message {
            Err(unreadable) => (unreadable.tag, self.queue.bury_unreadable(unreadable, self.name).await),
            Ok(held) => {
                let sent = match self.target.shard(&held.write.entry.at) {
                    Ok(shard) => self.queue.send_back(held, &shard).await,
                    Err(error) => self.queue.bury(held, self.name, &error.message).await,
                };
                (held.tag, sent)
            }
        };
        if let Err(unqueued) = sent {
            tracing::debug!(rung = self.name, "a queued write waits for another try: {unqueued:?}");
            if !self.moves_to_end(at).await {
                self.in_hand[at].again = Some(Instant::now() + AGAIN);
                return Ok(());
            }
        }
        let acked = self.channel.basic_ack(tag, BasicAckOptions::default()).await;
        acked.map_err(|error| error.to_string())?;
        self.in_hand.remove(at);
        self.told.settled += 1;
        Ok(())
    }

    /// Whether a message that could not be sent was put to the end of the rung, because it is held for too long.
    async fn moves_to_end(&mut self, at: usize) -> bool {
        let is_full = self.in_hand.len() >= BATCH_MAX;
        let since = *self.in_hand[at].since.get_or_insert_with(Instant::now);
        let Ok(held) = &self.in_hand[at].message else { return false };
        since.elapsed() > if is_full { HELD_FULL_MAX } else { HELD_MAX }
            && self.queue.send(self.name.to_owned(), &held.write, &held.notes).await.is_ok()
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
        let taken =
            self.in_hand.iter().filter_map(|waiting| Some(waiting.message.as_ref().ok()?.write.taken_at_ms));
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
