//! What stands under a key: its siblings as one row.
//!
//! Writers that did not know of each other leave siblings. The one of the greatest version is the record, and it takes the
//! others' operation ids along; of one version a tombstone wins, because an expired record is buried under the version it has,
//! and then what has the greater bytes. The rule knows no order of arrival, so every reader finds the same. Riak's own tombstones (`deleted`) are what
//! a sweep left and stand for nothing, but their clock is needed by the next write.

use bytes::Bytes;

use super::place::Place;
use super::wire::Content;
use crate::backend::{Row, decide, row};

/// See the module.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Present {
    /// The merged row.
    pub(super) row: Option<Row>,
    /// What the next write must carry, so that it replaces all of them.
    pub(super) vclock: Option<Bytes>,
    /// How many there were.
    pub(super) siblings: usize,
    /// Bytes of all of them.
    pub(super) loaded: usize,
    /// What is wrong with one of them: what was written last may be among those that cannot be read.
    pub(super) damage: Option<String>,
}

impl Present {
    /// Reads what a node answered.
    pub(super) fn read(place: &Place, contents: &[Content], vclock: Option<Bytes>, now_ms: i64) -> Self {
        let stored_key = place.stored_key();
        let loaded = contents.iter().map(|content| content.value.len()).sum();
        let mut present = Self { vclock, siblings: contents.len(), loaded, ..Self::default() };
        let mut rows = Vec::with_capacity(contents.len());
        for content in contents.iter().filter(|content| !content.deleted()) {
            match row::decode(&stored_key, &content.value) {
                Ok(row) => rows.push((row, &content.value)),
                Err(why) => present.damage = Some(why),
            }
        }
        present.row = merged(rows, now_ms);
        if let Some(body) = present.row.as_mut().and_then(|row| row.body.as_mut())
            && contents.len() > 1
        {
            // The document alone: as a part of the reply it would keep all of that.
            *body = Bytes::copy_from_slice(body);
        }
        present
    }

    /// Whether nothing is known of the key, not even that it was there.
    pub(super) fn is_miss(&self) -> bool {
        self.siblings == 0 && self.vclock.is_none()
    }

    /// Whether its siblings should be written back as one. What cannot be read is kept: a person may want to look at it.
    pub(super) fn is_split(&self) -> bool {
        self.siblings > 1 && self.row.is_some() && self.damage.is_none()
    }
}

/// Rows, each with the bytes it was read from, as one. They are put in an order first: which operation ids fall out of a full
/// ring would otherwise hang on the order of arrival.
fn merged(mut rows: Vec<(Row, &Bytes)>, now_ms: i64) -> Option<Row> {
    // The document before the whole: what was merged has another ring than what it was merged from, and must win as that did.
    let by_rank = |(one, its): &(Row, &Bytes), (other, others): &(Row, &Bytes)| {
        let rank = one.version.cmp(&other.version).then(one.body.is_none().cmp(&other.body.is_none()));
        rank.then_with(|| one.body.cmp(&other.body)).then_with(|| its.cmp(others))
    };
    rows.sort_by(|one, other| by_rank(other, one));
    let mut rows = rows.into_iter().map(|(row, _)| row);
    let winner = rows.next()?;
    Some(rows.fold(winner, |winner, row| {
        let ring = decide::merged_ring(&winner, &row, now_ms);
        Row { ring, ..winner }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::OpRing;
    use crate::model::Version;

    fn place() -> Place {
        Place { bucket: Bytes::from_static(b"n"), key: Bytes::from_static(b"k") }
    }

    fn row(hlc: u64, body: Option<&'static str>, op: u64) -> Row {
        let version = Version { hlc, origin: 1 };
        Row {
            version,
            slot: 7,
            body: body.map(|body| Bytes::from_static(body.as_bytes())),
            expires_at_ms: 0,
            ring: OpRing { entries: vec![(op, version.fingerprint())], evicted_at_ms: 0 },
            was: false,
        }
    }

    fn content(row: &Row) -> Content {
        Content { value: row::encode(&place().stored_key(), row).into(), ..Content::default() }
    }

    fn deleted() -> Content {
        Content { deleted: Some(true), ..Content::default() }
    }

    fn read(contents: &[Content]) -> Present {
        Present::read(&place(), contents, Some(Bytes::from_static(b"c")), 1)
    }

    #[test]
    fn in_any_order_the_greatest_version_wins_and_every_operation_is_remembered() {
        let rows = [row(3, Some("old"), 1), row(9, Some("new"), 2), row(5, None, 3)];
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut contents: Vec<_> = order.iter().map(|at| content(&rows[*at])).collect();
            contents.insert(1, deleted());
            let present = read(&contents);
            let merged = present.row.clone().unwrap();
            assert_eq!(merged.body.as_deref(), Some(&b"new"[..]), "{order:?}");
            assert!([1, 2, 3].iter().all(|op| merged.ring.find(*op).is_some()), "{order:?}");
            assert!(present.is_split() && !present.is_miss());
        }
    }

    #[test]
    fn a_buried_record_wins_over_itself_and_a_twin_is_one() {
        for (one, other) in [(Some("a"), None), (None, Some("a"))] {
            let present = read(&[content(&row(3, one, 1)), content(&row(3, other, 1))]);
            assert_eq!(present.row.unwrap().body, None);
        }
        let twins = read(&[content(&row(3, Some("a"), 1)), content(&row(3, Some("a"), 1))]);
        assert_eq!(twins.row, Some(row(3, Some("a"), 1)));
        assert_eq!(twins.siblings, 2);
    }

    #[test]
    fn of_one_version_the_greater_bytes_win_and_the_same_operations_are_kept_in_any_order() {
        let row = |body, ops: [u64; 2]| {
            let row = row(3, Some(body), ops[0]);
            let entries = ops.map(|op| (op, row.version.fingerprint())).to_vec();
            Row { ring: OpRing { entries, evicted_at_ms: 0 }, ..row }
        };
        // Six operations: two of them fall out.
        let rows = [row("a", [1, 2]), row("c", [3, 4]), row("b", [5, 6])];
        let mut outcomes = Vec::new();
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            outcomes.push(read(&order.map(|at| content(&rows[at]))).row.unwrap());
        }
        assert!(outcomes.iter().all(|row| row.body.as_deref() == Some(b"c")), "{outcomes:?}");
        assert!(outcomes.iter().all(|row| *row == outcomes[0]), "{outcomes:?}");
    }

    #[test]
    fn what_riak_deleted_is_nothing_but_has_a_clock_and_damage_is_not_overlooked() {
        let present = read(&[deleted()]);
        assert!(present.row.is_none() && !present.is_miss() && !present.is_split());
        assert!(Present::read(&place(), &[], None, 1).is_miss());
        let foreign = Content { value: Bytes::from_static(b"somebody else's"), ..Content::default() };
        let present = read(&[content(&row(3, Some("a"), 1)), foreign]);
        assert!(present.damage.is_some() && !present.is_split());
        // Another key's row does not pass for this one's.
        let moved = row::encode(b"n\0other", &row(3, Some("a"), 1)).into();
        assert!(read(&[Content { value: moved, ..Content::default() }]).damage.is_some());
    }
}
