//! Arguments of `encode` and `decode`.

use clap::{Args, ValueEnum};

use crate::codec::json;
use crate::model::Value;

#[derive(Debug, Args)]
pub(crate) struct Encode {
    /// The document in JSON; `@FILE` reads a file, `-` standard input
    #[arg(value_name = "JSON", allow_negative_numbers = true)]
    pub(crate) document: String,
    /// Write the bytes instead of a line of hex
    #[arg(long, conflicts_with = "json")]
    pub(crate) raw: bool,
    /// How the body is packed, as in a namespace's `compression`
    #[arg(long, value_name = "METHOD", default_value = "auto")]
    pub(crate) compression: Method,
    /// What the value is, e.g. image/png
    #[arg(long, value_name = "T", default_value = "", hide_default_value = true, value_parser = content_type)]
    pub(crate) content_type: String,
    /// When it was written, e.g. 2026-01-01T00:00:00Z [default: now]
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) updated_at: Option<i64>,
}

#[derive(Debug, Args)]
pub(crate) struct Decode {
    /// Records in hex; `@FILE` reads a file, `-` standard input: either in hex or as they are
    #[arg(value_name = "HEX")]
    pub(crate) records: String,
}

/// How a body is packed.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Method {
    Auto,
    None,
    Lz4,
    Zstd,
}

fn content_type(text: &str) -> Result<String, String> {
    const BYTES_MAX: usize = crate::model::limits::CONTENT_TYPE_BYTES_MAX;
    if text.len() > BYTES_MAX || !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err(format!("printable ASCII of at most {BYTES_MAX} bytes"));
    }
    Ok(text.to_owned())
}

/// Milliseconds since 1970.
fn time(text: &str) -> Result<i64, String> {
    let form = json::value_to_string(&Value::from(text), false);
    match json::parse_value(format!("{{\"$time\":{form}}}").as_bytes()) {
        Ok(Value::Time(us)) => Ok(us.div_euclid(1000)),
        Ok(_) => Err("a time such as 2026-01-01T00:00:00Z".to_owned()),
        Err(error) => Err(error.message),
    }
}
