//! `batch`: operations from lines, in as few requests as they fit.

use std::process::ExitCode;

use crate::client::{NamespaceClient, error_reply};
use crate::codec::{json, message};
use crate::model::limits::BATCH_OPS_MAX;
use crate::model::reply::{BatchResult, Reply};
use crate::model::request::{BatchRequest, Request};

use super::Session;
use super::args::Batch;
use super::data::record_text;
use super::output::{Ended, Fault, Output, error_line, failed, tell, write_line};
use super::record_file::{Lines, shown};

/// What a request needs beside its operations: headers, op ids and ages.
const REQUEST_ROOM_BYTES: usize = 4 * 1024;
/// What an operation needs beside its own message: tag and length, an op id, an age.
const OP_ROOM_BYTES: usize = 64;

/// Operations that go into one request.
#[derive(Default)]
struct Pending {
    ops: Vec<Request>,
    bytes: usize,
}

pub(super) async fn run(session: &Session, output: &mut Output, batch: &Batch) -> Ended {
    let told = |error| Fault::input(format!("{}: {error}", shown(&batch.file)));
    let mut lines = Lines::open(&batch.file).map_err(|error| told(error.to_string()))?;
    let client = session.client().await?;
    let namespace = session.namespace_of(&client, &batch.namespace)?;
    let bytes_max = client.max_payload().saturating_sub(REQUEST_ROOM_BYTES);
    let mut pending = Pending::default();
    let mut all_well = true;
    loop {
        let op = match lines.next() {
            Ok(None) => break,
            Ok(Some(line)) => {
                json::decode_op(&line).map_err(|error| format!("line {}: {}", lines.number, error.message))
            }
            Err(error) => Err(error),
        };
        let op = match op {
            Ok(op) => op,
            Err(error) if batch.atomic => return Err(told(error)),
            Err(error) => {
                // What stands before the bad line is done, and told, first.
                send(&namespace, output, pending, false).await?;
                return Err(told(error));
            }
        };
        let bytes = message::encode_request(&op).len() + OP_ROOM_BYTES;
        if !batch.atomic && !pending.ops.is_empty() && !pending.fits(bytes, bytes_max) {
            all_well &= send(&namespace, output, std::mem::take(&mut pending), false).await?;
        }
        pending.bytes += bytes;
        pending.ops.push(op);
        if batch.atomic && pending.ops.len() > BATCH_OPS_MAX {
            return Err(told(format!(
                "more than {BATCH_OPS_MAX} operations do not fit one request, which --atomic needs"
            )));
        }
    }
    all_well &= send(&namespace, output, pending, batch.atomic).await?;
    Ok(if all_well { ExitCode::SUCCESS } else { failed() })
}

impl Pending {
    fn fits(&self, bytes: usize, bytes_max: usize) -> bool {
        self.ops.len() < BATCH_OPS_MAX && self.bytes + bytes <= bytes_max
    }
}

/// Sends one request and prints its results. Whether none of them is an error.
async fn send(
    namespace: &NamespaceClient,
    output: &mut Output,
    pending: Pending,
    atomic: bool,
) -> Result<bool, Fault> {
    if pending.ops.is_empty() {
        return Ok(true);
    }
    let request = Request::Batch(BatchRequest { ops: pending.ops, atomic });
    let reply = namespace.request(request).await.unwrap_or_else(|error| error_reply("batch", error));
    output.message(&reply)?;
    let Reply::Batch(reply) = reply else {
        return Err(Fault::input("the reply is not one to batch"));
    };
    if let Some(error) = reply.error {
        return Err(Fault::Failed(error));
    }
    let mut all_well = true;
    for result in &reply.results {
        all_well &= error_of(result).is_none();
        if !output.json {
            output.line(&result_line(result))?;
        }
    }
    output.flush()?;
    if !all_well {
        tell("error: some operations failed, see their results");
    }
    Ok(all_well)
}

fn error_of(result: &BatchResult) -> Option<&crate::model::Error> {
    match result {
        BatchResult::Get(get) => get.error.as_ref(),
        BatchResult::Write(write) => write.error.as_ref(),
    }
}

/// A get's value, or `missing`; what a write came to, and its record where asked for.
fn result_line(result: &BatchResult) -> String {
    match result {
        BatchResult::Get(get) => match (&get.error, &get.record) {
            (Some(error), _) => format!("error: {}", error_line(error)),
            (None, Some(record)) => record_text(record),
            (None, None) => "missing".to_owned(),
        },
        BatchResult::Write(write) => match &write.record {
            None => write_line(write),
            Some(record) => format!("{} {}", write_line(write), record_text(record)),
        },
    }
}
