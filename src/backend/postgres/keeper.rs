//! Looks after the servers: connects, migrates, reads or makes the placement of slots, and notices when one goes and
//! comes back. Requests fail fast while it says that a server is not there.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use sqlx::{Connection as _, Row as _};
use tokio_util::sync::CancellationToken;

use super::classify::Stage;
use super::connections::Loan;
use super::shard::Shard;
use super::{NOBODY, Server, Shared, migrate, sql};
use crate::model::{Error, Result};
use crate::placement::SLOTS;

/// Between two looks at a server that is there.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Between two tries at one that is not; also how long a restart goes unnoticed at most.
const TRY_EVERY: Duration = Duration::from_millis(100);
/// One look takes no longer.
const LOOK_MAX: Duration = Duration::from_secs(3);

/// Runs until it is told to stop.
pub(super) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let mut migrated = vec![false; shared.shards.len()];
    loop {
        let looks =
            shared.shards.iter().zip(&mut migrated).map(|(Server { shard, .. }, migrated)| async move {
                let fault = match tokio::time::timeout(LOOK_MAX, look(shard, migrated)).await {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some(error.message),
                    Err(_) => Some(format!("PostgreSQL {:?} does not answer", shard.name)),
                };
                shard.note(fault.clone());
                fault.is_none()
            });
        let there = futures_util::future::join_all(looks).await;
        let placed = shared.unplaced.lock().unwrap_or_else(PoisonError::into_inner).is_none();
        if !placed {
            let found = place(&shared, &there).await;
            let mut unplaced = shared.unplaced.lock().unwrap_or_else(PoisonError::into_inner);
            match found {
                Ok(()) => *unplaced = None,
                Err(error) => {
                    if unplaced.as_ref() != Some(&error.message) {
                        tracing::warn!("placement: {}", error.message);
                    }
                    *unplaced = Some(error.message);
                }
            }
        }
        let every = if there.iter().all(|there| *there) { LOOK_EVERY } else { TRY_EVERY };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
    }
}

/// Whether a server answers, over a connection of the keeper's own: a pool waits, and what it waits for is not told.
async fn look(shard: &Shard, migrated: &mut bool) -> Result<()> {
    let judge = |error: sqlx::Error| shard.judge(Stage::Read, &error).error;
    let mut connection =
        sqlx::PgConnection::connect_with(&shard.connections.options()).await.map_err(judge)?;
    if !*migrated {
        migrate::run(&mut connection).await.map_err(|error| {
            Error::unavailable(
                format!("PostgreSQL {:?}: its schema could not be brought up to date: {error}", shard.name),
                super::classify::RETRY_AFTER_MS,
            )
        })?;
        *migrated = true;
    }
    shard.sample_clock(&mut connection).await.map_err(|fault| fault.error)?;
    connection.close().await.ok();
    Ok(())
}

/// Reads who owns which slot; makes it, once all servers answer, where nobody owns any.
async fn place(shared: &Shared, there: &[bool]) -> Result<()> {
    let mut owners: HashMap<u16, usize> = HashMap::new();
    let mut silent = Vec::new();
    for (index, Server { shard, .. }) in shared.shards.iter().enumerate() {
        if !there[index] {
            silent.push(format!("{:?}", shard.name));
            continue;
        }
        for slot in owned(shard).await? {
            if let Some(other) = owners.insert(slot, index) {
                let (one, other) = (&shared.shards[other].shard.name, &shard.name);
                return Err(Error::internal(format!("slot {slot} is owned by both {one:?} and {other:?}")));
            }
        }
    }
    for (slot, owner) in shared.owners.iter().enumerate() {
        let slot = u16::try_from(slot).unwrap_or(u16::MAX);
        let index = owners.get(&slot).map_or(NOBODY, |index| u16::try_from(*index).unwrap_or(NOBODY));
        owner.store(index, Ordering::Release);
    }
    if owners.len() == usize::from(SLOTS) {
        return Ok(());
    }
    let missing = usize::from(SLOTS) - owners.len();
    if !silent.is_empty() {
        let message = format!("{missing} slots are on servers that do not answer: {}", silent.join(", "));
        return Err(Error::unavailable(message, super::classify::RETRY_AFTER_MS));
    }
    if owners.is_empty() {
        assign(shared).await?;
        return Box::pin(place(shared, there)).await;
    }
    Err(Error::internal(format!(
        "{missing} of {SLOTS} slots are on none of the configured servers: one that owns them is missing in `shards`"
    )))
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

/// Gives every server its part of the slots. The lock on the first by name keeps a second worker from doing it too.
async fn assign(shared: &Shared) -> Result<()> {
    let mut order: Vec<&Server> = shared.shards.iter().collect();
    order.sort_by(|one, other| one.shard.name.cmp(&other.shard.name));
    let Some(first) = order.first() else { return Ok(()) };
    let judge = |error: sqlx::Error| first.shard.judge(Stage::Read, &error).error;
    let mut lock = first.shard.connection().await.map_err(|fault| fault.error)?;
    lock.begin(lock.in_time()).await.map_err(judge)?;
    lock.rows_in_time(sqlx::query(sql::LOCK_PLACEMENT)).await.map_err(judge)?;
    for server in &order {
        if !owned(&server.shard).await?.is_empty() {
            return Ok(());
        }
    }
    let weights: u64 = order.iter().map(|server| u64::from(server.weight)).sum();
    let (mut before, mut start) = (0_u64, 0_u64);
    // The last to be written is the one that holds the lock: until then nobody sees a placement that is whole.
    let mut parts = Vec::new();
    for server in &order {
        before += u64::from(server.weight);
        let end = u64::from(SLOTS) * before / weights.max(1);
        parts.push((server, (start..end).filter_map(|slot| i32::try_from(slot).ok()).collect::<Vec<i32>>()));
        start = end;
    }
    for (server, slots) in parts.iter().rev() {
        let judge = |error: sqlx::Error| server.shard.judge(Stage::Read, &error).error;
        let own = async |connection: &mut Loan| -> Result<(), sqlx::Error> {
            connection.rows_in_time(sqlx::query(sql::SET_NAME).bind(&server.shard.name)).await?;
            connection.rows_in_time(sqlx::query(sql::OWN).bind(slots)).await?;
            connection.commit(connection.in_time()).await
        };
        if server.shard.name == first.shard.name {
            own(&mut lock).await.map_err(judge)?;
        } else {
            let mut connection = server.shard.connection().await.map_err(|fault| fault.error)?;
            connection.begin(connection.in_time()).await.map_err(judge)?;
            own(&mut connection).await.map_err(judge)?;
        }
        tracing::info!(shard = server.shard.name, slots = slots.len(), "slots assigned");
    }
    Ok(())
}
