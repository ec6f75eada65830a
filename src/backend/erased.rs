//! The erased twin of [`Backend`].

use std::pin::Pin;
use std::time::Duration;

use tokio::time::Instant;

use super::{
    Aged, Applied, Backend, Capability, Entry, Found, Noting, Offered, Page, Range, RowKey, Swept, Write,
    Written,
};
use crate::model::{Namespace, Result};

/// A future behind one box: what the erased twin returns.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// [`Backend`] without its types, so that a namespace can hold any. Boxing happens here and nowhere else.
#[expect(missing_docs, reason = "each method is that of Backend")]
pub trait DynBackend: Send + Sync + 'static {
    fn capability(&self) -> Capability;
    fn durable(&self) -> bool;
    fn second_tier(&self) -> bool;
    fn read(&self, keys: Vec<RowKey>, deadline: Instant) -> Boxed<'_, Vec<Result<Option<Found>>>>;
    fn read_aged(
        &self,
        keys: Vec<RowKey>,
        staleness: Duration,
        deadline: Instant,
    ) -> Boxed<'_, Vec<Result<Aged>>>;
    fn write(&self, writes: Vec<Write>, deadline: Instant) -> Boxed<'_, Vec<Result<Written>>>;
    fn offer(&self, writes: Vec<Write>, deadline: Instant) -> Boxed<'_, Vec<Result<Offered>>>;
    fn write_atomic(
        &self,
        writes: Vec<Write>,
        deadline: Instant,
    ) -> Boxed<'_, Result<Vec<Written>, (usize, crate::model::Error)>>;
    fn apply(&self, entries: Vec<Entry>, deadline: Instant) -> Boxed<'_, Vec<Result<Applied>>>;
    fn foresee(&self, entries: Vec<Entry>, deadline: Instant) -> Boxed<'_, Vec<Result<Applied>>>;
    fn already(&self, entries: Vec<Entry>, deadline: Instant) -> Boxed<'_, Vec<Result<Option<Applied>>>>;
    fn scan(&self, range: Range, deadline: Instant) -> Boxed<'_, Result<Page>>;
    fn sweep(&self, resume: Option<Vec<u8>>, grace_ms: i64) -> Boxed<'_, Result<Swept>>;
    fn partitioning<'a>(
        &'a self,
        namespace: &'a Namespace,
        first: Option<String>,
    ) -> Boxed<'a, Result<Option<String>>>;
    fn durability<'a>(
        &'a self,
        namespace: &'a Namespace,
        noting: Noting,
    ) -> Boxed<'a, Result<Option<String>>>;
    fn health(&self) -> Result<()>;
    fn unfit(&self) -> Option<crate::model::Error>;
    fn shards(&self) -> Vec<String>;
    fn shard_of(&self, slot: u16) -> usize;
    fn shard_health(&self, shard: usize) -> Result<()>;
    fn store_id(&self) -> Option<String>;
    fn close(&self) -> Boxed<'_, ()>;
}

impl<B: Backend> DynBackend for B {
    fn capability(&self) -> Capability {
        Backend::capability(self)
    }
    fn durable(&self) -> bool {
        Backend::durable(self)
    }
    fn second_tier(&self) -> bool {
        Backend::second_tier(self)
    }
    fn read(&self, keys: Vec<RowKey>, deadline: Instant) -> Boxed<'_, Vec<Result<Option<Found>>>> {
        Box::pin(Backend::read(self, keys, deadline))
    }
    fn read_aged(
        &self,
        keys: Vec<RowKey>,
        staleness: Duration,
        deadline: Instant,
    ) -> Boxed<'_, Vec<Result<Aged>>> {
        Box::pin(Backend::read_aged(self, keys, staleness, deadline))
    }
    fn write(&self, writes: Vec<Write>, deadline: Instant) -> Boxed<'_, Vec<Result<Written>>> {
        Box::pin(Backend::write(self, writes, deadline))
    }
    fn offer(&self, writes: Vec<Write>, deadline: Instant) -> Boxed<'_, Vec<Result<Offered>>> {
        Box::pin(Backend::offer(self, writes, deadline))
    }
    fn write_atomic(
        &self,
        writes: Vec<Write>,
        deadline: Instant,
    ) -> Boxed<'_, Result<Vec<Written>, (usize, crate::model::Error)>> {
        Box::pin(Backend::write_atomic(self, writes, deadline))
    }
    fn apply(&self, entries: Vec<Entry>, deadline: Instant) -> Boxed<'_, Vec<Result<Applied>>> {
        Box::pin(Backend::apply(self, entries, deadline))
    }
    fn foresee(&self, entries: Vec<Entry>, deadline: Instant) -> Boxed<'_, Vec<Result<Applied>>> {
        Box::pin(Backend::foresee(self, entries, deadline))
    }
    fn already(&self, entries: Vec<Entry>, deadline: Instant) -> Boxed<'_, Vec<Result<Option<Applied>>>> {
        Box::pin(Backend::already(self, entries, deadline))
    }
    fn scan(&self, range: Range, deadline: Instant) -> Boxed<'_, Result<Page>> {
        Box::pin(Backend::scan(self, range, deadline))
    }
    fn sweep(&self, resume: Option<Vec<u8>>, grace_ms: i64) -> Boxed<'_, Result<Swept>> {
        Box::pin(Backend::sweep(self, resume, grace_ms))
    }
    fn partitioning<'a>(
        &'a self,
        namespace: &'a Namespace,
        first: Option<String>,
    ) -> Boxed<'a, Result<Option<String>>> {
        Box::pin(Backend::partitioning(self, namespace, first))
    }
    fn durability<'a>(
        &'a self,
        namespace: &'a Namespace,
        noting: Noting,
    ) -> Boxed<'a, Result<Option<String>>> {
        Box::pin(Backend::durability(self, namespace, noting))
    }
    fn health(&self) -> Result<()> {
        Backend::health(self)
    }
    fn unfit(&self) -> Option<crate::model::Error> {
        Backend::unfit(self)
    }

    fn shards(&self) -> Vec<String> {
        Backend::shards(self)
    }
    fn shard_of(&self, slot: u16) -> usize {
        Backend::shard_of(self, slot)
    }
    fn shard_health(&self, shard: usize) -> Result<()> {
        Backend::shard_health(self, shard)
    }
    fn store_id(&self) -> Option<String> {
        Backend::store_id(self)
    }
    fn close(&self) -> Boxed<'_, ()> {
        Box::pin(Backend::close(self))
    }
}
