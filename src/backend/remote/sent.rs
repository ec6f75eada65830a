//! Whether a statement that writes may be under way, as who sends it and who waits for it agree on it.
//!
//! Who waits no longer says so, and learns whether it can have happened; from then on nothing is sent any more. So a write
//! that ran out of time before anything left is told to be one that did not happen, which it is.

use std::sync::atomic::{AtomicU8, Ordering};

use super::Fault;
use crate::model::Code;

const NOTHING: u8 = 0;
const SENT: u8 = 1;
const GIVEN_UP: u8 = 2;

/// See the module.
#[derive(Debug, Default)]
pub(in crate::backend) struct Sent(AtomicU8);

impl Sent {
    /// A statement leaves now; `false` where nobody waits for it, and it must not.
    pub(in crate::backend) fn begin(&self) -> bool {
        self.0.compare_exchange(NOTHING, SENT, Ordering::AcqRel, Ordering::Acquire) != Err(GIVEN_UP)
    }

    /// The statement has ended; where that is known to have changed nothing, it may leave again.
    pub(in crate::backend) fn ended<T>(&self, outcome: &Result<T, Fault>) {
        if !outcome.as_ref().is_err_and(|fault| fault.error.code == Code::Indeterminate) {
            // Where it was given up meanwhile, that stays.
            let _ = self.0.compare_exchange(SENT, NOTHING, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    /// Nobody waits any more. Whether something may have happened.
    pub(in crate::backend) fn give_up(&self) -> bool {
        self.0.swap(GIVEN_UP, Ordering::AcqRel) == SENT
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::remote::Remedy;
    use crate::model::Error;

    #[test]
    fn what_never_left_did_not_happen_and_what_is_given_up_does_not_leave() {
        let sent = Sent::default();
        assert!(!sent.give_up() && !sent.begin());
        let sent = Sent::default();
        assert!(sent.begin() && sent.give_up() && !sent.begin());
    }

    #[test]
    fn what_is_known_not_to_have_happened_can_be_sent_again() {
        let sent = Sent::default();
        assert!(sent.begin());
        let error = |error| Err::<(), _>(Fault { error, remedy: Remedy::Again });
        sent.ended(&error(Error::unavailable("refused", 1)));
        assert!(sent.begin());
        sent.ended(&error(Error::indeterminate("cut off")));
        assert!(sent.give_up());
    }
}
