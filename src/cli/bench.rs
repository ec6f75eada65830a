//! `bench`: a load generator, beside the transport's own limit or what a service would write by hand.
//!
//! Without `--rate` each of `--concurrency` callers sends its next request when the last one is answered. With it
//! every request has an intended start, and its latency counts from there, however late it was sent: a stall is
//! seen by all the requests it held up (no coordinated omission). Requests are never repeated: what fails is
//! counted.

pub(super) mod echo;
mod load;
mod peer;
mod report;
mod workload;

use std::process::ExitCode;
use std::sync::Arc;

use crate::client::Client;

use super::Session;
use super::args::Bench;
use super::output::{Ended, Fault, Output};
use load::Measured;
use report::Report;
use workload::Target;

/// Rounds of workload and rival, one after the other: what the machine does meanwhile meets both alike.
const ROUNDS: u32 = 5;

pub(super) async fn run(session: &Session, output: &mut Output, bench: Bench) -> Ended {
    let client = session.client().await?;
    let namespace = session.namespace_of(&client, &bench.namespace)?;
    let target = Arc::new(Target::prepare(&client, namespace, &bench, session.connection.timeout).await?);
    let report = if bench.echo {
        against_echo(session, &client, &target, &bench).await?
    } else if let Some(url) = &bench.peer_postgres {
        against_peer(session, url, &target, &bench).await?
    } else {
        Report::alone(measure(&target, &bench, bench.duration).await)
    };
    if output.json {
        output.line(&report.json(&bench).to_string())?;
    } else {
        for line in report.lines(&bench) {
            output.line(&line)?;
        }
    }
    output.flush()?;
    if report.nothing_succeeded() {
        return Err(Fault::input("no request succeeded"));
    }
    Ok(ExitCode::SUCCESS)
}

async fn measure(target: &Arc<Target>, bench: &Bench, duration: std::time::Duration) -> Measured {
    let target = target.clone();
    load::run(bench, duration, move || {
        let target = target.clone();
        async move { target.send().await }
    })
    .await
}

async fn against_echo(
    session: &Session,
    client: &Client,
    target: &Arc<Target>,
    bench: &Bench,
) -> Result<Report, Fault> {
    let echo = Arc::new(echo::Echo::start(session, client, bench.value_bytes as usize).await?);
    let send = move || {
        let echo = echo.clone();
        async move { echo.send().await }
    };
    Ok(Report::against("echo", rounds(target, bench, send).await))
}

async fn against_peer(
    session: &Session,
    url: &str,
    target: &Arc<Target>,
    bench: &Bench,
) -> Result<Report, Fault> {
    let peer = Arc::new(peer::Peer::start(url, target, session.connection.timeout).await?);
    let (asked, picked) = (peer.clone(), target.clone());
    let send = move || {
        let (peer, at) = (asked.clone(), picked.pick());
        async move { peer.send(at).await }
    };
    let rounds = rounds(target, bench, send).await;
    peer.end().await?;
    Ok(Report::against("peer", rounds))
}

/// Workload, rival, workload, rival, ...
async fn rounds<F>(
    target: &Arc<Target>,
    bench: &Bench,
    rival: impl Fn() -> F + Clone + Send + 'static,
) -> Vec<(Measured, Measured)>
where
    F: Future<Output = Result<u64, String>> + Send + 'static,
{
    let round = bench.duration / ROUNDS;
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let workload = measure(target, bench, round).await;
        rounds.push((workload, load::run(bench, round, rival.clone()).await));
    }
    rounds
}
