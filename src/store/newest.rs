//! Who may say that his writes are the newest that his worker notes of their keys: one batch at a time of those whose slots have the same
//! lane, whatever shard they are on, from before it looks until it is known that what it noted is there. So the next one's versions are
//! above it.
//!
//! Where it is not known, the call may come late, over a connection that was given up. For [`UNSURE`] nobody says so then.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long something may be under way to Redis and be carried out all the same. A document that comes later still takes the place of a
/// newer one: what is pending on its key is not known to reads then, until it is written again or applied.
const UNSURE: Duration = Duration::from_secs(60);

/// Of one lane. See the module.
#[derive(Default)]
pub(super) struct Newest(Mutex<State>);

#[derive(Default)]
struct State {
    is_said: bool,
    unsure_until: Option<Instant>,
}

/// The right to say so; given back when dropped.
pub(super) struct Say {
    newest: Arc<Newest>,
    is_unsure: bool,
}

impl Newest {
    /// The right, unless another has it, or nobody knows what is under way.
    pub(super) fn say(self: &Arc<Self>) -> Option<Say> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.is_said || state.unsure_until.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        *state = State { is_said: true, unsure_until: None };
        Some(Say { newest: self.clone(), is_unsure: false })
    }
}

impl Say {
    /// From here on nobody knows what is noted.
    pub(super) fn begins(&mut self) {
        self.is_unsure = true;
    }

    /// It is noted.
    pub(super) fn ended(&mut self) {
        self.is_unsure = false;
    }
}

impl Drop for Say {
    fn drop(&mut self) {
        let mut state = self.newest.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = State { is_said: false, unsure_until: self.is_unsure.then(|| Instant::now() + UNSURE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_at_a_time_says_so_and_nobody_while_something_may_come_late() {
        let newest = Arc::<Newest>::default();
        let mut first = newest.say().unwrap();
        assert!(newest.say().is_none(), "it is said");
        first.begins();
        first.ended();
        drop(first);
        let second = newest.say().unwrap();
        drop(second);
        let mut third = newest.say().expect("the second noted nothing");
        third.begins();
        drop(third);
        assert!(newest.say().is_none(), "it may come late");
        tokio::time::sleep(UNSURE).await;
        assert!(newest.say().is_some());
    }
}
