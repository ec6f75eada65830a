//! The invalidation bus: every worker tells all others which keys it wrote, and notices when it may have missed something.
//!
//! NATS delivers at most once, so each sender numbers its messages and repeats its last number in a heartbeat. A receiver
//! trusts its copies for `eventual` reads up to a moment, [`Heard::sure_until`], which moves on only while it hears everybody,
//! itself included:
//! - its own heartbeats come back. One that was sent at `t` and has come back means that all the server had for us before `t` has
//!   been worked off; a worker that was paused, or cut off without an error, does not trust what it has before it caught up;
//! - every known sender was heard within [`SILENT`], until it says goodbye or has been silent for [`FORGOTTEN`].
//!
//! Where a number is missing, everything kept so far is read again before it is used ([`Heard::floor`]): read again when
//! it is asked for, not thrown away, because throwing all away would send all readers to the backend at once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::connection::State;
use futures_util::StreamExt;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Micros;
use super::floors::Floors;
use super::message::{self, ANNOUNCED_BYTES_MAX, Announced, Head, Kind};
use crate::client::connect::NatsSettings;
use crate::link::together::{Together, Unanswered};
use crate::model::clock::{HybridClock, wall_ms};
use crate::model::sabotage::{self, Sabotage};
use crate::model::{Error, Result};

/// Between two signs of life.
pub(super) const HEARTBEAT: Duration = Duration::from_millis(500);
/// Who was not heard for so long may have said what did not arrive.
const SILENT: Duration = Duration::from_millis(1500);
/// Whose own heartbeats do not come back for so long cannot tell what it writes.
const SPEECHLESS: Duration = Duration::from_secs(5);
/// Announcements of one message.
const ANNOUNCED_MAX: usize = 256;
/// Bound on handing a message to the connection.
const PUBLISH_TIMEOUT: Duration = Duration::from_millis(50);
/// Bound on waiting until announcements are handed over, whoever is before them.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(5);
/// Messages that wait to be worked off; one that does not fit is a gap.
const CAPACITY: usize = 65_536;
/// Senders kept in mind; one beyond that is not listened to, so that copies are not trusted.
const SENDERS_MAX: usize = 4096;
/// Between two tries to subscribe.
const SUBSCRIBE_PAUSE: Duration = Duration::from_millis(100);

const _: () =
    assert!(ANNOUNCED_MAX * ANNOUNCED_BYTES_MAX < 512 * 1024, "a message fits the server's default limit");

/// A worker's end of the bus.
pub struct Bus {
    voice: Arc<Voice>,
    /// Whoever comes while a message is handed over joins the next one: a crowd shares messages.
    announcing: Announcing,
    heard: Arc<Heard>,
    stop: CancellationToken,
}

/// Announcements of one write, or of a batch's; nobody waits for them longer than that.
type Announcing = Together<Vec<Announced>, (), ()>;

/// What it says.
struct Voice {
    client: async_nats::Client,
    subject: String,
    origin: u64,
    clock: Arc<HybridClock>,
    /// The number of the last message; held while one is handed over.
    last: tokio::sync::Mutex<u64>,
}

/// What it has heard.
struct Heard {
    sure_until: AtomicU64,
    floor: AtomicU64,
    /// What comes next may not follow what came last: a new connection, or messages that did not fit.
    torn: AtomicBool,
    gaps: AtomicU64,
    /// The other workers that were heard lately.
    others: Mutex<Vec<u64>>,
    /// When the last own heartbeat was sent that came back.
    echoed: AtomicU64,
    floors: Arc<Floors>,
}

/// Another worker.
struct Sender {
    sequence: u64,
    heard: Micros,
}

impl Bus {
    /// The bus of a prefix, on a connection of its own: what waits on the one for requests must not hold it up.
    pub(super) async fn open(
        nats: &NatsSettings,
        origin: u64,
        clock: Arc<HybridClock>,
        floors: Arc<Floors>,
    ) -> Result<Self> {
        let heard = Arc::new(Heard::new(floors));
        let told = heard.clone();
        let unusable = |what: &str, error: String| Error::unavailable(format!("NATS: {what}: {error}"), 0);
        let options = nats.options().await.map_err(|error| unusable("credentials", error.to_string()))?;
        let client = options
            .name(format!("datastore {origin:016x} invalidation"))
            .subscription_capacity(CAPACITY)
            .retry_on_initial_connect()
            .event_callback(move |event| {
                let torn = matches!(event, async_nats::Event::Connected | async_nats::Event::SlowConsumer(_));
                if torn {
                    told.torn.store(true, Ordering::Release);
                }
                async {}
            })
            .connect(nats.servers())
            .await
            .map_err(|error| unusable("cannot be used", error.to_string()))?;
        let voice = Arc::new(Voice {
            client,
            subject: format!("{}.inv", nats.subject_prefix),
            origin,
            clock,
            last: tokio::sync::Mutex::new(0),
        });
        let told = voice.clone();
        let announcing = Together::new(
            ANNOUNCED_MAX,
            true,
            Box::new(move |each: Vec<Vec<Announced>>| {
                let voice = told.clone();
                Box::pin(async move {
                    let count = each.len();
                    voice.announce(each.into_iter().flatten().collect()).await;
                    Ok(vec![(); count])
                })
            }),
        );
        Ok(Self { voice, announcing, heard, stop: CancellationToken::new() })
    }

    /// Starts to listen and to give signs of life. `each` is called for every announcement of another worker.
    pub(super) fn listen(&self, each: impl Fn(&Announced) + Send + Sync + 'static) {
        let (voice, heard, stop) = (self.voice.clone(), self.heard.clone(), self.stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = listen(&voice, &heard, each) => {}
            }
        });
        let (voice, stop) = (self.voice.clone(), self.stop.clone());
        tokio::spawn(async move {
            let mut beat = tokio::time::interval(HEARTBEAT);
            beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    _ = beat.tick() => {
                        voice.say(Kind::Heartbeat).await;
                    }
                }
            }
        });
    }

    /// Tells all others. Returns once the message is on its way, or cannot be: then its number will be missed.
    pub(super) async fn announce(&self, announced: Vec<Announced>) {
        for each in announced.iter().filter(|each| each.missed.is_some()) {
            self.heard.floors.raise(each.hash);
        }
        if !announced.is_empty() {
            // One that is late is still told, in its turn; without a turn it is told here.
            if let Err(Unanswered::Full(announced)) = self.announcing.ask(announced, ANNOUNCE_TIMEOUT).await {
                let voice = self.voice.clone();
                // On a task of its own: whoever gives up meanwhile has written all the same.
                drop(tokio::spawn(async move { voice.announce(announced).await }).await);
            }
        }
    }

    /// Whether a copy in memory, current at `as_of` at the earliest, has outlived no announcement that was missed.
    pub(super) fn is_sure(&self, as_of: Micros, now: Micros) -> bool {
        now.0 <= self.heard.sure_until.load(Ordering::Acquire)
            && as_of.0 >= self.heard.floor.load(Ordering::Acquire)
    }

    /// Whether what this worker says can be heard: its own heartbeats come back.
    pub(super) fn is_heard(&self) -> bool {
        let echoed = Micros(self.heard.echoed.load(Ordering::Acquire));
        Micros::now().since(echoed) <= SPEECHLESS
    }

    /// Whether all others are heard.
    pub(super) fn health(&self) -> Result<String, String> {
        let gaps = self.heard.gaps.load(Ordering::Relaxed);
        match Micros::now().0 <= self.heard.sure_until.load(Ordering::Acquire) {
            true => Ok(format!("all workers are heard; {gaps} gaps so far")),
            false => Err(format!("not all workers are heard; {gaps} gaps so far")),
        }
    }

    /// The workers that live, this one among them; none while it does not hear itself.
    pub(super) fn workers(&self) -> Vec<u64> {
        if Micros::now().since(Micros(self.heard.echoed.load(Ordering::Acquire))) > SILENT {
            return Vec::new();
        }
        let mut workers = self.heard.others.lock().unwrap_or_else(PoisonError::into_inner).clone();
        workers.push(self.voice.origin);
        workers
    }

    /// Says goodbye, if all that was written is told: else the others are to notice that this worker is silent.
    pub(super) async fn close(&self, all_told: bool) {
        self.stop.cancel();
        // Behind all that were announced before.
        let _ = self.announcing.ask(Vec::new(), ANNOUNCE_TIMEOUT).await;
        if all_told {
            self.voice.say(Kind::Goodbye).await;
        }
        drop(timeout(PUBLISH_TIMEOUT, self.voice.client.flush()).await);
    }
}

// === impl Voice ===

impl Voice {
    async fn announce(&self, announced: Vec<Announced>) {
        let mut last = self.last.lock().await;
        for part in announced.chunks(ANNOUNCED_MAX) {
            *last += 1;
            self.send(message::encode(self.head(Kind::Announcements, *last), part)).await;
        }
    }

    async fn say(&self, kind: Kind) {
        let last = self.last.lock().await;
        self.send(message::encode(self.head(kind, *last), &[])).await;
    }

    fn head(&self, kind: Kind, sequence: u64) -> Head {
        let clock = self.clock.now(wall_ms());
        Head { kind, origin: self.origin, sequence, clock, sent: Micros::now() }
    }

    /// Without a connection nothing is sent: what would wait for one is old by then, and its number tells that it is missing.
    async fn send(&self, message: Vec<u8>) {
        if self.client.connection_state() != State::Connected {
            return;
        }
        let sent = self.client.publish(self.subject.clone(), message.into());
        if !matches!(timeout(PUBLISH_TIMEOUT, sent).await, Ok(Ok(()))) {
            tracing::debug!("an announcement could not be sent");
        }
    }
}

// === impl Heard ===

impl Heard {
    fn new(floors: Arc<Floors>) -> Self {
        Self {
            sure_until: AtomicU64::new(0),
            floor: AtomicU64::new(0),
            torn: AtomicBool::new(true),
            gaps: AtomicU64::new(0),
            others: Mutex::default(),
            echoed: AtomicU64::new(Micros::now().0),
            floors,
        }
    }

    fn gap(&self) {
        if sabotage::is(Sabotage::Gaps) {
            return;
        }
        self.gaps.fetch_add(1, Ordering::Relaxed);
        self.floor.fetch_max(Micros::now().0, Ordering::AcqRel);
    }
}

/// Works off what comes, on one subscription after another.
async fn listen(voice: &Voice, heard: &Heard, each: impl Fn(&Announced)) {
    let mut senders: HashMap<u64, Sender> = HashMap::new();
    loop {
        let subscribed = timeout(HEARTBEAT, voice.client.subscribe(voice.subject.clone())).await;
        if let Ok(Ok(mut messages)) = subscribed {
            while let Some(message) = messages.next().await {
                if sabotage::is(Sabotage::DropInvalidations) && fastrand::u32(..10) == 0 {
                    continue;
                }
                if let Some((head, announced)) = message::decode(&message.payload) {
                    take(voice, heard, &mut senders, head, &announced, &each);
                }
            }
        }
        tokio::time::sleep(SUBSCRIBE_PAUSE).await;
    }
}

fn take(
    voice: &Voice,
    heard: &Heard,
    senders: &mut HashMap<u64, Sender>,
    head: Head,
    announced: &[Announced],
    each: &impl Fn(&Announced),
) {
    if head.origin == voice.origin {
        if head.kind == Kind::Heartbeat {
            echoed(heard, senders, head.sent);
        }
        return;
    }
    voice.clock.merge(head.clock, wall_ms());
    let now = Micros::now();
    // Before the numbers are compared: whoever sees that nothing is missing must find it done.
    for one in announced {
        if one.missed.is_some() {
            heard.floors.raise(one.hash);
        }
        each(one);
    }
    let expected = match head.kind {
        Kind::Announcements => head.sequence.saturating_sub(1),
        Kind::Heartbeat | Kind::Goodbye => head.sequence,
    };
    match senders.get_mut(&head.origin) {
        Some(sender) => {
            if sender.sequence != expected {
                heard.gap();
            }
            *sender = Sender { sequence: head.sequence, heard: now };
        }
        None => {
            if expected > 0 {
                heard.gap();
            }
            if senders.len() < SENDERS_MAX {
                senders.insert(head.origin, Sender { sequence: head.sequence, heard: now });
            }
        }
    }
    if head.kind == Kind::Goodbye {
        senders.remove(&head.origin);
    }
}

/// The own heartbeat of `sent` has come back: what the server had for us before it has been worked off.
fn echoed(heard: &Heard, senders: &mut HashMap<u64, Sender>, sent: Micros) {
    if heard.torn.swap(false, Ordering::AcqRel) {
        heard.gap();
    }
    heard.echoed.fetch_max(sent.0, Ordering::AcqRel);
    let now = Micros::now();
    let known = senders.len();
    senders.retain(|_, sender| now.since(sender.heard) < FORGOTTEN);
    if senders.len() < known {
        // What it wrote last may never have been announced.
        heard.gap();
    }
    let lately = senders.iter().filter(|(_, sender)| now.since(sender.heard) < SILENT);
    *heard.others.lock().unwrap_or_else(PoisonError::into_inner) =
        lately.map(|(origin, _)| *origin).collect();
    let silent = u64::try_from(SILENT.as_micros()).expect("seconds");
    let oldest = senders.values().map(|sender| sender.heard).min().unwrap_or(now);
    let sure_until = oldest.min(sent).0 + silent;
    // More senders than are kept in mind: some of them may be silent.
    let sure_until = if senders.len() < SENDERS_MAX { sure_until } else { 0 };
    heard.sure_until.store(sure_until, Ordering::Release);
}

/// A sender that was silent for so long is gone for good: no request that it had in hand can still be at work.
const FORGOTTEN: Duration = Duration::from_secs(60);
