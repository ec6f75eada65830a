//! Pages in key order, by the `$key` index.
//!
//! The index names keys in byte order, upward, a page at a time; each is then read as any other, which leaves out the dead.
//! Downward the index does not go, so the end of a range is found by halving what lies beyond a known key ([`Shared::tail`]):
//! that takes some dozens of short queries, however many keys there are.
//!
//! The document comes with every read, also where only keys are asked for: what a page has loaded ends it too.
//!
//! An index is not repaired by reads: it may name a key late, or one that has gone.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::Instant;

use super::classify::Fault;
use super::place::{self, Place};
use super::records::of_read;
use super::settings::RiakSettings;
use super::wire::{IndexReq, IndexResp};
use super::{READS_AT_ONCE, Shared};
use crate::backend::pages::Collector;
use crate::backend::{Found, Page, Range};
use crate::model::{Code, Result};

/// Keys of one index query.
const INDEX_KEYS_MAX: usize = 512;
/// An index query may take a node longer than a read: every part of the cluster answers it.
pub(super) const INDEX_PATIENCE: Duration = Duration::from_secs(10);
/// The index of all keys.
pub(super) const KEY_INDEX: &str = "$key";
/// Above every key: no UTF-8 begins with it.
const ABOVE_ALL: &[u8] = &[0xff];
/// Halvings beyond which the rest of a range is walked through: enough for a hundred distinguishing bytes.
const HALVINGS_MAX: usize = 800;
/// `qtype` of a query from one term to another.
const RANGE: u32 = 1;

/// Keys in order.
type Keys = Vec<Vec<u8>>;

/// The keys of a bucket from `low` on that are below `high`.
#[derive(Debug, Clone)]
struct Span {
    bucket: Bytes,
    low: Vec<u8>,
    high: Vec<u8>,
}

/// What is asked of an index: the terms from `low` to `high`, both inclusive.
pub(super) struct Query {
    pub(super) index: &'static str,
    pub(super) low: Bytes,
    pub(super) high: Bytes,
}

impl Shared {
    /// A page of live rows.
    pub(super) async fn scan(self: &Arc<Self>, range: &Range, deadline: Instant) -> Result<Page> {
        self.fit()?;
        let mut span = Span {
            bucket: place::bucket(&range.namespace),
            low: range.start.clone().into_bytes(),
            high: range.end.as_ref().map_or(ABOVE_ALL.to_vec(), |end| end.clone().into_bytes()),
        };
        match (&range.after, range.reverse) {
            (Some(after), false) => span.low = span.low.max(next(after.as_bytes())),
            (Some(after), true) => span.high = span.high.min(after.clone().into_bytes()),
            (None, _) => {}
        }
        let wanted = range.limit.clamp(1, INDEX_KEYS_MAX);
        let mut collector = Collector::new(range);
        while span.low < span.high {
            // The keys that come next, in the order asked, and whether there may be others behind them.
            let (keys, more) = match range.reverse {
                false => self.head(&span, wanted, deadline).await.map_err(of_read)?,
                true => self.tail(&span, wanted, deadline).await.map_err(of_read)?,
            };
            match keys.last() {
                None => break,
                Some(last) if range.reverse => span.high.clone_from(last),
                Some(last) => span.low = next(last),
            }
            let (count, mut seen) = (keys.len(), 0);
            // Group by group: a read that was cut off because the page is full would take its connection with it.
            for group in keys.chunks(READS_AT_ONCE) {
                let place = |key: &Vec<u8>| Place::in_namespace(&range.namespace, key);
                let places: Vec<Place> = group.iter().map(place).collect();
                let reads = join_all(places.iter().map(|place| self.load(place, deadline))).await;
                for (place, (bytes, read)) in places.iter().zip(reads) {
                    seen += 1;
                    collector.load(bytes);
                    if !collector.take(&place.stored_key(), of_page(read)?)? {
                        return Ok(collector.page(more || seen < count));
                    }
                }
            }
            if !more {
                break;
            }
        }
        Ok(collector.page(false))
    }

    /// The first keys of a span, and whether there may be others behind them.
    async fn head(&self, span: &Span, wanted: usize, deadline: Instant) -> Result<(Keys, bool), Fault> {
        let keys = self.keys(span, wanted, deadline).await?;
        let full = keys.len() == wanted;
        Ok((keys, full))
    }

    /// The last keys of a span, downward: as many as wanted at least, or all. And whether there may be others before them.
    ///
    /// What is known of the end grows downward: `found` holds every key from `high` on. A page from `low` on either reaches
    /// `high`, and then all is known, or it ends at a key behind which are more. The middle between that key and `high` is
    /// then the new `low`, where a whole page lies above it, or else the new `high`, because all above it is known.
    async fn tail(&self, span: &Span, wanted: usize, deadline: Instant) -> Result<(Keys, bool), Fault> {
        let mut rest = span.clone();
        let (mut found, mut raised) = (Keys::new(), false);
        let mut page = self.keys(&rest, INDEX_KEYS_MAX, deadline).await?;
        for _ in 0..HALVINGS_MAX {
            if page.len() < INDEX_KEYS_MAX {
                found.extend(page.into_iter().rev());
                return Ok((found, raised));
            }
            let Some(middle) = page.last().and_then(|last| middle(last, &rest.high)) else { break };
            let above = Span { low: middle.clone(), ..rest.clone() };
            let upper = self.keys(&above, INDEX_KEYS_MAX, deadline).await?;
            if upper.len() == INDEX_KEYS_MAX {
                (page, raised) = (upper, true);
                continue;
            }
            found.extend(upper.into_iter().rev());
            if found.len() >= wanted {
                return Ok((found, true));
            }
            rest.high = middle;
        }
        // Keys that differ so far behind their beginning: page by page, keeping the last two.
        let mut before = Keys::new();
        while page.len() == INDEX_KEYS_MAX {
            rest.low = page.last().map(|last| next(last)).unwrap_or_default();
            raised |= !before.is_empty();
            before = std::mem::replace(&mut page, self.keys(&rest, INDEX_KEYS_MAX, deadline).await?);
        }
        found.extend(page.into_iter().rev().chain(before.into_iter().rev()));
        Ok((found, raised))
    }

    /// The first keys of a span, upward.
    async fn keys(&self, span: &Span, most: usize, deadline: Instant) -> Result<Keys, Fault> {
        let query = Query {
            index: KEY_INDEX,
            low: Bytes::copy_from_slice(&span.low),
            high: Bytes::copy_from_slice(&span.high),
        };
        let page = self.index(&span.bucket, &query, most, None, deadline).await?;
        // The index counts its upper bound in. Where that is a key it is the last of its page, so nothing lies behind a page
        // that is short because of it.
        let mut keys: Keys =
            page.keys.iter().map(|key| key.to_vec()).filter(|key| *key < span.high).collect();
        keys.sort_unstable();
        keys.dedup();
        Ok(keys)
    }

    /// A page of an index.
    pub(super) async fn index(
        &self,
        bucket: &Bytes,
        query: &Query,
        most: usize,
        continuation: Option<Bytes>,
        deadline: Instant,
    ) -> Result<IndexResp, Fault> {
        let request = request(&self.settings, bucket, query, most, continuation);
        self.pool.ask_patiently(request, INDEX_PATIENCE, deadline).await
    }
}

/// A page of an index.
pub(super) fn request(
    settings: &RiakSettings,
    bucket: &Bytes,
    query: &Query,
    most: usize,
    continuation: Option<Bytes>,
) -> IndexReq {
    IndexReq {
        bucket: bucket.clone(),
        index: Bytes::from_static(query.index.as_bytes()),
        qtype: RANGE,
        range_min: Some(query.low.clone()),
        range_max: Some(query.high.clone()),
        max_results: Some(u32::try_from(most).unwrap_or(u32::MAX)),
        continuation,
        r#type: settings.type_field(),
        ..IndexReq::default()
    }
}

/// What a page shows of a read: nothing of what is dead, and damage in its place.
fn of_page(read: Result<Option<Found>>) -> Result<Option<Result<Found>>> {
    match read {
        Ok(found) => Ok(found.filter(|found| found.live.is_some()).map(Ok)),
        Err(error) if error.code == Code::Corrupt => Ok(Some(Err(error))),
        Err(error) => Err(error),
    }
}

/// The key after a key.
fn next(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

/// A short text about half way between two, as far as there is one between them.
fn middle(low: &[u8], high: &[u8]) -> Option<Vec<u8>> {
    let length = low.len().max(high.len()) + 1;
    let digit = |text: &[u8], at: usize| u16::from(text.get(at).copied().unwrap_or(0));
    // Both as fractions in base 256: their sum from the last digit on, then half of it from the first.
    let (mut sum, mut carry) = (vec![0; length], 0);
    for at in (0..length).rev() {
        let total = digit(low, at) + digit(high, at) + carry;
        (sum[at], carry) = (total % 256, total / 256);
    }
    let mut half = Vec::with_capacity(length);
    for digit in sum {
        let total = carry * 256 + digit;
        half.push(u8::try_from(total / 2).expect("less than 512 halved"));
        carry = total % 2;
    }
    let end = (1..=length).find(|end| &half[..*end] > low)?;
    half.truncate(end);
    (half[..] < *high).then_some(half)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_middle_lies_between(a in proptest::collection::vec(any::<u8>(), 0..6), b in proptest::collection::vec(any::<u8>(), 0..6)) {
            let (low, high) = if a <= b { (a, b) } else { (b, a) };
            match middle(&low, &high) {
                Some(middle) => prop_assert!(low < middle && middle < high, "{:?} {:?} {:?}", low, middle, high),
                // Only zeros may lie between.
                None => prop_assert!(high.iter().eq(low.iter()) || {
                    let mut padded = low.clone();
                    padded.resize(high.len(), 0);
                    padded == high
                }, "{:?} {:?}", low, high),
            }
        }
    }

    #[test]
    fn halving_comes_down_to_any_key_in_few_steps() {
        let key = |n: u32| format!("user/{n:08}/profile").into_bytes();
        for last in [0, 1, 7, 4_999_999, 99_999_999] {
            // Between the last key that is known and the end of all: what is empty is cut off until the next key is met.
            let (low, goal, mut high, mut steps) = (key(0), key(last), ABOVE_ALL.to_vec(), 0);
            while let Some(found) = middle(&low, &high).filter(|middle| *middle > goal) {
                high = found;
                steps += 1;
            }
            assert!(steps < 200, "{last}: {steps}");
        }
    }
}
