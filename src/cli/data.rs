//! `get`, `put`, `delete`, `touch`, `scan`: one request, or one for each page.

use std::io::Read;
use std::process::ExitCode;

use bytes::Bytes;

use crate::client::error_reply;
use crate::codec::json;
use crate::model::reply::{Reply, ScanReply};
use crate::model::request::{DeleteRequest, GetRequest, PutRequest, Request, ScanRequest, TouchRequest};
use crate::model::{Record, Value};

use super::Session;
use super::args::{Delete, Get, Level, Put, Scan, Touch};
use super::output::{Ended, Fault, Output, error_line, failed, key_word, tell, write_line};

/// Bytes of one value from a file or standard input: more fits no request.
const INPUT_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Records of one page of a scan.
const PAGE_RECORDS: u64 = 1000;

pub(super) async fn get(session: &Session, output: &mut Output, get: Get) -> Ended {
    let request = GetRequest {
        key: get.key,
        consistency: Level::request(get.consistency),
        max_staleness_ms: get.max_staleness.unwrap_or(0),
        min_version: get.min_version,
        head_only: get.head_only,
        fields: get.fields,
    };
    let Reply::Get(reply) = send(session, output, &get.namespace, Request::Get(request)).await? else {
        return Err(Fault::input("the reply is not one to get"));
    };
    let Some(record) = reply.record.filter(|_| reply.found) else {
        return Ok(failed());
    };
    if !output.json {
        output.line(&record_text(&record))?;
        output.flush()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The value, or what belongs to a record whose value was not asked for.
pub(super) fn record_text(record: &Record) -> String {
    match &record.value {
        Some(value) => json::value_to_string(value, false),
        None => String::from_utf8_lossy(&json::encode_record(record, false)).into_owned(),
    }
}

pub(super) async fn put(session: &Session, output: &mut Output, put: Put) -> Ended {
    let value = value(&put)?;
    let request = PutRequest {
        key: put.key,
        value: Some(Ok(value)),
        content_type: put.content_type,
        precondition: put.precondition.request(),
        ttl_ms: put.ttl.unwrap_or(0),
        keep_ttl: put.keep_ttl,
        op_id: put.identity.op_id,
        op_age_ms: 0,
    };
    write(session, output, &put.namespace, Request::Put(request)).await
}

/// The document that VALUE means.
fn value(put: &Put) -> Result<Value, Fault> {
    if put.value != "-" {
        return match (put.text, put.file) {
            (true, _) => Ok(Value::from(put.value.as_str())),
            (_, true) => {
                let file = std::fs::File::open(&put.value);
                let file =
                    file.map_err(|error| Fault::input(format!("cannot read {}: {error}", put.value)))?;
                Ok(Value::Bytes(all(file)?))
            }
            _ => json::parse_value(put.value.as_bytes()).map_err(|error| {
                Fault::usage(format!("VALUE is not JSON: {}; --text takes it as text", error.message))
            }),
        };
    }
    let input = all(std::io::stdin())?;
    match (put.text, put.file) {
        (true, _) => match String::from_utf8(input.into()) {
            Ok(text) => Ok(Value::Text(text)),
            Err(_) => Err(Fault::input("standard input is not UTF-8; --file stores bytes")),
        },
        (_, true) => Ok(Value::Bytes(input)),
        _ => json::parse_value(&input)
            .map_err(|error| Fault::input(format!("standard input is not JSON: {}", error.message))),
    }
}

pub(super) fn all(input: impl Read) -> Result<Bytes, Fault> {
    at_most(INPUT_BYTES_MAX, input)
}

/// Everything there is, if it is not more than so many bytes.
pub(super) fn at_most(bytes_max: u64, input: impl Read) -> Result<Bytes, Fault> {
    let mut bytes = Vec::new();
    input.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(Fault::input(format!("the input is larger than {bytes_max} bytes")));
    }
    Ok(bytes.into())
}

pub(super) async fn delete(session: &Session, output: &mut Output, delete: Delete) -> Ended {
    let request = DeleteRequest {
        key: delete.key,
        precondition: delete.precondition.request(),
        op_id: delete.identity.op_id,
        op_age_ms: 0,
    };
    write(session, output, &delete.namespace, Request::Delete(request)).await
}

pub(super) async fn touch(session: &Session, output: &mut Output, touch: Touch) -> Ended {
    let request =
        TouchRequest { key: touch.key, ttl_ms: touch.ttl, op_id: touch.identity.op_id, op_age_ms: 0 };
    write(session, output, &touch.namespace, Request::Touch(request)).await
}

/// Sends a write and prints what it came to, and the record where it was asked for.
pub(super) async fn write(
    session: &Session,
    output: &mut Output,
    namespace: &str,
    request: Request,
) -> Ended {
    let Reply::Write(reply) = send(session, output, namespace, request).await? else {
        return Err(Fault::input("the reply is not one to a write"));
    };
    if !output.json {
        output.line(&write_line(&reply))?;
        if let Some(record) = &reply.record {
            output.line(&record_text(record))?;
        }
        output.flush()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Sends one request. With `--json` there is a reply message in every case; an error ends the command.
async fn send(
    session: &Session,
    output: &mut Output,
    namespace: &str,
    request: Request,
) -> Result<Reply, Fault> {
    let op = request.op_name();
    let sent = match session.namespace(namespace).await {
        Ok(namespace) => namespace.request(request).await.map_err(Fault::from),
        Err(fault) => Err(fault),
    };
    match sent {
        Ok(reply) => {
            output.message(&reply)?;
            match reply.error() {
                None => Ok(reply),
                Some(error) => Err(Fault::Failed(error.clone())),
            }
        }
        Err(Fault::Failed(error)) => {
            output.message(&error_reply(op, error.clone()))?;
            Err(Fault::Failed(error))
        }
        Err(fault) => Err(fault),
    }
}

/// Prints page after page. A record too large for any page is told, and the scan goes on after it.
pub(super) async fn scan(session: &Session, output: &mut Output, scan: Scan) -> Ended {
    let namespace = session.namespace(&scan.namespace).await?;
    let mut left = scan.limit.unwrap_or(u64::MAX);
    let mut request = ScanRequest {
        prefix: scan.prefix,
        start: scan.start,
        end: scan.end,
        reverse: scan.reverse,
        keys_only: scan.keys_only,
        consistency: Level::request(scan.consistency),
        ..ScanRequest::default()
    };
    let mut code = ExitCode::SUCCESS;
    loop {
        request.limit = u32::try_from(left.min(PAGE_RECORDS)).expect("a page is small");
        let reply = match namespace.request(Request::Scan(request.clone())).await {
            Ok(reply) => reply,
            Err(error) => Reply::Scan(ScanReply::from(error)),
        };
        output.message(&reply)?;
        let Reply::Scan(page) = reply else {
            return Err(Fault::input("the reply is not one to scan"));
        };
        match &page.error {
            Some(error) if page.cursor.is_empty() => {
                output.flush()?;
                return Err(Fault::Failed(error.clone()));
            }
            Some(error) => {
                tell(&format!("error: {}", error_line(error)));
                code = failed();
            }
            None => {}
        }
        for record in &page.records {
            if !output.json {
                output.line(&scan_line(record))?;
            }
        }
        output.flush()?;
        left = left.saturating_sub(page.records.len() as u64);
        if left == 0 || page.cursor.is_empty() {
            return Ok(code);
        }
        request.cursor = page.cursor;
    }
}

fn scan_line(record: &Record) -> String {
    let key = key_word(record.key.as_str());
    match &record.value {
        Some(value) => format!("{key}\t{}", json::value_to_string(value, false)),
        None => key,
    }
}
