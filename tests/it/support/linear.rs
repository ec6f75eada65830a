//! Two checkers of histories of single records: one trusts versions and is exact about them, the other looks for any
//! order at all that explains what was seen.

use std::collections::{BTreeMap, HashMap, HashSet};

/// What a client did to one key and what it was told. Times are any clock that all clients share.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) begun: u64,
    pub(crate) ended: u64,
    pub(crate) did: Did,
}

/// Values are unique: no two writes of a history have the same.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Did {
    /// A write that was applied under a version.
    Wrote { value: u64, version: String },
    /// One that replaced a version it named.
    Swapped { expected: String, value: u64, version: String },
    /// One that may have been applied, then or later.
    MayHaveWritten { value: u64 },
    /// A delete that was applied under a version.
    Deleted { version: String },
    /// One that may have been applied, then or later.
    MayHaveDeleted,
    /// What was read; `None` = nothing stood there.
    Read(Option<(u64, String)>),
}

/// Every write has a version of its own, larger than those of all that had ended before it began; a read gives
/// what was written under the version it names, and no less than anything that had ended before it began; a swap has no
/// version between the one it named and its own. A read that found nothing tells no version where there were deletes: it is
/// left to [`check_order`].
pub(crate) fn check_versions(events: &[Event]) -> Result<(), String> {
    // What was written, `None` = deleted, and when that began.
    let mut written: BTreeMap<&str, (Option<u64>, u64)> = BTreeMap::new();
    let maybe: HashMap<u64, u64> = events
        .iter()
        .filter_map(|event| match event.did {
            Did::MayHaveWritten { value } => Some((value, event.begun)),
            _ => None,
        })
        .collect();
    for event in events {
        let (version, value) = match &event.did {
            Did::Wrote { value, version } | Did::Swapped { value, version, .. } => (version, Some(*value)),
            Did::Deleted { version } => (version, None),
            _ => continue,
        };
        if written.insert(version, (value, event.begun)).is_some() {
            return Err(format!("version {version} was given twice"));
        }
    }
    for event in events {
        let Did::Read(Some((value, version))) = &event.did else { continue };
        match (written.get(version.as_str()), maybe.get(value)) {
            (Some((Some(wrote), _)), _) if wrote == value => {}
            // A write nobody knows the end of: this tells its version.
            (None, Some(begun)) => drop(written.insert(version, (Some(*value), *begun))),
            (other, _) => {
                return Err(format!("{value} was read under {version}, where {other:?} was written"));
            }
        }
    }
    // In the order of versions, a write before its reads: nothing may end before anything further down began.
    let deletes = events.iter().any(|event| matches!(event.did, Did::Deleted { .. } | Did::MayHaveDeleted));
    let version_of = |event: &Event| match &event.did {
        Did::Wrote { version, .. } | Did::Swapped { version, .. } | Did::Deleted { version } => {
            Some((version.clone(), 0))
        }
        Did::Read(Some((_, version))) => Some((version.clone(), 1)),
        Did::Read(None) if !deletes => Some((String::new(), 1)),
        Did::Read(None) | Did::MayHaveWritten { .. } | Did::MayHaveDeleted => None,
    };
    let mut ordered: Vec<_> = events.iter().filter_map(|event| Some((version_of(event)?, event))).collect();
    ordered.sort_by(|one, other| one.0.cmp(&other.0));
    let (mut latest, mut at) = (0, 0);
    while at < ordered.len() {
        let step = ordered[at].0.clone();
        let count = ordered[at..].iter().take_while(|(other, _)| *other == step).count();
        for (_, event) in &ordered[at..at + count] {
            if event.ended < latest {
                return Err(format!(
                    "{event:?} had ended before something of a lower version began ({latest})"
                ));
            }
        }
        // One that nobody knows the end of began when it was sent, and what read it tells the version.
        if let Some((_, begun)) = written.get(step.0.as_str()).filter(|_| step.1 == 1) {
            latest = latest.max(*begun);
            if let Some((_, event)) = ordered[at..at + count].iter().find(|(_, event)| event.ended < *begun) {
                return Err(format!("{event:?} had ended before its write began"));
            }
        }
        latest = ordered[at..at + count].iter().map(|(_, event)| event.begun).fold(latest, u64::max);
        at += count;
    }
    for event in events {
        let Did::Swapped { expected, version, .. } = &event.did else { continue };
        let between =
            (std::ops::Bound::Excluded(expected.as_str()), std::ops::Bound::Excluded(version.as_str()));
        if expected >= version {
            return Err(format!("{version} replaced {expected}, which is not lower"));
        }
        if let Some((other, _)) = written.range::<str, _>(between).next() {
            return Err(format!("{version} replaced {expected}, and {other} lies between"));
        }
    }
    Ok(())
}

/// Configurations of a search, at most; a history that needs more is too wild to judge and fails.
const CONFIGURATIONS_MAX: usize = 200_000;

/// Looks for one order of all that happened in which each read gives the last write: Lowe's just-in-time
/// linearization ("Testing for linearizability", 2017). Versions are used for nothing but to know what a swap meant.
pub(crate) fn check_order(events: &[Event]) -> Result<(), String> {
    let mut value_of: HashMap<&str, u64> = HashMap::new();
    let mut seen = HashSet::new();
    for event in events {
        match &event.did {
            Did::Wrote { value, version } | Did::Swapped { value, version, .. } => {
                value_of.insert(version, *value);
            }
            Did::Read(Some((value, version))) => {
                seen.insert(*value);
                value_of.insert(version, *value);
            }
            _ => {}
        }
    }
    // A write of unknown end that nobody saw may as well not have happened; one whose value a swap replaced was seen.
    for event in events {
        if let Did::Swapped { expected, .. } = &event.did {
            seen.extend(value_of.get(expected.as_str()));
        }
    }
    let relevant =
        |event: &&Event| !matches!(event.did, Did::MayHaveWritten { value } if !seen.contains(&value));
    let ops: Vec<&Event> = events.iter().filter(relevant).collect();
    let mut points: Vec<(u64, bool, usize)> = Vec::new();
    for (index, event) in ops.iter().enumerate() {
        points.push((event.begun, false, index));
        if !matches!(event.did, Did::MayHaveWritten { .. } | Did::MayHaveDeleted) {
            points.push((event.ended, true, index));
        }
    }
    // What begins at the moment something else ends may have come before it.
    points.sort();
    let mut pending: Vec<usize> = Vec::new();
    let mut configurations: HashSet<(Option<u64>, Vec<usize>)> = HashSet::from([(None, Vec::new())]);
    for (_, is_end, op) in points {
        if !is_end {
            pending.push(op);
            continue;
        }
        let mut reached = HashSet::new();
        let mut work: Vec<_> = configurations.drain().collect();
        let mut known: HashSet<_> = work.iter().cloned().collect();
        while let Some((value, done)) = work.pop() {
            if done.contains(&op) {
                let mut done = done;
                done.retain(|other| *other != op);
                reached.insert((value, done));
                continue;
            }
            for next in pending.iter().filter(|next| !done.contains(next)) {
                let Some(after) = step(value, &ops[*next].did, &value_of) else { continue };
                let mut done = done.clone();
                done.push(*next);
                done.sort_unstable();
                if known.insert((after, done.clone())) {
                    work.push((after, done));
                }
            }
            if known.len() > CONFIGURATIONS_MAX {
                return Err("too many orders are possible to try them all".to_owned());
            }
        }
        if reached.is_empty() {
            return Err(format!("no order explains {:?}", ops[op]));
        }
        pending.retain(|other| *other != op);
        configurations = reached;
    }
    Ok(())
}

/// The record after an operation, where it can have happened to it.
fn step(value: Option<u64>, did: &Did, value_of: &HashMap<&str, u64>) -> Option<Option<u64>> {
    match did {
        Did::Wrote { value, .. } | Did::MayHaveWritten { value } => Some(Some(*value)),
        Did::Deleted { .. } | Did::MayHaveDeleted => Some(None),
        Did::Swapped { expected, value: new, .. } => {
            let expected = value_of.get(expected.as_str()).copied();
            (expected.is_some() && expected == value).then_some(Some(*new))
        }
        Did::Read(found) => (found.as_ref().map(|(value, _)| *value) == value).then_some(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(begun: u64, ended: u64, did: Did) -> Event {
        Event { begun, ended, did }
    }

    fn wrote(value: u64, version: &str) -> Did {
        Did::Wrote { value, version: version.to_owned() }
    }

    fn read(value: u64, version: &str) -> Did {
        Did::Read(Some((value, version.to_owned())))
    }

    fn deleted(version: &str) -> Did {
        Did::Deleted { version: version.to_owned() }
    }

    fn swapped(expected: &str, value: u64, version: &str) -> Did {
        Did::Swapped { expected: expected.to_owned(), value, version: version.to_owned() }
    }

    #[test]
    fn a_history_that_has_an_order_passes_both() {
        let history = [
            event(0, 1, Did::Read(None)),
            event(2, 9, wrote(1, "a")),
            event(3, 4, read(1, "a")),
            event(5, 6, Did::MayHaveWritten { value: 2 }),
            event(20, 21, read(2, "b")),
            event(22, 25, swapped("b", 3, "c")),
            event(23, 24, read(2, "b")),
            event(26, 27, read(3, "c")),
            event(5, 6, Did::MayHaveWritten { value: 9 }),
        ];
        check_versions(&history).unwrap();
        check_order(&history).unwrap();
        let history = [
            event(0, 1, wrote(1, "a")),
            event(2, 3, deleted("b")),
            event(4, 5, Did::Read(None)),
            event(6, 9, wrote(2, "c")),
            event(7, 8, Did::Read(None)),
            event(10, 11, Did::MayHaveDeleted),
            event(12, 13, read(2, "c")),
            event(14, 15, Did::Read(None)),
        ];
        check_versions(&history).unwrap();
        check_order(&history).unwrap();
    }

    #[test]
    fn each_kind_of_defect_is_found() {
        for (defect, history) in [
            (
                "a stale read",
                vec![event(0, 1, wrote(1, "a")), event(2, 3, wrote(2, "b")), event(4, 5, read(1, "a"))],
            ),
            ("a lost write", vec![event(0, 1, wrote(1, "a")), event(2, 3, Did::Read(None))]),
            (
                "reads that go back",
                vec![
                    event(0, 1, wrote(1, "a")),
                    event(2, 20, wrote(2, "b")),
                    event(3, 4, read(2, "b")),
                    event(5, 6, read(1, "a")),
                ],
            ),
            ("a read of what begins later", vec![event(0, 1, read(1, "a")), event(2, 3, wrote(1, "a"))]),
            (
                "a swap of what was replaced",
                vec![
                    event(0, 1, wrote(1, "a")),
                    event(2, 3, wrote(2, "b")),
                    event(4, 5, swapped("a", 3, "c")),
                ],
            ),
        ] {
            assert!(check_versions(&history).is_err(), "{defect}: versions");
            assert!(check_order(&history).is_err(), "{defect}: order");
        }
        for (defect, history) in [
            (
                "a delete undone",
                vec![event(0, 1, wrote(1, "a")), event(2, 3, deleted("b")), event(4, 5, read(1, "a"))],
            ),
            (
                "a swap of what was deleted",
                vec![
                    event(0, 1, wrote(1, "a")),
                    event(2, 3, deleted("b")),
                    event(4, 5, swapped("a", 3, "c")),
                ],
            ),
        ] {
            assert!(check_versions(&history).is_err(), "{defect}: versions");
            assert!(check_order(&history).is_err(), "{defect}: order");
        }
        let lost = [event(0, 1, deleted("a")), event(2, 3, wrote(1, "b")), event(4, 5, Did::Read(None))];
        assert!(check_order(&lost).is_err(), "a write lost behind a delete");
        let lower = [event(0, 1, wrote(1, "b")), event(2, 3, wrote(2, "a"))];
        assert!(check_versions(&lower).is_err(), "a later write under a lower version");
        let twice = [event(0, 1, wrote(1, "a")), event(0, 1, wrote(2, "a"))];
        assert!(check_versions(&twice).is_err(), "one version for two writes");
    }
}
