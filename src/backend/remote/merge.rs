//! One page out of the pages of several servers, each of which gives its own part in key order.

use crate::backend::{Found, Page, Range};
use crate::model::{Key, Result};

/// A row of a page, dead or alive.
pub(in crate::backend) struct Walked {
    pub(in crate::backend) key: String,
    /// `None` = dead; a damaged row is an error in its place.
    pub(in crate::backend) found: Option<Result<Found>>,
    /// What counts towards the page.
    pub(in crate::backend) bytes: usize,
    /// What its document takes.
    pub(in crate::backend) load: usize,
}

/// What one server gives to a page.
pub(in crate::backend) struct Part {
    /// In the order of the scan.
    pub(in crate::backend) rows: Vec<Walked>,
    /// It stopped behind so many dead ones that it did not come to the end of the range.
    pub(in crate::backend) stopped: bool,
}

impl Part {
    /// Of a server that looks at so many rows at most.
    pub(in crate::backend) fn of(rows: Vec<Walked>, examined: usize) -> Self {
        Self { stopped: rows.len() >= examined, rows }
    }
}

/// Bytes of documents of one page, also where they do not count.
pub(in crate::backend) const LOAD_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The page of the whole out of the pages of the parts. A part that is full may have more behind its last row, so
/// nothing behind that is taken.
pub(in crate::backend) fn merge(parts: Vec<Part>, range: &Range, examined: usize) -> Result<Page> {
    let mut parts: Vec<_> = parts
        .into_iter()
        .map(|Part { rows: part, stopped }| {
            let bytes: usize = part.iter().map(|row| row.bytes).sum();
            let load: usize = part.iter().map(|row| row.load).sum();
            let lives = part.iter().filter(|row| row.found.is_some()).count();
            let full = stopped || lives >= range.limit || bytes >= range.max_bytes || load >= LOAD_BYTES_MAX;
            (full, part.into_iter().peekable())
        })
        .collect();
    let mut page = Page::default();
    let (mut bytes, mut looked, mut last) = (0, 0, None);
    loop {
        let first = |one: &str, other: &str| if range.reverse { one > other } else { one < other };
        let mut next: Option<usize> = None;
        for index in 0..parts.len() {
            let Some(key) = parts[index].1.peek().map(|row| row.key.clone()) else { continue };
            let better = next.and_then(|next| parts[next].1.peek()).is_none_or(|best| first(&key, &best.key));
            if better {
                next = Some(index);
            }
        }
        let Some(index) = next else { return Ok(page) };
        let (full, part) = &mut parts[index];
        let Some(row) = part.next() else { return Ok(page) };
        let (is_full, at_end) = (*full, part.peek().is_none());
        let key = Key::parse(&row.key)?;
        looked += 1;
        bytes += row.bytes;
        last = Some(key.clone()).or(last);
        if let Some(found) = row.found {
            match (page.rows.last_mut(), found) {
                // A key that two servers had while its slot moved: the newer record is the one.
                (Some((same, Ok(other))), Ok(found)) if *same == key => {
                    if other.version < found.version {
                        *other = found;
                    }
                }
                (_, found) => page.rows.push((key, found)),
            }
        }
        let done = page.rows.len() >= range.limit || bytes >= range.max_bytes || looked >= examined;
        // What stands behind the last row of a full part is not known, so the page ends there.
        if done || (is_full && at_end) {
            let more = is_full || parts.iter_mut().any(|(full, part)| part.peek().is_some() || *full);
            page.resume = last.filter(|_| more);
            return Ok(page);
        }
    }
}
