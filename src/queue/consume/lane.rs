//! A lane at work: batch after batch is gathered, sorted, applied, settled and acknowledged.

mod blocked;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::BasicAckOptions;
use lapin::{Channel, Consumer};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use blocked::{BLOCKED_PAUSE, Blocked};

use super::told::{Told, taken_second_ms, writes_of};
use super::{BATCH_MAX, TELL_EVERY, subscribe};
use crate::backend::{Applied, RowKey};
use crate::model::clock::{wall_ms, wall_of};
use crate::model::sabotage::{self, Sabotage};
use crate::queue::connection::{Link, bounded};
use crate::queue::lanes::Word;
use crate::queue::letters::{Held, Unreadable, read_all};
use crate::queue::overlay::Fate;
use crate::queue::pace::Pace;
use crate::queue::settle::{self, Verdict, settlement};
use crate::queue::topology::RUNGS;
use crate::queue::{LaneShard, Queue, Target};

/// Writes that are applied together.
const PART_MAX: usize = 192;
/// How long a batch waits for more once it has one.
const GATHER: Duration = Duration::from_millis(5);
/// Bound on applying a batch.
const APPLY_TIMEOUT: Duration = Duration::from_secs(5);
/// The first pause before a store that failed is asked again, and the longest.
const DOWN_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// Between two looks at a breaker that is open.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Messages in hand for longer go to the end of their lane: the broker takes an acknowledgement for lost after 30 minutes.
const HELD_MAX: Duration = Duration::from_secs(10 * 60);
/// A row that its store refuses for a reason that might pass is a dead letter after so many rounds of the ladder.
const REFUSED_ROUNDS: u32 = 6;
/// A version so far ahead of the clock waits; one further ahead is a dead letter.
const AHEAD_MS: i64 = 1_000;
const FAR_AHEAD_MS: i64 = 3_600_000;

/// A lane at work.
pub(super) struct Lane {
    queue: Arc<Queue>,
    target: Arc<dyn Target>,
    channel: Channel,
    consumer: Consumer,
    name: String,
    shard: LaneShard,
    pace: Arc<Pace>,
    /// Messages that were delivered and not looked at.
    delivered: VecDeque<Delivery>,
    /// Messages not acknowledged, by their numbers.
    in_hand: BTreeMap<u64, InHand>,
    /// Keys that make trouble, and what waits for them.
    blocked: HashMap<RowKey, Blocked>,
    /// What is no queued write and is not with the dead letters yet.
    unreadable: Vec<Unreadable>,
    /// Not before, where the dead letters could not be reached.
    unreadable_again: Instant,
    /// Whether much of the last batch was older than what stood in the store.
    overtaken_lately: bool,
    told: Told,
}

/// A message in hand.
struct InHand {
    taken_at_ms: i64,
    /// Its writes that are not settled.
    left: usize,
    /// Bytes of each, on the average.
    bytes_each: usize,
}

impl Lane {
    pub(super) async fn open(
        queue: Arc<Queue>,
        target: Arc<dyn Target>,
        link: &Link,
        name: String,
        shard: LaneShard,
        pace: Arc<Pace>,
    ) -> Result<Self, String> {
        let (channel, consumer) = subscribe(link, &name).await?;
        let told = Told::nothing();
        Ok(Self {
            queue,
            target,
            channel,
            consumer,
            name,
            shard,
            pace,
            delivered: VecDeque::new(),
            in_hand: BTreeMap::new(),
            blocked: HashMap::new(),
            unreadable: Vec::new(),
            unreadable_again: Instant::now(),
            overtaken_lately: false,
            told,
        })
    }

    /// Works until it is told to stop or the connection is lost.
    pub(super) async fn run(mut self, stop: &CancellationToken) -> Result<(), String> {
        while !stop.is_cancelled() {
            let gathered = self.gather(stop).await?;
            let mut batch = self.sorted(gathered).await?;
            self.bury_unreadable().await?;
            self.tell().await;
            batch.extend(self.due_again());
            let begun = Instant::now();
            // Those of one key together, so that they become one.
            batch.sort_by(|one, other| one.write.entry.at.key.cmp(&other.write.entry.at.key));
            self.pace.look(self.target.load(&self.shard));
            while !batch.is_empty() && !stop.is_cancelled() {
                let rest = batch.split_off(PART_MAX.min(batch.len()));
                let mut part = self.behind_blocked(batch);
                let mut is_looked_at = false;
                while !part.is_empty() && !stop.is_cancelled() {
                    // A look locks nothing, and many rows cost little more than few.
                    if !is_looked_at {
                        is_looked_at = self.overtaken_lately;
                        part = self.settle_overtaken(part).await?;
                    }
                    let later = part.split_off(self.pace.batch_max(PART_MAX).min(part.len()));
                    part = self.behind_blocked(part);
                    self.work(part, begun, stop).await?;
                    self.pace.learn(self.target.load(&self.shard));
                    part = later;
                }
                batch = rest;
            }
            self.tell().await;
        }
        // What is in hand goes back to the broker with the channel, and to another worker.
        bounded("channel", self.channel.close(200, "stopping".into())).await
    }

    /// What was delivered: as many as there are, up to a batch.
    async fn gather(&mut self, stop: &CancellationToken) -> Result<Vec<Delivery>, String> {
        let patience = if self.blocked.is_empty() { TELL_EVERY } else { BLOCKED_PAUSE / 2 };
        let ended = || "the consumer was cancelled".to_owned();
        if self.delivered.is_empty() {
            let first = tokio::select! {
                () = stop.cancelled() => return Ok(Vec::new()),
                first = timeout(patience, self.consumer.next()) => match first {
                    Ok(first) => first.ok_or_else(ended)?,
                    Err(_) => return Ok(Vec::new()),
                },
            };
            self.delivered.push_back(first.map_err(|error| error.to_string())?);
        }
        let until = Instant::now() + GATHER;
        while self.delivered.len() < BATCH_MAX {
            match tokio::time::timeout_at(until, self.consumer.next()).await {
                Ok(next) => {
                    self.delivered.push_back(next.ok_or_else(ended)?.map_err(|error| error.to_string())?);
                }
                Err(_) => break,
            }
        }
        // All that is in hand is one batch, so that it is given back together where its store is away for long.
        Ok(self.delivered.drain(..).collect())
    }

    /// Takes in what has been delivered meanwhile, so that it is known how much waits here.
    fn take_in(&mut self) {
        while self.delivered.len() < BATCH_MAX
            && let Some(Some(Ok(delivery))) = self.consumer.next().now_or_never()
        {
            self.delivered.push_back(delivery);
        }
    }

    /// The writes that can be applied now. Others go where they belong: behind their key, round the ladder, to the dead.
    async fn sorted(&mut self, gathered: Vec<Delivery>) -> Result<Vec<Held>, String> {
        let now_ms = wall_ms();
        let mut batch = Vec::with_capacity(gathered.len());
        for delivery in gathered {
            self.told.saw(&delivery);
            let bytes = delivery.data.len();
            let writes = match read_all(delivery) {
                Ok(writes) => writes,
                Err(unreadable) => {
                    tracing::error!(lane = self.name, "a queued write cannot be read: {}", unreadable.reason);
                    let in_hand = InHand { taken_at_ms: now_ms, left: 1, bytes_each: bytes };
                    self.in_hand.insert(unreadable.tag, in_hand);
                    self.unreadable.push(*unreadable);
                    continue;
                }
            };
            let oldest_ms = writes.iter().map(|held| held.write.taken_at_ms).min().unwrap_or(now_ms);
            if let Some(first) = writes.first() {
                self.told.handed_ms = self.told.handed_ms.max(first.write.taken_at_ms);
                let left = writes.len();
                let in_hand = InHand { taken_at_ms: oldest_ms, left, bytes_each: bytes / left };
                if sabotage::is(Sabotage::AckFirst) {
                    let acked = self.channel.basic_ack(first.tag, BasicAckOptions::default()).await;
                    acked.map_err(|error| error.to_string())?;
                } else {
                    self.in_hand.insert(first.tag, in_hand);
                }
            }
            for held in writes {
                let ahead_ms = wall_of(held.write.entry.row.version.hlc) - now_ms;
                if ahead_ms > FAR_AHEAD_MS {
                    let reason = format!("its version is {ahead_ms} ms ahead of this worker's clock");
                    self.bury(held, &reason).await?;
                } else if ahead_ms > AHEAD_MS {
                    self.send_round(held, RUNGS.len() - 1).await?;
                } else if let Some(blocked) = self.blocked.get_mut(&held.write.entry.at) {
                    blocked.waiting.push_back(held);
                } else {
                    batch.push(held);
                }
            }
        }
        Ok(batch)
    }

    /// Settles what the store has overtaken already, as a look tells; the rest is to be applied. While requests write to the
    /// same keys it is most of a lane, and applying it would cost locks and a sync for nothing.
    async fn settle_overtaken(&mut self, batch: Vec<Held>) -> Result<Vec<Held>, String> {
        if !self.overtaken_lately || batch.is_empty() {
            return Ok(batch);
        }
        let writes: Vec<_> = batch.iter().map(|held| held.write.clone()).collect();
        let already = {
            let _turn = self.pace.begin_look(writes.len()).await;
            self.target.already(&writes, Instant::now() + APPLY_TIMEOUT).await
        };
        let (mut overtaken, mut rest) = (Vec::new(), Vec::new());
        for (held, already) in batch.into_iter().zip(already) {
            match already {
                Some(Applied::Applied) => overtaken.push((held, Fate::Applied)),
                Some(Applied::Superseded | Applied::Known) => overtaken.push((held, Fate::Superseded)),
                Some(Applied::BelowFloor) | None => rest.push(held),
            }
        }
        self.overtaken_lately = is_much(overtaken.len(), writes.len());
        self.settle(overtaken).await?;
        Ok(rest)
    }

    /// Notes what became of messages, and acknowledges them.
    async fn settle(&mut self, done: Vec<(Held, Fate)>) -> Result<(), String> {
        self.told.settled += done.len() as u64;
        let tags = done.iter().map(|(held, _)| held.tag).collect();
        done.iter().for_each(|(held, _)| self.unblock(&held.write.entry.at));
        let settlements = done.into_iter().map(|(held, fate)| settlement(&held.write, fate)).collect();
        self.queue.settled(settlements).await;
        self.ack(tags).await
    }

    /// Applies a batch until each of it is settled or waits elsewhere. It is in hand since it begun.
    async fn work(
        &mut self,
        mut batch: Vec<Held>,
        begun: Instant,
        stop: &CancellationToken,
    ) -> Result<(), String> {
        let mut pause = DOWN_PAUSE.0;
        while !batch.is_empty() {
            self.tell().await;
            let writes: Vec<_> = batch.iter().map(|held| held.write.clone()).collect();
            let verdicts = {
                let _turn = self.pace.begin(writes.len()).await;
                settle::apply(&*self.target, &writes, Instant::now() + APPLY_TIMEOUT).await
            };
            let (mut done, mut left, mut others) = (Vec::new(), Vec::new(), Vec::new());
            for (held, verdict) in batch.into_iter().zip(verdicts) {
                match verdict {
                    Verdict::Done(fate) => done.push((held, fate)),
                    Verdict::Down(why) => left.push((held, why)),
                    other => others.push((held, other)),
                }
            }
            let overtaken = done.iter().filter(|(_, fate)| *fate == Fate::Superseded).count();
            self.overtaken_lately |= overtaken > 0 && is_much(overtaken, writes.len());
            self.settle(done).await?;
            for (held, verdict) in others {
                match verdict {
                    Verdict::Dead(reason) => self.bury(held, &reason).await?,
                    Verdict::Refused(_) if held.notes.attempt >= REFUSED_ROUNDS => {
                        self.try_alone(held).await?
                    }
                    Verdict::Later(why) | Verdict::Refused(why) => self.block(held, &why).await?,
                    Verdict::Done(_) | Verdict::Down(_) => unreachable!("sorted out above"),
                }
            }
            let why = left.first().map(|(_, why)| why.clone());
            batch = left.into_iter().map(|(held, _)| held).collect();
            let Some(why) = why else { break };
            tracing::debug!(lane = self.name, left = batch.len(), "the store is down: {why}");
            if begun.elapsed() > HELD_MAX {
                return self.recycle(batch).await;
            }
            if !self.wait_for_store(&mut pause, begun + HELD_MAX, stop).await {
                return Ok(());
            }
        }
        Ok(())
    }

    /// A row that was refused for so long is tried once more without those of its key that were merged with it, and is dead if it is
    /// refused again.
    async fn try_alone(&mut self, held: Held) -> Result<(), String> {
        let verdict = {
            let _turn = self.pace.begin(1).await;
            let alone = std::slice::from_ref(&held.write);
            settle::apply(&*self.target, alone, Instant::now() + APPLY_TIMEOUT).await.pop()
        };
        match verdict {
            Some(Verdict::Done(fate)) => self.settle(vec![(held, fate)]).await,
            Some(Verdict::Dead(why) | Verdict::Refused(why)) => self.bury(held, &why).await,
            Some(Verdict::Down(why) | Verdict::Later(why)) => self.block(held, &why).await,
            None => self.block(held, "the store lost a write").await,
        }
    }

    /// Waits while the shard's breaker is open, but no longer than messages may be held; `false` where this worker stops.
    async fn wait_for_store(
        &mut self,
        pause: &mut Duration,
        held_until: Instant,
        stop: &CancellationToken,
    ) -> bool {
        let until = Instant::now() + pause.mul_f64(fastrand::f64());
        self.told.due |= *pause == DOWN_PAUSE.0;
        *pause = (*pause * 2).min(DOWN_PAUSE.1);
        let mut was_away = false;
        loop {
            let away = !self.target.admits(&self.shard);
            if (Instant::now() >= until && !away) || Instant::now() >= held_until {
                break;
            }
            was_away |= away;
            self.tell().await;
            tokio::select! {
                () = stop.cancelled() => return false,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
        self.pace.look(self.target.load(&self.shard));
        if was_away && self.target.admits(&self.shard) {
            self.pace.is_back();
        }
        true
    }

    /// Sends messages that have been in hand for long to the end of their lane.
    async fn recycle(&mut self, batch: Vec<Held>) -> Result<(), String> {
        for held in batch {
            // Its shard may have been renamed since.
            let shard = self.target.shard(&held.write.entry.at).unwrap_or_else(|_| self.shard.clone());
            let sent = self.queue.send_back(&held, &shard).await;
            self.after_sending(held, sent.map_err(|unqueued| format!("{unqueued:?}"))).await?;
        }
        Ok(())
    }

    async fn send_round(&mut self, held: Held, rung: usize) -> Result<(), String> {
        let sent = self.queue.send_round(&held, rung).await;
        self.after_sending(held, sent.map_err(|unqueued| format!("{unqueued:?}"))).await
    }

    /// A message that lies elsewhere now is acknowledged here; one that does not is tried again.
    async fn after_sending(&mut self, held: Held, sent: Result<(), String>) -> Result<(), String> {
        match sent {
            Ok(()) => self.ack(vec![held.tag]).await,
            Err(why) => {
                tracing::debug!(lane = self.name, "a message could not be sent elsewhere: {why}");
                self.wait_behind(held);
                Ok(())
            }
        }
    }

    async fn bury(&mut self, held: Held, reason: &str) -> Result<(), String> {
        let at = held.write.entry.at.clone();
        let version = held.write.entry.row.version;
        tracing::warn!(
            namespace = at.namespace.as_str(), key = crate::model::key::shorten(at.key.as_str()), %version,
            "a queued write is a dead letter: {reason}"
        );
        if self.queue.bury(&held, &self.name, reason).await.is_err() {
            self.wait_behind(held);
            return Ok(());
        }
        let fate = Fate::Dead(reason.to_owned());
        self.queue.settled(vec![settlement(&held.write, fate)]).await;
        self.target.announce(vec![at]).await;
        self.unblock(&held.write.entry.at);
        self.ack(vec![held.tag]).await
    }

    /// Takes note of settled writes by the numbers of their messages. A message whose last it was is acknowledged: several in one
    /// word where nothing before them is in hand.
    async fn ack(&mut self, settled: Vec<u64>) -> Result<(), String> {
        let mut tags = Vec::new();
        for tag in settled {
            let Some(in_hand) = self.in_hand.get_mut(&tag) else { continue };
            in_hand.left -= 1;
            if in_hand.left == 0 {
                self.in_hand.remove(&tag);
                tags.push(tag);
            }
        }
        tags.sort_unstable();
        let Some(last) = tags.last().copied() else { return Ok(()) };
        let all_before = self.in_hand.first_key_value().is_none_or(|(first, _)| *first > last);
        if all_before {
            tags = vec![last];
        }
        for tag in tags {
            let acked = self.channel.basic_ack(tag, BasicAckOptions { multiple: all_before }).await;
            acked.map_err(|error| format!("RabbitMQ: acknowledge: {error}"))?;
        }
        Ok(())
    }

    /// Tells of this lane, once in a while, and at once where it was said to hold nothing and does: applying may take long, and
    /// nothing is said meanwhile.
    async fn tell(&mut self) {
        let elapsed = self.told.at.elapsed();
        let holds_some = !self.in_hand.is_empty() || !self.delivered.is_empty();
        if elapsed < TELL_EVERY && !(self.told.due && holds_some) {
            return;
        }
        self.take_in();
        // Those of the broker are behind what was handed.
        let last_ms = self.delivered.back().map_or(0, taken_second_ms);
        let behind = self.queue.sent.behind(&self.name, self.told.handed_ms.max(last_ms));
        let behind = behind.unwrap_or_else(|| self.told.handed.sizes());
        let word = Word {
            in_hand: (self.in_hand.values().map(|message| message.left).sum::<usize>()
                + self.delivered.iter().map(writes_of).sum::<usize>()) as u64,
            oldest_ms: self.in_hand.values().map(|message| message.taken_at_ms).min().unwrap_or(0),
            rate: self.told.rate_now(elapsed),
            bytes: (self.in_hand.values().map(|message| message.left * message.bytes_each).sum::<usize>()
                + self.delivered.iter().map(|delivery| delivery.data.len()).sum::<usize>())
                as u64,
            bytes_each: behind.bytes_each as u64,
            said_ms: wall_ms(),
            writes_each: behind.writes_each,
        };
        self.told =
            Told { at: Instant::now(), due: word.in_hand == 0, settled: 0, rate: word.rate, ..self.told };
        self.queue.lanes.tell(&self.name, word).await;
    }
}

/// Whether so many of all are worth a look of their own.
fn is_much(some: usize, all: usize) -> bool {
    some * 4 >= all
}
