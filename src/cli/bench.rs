//! `bench`: a load generator, beside the transport's own limit or what somebody would do without us.
//!
//! Without `--rate` each of `--concurrency` callers sends its next request when the last one is answered. With it
//! every request has an intended start, and its latency counts from there, however late it was sent: a stall is
//! seen by all the requests it held up (no coordinated omission). Requests are never repeated: what fails is
//! counted.

pub(super) mod echo;
mod load;
mod mix;
mod peer;
mod records;
mod report;
mod workload;
mod zipf;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use super::Session;
use super::args::Bench;
use super::output::{Ended, Fault, Output};
use load::{Load, Measured};
use peer::Peer;
use records::Records;
use report::Report;
use workload::Target;

pub(super) async fn run(session: &Session, output: &mut Output, bench: Bench) -> Ended {
    let client = session.client().await?;
    let namespace = session.namespace_of(&client, &bench.namespace)?;
    let timeout = session.connection.timeout;
    let records = Arc::new(Records::of(&bench)?);
    let target = Arc::new(Target::prepare(&client, namespace, &bench, records.clone(), timeout).await?);
    let peer = Peer::start(session, &client, &bench, &records).await?.map(Arc::new);
    if let Some(warm_up) = bench.warm_up {
        measure(&target, &bench, warm_up).await;
        if let Some(peer) = &peer {
            measure_peer(peer, &bench, warm_up).await;
        }
    }
    let report = match &peer {
        None => Report::alone(measure(&target, &bench, bench.duration).await),
        Some(peer) => {
            let rounds = rounds(&target, peer, &bench).await;
            peer.end().await?;
            Report::against(peer.name(), rounds)
        }
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

/// Workload, peer, workload, peer, ...: what the machine does meanwhile meets both alike.
async fn rounds(target: &Arc<Target>, peer: &Arc<Peer>, bench: &Bench) -> Vec<(Measured, Measured)> {
    let round = bench.duration / bench.rounds;
    let mut rounds = Vec::new();
    for _ in 0..bench.rounds {
        let workload = measure(target, bench, round).await;
        rounds.push((workload, measure_peer(peer, bench, round).await));
    }
    rounds
}

async fn measure(target: &Arc<Target>, bench: &Bench, duration: Duration) -> Measured {
    let target = target.clone();
    let send = move || {
        let target = target.clone();
        async move { target.send().await }
    };
    load::run(Load { concurrency: bench.concurrency, rate: bench.rate, duration }, send).await
}

async fn measure_peer(peer: &Arc<Peer>, bench: &Bench, duration: Duration) -> Measured {
    let peer = peer.clone();
    let send = move || {
        let peer = peer.clone();
        async move { peer.send().await }
    };
    let concurrency = bench.peer_concurrency.unwrap_or(bench.concurrency);
    load::run(Load { concurrency, rate: bench.rate, duration }, send).await
}
