//! Which server owns which slot: read from what each of them says, and made once, when nobody owns any.

use std::collections::HashMap;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use sqlx::Row as _;

use super::classify::Stage;
use super::connections::{Connections, Loan};
use super::shard::Shard;
use super::{Limits, Server, Shared, sql};
use crate::backend::remote::{NOBODY, RETRY_AFTER_MS, divide};
use crate::model::{Code, Error, Result};
use crate::placement::SLOTS;

/// The slots of a server by its name: from the first to before the end.
type Plan = Vec<(String, i32, i32)>;

/// Reads who owns which slot; makes it, once all servers answer, where nobody owns any.
pub(super) async fn place(shared: &Shared) -> Result<()> {
    let ever = shared.placement.lock().unwrap_or_else(PoisonError::into_inner).ever;
    let mut owners: HashMap<u16, usize> = HashMap::new();
    let mut silent = Vec::new();
    for (index, Server { shard, .. }) in shared.shards.iter().enumerate() {
        let slots = match shard.fault() {
            Some(_) => None,
            None => match owned(shard).await {
                Err(error) if error.code == Code::Internal => return Err(error),
                slots => slots.ok(),
            },
        };
        let Some(slots) = slots else {
            silent.push(format!("{:?}", shard.name));
            continue;
        };
        for slot in slots {
            if let Some(other) = owners.insert(slot, index) {
                let (one, other) = (&shared.shards[other].shard.name, &shard.name);
                return Err(Error::internal(format!("slot {slot} is owned by both {one:?} and {other:?}")));
            }
        }
    }
    for (slot, owner) in shared.owners.iter().enumerate() {
        let slot = u16::try_from(slot).unwrap_or(u16::MAX);
        match owners.get(&slot) {
            Some(index) => owner.store(u16::try_from(*index).unwrap_or(NOBODY), Ordering::Release),
            // One that had an owner is on its way to another: until that has it, the old one says so.
            None if ever => {}
            None => owner.store(NOBODY, Ordering::Release),
        }
    }
    if owners.len() == usize::from(SLOTS) {
        return Ok(());
    }
    let missing = usize::from(SLOTS) - owners.len();
    if !silent.is_empty() || ever {
        let silent = if silent.is_empty() { "none".to_owned() } else { silent.join(", ") };
        let message = format!("{missing} slots are on no server that answers; those that do not: {silent}");
        return Err(Error::unavailable(message, RETRY_AFTER_MS));
    }
    // Somebody began and may have been stopped in the middle.
    for server in &shared.shards {
        if !plan(&server.shard).await?.is_empty() {
            assign(shared, server).await?;
            return Box::pin(place(shared)).await;
        }
    }
    if owners.is_empty()
        && let Some(first) = by_name(shared).first()
    {
        assign(shared, first).await?;
        return Box::pin(place(shared)).await;
    }
    Err(Error::internal(format!(
        "{missing} of {SLOTS} slots are on none of the configured servers: one that owns them is missing in `shards`"
    )))
}

/// The error of servers that did not tell in time.
pub(super) fn silent(shared: &Shared) -> Error {
    let names: Vec<_> = shared.shards.iter().map(|server| format!("{:?}", server.shard.name)).collect();
    let message = format!("it is not known in time which slots the servers own: {}", names.join(", "));
    Error::unavailable(message, RETRY_AFTER_MS)
}

/// The servers in the order of their names, which is the same in every worker, however its list is written.
fn by_name(shared: &Shared) -> Vec<&Server> {
    let mut order: Vec<&Server> = shared.shards.iter().collect();
    order.sort_by(|one, other| one.shard.name.cmp(&other.shard.name));
    order
}

/// The slots that a server says it owns. It must be the one that it was.
async fn owned(shard: &Shard) -> Result<Vec<u16>> {
    let judge = |error: sqlx::Error| shard.judge(Stage::Read, &error).error;
    let mut connection = shard.connection().await.map_err(|fault| fault.error)?;
    let name = connection.rows_in_time(sqlx::query(sql::NAME)).await.map_err(judge)?;
    if let Some(name) = name.first() {
        let name: String = name.try_get(0).map_err(judge)?;
        if name != shard.name {
            return Err(Error::internal(format!(
                "the server configured as {:?} was given its slots as {name:?}: a shard keeps its name",
                shard.name
            )));
        }
    }
    let rows = connection.rows_in_time(sqlx::query(sql::SLOTS_OWNED)).await.map_err(judge)?;
    let slots =
        rows.iter().map(|row| row.try_get::<i32, _>(0)).collect::<Result<Vec<_>, _>>().map_err(judge)?;
    Ok(slots.into_iter().filter_map(|slot| u16::try_from(slot).ok()).collect())
}

/// The plan that a server keeps; empty where it keeps none.
async fn plan(shard: &Shard) -> Result<Plan> {
    let judge = |error: sqlx::Error| shard.judge(Stage::Read, &error).error;
    let mut connection = shard.connection().await.map_err(|fault| fault.error)?;
    let rows = connection.rows_in_time(sqlx::query(sql::PLAN)).await.map_err(judge)?;
    let part = |row: &sqlx::postgres::PgRow| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?));
    rows.iter().map(part).collect::<Result<_, _>>().map_err(judge)
}

/// Gives every server its part of the slots, while it holds all of them against another worker that would: one whose list is
/// another has some of them in its own at least.
async fn assign(shared: &Shared, keeper: &Server) -> Result<()> {
    let shard = &keeper.shard;
    let mut locks = Vec::new();
    for server in by_name(shared) {
        locks.push((&server.shard.name, lock(&server.shard).await?));
    }
    let mut parts = plan(shard).await?;
    if parts.is_empty() {
        for server in &shared.shards {
            let is_begun = !plan(&server.shard).await?.is_empty();
            if is_begun || !owned(&server.shard).await?.is_empty() {
                return Ok(());
            }
        }
        parts = parts_of(shared);
        // Committed before anything is given, by another connection than the one that holds the lock.
        let mut connection = shard.connection().await.map_err(|fault| fault.error)?;
        let note = sqlx::query(sql::SET_PLAN)
            .bind(parts.iter().map(|(name, ..)| name.clone()).collect::<Vec<_>>())
            .bind(parts.iter().map(|(_, first, _)| *first).collect::<Vec<_>>())
            .bind(parts.iter().map(|(.., end)| *end).collect::<Vec<_>>());
        let judge = |error: sqlx::Error| shard.judge(Stage::Read, &error).error;
        connection.rows_in_time(note).await.map_err(judge)?;
    }
    for (name, first, end) in &parts {
        let Some(server) = shared.shards.iter().find(|server| server.shard.name == *name) else {
            return Err(Error::internal(format!(
                "{name:?} was to be given slots {first} to {end} and is missing in `shards`"
            )));
        };
        if server.shard.name == shard.name || !owned(&server.shard).await?.is_empty() {
            continue;
        }
        let judge = |error: sqlx::Error| server.shard.judge(Stage::Read, &error).error;
        let mut connection = server.shard.connection().await.map_err(|fault| fault.error)?;
        connection.begin(connection.in_time()).await.map_err(judge)?;
        own(&mut connection, name, *first, *end).await.map_err(judge)?;
        connection.commit(connection.in_time()).await.map_err(judge)?;
    }
    // With its own part the placement is whole, and the plan is done.
    let judge = |error: sqlx::Error| shard.judge(Stage::Read, &error).error;
    let Some((_, lock)) = locks.iter_mut().find(|(name, _)| **name == shard.name) else {
        return Err(Error::internal("the keeper of the plan is none of the servers"));
    };
    for (name, first, end) in parts.iter().filter(|(name, ..)| *name == shard.name) {
        own(lock, name, *first, *end).await.map_err(judge)?;
    }
    lock.rows_in_time(sqlx::query(sql::END_PLAN)).await.map_err(judge)?;
    lock.commit(lock.in_time()).await.map_err(judge)
}

/// A transaction that holds a server against others that would place slots on it. The connection is of a pool of its own: that of
/// the requests may have one alone, which is needed for the rest.
async fn lock(shard: &Shard) -> Result<Loan> {
    let judge = |error: sqlx::Error| shard.judge(Stage::Read, &error).error;
    let limits = Limits { pool_size: 1, ..Limits::default() };
    let patient = [("lock_timeout", "5000"), ("idle_in_transaction_session_timeout", "60000")];
    let options = shard.connections.options().clone().options(patient);
    let mut lock = Connections::new(options, &limits).borrow().await.map_err(judge)?;
    lock.begin(lock.in_time()).await.map_err(judge)?;
    lock.rows_in_time(sqlx::query(sql::LOCK_PLACEMENT)).await.map_err(judge)?;
    Ok(lock)
}

/// The servers' parts by their weights.
fn parts_of(shared: &Shared) -> Plan {
    let weights = shared.shards.iter().map(|server| (server.shard.name.as_str(), server.weight));
    divide(weights).into_iter().map(|(name, first, end)| (name, i32::from(first), i32::from(end))).collect()
}

async fn own(connection: &mut Loan, name: &str, first: i32, end: i32) -> Result<(), sqlx::Error> {
    connection.rows_in_time(sqlx::query(sql::SET_NAME).bind(name)).await?;
    connection.rows_in_time(sqlx::query(sql::OWN).bind(first).bind(end)).await?;
    tracing::info!(shard = name, slots = end - first, "slots assigned");
    Ok(())
}
