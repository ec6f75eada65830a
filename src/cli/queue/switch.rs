//! `queue switch`: changing the durability in force, step by step until it is.

use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value as Json, json};
use tokio::time::Instant;

use super::{Control, number, text};
use crate::cli::output::{Ended, Fault, INTERRUPTED, Output, tell};
use crate::cli::transfer;
use crate::model::{Code, Error};
use crate::store::SETTINGS;

/// Between two steps.
const STEP_EVERY: Duration = Duration::from_millis(500);
/// Times that workers are asked in turn whose settings are not those that are to be in force.
const OTHERS_MAX: u32 = 5;
/// Once it has begun, a store that is away is waited for so long.
const AWAY_MAX: Duration = Duration::from_secs(120);

/// Changes the durability of a namespace.
pub(super) async fn switch(
    control: &Control,
    output: &mut Output,
    namespace: &str,
    durability: &str,
) -> Ended {
    let other = if durability == "through" { "outage_queue" } else { "through" };
    let left_closed = || {
        tell(&format!(
            "where the queue was closed to namespace {namespace} it stays so until this is run again, or \
             `queue switch {namespace} {other}` goes back"
        ));
    };
    let bar = transfer::bar(None);
    let style = ProgressStyle::with_template("{spinner} {msg}").expect("the template is well formed");
    bar.set_style(style);
    let ended = steps(control, namespace, durability, &bar).await;
    bar.finish_and_clear();
    match ended {
        Ok(true) => {}
        Ok(false) => {
            left_closed();
            return Ok(ExitCode::from(INTERRUPTED));
        }
        // What is not understood, or cannot be done at all, has changed nothing.
        Err(fault) => {
            let nothing_done = |error: &Error| {
                matches!(error.code, Code::InvalidArgument | Code::Unsupported) || error.details == [SETTINGS]
            };
            if !matches!(&fault, Fault::Failed(error) if nothing_done(error)) {
                left_closed();
            }
            return Err(fault);
        }
    }
    match output.json {
        true => output.line(&json!({"namespace": namespace, "durability": durability}).to_string())?,
        false => output.line(&format!(
            "namespace {namespace}: durability {durability} is in force; what every worker is configured with should say so"
        ))?,
    }
    output.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// Steps until it is done; `false` where it was interrupted.
async fn steps(
    control: &Control,
    namespace: &str,
    durability: &str,
    bar: &ProgressBar,
) -> Result<bool, Fault> {
    let mut interrupt = std::pin::pin!(transfer::interrupt());
    let asked = json!({"namespace": namespace, "durability": durability});
    let (mut told, mut answered, mut others) = (String::new(), None::<Instant>, 0);
    loop {
        let step = tokio::select! {
            step = control.ask("queue_switch", &asked) => step,
            () = &mut interrupt => return Ok(false),
        };
        let step = match step {
            Ok(step) => step,
            // Another worker may be configured as it should.
            Err(Fault::Failed(error)) if error.details == [SETTINGS] && others < OTHERS_MAX => {
                others += 1;
                continue;
            }
            Err(Fault::Failed(error))
                if error.code == Code::Unavailable
                    && error.details != [SETTINGS]
                    && answered.is_some_and(|answered| answered.elapsed() < AWAY_MAX) =>
            {
                bar.set_message(error.message);
                tokio::time::sleep(STEP_EVERY).await;
                continue;
            }
            Err(fault) => return Err(fault),
        };
        answered = Some(Instant::now());
        let state = text(&step, "state");
        if state == "done" {
            return Ok(true);
        }
        // Where nobody sees the bar, each state is told once.
        if bar.is_hidden() && state != told {
            tell(&words(&step));
        }
        bar.set_message(words(&step));
        bar.tick();
        told = state;
        tokio::select! {
            () = tokio::time::sleep(STEP_EVERY) => {}
            () = &mut interrupt => return Ok(false),
        }
    }
}

/// What a step told, for people.
fn words(step: &Json) -> String {
    let seconds = number(step, "left_ms").div_ceil(1000);
    match text(step, "state").as_str() {
        "closing" => format!("the queue is closed; writes on their way arrive within {seconds} s"),
        "draining" => match step["queued"].as_u64() {
            Some(0) => format!(
                "nothing is queued, but of {} keys a write is thought to wait that its store has not; look at the dead letters",
                number(step, "keys")
            ),
            Some(queued) => {
                format!("{queued} queued writes are being applied, {} keys wait", number(step, "keys"))
            }
            None => format!("queued writes are being applied, {} keys wait", number(step, "keys")),
        },
        _ => format!("workers of the other durability end their last writes within {seconds} s"),
    }
}
