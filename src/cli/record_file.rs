//! Files of lines: NDJSON, plain or packed (`.gz`, `.zst`), and the records in them.
//!
//! A record's line is cut into its members here and each member read by `codec::json`, so that a document may be
//! as deep as a stored one and its numbers stay exact. An unknown member, or one that stands twice, is a fault.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;

use crate::codec::json;
use crate::model::key::shorten;
use crate::model::{Key, Record, Value};

/// Bytes of one line: more fits no request, and a packed file must not unpack into all of memory.
const LINE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes read or written at a time.
const BUFFER_BYTES: usize = 256 * 1024;
/// zstd's own default.
const ZSTD_LEVEL: i32 = 3;

/// A record as files hold it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) key: Key,
    pub(super) value: Value,
    /// "" = unset.
    pub(super) content_type: String,
    /// 0 = never.
    pub(super) expires_at_ms: i64,
}

/// How a file is packed, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    None,
    Gzip,
    Zstd,
}

/// Lines of a file or of standard input, empty ones left out.
pub(super) struct Lines {
    input: Box<dyn BufRead + Send>,
    /// Number of the line read last, from 1.
    pub(super) number: u64,
    /// Bytes read of the file as it is packed.
    pub(super) bytes_read: Arc<AtomicU64>,
    /// Bytes of the file, if it is one.
    pub(super) bytes_total: Option<u64>,
}

/// An input's name in messages.
pub(super) fn shown(name: &str) -> &str {
    if name == "-" { "standard input" } else { name }
}

/// Takes lines and packs them.
pub(super) enum Packed<W: Write> {
    None(BufWriter<W>),
    Gzip(GzEncoder<BufWriter<W>>),
    Zstd(zstd::stream::Encoder<'static, BufWriter<W>>),
}

// === impl Packing ===

impl Packing {
    fn of(name: &str) -> Self {
        match Path::new(name).extension().and_then(|extension| extension.to_str()) {
            Some("gz") => Self::Gzip,
            Some("zst") => Self::Zstd,
            _ => Self::None,
        }
    }
}

// === impl Lines ===

impl Lines {
    /// Opens a file, or standard input for `-`.
    pub(super) fn open(name: &str) -> io::Result<Self> {
        let bytes_read = Arc::new(AtomicU64::new(0));
        if name == "-" {
            let input = Counting { input: io::stdin(), bytes_read: bytes_read.clone() };
            return Ok(Self::new(Box::new(BufReader::with_capacity(BUFFER_BYTES, input)), bytes_read, None));
        }
        let file = File::open(name)?;
        let about = file.metadata()?;
        if about.is_dir() {
            return Err(io::Error::other("is a directory"));
        }
        let total = about.is_file().then_some(about.len());
        let file =
            BufReader::with_capacity(BUFFER_BYTES, Counting { input: file, bytes_read: bytes_read.clone() });
        let input: Box<dyn BufRead + Send> = match Packing::of(name) {
            Packing::None => Box::new(file),
            Packing::Gzip => Box::new(BufReader::with_capacity(BUFFER_BYTES, MultiGzDecoder::new(file))),
            Packing::Zstd => {
                Box::new(BufReader::with_capacity(BUFFER_BYTES, zstd::stream::Decoder::with_buffer(file)?))
            }
        };
        Ok(Self::new(input, bytes_read, total))
    }

    fn new(input: Box<dyn BufRead + Send>, bytes_read: Arc<AtomicU64>, bytes_total: Option<u64>) -> Self {
        Self { input, number: 0, bytes_read, bytes_total }
    }

    /// The next line that is not empty; `None` at the end. The error names the line.
    pub(super) fn next(&mut self) -> Result<Option<Vec<u8>>, String> {
        loop {
            let mut line = Vec::new();
            self.number += 1;
            let most = LINE_BYTES_MAX as u64 + 1;
            let read = self.input.by_ref().take(most).read_until(b'\n', &mut line);
            match read {
                Err(error) => return Err(format!("line {}: {error}", self.number)),
                Ok(0) => return Ok(None),
                Ok(_) if line.len() > LINE_BYTES_MAX => {
                    return Err(format!("line {}: longer than {LINE_BYTES_MAX} bytes", self.number));
                }
                Ok(_) if line.trim_ascii().is_empty() => {}
                Ok(_) => return Ok(Some(line)),
            }
        }
    }

    /// The next record; `None` at the end. The error names the line.
    pub(super) fn next_entry(&mut self) -> Result<Option<Entry>, String> {
        match self.next()? {
            None => Ok(None),
            Some(line) => {
                Entry::parse(&line).map(Some).map_err(|fault| format!("line {}: {fault}", self.number))
            }
        }
    }
}

struct Counting<R> {
    input: R,
    bytes_read: Arc<AtomicU64>,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.bytes_read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

// === impl Packed ===

impl<W: Write> Packed<W> {
    /// Packs as the file's name says.
    pub(super) fn new(name: &str, out: W) -> io::Result<Self> {
        let out = BufWriter::with_capacity(BUFFER_BYTES, out);
        Ok(match Packing::of(name) {
            Packing::None => Self::None(out),
            Packing::Gzip => Self::Gzip(GzEncoder::new(out, Compression::default())),
            Packing::Zstd => Self::Zstd(zstd::stream::Encoder::new(out, ZSTD_LEVEL)?),
        })
    }

    pub(super) fn line(&mut self, line: &str) -> io::Result<()> {
        let out: &mut dyn Write = match self {
            Self::None(out) => out,
            Self::Gzip(out) => out,
            Self::Zstd(out) => out,
        };
        out.write_all(line.as_bytes())?;
        out.write_all(b"\n")
    }

    /// Writes what is left, and gives back what is below.
    pub(super) fn finish(self) -> io::Result<W> {
        let out = match self {
            Self::None(out) => out,
            Self::Gzip(out) => out.finish()?,
            Self::Zstd(out) => out.finish()?,
        };
        out.into_inner().map_err(io::IntoInnerError::into_error)
    }
}

// === impl Entry ===

impl Entry {
    /// Reads a line.
    pub(super) fn parse(line: &[u8]) -> Result<Self, String> {
        let (mut key, mut value, mut content_type, mut expires_at_ms) = (None, None, None, None);
        for (name, text) in members(line)? {
            let member = json::parse_value(text).map_err(|error| format!("{name}: {}", error.message))?;
            let twice = match (name.as_str(), member) {
                ("key", Value::Text(text)) => key.replace(text).is_some(),
                ("value", member) => value.replace(member).is_some(),
                ("content_type", Value::Text(text)) => content_type.replace(text).is_some(),
                ("expires_at_ms", Value::Int(ms @ 0..)) => expires_at_ms.replace(ms).is_some(),
                ("content_type" | "expires_at_ms", Value::Null) => false,
                ("key" | "content_type", other) => {
                    return Err(format!("{name} is not text but {}", other.type_name()));
                }
                ("expires_at_ms", _) => return Err("expires_at_ms holds no Unix milliseconds".to_owned()),
                _ => return Err(format!("unknown field {:?}", shorten(&name))),
            };
            if twice {
                return Err(format!("{name} stands twice"));
            }
        }
        let key = key.ok_or("no key")?;
        Ok(Self {
            key: Key::parse(&key).map_err(|error| error.message)?,
            value: value.ok_or("no value")?,
            content_type: content_type.unwrap_or_default(),
            expires_at_ms: expires_at_ms.unwrap_or(0),
        })
    }

    /// A record's line; `None` for one without its value.
    pub(super) fn line(record: &Record) -> Option<String> {
        let key = json::value_to_string(&Value::from(record.key.as_str()), false);
        let value = json::value_to_string(record.value.as_ref()?, false);
        let mut line = format!("{{\"key\":{key},\"value\":{value}");
        if !record.content_type.is_empty() {
            let content_type = json::value_to_string(&Value::from(record.content_type.as_str()), false);
            line.push_str(&format!(",\"content_type\":{content_type}"));
        }
        if record.expires_at_ms != 0 {
            line.push_str(&format!(",\"expires_at_ms\":{}", record.expires_at_ms));
        }
        line.push('}');
        Some(line)
    }
}

/// Cuts an object into its members, each a name and the text of its value. Finds where things end and no more:
/// whoever reads the texts finds what is wrong inside them.
fn members(line: &[u8]) -> Result<Vec<(String, &[u8])>, String> {
    let rest = line.trim_ascii().strip_prefix(b"{").and_then(|line| line.strip_suffix(b"}"));
    let mut rest = rest.ok_or("not a JSON object")?.trim_ascii();
    let mut members = Vec::new();
    while !rest.is_empty() {
        let colon = end_of(rest, b':').ok_or("not a JSON object: a member without `:`")?;
        let name = match json::parse_value(&rest[..colon]) {
            Ok(Value::Text(name)) => name,
            _ => return Err("not a JSON object: a member's name is no text".to_owned()),
        };
        rest = &rest[colon + 1..];
        match end_of(rest, b',') {
            None => {
                members.push((name, rest));
                rest = b"";
            }
            Some(comma) => {
                members.push((name, &rest[..comma]));
                rest = rest[comma + 1..].trim_ascii_start();
                if rest.is_empty() {
                    return Err("not a JSON object: it ends with `,`".to_owned());
                }
            }
        }
    }
    Ok(members)
}

/// Where a byte stands first outside of strings, lists and objects.
fn end_of(text: &[u8], wanted: u8) -> Option<usize> {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for (at, byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            byte if *byte == wanted && depth == 0 => return Some(at),
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Version;
    use crate::model::limits::DEPTH_MAX;

    fn entry(line: &str) -> Result<Entry, String> {
        Entry::parse(line.as_bytes())
    }

    fn record(key: &str, value: Value) -> Record {
        let document =
            crate::model::Document { value, content_type: "a/\"b\"".into(), updated_at_ms: 1, schema: 0 };
        Record::new(Key::parse(key).unwrap(), Version { hlc: 1, origin: 1 }, 77, document)
    }

    #[test]
    fn what_is_written_is_read_back_to_the_bit() {
        let nested = (0..DEPTH_MAX).fold(Value::Float(-0.0), |inner, _| Value::List(vec![inner]));
        for value in [
            Value::Null,
            Value::from("}{\",\\:\u{1}é"),
            Value::Int(i64::MIN),
            Value::Float(1.0),
            Value::Float(5e-324),
            Value::Bytes(vec![0, 255].into()),
            Value::Time(-1),
            nested,
            json::parse_value(br#"{"b":{"$map":{"$int":"x"}},"a":[1,{"x":2}]}"#).unwrap(),
        ] {
            let record = record("k,\"{}\\\n", value);
            let line = Entry::line(&record).unwrap();
            assert!(!line.contains('\n'));
            let entry = entry(&line).unwrap();
            assert_eq!(entry.key, record.key);
            assert_eq!(Some(entry.value), record.value, "{line}");
            assert_eq!((entry.content_type, entry.expires_at_ms), (record.content_type, 77));
        }
    }

    #[test]
    fn other_spellings_are_read() {
        let found =
            entry(" { \"value\" : [1 , 2] , \"k\\u0065y\" : \"a\" , \"content_type\":null }\r\n").unwrap();
        assert_eq!(found.key.as_str(), "a");
        assert_eq!(found.value, Value::List(vec![Value::Int(1), Value::Int(2)]));
        assert_eq!((found.content_type.as_str(), found.expires_at_ms), ("", 0));
    }

    #[test]
    fn what_is_no_record_says_why() {
        for (line, words) in [
            ("[]", "not a JSON object"),
            ("{", "not a JSON object"),
            (r#"{"key":"a","value":1,}"#, "ends with `,`"),
            (r#"{"key":"a" "value":1}"#, "key"),
            (r#"{"key":"a","value":}"#, "value"),
            (r#"{"key":"a","value":1}}"#, "value"),
            (r#"{"key":"a","value":1}{"#, "not a JSON object"),
            (r#"{"key":"a","value":01}"#, "value"),
            (r#"{"key":"a","value":1,"value":2}"#, "value stands twice"),
            (r#"{"key":"a","value":1,"version":"x"}"#, "unknown field \"version\""),
            (r#"{"value":1}"#, "no key"),
            (r#"{"key":"a"}"#, "no value"),
            (r#"{"key":1,"value":1}"#, "key is not text but integer"),
            (r#"{"key":"","value":1}"#, "key is empty"),
            (r#"{"key":"a","value":1,"expires_at_ms":-1}"#, "expires_at_ms"),
            (r#"{key:"a","value":1}"#, "no text"),
        ] {
            let error = entry(line).expect_err(line);
            assert!(error.contains(words), "{line}: {error}");
        }
    }

    #[test]
    fn lines_are_numbered_and_files_packed_by_name() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.ndjson", "a.ndjson.gz", "a.ndjson.zst"] {
            let path = folder.path().join(name).to_str().unwrap().to_owned();
            let mut packed = Packed::new(&path, File::create(&path).unwrap()).unwrap();
            for line in [r#"{"key":"a","value":1}"#, "", "  ", r#"{"key":"b","value":2}"#, "oops"] {
                packed.line(line).unwrap();
            }
            packed.finish().unwrap();
            let first = std::fs::read(&path).unwrap()[0];
            assert_eq!(
                first,
                if name.ends_with("gz") {
                    0x1f
                } else if name.ends_with("zst") {
                    0x28
                } else {
                    b'{'
                }
            );

            let mut lines = Lines::open(&path).unwrap();
            assert_eq!(lines.next_entry().unwrap().unwrap().key.as_str(), "a");
            assert_eq!(lines.next_entry().unwrap().unwrap().key.as_str(), "b");
            assert!(lines.next_entry().unwrap_err().starts_with("line 5: "));
            assert!(lines.next_entry().unwrap().is_none());
            assert_eq!(lines.bytes_read.load(Ordering::Relaxed), lines.bytes_total.unwrap());
        }
    }
}
