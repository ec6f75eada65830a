//! Which server owns which slot: read from what each of them says, and made once, when nobody owns any.
//!
//! The plan says it of all slots. The first to note it on the server whose name comes first makes it; then each server is given
//! its part, and the plan with it, in one script that does nothing the second time. So any number of workers may do it at once
//! and any may be stopped in the middle. A server keeps the plan, so one that comes back empty is known by its neighbours, and
//! what is missing in the configuration is missed.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use redis::Value;
use tokio::time::Instant;

use super::classify::Stage;
use super::scripts::{self, PLAN_KEY, SCRIPTS, SHARD_KEY, SLOTS_KEY};
use super::shard::Shard;
use super::{CALL_MAX, Server, Shared};
use crate::backend::remote::{NOBODY, RETRY_AFTER_MS, divide};
use crate::model::{Error, Result};
use crate::placement::SLOTS;

/// What a server says of itself.
struct Told {
    name: Option<String>,
    plan: Option<String>,
    mark: Option<String>,
    owned: Vec<u16>,
}

/// Rounds of reading and giving: one to find out, one to see that it was done, and one for another worker's race.
const ROUNDS_MAX: usize = 3;

/// Reads who owns which slot; makes it, once all servers answer, where somebody owns none.
pub(super) async fn place(shared: &Shared, there: &[bool]) -> Result<()> {
    for _ in 0..ROUNDS_MAX {
        let mut told = Vec::new();
        for (Server { shard, .. }, there) in shared.shards.iter().zip(there) {
            told.push(if *there { Some(ask(shard).await?) } else { None });
        }
        let missing = note(shared, &told)?;
        if missing == 0 {
            return Ok(());
        }
        give(shared, &told, missing).await?;
    }
    Err(Error::unavailable("the placement is being made by another worker", RETRY_AFTER_MS))
}

/// Notes the owners; how many slots have none.
fn note(shared: &Shared, told: &[Option<Told>]) -> Result<usize> {
    let mut owners: HashMap<u16, usize> = HashMap::new();
    for (index, Server { shard, .. }) in shared.shards.iter().enumerate() {
        let Some(told) = &told[index] else { continue };
        if let Some(name) = told.name.as_ref().filter(|name| **name != shard.name) {
            return Err(Error::internal(format!(
                "the server configured as {:?} was given its slots as {name:?}: a shard keeps its name",
                shard.name
            )));
        }
        for slot in &told.owned {
            if let Some(other) = owners.insert(*slot, index) {
                let (one, other) = (&shared.shards[other].shard.name, &shard.name);
                return Err(Error::internal(format!("slot {slot} is owned by both {one:?} and {other:?}")));
            }
        }
    }
    for (slot, owner) in (0..SLOTS).zip(&shared.owners) {
        let index = owners.get(&slot).map_or(NOBODY, |index| u16::try_from(*index).unwrap_or(NOBODY));
        owner.store(index, Ordering::Release);
    }
    let missing = usize::from(SLOTS) - owners.len();
    for (Server { shard, .. }, told) in shared.shards.iter().zip(told) {
        // One that was added later owns nothing, and is known by that.
        let mark = told.as_ref().filter(|_| missing == 0).map(|told| told.mark.clone().unwrap_or_default());
        shard.set_mark(mark);
    }
    Ok(missing)
}

/// Gives each server that has nothing its part of the plan, which is made where there is none.
async fn give(shared: &Shared, told: &[Option<Told>], missing: usize) -> Result<()> {
    let silent: Vec<String> = (shared.shards.iter().zip(told))
        .filter(|(_, told)| told.is_none())
        .map(|(server, _)| server.shard.fault().unwrap_or_else(|| server.shard.name.clone()))
        .collect();
    if !silent.is_empty() {
        let message = format!("{missing} slots are on servers that cannot be asked: {}", silent.join(", "));
        return Err(Error::unavailable(message, RETRY_AFTER_MS));
    }
    let mut plans = told.iter().flatten().filter_map(|told| told.plan.as_ref());
    let known = plans.next();
    if plans.any(|other| Some(other) != known) {
        return Err(Error::internal(
            "the servers were given their slots under different plans: they belong to different stores",
        ));
    }
    let plan = match known {
        Some(plan) => plan.clone(),
        None => agree(shared).await?,
    };
    let mut gave = false;
    for (name, first, end) in parts(&plan)? {
        let place = shared.shards.iter().position(|server| server.shard.name == name);
        let Some(place) = place else {
            return Err(Error::internal(format!(
                "{name:?} owns slots {first} to {end} and is missing in `shards`: one that owns slots stays there"
            )));
        };
        if told[place].as_ref().is_some_and(|told| told.name.is_none()) {
            let shard = &shared.shards[place].shard;
            if known.is_some() {
                tracing::error!(shard = name, "Redis came back empty: it is given its slots again");
            }
            assign(shard, &plan, first, end).await?;
            gave = true;
        }
    }
    if gave {
        return Ok(());
    }
    Err(Error::internal(format!("{missing} of {SLOTS} slots are on none of the configured servers")))
}

/// The plan that stands on the server whose name comes first: this worker's, or another's that was quicker.
async fn agree(shared: &Shared) -> Result<String> {
    let weights = shared.shards.iter().map(|server| (server.shard.name.as_str(), server.weight));
    let lines = divide(weights).into_iter().map(|(name, first, end)| format!("{first} {end} {name}"));
    let mine = lines.collect::<Vec<_>>().join("\n");
    let Some(first) = shared.shards.iter().map(|server| &server.shard).min_by_key(|shard| &shard.name) else {
        return Err(Error::internal("a store without servers"));
    };
    let deadline = Instant::now() + CALL_MAX;
    let set = redis::cmd("SET").arg(PLAN_KEY).arg(&mine).arg("NX").to_owned();
    first.call(Stage::Read, &set, deadline).await.map_err(|fault| fault.error)?;
    let get = redis::cmd("GET").arg(PLAN_KEY).to_owned();
    let stands = first.call(Stage::Read, &get, deadline).await.map_err(|fault| fault.error)?;
    Ok(first.text(&stands).map_err(|fault| fault.error)?.into_owned())
}

/// The lines of a plan: name, first slot, the one behind the last.
fn parts(plan: &str) -> Result<Vec<(&str, u16, u16)>> {
    let part = |line| -> Option<(&str, u16, u16)> {
        let mut words = str::splitn(line, 3, ' ');
        let (first, end) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some((words.next()?, first, end))
    };
    let parts: Option<Vec<_>> = plan.lines().map(part).collect();
    parts.ok_or_else(|| Error::internal("the placement that the servers keep cannot be read"))
}

async fn ask(shard: &Shard) -> Result<Told> {
    let keys = [SHARD_KEY, SLOTS_KEY].map(str::to_owned);
    let mut command = scripts::ask(&SCRIPTS.placed, keys);
    command.arg(SLOTS);
    let told = async {
        let value = shard.run(Stage::Read, &SCRIPTS.placed, &command, Instant::now() + CALL_MAX).await?;
        let parts = shard.array(value, 4)?;
        let text = |at: usize| match &parts[at] {
            Value::Nil => Ok(None),
            other => shard.text(other).map(|text| Some(text.into_owned())),
        };
        let owned = text(3)?.unwrap_or_default();
        let owned = (0..SLOTS).zip(owned.bytes()).filter(|(_, state)| *state == b'1').map(|(slot, _)| slot);
        Ok(Told { name: text(0)?, plan: text(1)?, mark: text(2)?, owned: owned.collect() })
    };
    told.await.map_err(|fault: crate::backend::remote::Fault| fault.error)
}

async fn assign(shard: &Shard, plan: &str, first: u16, end: u16) -> Result<()> {
    let keys = [SHARD_KEY, SLOTS_KEY].map(str::to_owned);
    let mut command = scripts::ask(&SCRIPTS.assign, keys);
    let mark = format!("{:016x}", fastrand::u64(..));
    command.arg(&shard.name).arg(plan).arg(mark).arg(first).arg(end);
    // Giving it twice is as once, so this is no write that may have happened.
    let word = shard.run(Stage::Read, &SCRIPTS.assign, &command, Instant::now() + CALL_MAX).await;
    let word = word.map_err(|fault| fault.error)?;
    match shard.text(&word).map_err(|fault| fault.error)?.as_ref() {
        "A" => {
            tracing::info!(shard = shard.name, slots = end - first, "slots assigned");
            Ok(())
        }
        _ => Err(Error::internal(format!("{:?} was given its slots by another plan", shard.name))),
    }
}
