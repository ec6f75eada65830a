//! What statements give back, in the types above them. A column that cannot be read is a defect of ours.

use bytes::Bytes;
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use crate::backend::decide::Now;
use crate::backend::{Found, Live, OpRing, Row};
use crate::model::Version;

type Columns<T> = Result<T, sqlx::Error>;

// Columns are read by their place: looking a name up costs as much as reading it. [`super::sql`] says what stands where, and
// each statement gives the place of its key first, then a version.

/// The place of a row's key in its statement.
pub(super) fn ordinal(row: &PgRow) -> Columns<usize> {
    let ord: i64 = row.try_get(0)?;
    // `WITH ORDINALITY` counts from 1.
    Ok(usize::try_from(ord - 1).unwrap_or(usize::MAX))
}

/// The version in the two columns from a place on, unless they are null.
pub(super) fn version(row: &PgRow, place: usize) -> Columns<Option<Version>> {
    let (hlc, origin): (Option<i64>, Option<i64>) = (row.try_get(place)?, row.try_get(place + 1)?);
    let version =
        |(hlc, origin): (i64, i64)| Version { hlc: hlc.cast_unsigned(), origin: origin.cast_unsigned() };
    Ok(hlc.zip(origin).map(version))
}

/// What a read found.
pub(super) fn found(row: &PgRow) -> Columns<Option<Found>> {
    let Some(version) = version(row, 1)? else {
        return Ok(None);
    };
    let live = match row.try_get(3)? {
        false => None,
        true => Some(Live { body: row.try_get::<Vec<u8>, _>(5)?.into(), expires_at_ms: row.try_get(4)? }),
    };
    Ok(Some(Found { version, live }))
}

/// A whole row and when it was looked at.
pub(super) fn row(row: &PgRow, slot: u16) -> Columns<(Option<Row>, Now)> {
    let gc_floor: i64 = row.try_get("gc_floor")?;
    let now = Now { wall_ms: row.try_get("now")?, gc_floor: gc_floor.cast_unsigned() };
    let Some(version) = version(row, 1)? else {
        return Ok((None, now));
    };
    let is_live = row.try_get::<i16, _>("kind")? == super::LIVE;
    let body = if is_live { Some(Bytes::from(row.try_get::<Vec<u8>, _>("val")?)) } else { None };
    let ring = ring(&row.try_get::<Vec<i64>, _>("ops")?, row.try_get("ops_floor")?);
    let (expires_at_ms, was) = (row.try_get("expires")?, row.try_get("was")?);
    Ok((Some(Row { version, slot, body, expires_at_ms, ring, was }), now))
}

/// A ring out of its column.
pub(super) fn ring(ops: &[i64], evicted_at_ms: i64) -> OpRing {
    let (pairs, _) = ops.as_chunks::<2>();
    let entries = pairs.iter().map(|[op, print]| (op.cast_unsigned(), print.cast_unsigned())).collect();
    OpRing { entries, evicted_at_ms }
}
