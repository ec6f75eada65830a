//! `encode` and `decode`: stored records as bytes and as people read them. They talk to no worker.

use std::fs::File;
use std::process::ExitCode;

use bytes::Bytes;

use crate::codec::json;
use crate::codec::stored::{self, Compression, Damaged, Explained, Field, Payoff};
use crate::model::clock::wall_ms;
use crate::model::{Document, Value};

use super::args::{Decode, Encode, Method};
use super::data::{all, at_most};
use super::output::{Ended, Fault, Output, failed, json_text, tell};

/// Bytes of a field that are shown; of a longer one the first of them.
const SHOWN_BYTES: usize = 16;
/// Bytes of records that are read at once: the longest in hex, and some.
const RECORDS_BYTES_MAX: u64 = 2 * stored::BODY_BYTES_MAX as u64 + 64 * 1024;

/// Prints a document as a stored record.
pub(super) fn encode(output: &mut Output, encode: &Encode) -> Ended {
    let document = Document {
        value: document(&encode.document)?,
        content_type: encode.content_type.clone(),
        updated_at_ms: encode.updated_at.unwrap_or_else(wall_ms),
        schema: 0,
    };
    document.value.check_depth()?;
    let payoff = Payoff::default();
    let compression = match encode.compression {
        Method::Auto => Compression::Auto(&payoff),
        Method::None => Compression::None,
        Method::Lz4 => Compression::Lz4,
        Method::Zstd => Compression::Zstd,
    };
    let record = stored::encode(&document, compression);
    if encode.raw {
        output.bytes(&record)?;
    } else {
        output.line(&hex(&record))?;
    }
    output.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn document(argument: &str) -> Result<Value, Fault> {
    let (input, from) = match argument.strip_prefix('@') {
        Some(path) => (all(open(path)?)?, path),
        None if argument == "-" => (all(std::io::stdin())?, "standard input"),
        None => {
            return json::parse_value(argument.as_bytes())
                .map_err(|error| Fault::usage(format!("the argument is not JSON: {}", error.message)));
        }
    };
    json::parse_value(&input).map_err(|error| Fault::input(format!("{from} is not JSON: {}", error.message)))
}

fn open(path: &str) -> Result<File, Fault> {
    File::open(path).map_err(|error| Fault::input(format!("cannot read {path}: {error}")))
}

/// Prints every record of the input with every field of its header. What is damaged is told, and what stands behind
/// it is still printed where its place is known.
pub(super) fn decode(output: &mut Output, decode: &Decode) -> Ended {
    let (input, is_argument) = match decode.records.strip_prefix('@') {
        Some(path) => (at_most(RECORDS_BYTES_MAX, open(path)?)?, false),
        None if decode.records == "-" => (at_most(RECORDS_BYTES_MAX, std::io::stdin())?, false),
        None => (Bytes::copy_from_slice(decode.records.as_bytes()), true),
    };
    let mut printed = Printed { output, records: 0, damaged: false };
    if is_argument || is_hex(&input) {
        let mut lines = 0;
        for line in input.split(|byte| *byte == b'\n') {
            lines += 1;
            let place = |at: usize| {
                if is_argument { format!("byte {at}") } else { format!("line {lines}, byte {at}") }
            };
            match unhex(line) {
                Ok(bytes) => printed.records(&bytes, place)?,
                Err(message) => printed.fault(&format!("line {lines}: {message}")),
            }
        }
    } else {
        printed.records(&input, |at| format!("byte {at}"))?;
    }
    if printed.records == 0 && !printed.damaged {
        return Err(Fault::input("there is no record in the input"));
    }
    printed.output.flush()?;
    Ok(if printed.damaged { failed() } else { ExitCode::SUCCESS })
}

/// What was printed so far.
struct Printed<'o> {
    output: &'o mut Output,
    records: usize,
    damaged: bool,
}

impl Printed<'_> {
    /// Prints the records that stand in `bytes` one after the other.
    fn records(&mut self, bytes: &Bytes, place: impl Fn(usize) -> String) -> Result<(), Fault> {
        let mut start = 0;
        while start < bytes.len() {
            self.records += 1;
            let rest = bytes.slice(start..);
            match stored::explain(&rest) {
                Ok(explained) => {
                    self.record(&rest, &place(start), &explained)?;
                    start += explained.frame_bytes;
                }
                Err(damaged) => {
                    if !self.output.json {
                        self.header(&rest, &place(start), &damaged.fields)?;
                    }
                    let Damaged { at, fault, next, .. } = *damaged;
                    self.fault(&format!("record {} at {}: {fault}", self.records, place(start + at)));
                    match next {
                        Some(next) => start += next,
                        // Without a length nobody knows where the next one starts.
                        None => return Ok(()),
                    }
                }
            }
        }
        Ok(())
    }

    fn record(&mut self, bytes: &[u8], place: &str, explained: &Explained) -> Result<(), Fault> {
        let value = json::value_to_string(&explained.value, false);
        if self.output.json {
            return self.output.line(&json_line(bytes, explained, &value));
        }
        self.header(bytes, place, &explained.fields)?;
        self.output.line(&value)
    }

    fn header(&mut self, bytes: &[u8], place: &str, fields: &[Field]) -> Result<(), Fault> {
        self.output.line(&format!("record {} at {place}", self.records))?;
        for Field { range, name, meaning } in fields {
            let shown = bytes.get(range.start..range.end.min(bytes.len())).unwrap_or_default();
            let mut digits = hex(&shown[..shown.len().min(SHOWN_BYTES)]);
            if shown.len() > SHOWN_BYTES {
                digits.push_str("..");
            }
            self.output.line(&format!("{:>6}  {digits:<34}  {name:<13}  {meaning}", range.start))?;
        }
        Ok(())
    }

    fn fault(&mut self, message: &str) {
        self.damaged = true;
        // In the order in which it came up, beside what is printed.
        drop(self.output.flush());
        tell(&format!("error: {message}"));
    }
}

fn json_line(bytes: &[u8], explained: &Explained, value: &str) -> String {
    let fields = explained.fields.iter().map(|Field { range, name, meaning }| {
        let (name, meaning) = (json_text(name), json_text(meaning));
        let digits = hex(&bytes[range.clone()]);
        format!(r#"{{"offset":{},"hex":"{digits}","name":{name},"meaning":{meaning}}}"#, range.start)
    });
    let fields = fields.collect::<Vec<_>>().join(",");
    let stored = &explained.stored;
    format!(
        r#"{{"bytes":{},"updated_at_ms":{},"content_type":{},"schema":{},"fields":[{fields}],"value":{value}}}"#,
        explained.frame_bytes,
        stored.updated_at_ms,
        json_text(&stored.content_type),
        stored.schema,
    )
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// Whether an input is text, and not records as they are: those start with a byte that no text starts with.
fn is_hex(input: &[u8]) -> bool {
    input.first().is_none_or(u8::is_ascii)
}

/// The bytes of a line of hex digits. White space may stand between bytes, and `0x` or `\x` in front, as databases
/// print them.
fn unhex(line: &[u8]) -> Result<Bytes, String> {
    let mut bytes = Vec::with_capacity(line.len() / 2);
    let mut high: Option<u8> = None;
    let indent = line.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
    let prefixed = matches!(line.get(indent..indent + 2), Some(b"0x" | b"\\x"));
    for (at, byte) in line.iter().enumerate().skip(if prefixed { indent + 2 } else { indent }) {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            byte if byte.is_ascii_whitespace() && high.is_none() => continue,
            byte if byte.is_ascii_whitespace() => {
                return Err(format!("character {} parts the two digits of a byte", at + 1));
            }
            byte => {
                return Err(format!(
                    "character {} is no hex digit: \"{}\"",
                    at + 1,
                    char::from(*byte).escape_default()
                ));
            }
        };
        match high.take() {
            None => high = Some(digit),
            Some(high) => bytes.push(high << 4 | digit),
        }
    }
    match high {
        None => Ok(bytes.into()),
        Some(_) => Err("an odd number of hex digits".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_is_read_as_people_and_databases_write_it() {
        for text in ["da02", "DA02", " da 02 ", "0xda02", "\\xda02", "\t0xda 02\r"] {
            assert_eq!(&unhex(text.as_bytes()).unwrap()[..], [0xda, 2], "{text:?}");
        }
        assert_eq!(hex(&[0xda, 2]), "da02");
        for (text, words) in [
            ("da0", "an odd number of hex digits"),
            ("d a", "character 2 parts the two digits of a byte"),
            ("dax2", "character 3 is no hex digit: \"x\""),
            ("0xd\u{e9}", "character 4 is no hex digit: \"\\u{c3}\""),
        ] {
            assert_eq!(unhex(text.as_bytes()).unwrap_err(), words);
        }
    }
}
