//! ONE suite of trials, run on every backend in both encodings.
//!
//! A trial is an `async fn(Caller)` whose doc comment names the sentence of the contract it stands for. It gets a
//! namespace of its own, so trials run side by side on one worker per backend. `cargo test --test it` shows a test
//! per backend, encoding and group; a failing group lists every trial that failed.

mod batch;
mod delete;
mod encoding;
mod errors;
mod get;
mod limits;
mod plain;
mod policies;
mod put;
mod scan;
mod touch;
mod unsupported;
mod update;
mod versions;

use crate::support::caller::{Caller, Encoding};
use crate::support::unique;
use crate::support::worker::{Backend, Need};
use futures_util::future::BoxFuture;
use futures_util::stream::{StreamExt, iter};
use std::time::Duration;

/// A trial, its name, and what a backend must be able to promise for it.
type Trial = (&'static str, &'static [Need], fn(Caller) -> BoxFuture<'static, ()>);

/// Trials of a group that run at the same time: enough that those which sleep cost nothing.
const SIDE_BY_SIDE: usize = 8;
/// No trial may hang the run.
const TRIAL_WITHIN: Duration = Duration::from_secs(60);

/// Lists the trials of a group, each with what it needs.
macro_rules! trials {
    ($($name:ident $([$($need:ident),*])?),* $(,)?) => {
        pub(super) const TRIALS: &[super::Trial] = &[$((
            stringify!($name),
            &[$($(crate::support::worker::Need::$need),*)?],
            |caller| Box::pin($name(caller)),
        )),*];
    };
}
use trials;

/// A test for each backend, encoding and group.
macro_rules! matrix {
    ($($cell:ident = $backend:ident x $encoding:ident),*: $groups:tt) => {
        $(matrix!(@cell $cell $backend $encoding $groups);)*
    };
    (@cell $cell:ident $backend:ident $encoding:ident [$($group:ident),*]) => {
        mod $cell {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $group() {
                super::run(super::Backend::$backend, super::Encoding::$encoding, super::$group::TRIALS).await;
            })*
        }
    };
}
matrix!(
    memory_json = Memory x Json,
    memory_protobuf = Memory x Protobuf,
    local_json = Local x Json,
    local_protobuf = Local x Protobuf,
    postgres_json = Postgres x Json,
    postgres_protobuf = Postgres x Protobuf,
    redis_json = Redis x Json,
    redis_protobuf = Redis x Protobuf,
    riak_json = Riak x Json,
    riak_protobuf = Riak x Protobuf:
    [get, put, delete, update, touch, batch, scan, versions, errors, limits, encoding, plain]
);

/// Runs the trials of a group and panics with the names of all that failed.
async fn run(backend: Backend, encoding: Encoding, trials: &[Trial]) {
    let caller = Caller::shared(backend, encoding).await;
    let able = |trial: &&Trial| trial.1.iter().all(|need| backend.can(*need));
    let running = iter(trials.iter().filter(able)).map(|(name, _, trial)| {
        let trial = trial(caller.in_namespace(&unique("n")));
        async move {
            let ended = tokio::spawn(tokio::time::timeout(TRIAL_WITHIN, trial)).await;
            let ended = match ended {
                Ok(Ok(())) => Ok(()),
                Ok(Err(_)) => Err(format!("still running after {TRIAL_WITHIN:?}")),
                Err(panic) => Err(text_of(panic)),
            };
            println!("{backend:?} {encoding:?} {name}: {}", if ended.is_ok() { "ok" } else { "FAILED" });
            ended.err().map(|why| format!("{name}: {why}"))
        }
    });
    let failed: Vec<_> =
        running.buffer_unordered(SIDE_BY_SIDE).filter_map(async |failed| failed).collect().await;
    assert!(
        failed.is_empty(),
        "{} of {} trials failed:\n  {}",
        failed.len(),
        trials.len(),
        failed.join("\n  ")
    );
}

fn text_of(panic: tokio::task::JoinError) -> String {
    let Ok(panic) = panic.try_into_panic() else { return "cancelled".to_owned() };
    let text = panic.downcast_ref::<String>().cloned();
    text.or(panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or("panicked".to_owned())
}
