//! `warm`: asks all workers to fill their tiers, and shows how far they are.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use futures_util::StreamExt;
use serde::{Deserialize, Serialize};

use super::args::Warm;
use super::output::{Ended, Fault, INTERRUPTED, Output, failed, tell};
use super::{Session, settings, transfer};
use crate::model::{Error, Namespace};

/// How long workers have to answer that they begin.
const BEGIN_WITHIN: Duration = Duration::from_secs(1);
/// Between two requests that nobody heard.
const ASK_PAUSE: Duration = Duration::from_millis(100);
/// A worker that tells nothing for so long is given up.
const SILENT: Duration = Duration::from_secs(30);

/// What a worker tells.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Progress {
    worker: String,
    read: u64,
    kept: u64,
    done: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<Failure>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Failure {
    code: String,
    message: String,
}

/// Warms the tiers of every worker. Ends with a line for each.
pub(super) async fn run(session: &Session, output: &mut Output, arguments: &Warm) -> Ended {
    Namespace::parse(&arguments.namespace)?;
    let nats = settings::client(&session.connection)?.settings.nats;
    let unreachable = |error: String| Fault::Failed(Error::unavailable(format!("NATS: {error}"), 0));
    let options = nats.options().await.map_err(|error| unreachable(error.to_string()))?;
    let connecting = tokio::time::timeout(session.connection.timeout, options.connect(nats.servers()));
    let client = connecting
        .await
        .map_err(|_| unreachable("no server answers".to_owned()))?
        .map_err(|error| unreachable(error.to_string()))?;
    let inbox = client.new_inbox();
    let mut replies =
        client.subscribe(inbox.clone()).await.map_err(|error| unreachable(error.to_string()))?;
    let request = serde_json::json!({"namespace": arguments.namespace, "prefix": arguments.prefix});
    let subject = format!("{}.ctl.warm", nats.subject_prefix);
    let ask = async || {
        client
            .publish_with_reply(subject.clone(), inbox.clone(), request.to_string().into())
            .await
            .map_err(|error| unreachable(error.to_string()))
    };
    ask().await?;

    let bar = transfer::bar(None);
    let mut interrupt = std::pin::pin!(transfer::interrupt());
    let mut workers: BTreeMap<String, Progress> = BTreeMap::new();
    let begun = tokio::time::Instant::now();
    loop {
        let beginning = begun.elapsed() < BEGIN_WITHIN;
        let all_done = !workers.is_empty() && workers.values().all(|worker| worker.done);
        if all_done && !beginning {
            break;
        }
        let wait = if beginning { BEGIN_WITHIN.saturating_sub(begun.elapsed()) } else { SILENT };
        let reply = tokio::select! {
            biased;
            () = &mut interrupt => {
                bar.finish_and_clear();
                tell("stopped looking; the workers go on");
                return Ok(ExitCode::from(INTERRUPTED));
            }
            reply = tokio::time::timeout(wait, replies.next()) => reply,
        };
        match reply {
            // Nobody listens; a worker that has just started will in a moment.
            Ok(Some(reply)) if reply.payload.is_empty() && beginning && workers.is_empty() => {
                tokio::time::sleep(ASK_PAUSE).await;
                ask().await?;
            }
            Ok(Some(reply)) if reply.payload.is_empty() => break,
            Ok(Some(reply)) => {
                if let Ok(progress) = serde_json::from_slice::<Progress>(&reply.payload) {
                    workers.insert(progress.worker.clone(), progress);
                }
                let sum = |count: fn(&Progress) -> u64| workers.values().map(count).sum::<u64>();
                bar.set_message(format!(
                    "{} workers, {} records read, {} kept",
                    workers.len(),
                    sum(|worker| worker.read),
                    sum(|worker| worker.kept)
                ));
            }
            Ok(None) => break,
            Err(_) if beginning => {}
            Err(_) => break,
        }
    }
    bar.finish_and_clear();
    if workers.is_empty() {
        let error = Error::unavailable(format!("no worker answers at prefix {:?}", nats.subject_prefix), 0);
        return Err(Fault::Failed(error));
    }
    let mut well = true;
    for worker in workers.values() {
        if output.json {
            output.line(&serde_json::to_string(worker).expect("plain data"))?;
        } else {
            output.line(&format!(
                "worker {}: {} records read, {} kept",
                worker.worker, worker.read, worker.kept
            ))?;
        }
        match &worker.error {
            Some(error) => {
                tell(&format!("error: {}: {} (worker {})", error.code, error.message, worker.worker))
            }
            None if !worker.done => tell(&format!("error: worker {} tells nothing any more", worker.worker)),
            None => continue,
        }
        well = false;
    }
    output.flush()?;
    if well { Ok(ExitCode::SUCCESS) } else { Ok(failed()) }
}
