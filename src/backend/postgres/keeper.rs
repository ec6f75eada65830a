//! Looks after the servers, each in a task of its own: brings its schema up to date, and notices when it goes and comes back.
//! Another reads or makes the placement of slots. Requests fail fast while it is known that a server is not there.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::classify::{READ_ONLY, Stage};
use super::connections::Loan;
use super::migrate::Step;
use super::shard::Shard;
use super::{HUNG_AFTER, Server, Shared, migrate, slots, sql};

/// Between two looks at a server that is there.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Between two tries at one that is not, and at a placement that is not whole.
const TRY_EVERY: Duration = Duration::from_millis(100);
/// One look takes no longer.
const LOOK_MAX: Duration = Duration::from_secs(3);
/// Tries at the placement in a row before they are made less often: a server may be away for long.
const HASTY_TRIES: u32 = 50;
/// One try to read or make the placement takes no longer.
const PLACE_MAX: Duration = Duration::from_secs(30);
/// The first pause behind a migration that failed; each is twice the one before.
const MIGRATE_AGAIN: Duration = Duration::from_secs(1);
/// The longest.
const MIGRATE_AGAIN_MAX: Duration = Duration::from_secs(30);
/// A migration that is not done by then is begun anew: its connection may have fallen silent.
const MIGRATE_MAX: Duration = Duration::from_secs(3600);
/// A migration that takes longer is told of.
const MIGRATE_TOLD: Duration = Duration::from_secs(2);

/// Looks after one server for ever.
pub(super) async fn keep(shared: Arc<Shared>, index: usize) {
    let Server { shard, .. } = &shared.shards[index];
    bring_up_to_date(shard, shared.steps).await;
    let mut kept = None;
    loop {
        let fault = look(shard, &mut kept).await.err();
        let pause = if fault.is_none() { LOOK_EVERY } else { TRY_EVERY };
        shard.note(fault);
        tokio::time::sleep(pause).await;
    }
}

/// Reads or makes the placement, until it is whole and whenever a server says that a slot is not its own.
pub(super) async fn place(shared: Arc<Shared>) {
    while !shared.shards.iter().all(|server| server.shard.is_seen()) {
        tokio::time::sleep(TRY_EVERY).await;
    }
    let mut tries = 0;
    loop {
        let found = match timeout(PLACE_MAX, slots::place(&shared)).await {
            Ok(found) => found,
            Err(_) => Err(slots::silent(&shared)),
        };
        let whole = found.is_ok();
        {
            let mut placement = shared.placement.lock().unwrap_or_else(PoisonError::into_inner);
            let fault = found.err();
            if let Some(fault) = fault.as_ref().filter(|fault| placement.fault.as_ref() != Some(*fault)) {
                tracing::warn!("placement: {}", fault.message);
            }
            placement.tried = true;
            placement.ever |= whole;
            placement.fault = fault;
        }
        tries = if whole { 0 } else { tries + 1 };
        tokio::time::sleep(if tries < HASTY_TRIES { TRY_EVERY } else { LOOK_EVERY }).await;
        if whole {
            shared.moved.notified().await;
        }
    }
}

/// Whether a server answers, over a connection that is kept for it: the pool's may all be in use.
async fn look(shard: &Shard, kept: &mut Option<Loan>) -> Result<(), String> {
    let until = || Instant::now() + LOOK_MAX - HUNG_AFTER;
    if let Some(mut connection) = kept.take() {
        let begun = Instant::now();
        match shard.look(&mut connection, until()).await {
            Ok(()) => {
                *kept = Some(connection);
                return Ok(());
            }
            Err(fault) if connection.is_sound() || begun.elapsed() >= LOOK_MAX => {
                return Err(fault.error.message);
            }
            // It may have been ended alone, by an operator or on its way.
            Err(_) => {}
        }
    }
    let mut connection = match shard.connections.apart().await {
        Ok(connection) => connection,
        // It lets nobody new in. Whoever is in may go on.
        Err(error @ sqlx::Error::Database(_)) if shard.connections.is_any() => {
            let judged = shard.judge(Stage::Before, &error).error.message;
            return match timeout(LOOK_MAX, shard.connections.borrow()).await {
                Ok(Ok(mut loan)) => shard.look(&mut loan, until()).await.map_err(|_| judged),
                Ok(Err(_)) => Err(judged),
                // All are at work.
                Err(_) => Ok(()),
            };
        }
        Err(error) => return Err(shard.judge(Stage::Before, &error).error.message),
    };
    shard.look(&mut connection, until()).await.map_err(|fault| fault.error.message)?;
    *kept = Some(connection);
    Ok(())
}

/// Tries until the schema of a server is what it should be.
async fn bring_up_to_date(shard: &Shard, steps: &[Step]) {
    let mut pause = MIGRATE_AGAIN;
    loop {
        match migrated(shard, steps).await {
            Ok(Ok(())) => return shard.note_schema(None),
            Ok(Err(why)) => {
                let name = &shard.name;
                let why = format!("PostgreSQL {name:?}: its schema could not be brought up to date: {why}");
                shard.note_schema(Some(why));
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(MIGRATE_AGAIN_MAX);
            }
            Err(away) => {
                shard.note(Some(away));
                tokio::time::sleep(TRY_EVERY).await;
            }
        }
    }
}

/// Runs what is missing. The error is that of a server that is not there; inside, that of a step.
async fn migrated(shard: &Shard, steps: &[Step]) -> Result<Result<(), String>, String> {
    let judge = |error: sqlx::Error| shard.judge(Stage::Before, &error).error.message;
    // A step takes as long as it takes; but it must not stand in line for a table for long, because whoever comes behind it
    // waits as well, the workers that serve among them.
    let unhurried = shard.connections.options().clone().options([
        ("statement_timeout", "0"),
        ("idle_in_transaction_session_timeout", "0"),
        ("lock_timeout", "1000"),
    ]);
    let mut connection = shard.connections.connect(&unhurried).await.map_err(judge)?;
    let looked = sqlx::query(sql::LOOK).fetch_one(&mut connection).await.map_err(judge)?;
    if sqlx::Row::try_get(&looked, 1).map_err(judge)? {
        return Err(format!("PostgreSQL {:?}: {READ_ONLY}", shard.name));
    }
    let run = timeout(MIGRATE_MAX, migrate::run(&mut connection, steps));
    tokio::pin!(run);
    let ended = match timeout(MIGRATE_TOLD, &mut run).await {
        Ok(ended) => ended,
        Err(_) => {
            shard.note_schema(Some(format!(
                "PostgreSQL {:?}: its schema is being brought up to date",
                shard.name
            )));
            run.await
        }
    };
    match ended {
        Ok(Ok(())) => Ok(Ok(())),
        Ok(Err(error @ sqlx::Error::Migrate(_))) => Ok(Err(error.to_string())),
        Ok(Err(error)) => Err(judge(error)),
        Err(_) => Ok(Err(format!("it was not done within {MIGRATE_MAX:?}"))),
    }
}
