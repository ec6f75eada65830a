//! What statements are given: a column of each as an array.

use sqlx::Postgres;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;

use super::shard::Proposal;
use crate::backend::{Entry, Row, RowKey};

type Bound<'q> = Query<'q, Postgres, PgArguments>;

/// Slots, namespaces and keys, as `$1` to `$3`.
pub(super) fn bind_keys<'q>(query: Bound<'q>, keys: &[RowKey]) -> Bound<'q> {
    query
        .bind(keys.iter().map(|at| i32::from(at.slot)).collect::<Vec<i32>>())
        .bind(keys.iter().map(|at| at.namespace.as_str()).collect::<Vec<_>>())
        .bind(keys.iter().map(|at| at.key.as_str()).collect::<Vec<_>>())
}

/// What each proposal would write, as `$1` to `$9`.
pub(super) fn bind_proposals<'q>(query: Bound<'q>, proposals: &[Proposal]) -> Bound<'q> {
    query
        .bind(proposals.iter().map(|each| i32::from(each.at.slot)).collect::<Vec<i32>>())
        .bind(proposals.iter().map(|each| each.at.namespace.as_str()).collect::<Vec<_>>())
        .bind(proposals.iter().map(|each| each.at.key.as_str()).collect::<Vec<_>>())
        .bind(proposals.iter().map(|each| each.version.hlc.cast_signed()).collect::<Vec<i64>>())
        .bind(proposals.iter().map(|each| each.version.origin.cast_signed()).collect::<Vec<i64>>())
        .bind(proposals.iter().map(kind).collect::<Vec<i16>>())
        .bind(proposals.iter().map(|each| each.expires_at_ms).collect::<Vec<i64>>())
        .bind(proposals.iter().map(|each| each.op.cast_signed()).collect::<Vec<i64>>())
        .bind(proposals.iter().map(|each| each.body.as_deref()).collect::<Vec<_>>())
}

/// What tells whether rows need be merged, as `$1` to `$7`.
pub(super) fn bind_marks<'q>(query: Bound<'q>, entries: &[&'q Entry]) -> Bound<'q> {
    query
        .bind(entries.iter().map(|entry| i32::from(entry.at.slot)).collect::<Vec<i32>>())
        .bind(entries.iter().map(|entry| entry.at.namespace.as_str()).collect::<Vec<_>>())
        .bind(entries.iter().map(|entry| entry.at.key.as_str()).collect::<Vec<_>>())
        .bind(entries.iter().map(|entry| entry.row.version.hlc.cast_signed()).collect::<Vec<i64>>())
        .bind(entries.iter().map(|entry| entry.row.version.origin.cast_signed()).collect::<Vec<i64>>())
        .bind(entries.iter().map(|entry| entry.row.ring.evicted_at_ms).collect::<Vec<i64>>())
        .bind(entries.iter().map(|entry| ring(&entry.row)).collect::<Vec<String>>())
}

/// Whole rows, as `$1` to `$11`.
pub(super) fn bind_rows<'q>(query: Bound<'q>, rows: &[(&RowKey, &Row)]) -> Bound<'q> {
    let kind = |row: &Row| if row.body.is_some() { super::LIVE } else { super::TOMBSTONE };
    query
        .bind(rows.iter().map(|(at, _)| i32::from(at.slot)).collect::<Vec<i32>>())
        .bind(rows.iter().map(|(at, _)| at.namespace.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|(at, _)| at.key.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|(_, row)| row.version.hlc.cast_signed()).collect::<Vec<i64>>())
        .bind(rows.iter().map(|(_, row)| row.version.origin.cast_signed()).collect::<Vec<i64>>())
        .bind(rows.iter().map(|(_, row)| kind(row)).collect::<Vec<i16>>())
        .bind(rows.iter().map(|(_, row)| row.expires_at_ms).collect::<Vec<i64>>())
        .bind(rows.iter().map(|(_, row)| row.was).collect::<Vec<bool>>())
        .bind(rows.iter().map(|(_, row)| row.body.as_deref()).collect::<Vec<_>>())
        .bind(rows.iter().map(|(_, row)| row.ring.evicted_at_ms).collect::<Vec<i64>>())
        .bind(rows.iter().map(|(_, row)| ring(row)).collect::<Vec<String>>())
}

/// A ring as the text of an array: arrays of arrays would have to be of one length.
fn ring(row: &Row) -> String {
    let ops = row.ring.entries.iter().flat_map(|(op, print)| [op.cast_signed(), print.cast_signed()]);
    format!("{{{}}}", ops.map(|number| number.to_string()).collect::<Vec<_>>().join(","))
}

/// The word of the column `kind`.
pub(super) fn kind(proposal: &Proposal) -> i16 {
    if proposal.body.is_some() { super::LIVE } else { super::TOMBSTONE }
}
