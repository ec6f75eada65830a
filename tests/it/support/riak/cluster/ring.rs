//! Which nodes hold the replicas of a key, who stands in for whom, and what they hand to each other.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::super::object::{Object, Rule};
use super::{At, Cluster, DeleteMode, Health, Late, Replica};

impl Cluster {
    /// The replicas of a key, as places and the nodes that hold them. Nodes that are silent are not known to be.
    pub(super) fn places(&self, at: &At, n_val: u64, sloppy: bool) -> Vec<(usize, usize)> {
        let nodes = self.health.len();
        let ring = nodes.max(8) / nodes * nodes;
        let first = at.2.iter().fold(at.1.len(), |hash, byte| hash.wrapping_mul(31) + usize::from(*byte));
        let mut places = Vec::new();
        for step in 0..usize::try_from(n_val).unwrap() {
            let place = (first + step) % ring;
            let home = place % nodes;
            let up = |node: &usize| self.health[*node] != Health::Down;
            let holder = (0..nodes).map(|step| (home + step) % nodes).find(up);
            if let Some(holder) = holder.filter(|holder| sloppy || *holder == home) {
                places.push((place, holder));
            }
        }
        places
    }

    pub(super) fn is_primary(&self, place: &(usize, usize)) -> bool {
        place.0 % self.health.len() == place.1
    }

    pub(super) fn primaries(&self, places: &[(usize, usize)]) -> u64 {
        places.iter().filter(|place| self.is_primary(place)).count() as u64
    }

    /// Those that answer, in a random order.
    pub(super) fn replies(&mut self, places: &[(usize, usize)]) -> Vec<(usize, usize)> {
        let mut replies = places.to_vec();
        replies.retain(|place| self.health[place.1] != Health::Silent);
        for at in (1..replies.len()).rev() {
            let other = self.next() as usize % (at + 1);
            replies.swap(at, other);
        }
        replies
    }

    pub(super) fn object(&self, place: &(usize, usize), at: &At) -> Option<Object> {
        self.replicas.get(place)?.get(at).map(|replica| replica.object.clone())
    }

    pub(super) fn set(&mut self, place: &(usize, usize), at: &At, object: Object) {
        match object.is_tombstone() {
            true => self.tombstones.insert(at.clone()),
            false => self.tombstones.remove(at),
        };
        let replica = Replica { object, since: Instant::now() };
        self.replicas.entry(*place).or_default().insert(at.clone(), replica);
    }

    /// Read repair: what one of the replicas has, the others get too.
    pub(super) fn repair(&mut self, places: &[(usize, usize)], at: &At, rule: Rule) {
        let answering = self.replies(places);
        let all = answering.iter().filter_map(|place| self.object(place, at));
        let Some(all) = all.reduce(|one, other| one.merged(&other, rule)) else { return };
        for place in answering {
            if self.lag > Duration::ZERO {
                self.send_late(place, at, all.clone(), rule);
            } else if self.object(&place, at).is_none_or(|held| held != all) {
                self.set(&place, at, all.clone());
            }
        }
    }

    /// Sends a state to a replica, to be there within the lag.
    pub(super) fn send_late(&mut self, place: (usize, usize), at: &At, object: Object, rule: Rule) {
        let most = u64::try_from(self.lag.as_micros()).unwrap().max(1);
        let due = Instant::now() + Duration::from_micros(self.next() % most);
        self.late.push(Late { due, place, at: at.clone(), object, rule });
    }

    /// What has been on its way for long enough arrives, in any order.
    pub(super) fn arrive(&mut self) {
        let now = Instant::now();
        for Late { place, at, object, rule, .. } in
            self.late.extract_if(.., |late| late.due <= now).collect::<Vec<_>>()
        {
            let held = self.object(&place, &at);
            let merged = held.as_ref().map_or_else(|| object.clone(), |held| held.merged(&object, rule));
            if held.is_none_or(|held| held != merged) {
                self.set(&place, &at, merged);
            }
        }
    }

    /// What stood in for a node is handed to it.
    pub(crate) fn hand_off(&mut self, node: usize) {
        let away: Vec<_> = self.replicas.keys().copied().collect();
        let nodes = self.health.len();
        for place in away.into_iter().filter(|place| place.0 % nodes == node && place.1 != node) {
            for (at, replica) in self.replicas.remove(&place).unwrap_or_default() {
                let home = (place.0, node);
                let rule = self.types[&at.0].rule();
                let held = self.object(&home, &at);
                let merged = held.map_or(replica.object.clone(), |held| held.merged(&replica.object, rule));
                self.set(&home, &at, merged);
            }
        }
    }

    /// Forgets a tombstone whose time has come, where every primary is up.
    pub(super) fn reap(&mut self, at: &At) {
        let DeleteMode::After(wait) = self.delete_mode else { return };
        if self.health.iter().any(|health| *health != Health::Up) {
            return;
        }
        if !self.tombstones.contains(at) {
            return;
        }
        for replicas in self.replicas.values_mut() {
            if replicas.get(at).is_some_and(|held| held.object.is_tombstone() && held.since.elapsed() >= wait)
            {
                replicas.remove(at);
            }
        }
    }

    pub(super) fn reap_overdue(&mut self) {
        for at in self.tombstones.clone() {
            self.reap(&at);
        }
    }
}

/// How many nodes hold replicas.
pub(super) fn distinct(places: &[(usize, usize)]) -> u64 {
    places.iter().map(|place| place.1).collect::<BTreeSet<_>>().len() as u64
}
