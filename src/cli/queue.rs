//! `queue`: operators' commands on the write-behind queue, over the control subjects.
//!
//! Whatever may take long is asked for in steps, so that it can be watched, paced and stopped after any of them.

mod purge;
mod switch;

use std::process::ExitCode;
use std::time::Duration;

use async_nats::HeaderMap;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value as Json, json};
use tokio::time::Instant;

use super::args::{QueueCommand, Replay};
use super::output::{Ended, Fault, INTERRUPTED, Output, failed, json_text, key_word, tell};
use super::{Session, transfer};
use crate::client::Client;
use crate::model::{Code, Error};

/// How long one step may take.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);
/// Letters of one step.
const STEP: u64 = 100;
/// A step that another operator keeps waiting is tried again so often.
const BUSY_TRIES: u32 = 5;

/// Runs a command.
pub(super) async fn run(session: &Session, output: &mut Output, command: QueueCommand) -> Ended {
    let control = Control { client: session.client().await? };
    match command {
        QueueCommand::Status { all } => status(&control, output, all).await,
        QueueCommand::List { limit } => list(&control, output, limit).await,
        QueueCommand::Show { id } => show(&control, output, &id).await,
        QueueCommand::Replay(filter) => replay(&control, output, &filter, None).await,
        QueueCommand::Drain { rate } => replay(&control, output, &everything(), rate).await,
        QueueCommand::Purge { expect, export } => purge::purge(&control, output, expect, &export).await,
        QueueCommand::Switch { namespace, durability } => {
            switch::switch(&control, output, &namespace, &durability).await
        }
        QueueCommand::Receipt { namespace, key, version } => {
            let asked = json!({"namespace": namespace, "key": key, "version": version});
            let receipt = control.ask("receipt", &asked).await?;
            match output.json {
                true => output.line(&receipt.to_string())?,
                false => output
                    .line(format!("{} {}", text(&receipt, "state"), text(&receipt, "reason")).trim_end())?,
            }
            output.flush()?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

struct Control {
    client: Client,
}

impl Control {
    /// One request, one reply; while another operator is at work, again.
    async fn ask(&self, command: &str, asked: &Json) -> Result<Json, Fault> {
        let mut tries = 0;
        loop {
            match self.ask_once(command, asked).await {
                Err(error)
                    if error.code == Code::Unavailable && tries < BUSY_TRIES && error.retry_after_ms > 0 =>
                {
                    tries += 1;
                    tokio::time::sleep(Duration::from_millis(error.retry_after_ms.unsigned_abs())).await;
                }
                other => return other.map_err(Fault::Failed),
            }
        }
    }

    async fn ask_once(&self, command: &str, asked: &Json) -> Result<Json, Error> {
        let subject = format!("{}.ctl.{command}", self.client.subject_prefix());
        let body = asked.to_string().into();
        let reply = self.client.exchange(subject.clone(), HeaderMap::new(), body, STEP_TIMEOUT).await;
        let reply = reply.map_err(|unanswered| unanswered.into_error(&subject))?;
        let reply: Json = serde_json::from_slice(&reply.payload)
            .map_err(|error| Error::internal(format!("a reply that is no JSON: {error}")))?;
        let Some(error) = reply.get("error").filter(|error| error.is_object()) else { return Ok(reply) };
        let word = text(error, "code");
        let code = Code::ALL.into_iter().find(|code| code.word() == word).unwrap_or(Code::Internal);
        let retry_after_ms = error["retry_after_ms"].as_i64().unwrap_or(0);
        let details = error["details"].as_array().map_or(&[][..], Vec::as_slice);
        let details = details.iter().filter_map(|detail| Some(detail.as_str()?.to_owned())).collect();
        Err(Error { retry_after_ms, details, ..Error::new(code, text(error, "message")) })
    }

    async fn dead_letters(&self) -> Result<u64, Fault> {
        Ok(number(&self.ask("queue_status", &json!({})).await?, "dead_letters"))
    }
}

async fn status(control: &Control, output: &mut Output, all: bool) -> Ended {
    let status = control.ask("queue_status", &json!({})).await?;
    if output.json {
        output.line(&status.to_string())?;
        output.flush()?;
        return Ok(ExitCode::SUCCESS);
    }
    output.line(&format!(
        "{:<40} {:>9} {:>9} {:>10} {:>9} {:>9} {:>9}",
        "lane", "depth", "in hand", "bytes", "oldest", "rate/s", "empty in"
    ))?;
    let empty = Vec::new();
    let mut quiet = 0;
    for lane in status["lanes"].as_array().unwrap_or(&empty) {
        if lane["depth"] == 0 && !all {
            quiet += 1;
            continue;
        }
        let or_unknown =
            |name: &str| lane[name].as_u64().map_or("unknown".to_owned(), |told| told.to_string());
        let or_dash = |told: Option<String>| told.unwrap_or_else(|| "-".to_owned());
        output.line(&format!(
            "{:<40} {:>9} {:>9} {:>10} {:>9} {:>9} {:>9}",
            text(lane, "name"),
            // What the broker counts is there, whatever else is.
            lane["depth"]
                .as_u64()
                .map_or_else(|| format!("{}+", number(lane, "ready")), |told| told.to_string()),
            or_unknown("in_hand"),
            or_dash(lane["bytes"].as_u64().map(|told| told.to_string())),
            seconds(number(lane, "oldest_age_ms")),
            or_dash(lane["rate"].as_f64().map(|told| told.to_string())),
            seconds(number(lane, "drain_ms")),
        ))?;
    }
    if quiet > 0 {
        output.line(&format!("{quiet} lanes with nothing in them"))?;
    }
    output.line(&format!("dead letters: {}", number(&status, "dead_letters")))?;
    output.flush()?;
    Ok(ExitCode::SUCCESS)
}

async fn list(control: &Control, output: &mut Output, limit: usize) -> Ended {
    let mut left = u64::try_from(limit).unwrap_or(u64::MAX).min(control.dead_letters().await?);
    while left > 0 {
        let page = control.ask("queue_list", &json!({"limit": left.min(STEP)})).await?;
        let letters = page["letters"].as_array().cloned().unwrap_or_default();
        if letters.is_empty() {
            break;
        }
        left = left.saturating_sub(letters.len() as u64);
        for letter in &letters {
            match output.json {
                true => output.line(&letter.to_string())?,
                false => output.line(&format!(
                    "{}\t{}\t{}\t{}\t{}",
                    text(letter, "id"),
                    text(letter, "namespace"),
                    key_word(&text(letter, "key")),
                    text(letter, "kind"),
                    one_line(&text(letter, "reason"))
                ))?,
            }
        }
    }
    output.flush()?;
    Ok(ExitCode::SUCCESS)
}

async fn show(control: &Control, output: &mut Output, id: &str) -> Ended {
    let mut left = control.dead_letters().await?;
    while left > 0 {
        let step = control.ask("queue_show", &json!({"id": id, "limit": STEP})).await?;
        if let Some(letter) = step.get("letter") {
            match output.json {
                true => output.line(&letter.to_string())?,
                false => {
                    let shown = serde_json::to_string_pretty(letter).unwrap_or_else(|_| letter.to_string());
                    output.line(&shown)?;
                }
            }
            output.flush()?;
            return Ok(ExitCode::SUCCESS);
        }
        left = left.saturating_sub(number(&step, "looked_at").max(1));
    }
    tell(&format!("no dead letter {}", json_text(id)));
    Ok(failed())
}

fn everything() -> Replay {
    Replay {
        namespace: String::new(),
        prefix: String::new(),
        id: String::new(),
        reason: String::new(),
        force: false,
    }
}

/// What a replay came to.
#[derive(Default)]
struct Tally {
    applied: u64,
    superseded: u64,
    failed: u64,
    skipped: u64,
}

async fn replay(control: &Control, output: &mut Output, filter: &Replay, rate: Option<u32>) -> Ended {
    let total = control.dead_letters().await?;
    let bar = counting_bar(total);
    let mut tally = Tally::default();
    let ended = steps_of_replay(control, filter, rate, total, &bar, &mut tally).await;
    bar.finish_and_clear();
    // What was done is told, however it ended.
    let Tally { applied, superseded, failed: failures, skipped } = tally;
    match output.json {
        true => output.line(
            &json!({"applied": applied, "superseded": superseded, "failed": failures, "skipped": skipped})
                .to_string(),
        )?,
        false => output.line(&format!(
            "{applied} applied, {superseded} superseded, {failures} failed, {skipped} left alone"
        ))?,
    }
    output.flush()?;
    match ended? {
        true => {
            tell("stopped; run it again to go on");
            Ok(ExitCode::from(INTERRUPTED))
        }
        false if !filter.id.is_empty() && applied + superseded + failures == 0 => {
            tell(&format!("no dead letter {}", json_text(&filter.id)));
            Ok(failed())
        }
        false => Ok(if failures > 0 { failed() } else { ExitCode::SUCCESS }),
    }
}

/// Replays until each letter was looked at; whether it was interrupted.
async fn steps_of_replay(
    control: &Control,
    filter: &Replay,
    rate: Option<u32>,
    total: u64,
    bar: &ProgressBar,
    tally: &mut Tally,
) -> Result<bool, Fault> {
    let (begun, mut left) = (Instant::now(), total);
    let mut interrupt = std::pin::pin!(transfer::interrupt());
    while left > 0 {
        // Those of a key that are forced in one step stand in their order.
        let limit = match rate {
            Some(rate) if !filter.force => u64::from(rate).clamp(1, STEP).min(left),
            _ => STEP.min(left),
        };
        let asked = json!({
            "limit": limit, "force": filter.force, "namespace": filter.namespace, "prefix": filter.prefix,
            "id": filter.id, "reason": filter.reason,
        });
        let step = tokio::select! {
            step = control.ask("queue_replay", &asked) => step?,
            () = &mut interrupt => return Ok(true),
        };
        let looked_at = number(&step, "looked_at");
        if looked_at == 0 {
            break;
        }
        left = left.saturating_sub(looked_at);
        bar.inc(looked_at);
        let failures = step["failed"].as_array().map_or(&[][..], Vec::as_slice);
        tally.applied += number(&step, "applied");
        tally.superseded += number(&step, "superseded");
        tally.failed += failures.len() as u64;
        tally.skipped += number(&step, "skipped");
        // Each is told at once: their number has no bound.
        bar.suspend(|| {
            for failure in failures {
                tell(&format!("{}: {}", text(failure, "id"), one_line(&text(failure, "reason"))));
            }
        });
        if filter.force
            && let Some(why) = step["ended_early"].as_str()
        {
            tell(&format!(
                "some that were forced may lie there still: {why}; look at them before they are forced again, over what came since"
            ));
            tally.failed += 1;
            return Ok(false);
        }
        if let Some(rate) = rate {
            let due = Duration::from_secs_f64((total - left) as f64 / f64::from(rate.max(1)));
            tokio::select! {
                () = tokio::time::sleep_until(begun + due) => {}
                () = &mut interrupt => return Ok(true),
            }
        }
    }
    Ok(false)
}

/// A bar that counts, where somebody sees it.
fn counting_bar(total: u64) -> ProgressBar {
    let bar = transfer::bar(Some(total));
    let style =
        ProgressStyle::with_template("{bar:40} {pos}/{len} {eta}").expect("the template is well formed");
    bar.set_style(style);
    bar
}

fn text(from: &Json, name: &str) -> String {
    from[name].as_str().unwrap_or_default().to_owned()
}

fn number(from: &Json, name: &str) -> u64 {
    from[name].as_u64().unwrap_or(0)
}

/// A reason as one line.
fn one_line(reason: &str) -> String {
    reason.chars().map(|char| if char.is_control() { ' ' } else { char }).collect()
}

fn seconds(ms: u64) -> String {
    match ms {
        0 => "-".to_owned(),
        ms if ms < 10_000 => format!("{:.1}s", ms as f64 / 1000.0),
        ms => format!("{}s", ms / 1000),
    }
}
