//! Single flight: those who miss the same key at the same time share one read.
//!
//! A reader may join a flight only if what it brings is as new as the reader may be answered with: one that began before the
//! oldest moment allowed does not count, so a new one begins beside it. A flight is a task of its own, so that whoever
//! began it may give up without ending it for the others.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::{Id, Micros};

/// Locks; each guards its part of the keys.
const SHARDS: usize = 16;

/// Reads on their way. `T` is what they bring.
pub struct Flights<T> {
    shards: [Mutex<HashMap<u64, Flight<T>>>; SHARDS],
}

struct Flight<T> {
    /// Whose it is: two keys may have one hash.
    id: Id,
    begun: Micros,
    brings: watch::Receiver<Option<T>>,
}

impl<T> Default for Flights<T> {
    fn default() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()) }
    }
}

impl<T: Clone + Send + Sync + 'static> Flights<T> {
    /// What a flight of this key brings that began at `oldest` or later; begins one where there is none. `None` if it ended
    /// without a word, which is a defect in `read`. Whether it was begun here comes with it.
    pub async fn join<F>(
        self: &Arc<Self>,
        id: &Id,
        oldest: Micros,
        read: impl FnOnce() -> F,
    ) -> (Option<T>, bool)
    where
        F: Future<Output = T> + Send + 'static,
    {
        let (mut brings, mine) = {
            let mut flights = self.shard(id.hash()).lock().unwrap_or_else(PoisonError::into_inner);
            match flights.get(&id.hash()).filter(|flight| flight.begun >= oldest && flight.id.is(id)) {
                Some(flight) => (flight.brings.clone(), false),
                None => {
                    let (arrived, brings) = watch::channel(None);
                    let begun = Micros::now();
                    flights.insert(id.hash(), Flight { id: id.clone(), begun, brings: brings.clone() });
                    let (all, hash, reading) = (self.clone(), id.hash(), read());
                    tokio::spawn(async move {
                        // Also if the read panics: nobody is to join a flight that has crashed.
                        let _landed = Landed { all: &all, hash, begun };
                        let read = reading.await;
                        arrived.send_replace(Some(read));
                    });
                    (brings, true)
                }
            }
        };
        let brought = brings.wait_for(Option::is_some).await.ok().and_then(|brought| brought.clone());
        (brought, mine)
    }

    fn shard(&self, hash: u64) -> &Mutex<HashMap<u64, Flight<T>>> {
        &self.shards[hash as usize % SHARDS]
    }
}

/// Removes a flight that has ended, unless another has taken its place.
struct Landed<'f, T: Clone + Send + Sync + 'static> {
    all: &'f Flights<T>,
    hash: u64,
    begun: Micros,
}

impl<T: Clone + Send + Sync + 'static> Drop for Landed<'_, T> {
    fn drop(&mut self) {
        let mut flights = self.all.shard(self.hash).lock().unwrap_or_else(PoisonError::into_inner);
        if flights.get(&self.hash).is_some_and(|flight| flight.begun == self.begun) {
            flights.remove(&self.hash);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::model::{Key, Namespace};

    fn id() -> Id {
        Id::new(Namespace::parse("n").unwrap(), Key::parse("k").unwrap())
    }

    #[tokio::test]
    async fn a_crowd_shares_one_read_and_the_next_one_reads_again() {
        let (flights, reads) = (Arc::new(Flights::default()), Arc::new(AtomicUsize::new(0)));
        let one = |flights: Arc<Flights<usize>>, reads: Arc<AtomicUsize>| async move {
            let read = || async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                reads.fetch_add(1, Ordering::SeqCst) + 1
            };
            flights.join(&id(), Micros(0), read).await.0
        };
        let crowd = (0..100).map(|_| tokio::spawn(one(flights.clone(), reads.clone())));
        for each in crowd.collect::<Vec<_>>() {
            assert_eq!(each.await.unwrap(), Some(1));
        }
        assert_eq!(one(flights, reads).await, Some(2));
    }

    #[tokio::test]
    async fn a_key_of_the_same_hash_has_a_flight_of_its_own() {
        let flights: Arc<Flights<u32>> = Arc::default();
        let other =
            Id { hash: id().hash, ..Id::new(Namespace::parse("m").unwrap(), Key::parse("k").unwrap()) };
        let slow = |brings| {
            move || async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                brings
            }
        };
        let (one, two) = (id(), other);
        let (first, second) =
            tokio::join!(flights.join(&one, Micros(0), slow(1)), flights.join(&two, Micros(0), slow(2)));
        assert_eq!((first, second), ((Some(1), true), (Some(2), true)));
    }

    #[tokio::test]
    async fn nobody_joins_a_flight_that_began_too_early_and_none_stays_behind() {
        let flights: Arc<Flights<u32>> = Arc::default();
        let slow = || async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            1
        };
        let early = tokio::spawn({
            let flights = flights.clone();
            async move { flights.join(&id(), Micros(0), slow).await }
        });
        tokio::time::sleep(Duration::from_millis(10)).await;
        let late = flights.join(&id(), Micros::now(), || async { 2 }).await;
        assert_eq!((late, early.await.unwrap()), ((Some(2), true), (Some(1), true)));
        let crashed = flights.join(&id(), Micros(0), || async { panic!("a defect") }).await;
        assert_eq!(crashed, (None, true));
        assert!(flights.shards.iter().all(|shard| shard.lock().unwrap().is_empty()));
    }
}
