//! `bench`: a load generator, beside the transport's own limit.
//!
//! Without `--rate` each of `--concurrency` callers sends its next request when the last one is answered. With it
//! every request has an intended start, and its latency counts from there, however late it was sent: a stall is
//! seen by all the requests it held up (no coordinated omission). Requests are never repeated: what fails is
//! counted.

pub(super) mod echo;
mod load;
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

/// Rounds of workload and echo, one after the other: what the machine does meanwhile meets both alike.
const ECHO_ROUNDS: u32 = 5;

pub(super) async fn run(session: &Session, output: &mut Output, bench: Bench) -> Ended {
    let client = session.client().await?;
    let namespace = session.namespace_of(&client, &bench.namespace)?;
    let target = Arc::new(Target::prepare(&client, namespace, &bench, session.connection.timeout).await?);
    let report = if bench.echo {
        against_echo(session, &client, &target, &bench).await?
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

/// Workload, echo, workload, echo, ...
async fn against_echo(
    session: &Session,
    client: &Client,
    target: &Arc<Target>,
    bench: &Bench,
) -> Result<Report, Fault> {
    let echo = Arc::new(echo::Echo::start(session, client, bench.value_bytes as usize).await?);
    let round = bench.duration / ECHO_ROUNDS;
    let mut rounds = Vec::new();
    for _ in 0..ECHO_ROUNDS {
        let workload = measure(target, bench, round).await;
        let echo = echo.clone();
        let echoed = load::run(bench, round, move || {
            let echo = echo.clone();
            async move { echo.send().await }
        })
        .await;
        rounds.push((workload, echoed));
    }
    Ok(Report::against_echo(rounds))
}
