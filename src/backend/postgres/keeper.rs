//! Looks after the servers: connects, migrates, reads or makes the placement of slots, and notices when one goes and
//! comes back. Requests fail fast while it says that a server is not there.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use sqlx::Connection as _;
use tokio_util::sync::CancellationToken;

use super::classify::Stage;
use super::migrate::Step;
use super::shard::Shard;
use super::{Server, Shared, migrate, slots};
use crate::backend::remote::RETRY_AFTER_MS;
use crate::model::{Error, Result};

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
        let looks = shared.shards.iter().zip(&mut migrated).map(|(Server { shard, .. }, migrated)| async {
            let fault = match tokio::time::timeout(LOOK_MAX, look(shard, shared.steps, migrated)).await {
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
            let found = slots::place(&shared, &there).await;
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
async fn look(shard: &Shard, steps: &[Step], migrated: &mut bool) -> Result<()> {
    let judge = |error: sqlx::Error| shard.judge(Stage::Read, &error).error;
    let mut connection =
        sqlx::PgConnection::connect_with(&shard.connections.options()).await.map_err(judge)?;
    if !*migrated {
        migrate::run(&mut connection, steps).await.map_err(|error| {
            Error::unavailable(
                format!("PostgreSQL {:?}: its schema could not be brought up to date: {error}", shard.name),
                RETRY_AFTER_MS,
            )
        })?;
        *migrated = true;
    }
    shard.sample_clock(&mut connection).await.map_err(|fault| fault.error)?;
    connection.close().await.ok();
    Ok(())
}
