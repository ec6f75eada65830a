//! Who is told what became of a write on its way into the queue, and in which words.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::model::reply::{Durability, WriteReply};
use crate::model::{Code, Error, Outcome, Version};
use crate::queue::Waits;

/// Who waits for a write without a task of his own.
pub trait Caller: Send + Sync {
    /// Gets the answer, at most once.
    fn tell(&self, reply: WriteReply);

    /// Whether he has got one, or stopped waiting.
    fn is_gone(&self) -> bool;
}

/// Where the answer to a write goes. One that is lost by a defect is told so.
pub(super) struct Answer(Option<To>);

enum To {
    Task(oneshot::Sender<WriteReply>),
    Caller(Arc<dyn Caller>),
}

impl Answer {
    pub(super) fn task(sender: oneshot::Sender<WriteReply>) -> Self {
        Self(Some(To::Task(sender)))
    }

    pub(super) fn caller(caller: Arc<dyn Caller>) -> Self {
        Self(Some(To::Caller(caller)))
    }

    pub(super) fn tell(mut self, reply: WriteReply) {
        match self.0.take() {
            // Whoever stopped waiting has been told that nobody knows.
            Some(To::Task(sender)) => drop(sender.send(reply)),
            Some(To::Caller(caller)) => caller.tell(reply),
            None => {}
        }
    }

    /// Nobody is told anything.
    pub(super) fn cancel(mut self) {
        self.0 = None;
    }

    pub(super) fn is_gone(&self) -> bool {
        match &self.0 {
            Some(To::Task(sender)) => sender.is_closed(),
            Some(To::Caller(caller)) => caller.is_gone(),
            None => true,
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(To::Caller(caller)) = self.0.take() {
            caller.tell(defect());
        }
    }
}

/// The answer to a write whose batch broke.
pub(super) fn defect() -> WriteReply {
    Error::indeterminate("a defect in the worker; its log says more").into()
}

/// The answer to a write that its backend did not take, for this reason, and the queue not either. What was tried and not answered may
/// have happened, whatever became of it then.
pub(super) fn not_queued(why: &Error, error: impl FnOnce(&str) -> Error) -> WriteReply {
    let error = error(&why.message);
    match why.code {
        Code::Indeterminate => Error::indeterminate(format!("{}; {}", why.message, error.message)).into(),
        _ => error.into(),
    }
}

/// The answer to a write that is queued.
pub(super) fn queued(version: Version, seen: bool) -> WriteReply {
    WriteReply {
        error: None,
        outcome: Outcome::Queued,
        version: Some(version),
        durability: Durability::Queue,
        duplicate: false,
        read_your_write: seen,
        record: None,
        existed: None,
    }
}

/// The answer to an operation that is queued already.
pub(super) fn known(version: Version, pending: &Waits) -> WriteReply {
    // One that was overwritten since has no version to go on from.
    let version = Some(version).filter(|version| *version == pending.version);
    WriteReply { version, duplicate: true, ..queued(pending.version, true) }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Told(Mutex<Vec<Outcome>>);

    impl Caller for Told {
        fn tell(&self, reply: WriteReply) {
            self.0.lock().unwrap().push(reply.outcome);
        }

        fn is_gone(&self) -> bool {
            false
        }
    }

    #[test]
    fn a_caller_is_told_once_also_when_his_batch_broke_and_never_of_what_did_not_enter() {
        let outcomes = |use_it: fn(Answer)| {
            let told = Arc::new(Told::default());
            use_it(Answer::caller(told.clone()));
            std::mem::take(&mut *told.0.lock().unwrap())
        };
        let answered = outcomes(|answer| answer.tell(queued(Version { hlc: 1, origin: 2 }, true)));
        assert_eq!(answered, [Outcome::Queued]);
        assert_eq!(outcomes(drop), [Outcome::Indeterminate]);
        assert_eq!(outcomes(Answer::cancel), []);
    }
}
