//! Warming: the records of a namespace are read a page at a time, so that they are in the tiers before somebody asks.

use crate::model::op::{Get, Scan, Shape};
use crate::model::request::Consistency;
use crate::model::{Error, Result};

use super::batch::READS_AT_ONCE_MAX;
use super::read::Read;
use super::{Call, Store};

/// Records of a page.
const PAGE_RECORDS: usize = 256;
/// Encoded bytes of a page's keys.
const PAGE_BYTES: usize = 512 * 1024;

/// What a page brought.
#[derive(Debug, Default)]
pub struct Warmed {
    /// Records there were.
    pub read: u64,
    /// Those that are in a tier now.
    pub kept: u64,
    /// Where the next page begins; "" = done.
    pub cursor: String,
}

impl Store {
    /// Brings the next page of records into the tiers.
    pub async fn warm(&self, call: &Call, prefix: &str, cursor: String) -> Result<Warmed> {
        if !self.cache.keeps(&call.policy.terms) {
            return Err(Error::unsupported(format!(
                "nothing of namespace {:?} is kept: there is no tier for it, or its cache_ttl is 0s",
                call.namespace.as_str()
            )));
        }
        let scan = Scan {
            prefix: prefix.to_owned(),
            start: String::new(),
            end: String::new(),
            limit: PAGE_RECORDS,
            max_bytes: PAGE_BYTES,
            cursor,
            reverse: false,
            keys_only: true,
            consistency: Consistency::Eventual,
        };
        let page = self.scan(call, scan).await?;
        if let Some(error) = page.error.filter(|_| page.cursor.is_empty()) {
            return Err(error);
        }
        let get = |key| Get {
            key,
            consistency: Consistency::Eventual,
            max_staleness_ms: None,
            min_version: None,
            shape: Shape::Whole,
        };
        let gets: Vec<Get> = page.records.into_iter().map(|record| get(record.key)).collect();
        let in_tier = |read: &Result<Read>| matches!(read, Ok(Read::Copied(_) | Read::Answered(_)));
        let mut kept = 0;
        for part in gets.chunks(READS_AT_ONCE_MAX) {
            let asked: Vec<&Get> = part.iter().collect();
            let found = self.find(call, &asked, false).await;
            kept += found.iter().filter(|read| in_tier(read)).count() as u64;
        }
        Ok(Warmed { read: gets.len() as u64, kept, cursor: page.cursor })
    }
}
