//! How old what a replica shows is at most.
//!
//! A replica cannot say by itself how far behind it is. So the worker notes now and then, by its own clock, how far the
//! primary's log has come. Whatever was acknowledged before such a note lies in the log before that position, and a replica that
//! has passed the position shows it.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Between two notes of the primary's position, and two looks at a replica.
pub(in crate::backend) const NOTE_EVERY: Duration = Duration::from_millis(250);
/// Notes kept: 17 minutes. A replica that is further behind is not read from.
const NOTES_MAX: usize = 4096;

/// How far a server's log has come. Positions are comparable on one line alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::backend) struct Position<L> {
    /// Which log: the servers' own name of it, and of its part since the last one became the primary.
    pub(in crate::backend) line: L,
    /// Bytes of log.
    pub(in crate::backend) at: i64,
}

/// How far the primary's log had come, when.
pub(in crate::backend) struct History<L> {
    /// What the notes are of.
    line: Option<L>,
    /// In order of both.
    notes: VecDeque<(Instant, i64)>,
    /// The primary's clock at, or after, a moment here.
    clock: Option<(Instant, i64)>,
}

impl<L> Default for History<L> {
    fn default() -> Self {
        Self { line: None, notes: VecDeque::new(), clock: None }
    }
}

impl<L: PartialEq> History<L> {
    /// Notes a position that the primary told after `asked`, and its time.
    pub(in crate::backend) fn note(&mut self, asked: Instant, position: Position<L>, server_ms: i64) {
        // Another primary took over, or this one was set back: what was noted says nothing of this log.
        let went_back = self.notes.back().is_some_and(|(_, at)| *at > position.at);
        if self.line.as_ref() != Some(&position.line) || went_back {
            self.notes.clear();
            self.line = Some(position.line);
        }
        // Of positions that are the same, the newest note counts, and the one before keeps the order.
        if self.notes.back().is_some_and(|(_, at)| *at == position.at) {
            self.notes.pop_back();
        }
        if self.notes.len() == NOTES_MAX {
            self.notes.pop_front();
        }
        self.notes.push_back((asked, position.at));
        self.clock = Some((asked, server_ms));
    }

    /// Since when at the latest a replica at this position has everything; `None` where nobody knows.
    pub(in crate::backend) fn as_of(&self, position: &Position<L>) -> Option<Instant> {
        if self.line.as_ref() != Some(&position.line) {
            return None;
        }
        let passed = self.notes.partition_point(|(_, at)| *at <= position.at);
        self.notes.get(passed.checked_sub(1)?).map(|(asked, _)| *asked)
    }

    /// The primary's time now, never less than it is.
    pub(in crate::backend) fn now_ms(&self) -> Option<i64> {
        let (asked, server_ms) = self.clock?;
        Some(server_ms.saturating_add(i64::try_from(asked.elapsed().as_millis()).unwrap_or(i64::MAX)))
    }

    /// Which log the notes are of, once there are any.
    pub(in crate::backend) fn line(&self) -> Option<&L> {
        self.line.as_ref()
    }

    /// Whether nothing was noted yet.
    pub(in crate::backend) fn is_empty(&self) -> bool {
        self.notes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(at: i64) -> Position<(u8, u8)> {
        Position { line: (7, 1), at }
    }

    #[tokio::test(start_paused = true)]
    async fn a_replica_is_as_new_as_the_last_note_it_has_passed() {
        let mut history = History::default();
        assert_eq!(history.as_of(&at(100)), None);
        let begun = Instant::now();
        let after = |ms| begun + Duration::from_millis(ms);
        for (ms, position) in [(0, 100), (250, 200), (500, 200), (750, 300)] {
            history.note(after(ms), at(position), 1000);
        }
        assert_eq!(history.as_of(&at(99)), None);
        assert_eq!(history.as_of(&at(100)), Some(begun));
        assert_eq!(history.as_of(&at(199)), Some(begun));
        // Nothing was written between two notes of one position, so the later one holds.
        assert_eq!(history.as_of(&at(200)), Some(after(500)));
        assert_eq!(history.as_of(&at(1000)), Some(after(750)));
        assert_eq!(history.as_of(&Position { line: (7, 2), at: 1000 }), None);
        assert_eq!(history.as_of(&Position { line: (8, 1), at: 1000 }), None);
    }

    #[tokio::test(start_paused = true)]
    async fn notes_die_with_their_line_and_when_the_log_goes_back() {
        let begun = Instant::now();
        let mut history = History::default();
        history.note(begun, at(500), 0);
        let next = |at| Position { line: (7, 2), at };
        history.note(begun + NOTE_EVERY, next(400), 0);
        assert_eq!(history.as_of(&at(500)), None);
        assert_eq!(history.as_of(&next(500)), Some(begun + NOTE_EVERY));
        history.note(begun + NOTE_EVERY * 2, next(300), 0);
        assert_eq!(history.as_of(&next(450)), Some(begun + NOTE_EVERY * 2));
        assert_eq!(history.as_of(&next(299)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn notes_are_bounded() {
        let mut history = History::default();
        for position in 0..10_000 {
            history.note(Instant::now(), at(position), 0);
        }
        assert_eq!(history.notes.len(), NOTES_MAX);
        assert_eq!(history.as_of(&at(1)), None);
    }
}
