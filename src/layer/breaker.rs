//! Circuit breaker: stops asking what is down, looks after it, and lets requests back in step by step.
//!
//! Closed: all pass. Five refused connections in a row, or half of at least 20 calls of the last 10 s failed: open.
//! Open: all are refused at once, for 0.5 s, twice as long after each failure, up to a limit; each pause is a random
//! part of that, and ends early when the backend itself sees its shard come back. Half-open: three probes must
//! succeed, none of which is a request. Ramp: a tenth of the places at first, all of them after 10 s; then closed.
//!
//! Only what says something of the whole server counts: not conflicts, not slots that move, not keys whose replicas are away,
//! not puts where there is no room but for deletes, not a caller in a hurry.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::bulkhead::Bulkhead;
use crate::model::{Code, Error, Result, Scope};

/// Refused connections in a row that open it.
const REFUSED_MAX: u32 = 5;
/// The window looks back so many seconds.
const WINDOW_SECONDS: u64 = 10;
/// Calls in the window without which nothing is said.
const WINDOW_CALLS_MIN: u32 = 20;
/// The first pause.
const OPEN_FIRST: Duration = Duration::from_millis(500);
/// Between two looks at what the backend itself sees.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Probes in a row that must succeed.
const PROBES: u32 = 3;
/// Steps in which places are given back, and how long each lasts.
const RAMP_STEPS: usize = 10;
const RAMP_STEP: Duration = Duration::from_secs(1);
/// A caller who gave less time than this says nothing of the server.
const HURRY: Duration = Duration::from_millis(50);

const CLOSED: u8 = 0;
const OPEN: u8 = 1;
const HALF_OPEN: u8 = 2;
const RAMP: u8 = 3;

/// See the module.
pub(super) struct Breaker {
    name: String,
    state: AtomicU8,
    window: Window,
    refused: AtomicU32,
    opened: Notify,
    why: Mutex<Why>,
    born: Instant,
}

/// Why it is open, and until when nobody is asked.
#[derive(Debug, Clone, Default)]
struct Why {
    message: String,
    until: Option<Instant>,
}

/// Calls of the last seconds. A second that is begun twice at once may lose a count: nothing hangs on one.
#[derive(Default)]
struct Window {
    seconds: [Second; WINDOW_SECONDS as usize],
}

#[derive(Default)]
struct Second {
    number: AtomicU64,
    calls: AtomicU32,
    failures: AtomicU32,
}

/// What a failure says of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Says {
    /// Nothing.
    Nothing,
    /// It did not do what it was asked.
    Failed,
    /// It is not there.
    Refused,
}

impl Breaker {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            state: AtomicU8::new(CLOSED),
            window: Window::default(),
            refused: AtomicU32::new(0),
            opened: Notify::new(),
            why: Mutex::default(),
            born: Instant::now(),
        }
    }

    /// Whether a call may be made now, and why not.
    pub(super) fn admit(&self) -> Result<()> {
        if self.admits() { Ok(()) } else { Err(self.refusal()) }
    }

    /// Whether a call may be made now.
    pub(super) fn admits(&self) -> bool {
        matches!(self.state.load(Ordering::Acquire), CLOSED | RAMP)
    }

    /// Takes note of what a call came to.
    pub(super) fn record<T>(&self, done: &[Result<T>], begun: Instant, deadline: Instant) {
        let hurried = deadline.saturating_duration_since(begun) < HURRY;
        let failed = done.iter().filter_map(|one| one.as_ref().err());
        let worst = failed.map(|error| (says(error, hurried), error)).max_by_key(|(says, _)| *says as u8);
        let second = begun.saturating_duration_since(self.born).as_secs() + WINDOW_SECONDS;
        match worst {
            None | Some((Says::Nothing, _)) => {
                self.window.count(second, false);
                // Nearly always it is 0 already, and then nobody's cache line is taken away.
                if self.refused.load(Ordering::Relaxed) != 0 {
                    self.refused.store(0, Ordering::Relaxed);
                }
            }
            Some((says, error)) => {
                self.window.count(second, true);
                let refused = match says {
                    Says::Refused => self.refused.fetch_add(1, Ordering::Relaxed) + 1,
                    _ => 0,
                };
                if refused >= REFUSED_MAX || self.window.is_bad(second) {
                    self.open(error);
                }
            }
        }
    }

    /// A word for its state, and why it is not closed.
    pub(super) fn state(&self) -> (&'static str, String) {
        let word = match self.state.load(Ordering::Acquire) {
            CLOSED => return ("closed", String::new()),
            OPEN => "open",
            HALF_OPEN => "half-open",
            _ => "ramp",
        };
        (word, self.why.lock().unwrap_or_else(PoisonError::into_inner).message.clone())
    }

    fn open(&self, error: &Error) {
        for from in [CLOSED, RAMP] {
            if self.state.compare_exchange(from, OPEN, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                tracing::warn!("{}: not asked for a while: {}", self.name, error.message);
                let why = Why { message: error.message.clone(), until: None };
                *self.why.lock().unwrap_or_else(PoisonError::into_inner) = why;
                self.opened.notify_one();
            }
        }
    }

    fn refusal(&self) -> Error {
        let why = self.why.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let left = why.until.map_or(OPEN_FIRST, |until| until.saturating_duration_since(Instant::now()));
        let retry_ms = i64::try_from(left.as_millis()).unwrap_or(i64::MAX).max(1);
        // Another request has just opened it, and is about to say why.
        let message = if why.message.is_empty() { "it failed lately" } else { &why.message };
        Error::unavailable(format!("{message} (circuit open: {})", self.name), retry_ms)
    }

    fn close(&self) {
        self.window.clear();
        self.refused.store(0, Ordering::Relaxed);
    }
}

/// The task that looks after an open breaker.
pub(super) struct Recovery {
    pub(super) breaker: Arc<Breaker>,
    pub(super) bulkhead: Bulkhead,
    pub(super) open_max: Duration,
    /// Whether the shard answers.
    pub(super) probe: Box<dyn Fn() -> BoxFuture<'static, bool> + Send + Sync>,
    /// Whether the backend itself takes it for well.
    pub(super) well: Box<dyn Fn() -> bool + Send + Sync>,
}

impl Recovery {
    /// Runs until it is told to stop.
    pub(super) async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.look_after() => {}
        }
    }

    async fn look_after(&self) {
        let mut failures = 0;
        loop {
            self.breaker.opened.notified().await;
            loop {
                if self.wait(failures).await {
                    // It is there again, so what fails now fails for another reason, and not for long.
                    failures = 0;
                }
                self.breaker.state.store(HALF_OPEN, Ordering::Release);
                if self.answers().await {
                    break;
                }
                failures += 1;
                self.breaker.state.store(OPEN, Ordering::Release);
            }
            match self.ramp().await {
                true => failures = 0,
                false => failures += 1,
            }
        }
    }

    /// The pause of an open breaker; whether it ended because the backend saw its shard come back.
    async fn wait(&self, failures: u32) -> bool {
        let most = OPEN_FIRST.saturating_mul(1 << failures.min(16)).min(self.open_max);
        let until = Instant::now() + most.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.breaker.why.lock().unwrap_or_else(PoisonError::into_inner).until = Some(until);
        let mut was_down = !(self.well)();
        while Instant::now() < until {
            tokio::time::sleep_until(until.min(Instant::now() + LOOK_EVERY)).await;
            let well = (self.well)();
            if was_down && well {
                return true;
            }
            was_down |= !well;
        }
        false
    }

    async fn answers(&self) -> bool {
        for _ in 0..PROBES {
            if !(self.probe)().await {
                return false;
            }
        }
        true
    }

    /// Gives the places back step by step; `false` where it opened again meanwhile.
    async fn ramp(&self) -> bool {
        let mut held = self.bulkhead.hold(RAMP_STEPS - 1, RAMP_STEPS).await;
        self.breaker.close();
        self.breaker.state.store(RAMP, Ordering::Release);
        tracing::info!("{}: it answers; letting requests back in", self.breaker.name);
        for left in (0..RAMP_STEPS - 1).rev() {
            tokio::select! {
                () = tokio::time::sleep(RAMP_STEP) => {}
                // Its pause begins now, not with the next step. Whoever waits for it to open is to hear of it, too.
                () = self.breaker.opened.notified() => self.breaker.opened.notify_one(),
            }
            if self.breaker.state.load(Ordering::Acquire) != RAMP {
                return false;
            }
            held.keep(left, RAMP_STEPS);
        }
        self.breaker.state.compare_exchange(RAMP, CLOSED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// What an error says of the server.
fn says(error: &Error, hurried: bool) -> Says {
    match error.code {
        _ if error.scope != Scope::Server => Says::Nothing,
        Code::Unavailable => Says::Refused,
        Code::Indeterminate => Says::Failed,
        Code::DeadlineExceeded if !hurried => Says::Failed,
        _ => Says::Nothing,
    }
}

// === impl Window ===

impl Window {
    fn count(&self, number: u64, failed: bool) {
        let second = &self.seconds[(number % WINDOW_SECONDS) as usize];
        if second.number.load(Ordering::Acquire) != number
            && second.number.swap(number, Ordering::AcqRel) != number
        {
            second.calls.store(0, Ordering::Relaxed);
            second.failures.store(0, Ordering::Relaxed);
        }
        second.calls.fetch_add(1, Ordering::Relaxed);
        if failed {
            second.failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether half of enough calls failed.
    fn is_bad(&self, number: u64) -> bool {
        let lately = self.seconds.iter().filter(|second| {
            let then = second.number.load(Ordering::Acquire);
            then + WINDOW_SECONDS > number
        });
        let (calls, failures) = lately.fold((0, 0), |(calls, failures), second| {
            let (more, failed) = (&second.calls, &second.failures);
            (calls + more.load(Ordering::Relaxed), failures + failed.load(Ordering::Relaxed))
        });
        calls >= WINDOW_CALLS_MIN && failures * 2 >= calls
    }

    fn clear(&self) {
        for second in &self.seconds {
            second.calls.store(0, Ordering::Relaxed);
            second.failures.store(0, Ordering::Relaxed);
        }
    }
}
