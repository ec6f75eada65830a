//! Repeats: one more try of a call of which nothing at all happened.
//!
//! It never repeats what may have happened, what was refused for good, a call of which a part succeeded (two writes of
//! one key would change places), or what an open breaker refused; and no more often than its budget allows.

use std::time::Duration;

use tokio::time::Instant;

use crate::model::budget::Budget;
use crate::model::{Code, Result};

/// The pause before a repeat is a random part of this ("full jitter").
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// See the module.
#[derive(Default)]
pub(super) struct Repeats {
    budget: Budget,
}

impl Repeats {
    /// Waits before a repeat; `false` where there must be none.
    pub(super) async fn after<T>(&self, done: &[Result<T>], deadline: Instant) -> bool {
        let down = |one: &Result<T>| one.as_ref().is_err_and(|error| error.code == Code::Unavailable);
        if !done.iter().all(down) || done.is_empty() {
            self.budget.succeeded();
            return false;
        }
        let pause = PAUSE_MAX.mul_f64(fastrand::f64());
        if Instant::now() + pause >= deadline || !self.budget.take() {
            return false;
        }
        tokio::time::sleep(pause).await;
        true
    }
}
