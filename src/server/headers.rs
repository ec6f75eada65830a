//! Request headers: all optional, each checked, a malformed one is `invalid_argument`.

use async_nats::HeaderMap;

use crate::model::key::shorten;
use crate::model::limits::{TIMEOUT_MS_DEFAULT, TIMEOUT_MS_MAX, TIMEOUT_MS_MIN};
use crate::model::{Error, Result};

/// What the headers of a request say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Headers {
    /// How long the caller waits.
    pub(super) timeout_ms: i64,
    /// When the caller sent it, Unix milliseconds.
    pub(super) sent_at_ms: Option<i64>,
    /// The largest clock reading the caller saw.
    pub(super) clock: Option<u64>,
    /// Replies mark numbers that a reader of doubles would change.
    pub(super) exact: bool,
    /// The trace that the request belongs to, for the log.
    pub(super) trace: Option<String>,
}

const PRIORITY_MAX: i64 = 9;
/// Hex digits of a clock reading.
const CLOCK_DIGITS: usize = 16;

impl Headers {
    pub(super) fn parse(headers: Option<&HeaderMap>) -> Result<Self> {
        let mut parsed =
            Self { timeout_ms: TIMEOUT_MS_DEFAULT, sent_at_ms: None, clock: None, exact: false, trace: None };
        let Some(headers) = headers else {
            return Ok(parsed);
        };
        let value = |name: &'static str| headers.get(name).map(|value| (name, value.as_str()));
        if let Some(timeout) = value("Ds-Timeout-Ms") {
            parsed.timeout_ms = number(timeout, TIMEOUT_MS_MIN, TIMEOUT_MS_MAX)?;
        }
        if let Some(sent_at) = value("Ds-Sent-At-Ms") {
            parsed.sent_at_ms = Some(number(sent_at, 0, i64::MAX)?);
        }
        if let Some((name, text)) = value("Ds-Clock") {
            let digits = text.len() == CLOCK_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            let reading = digits.then(|| u64::from_str_radix(text, 16).ok()).flatten();
            parsed.clock = Some(reading.ok_or_else(|| malformed(name, text, "16 hex digits"))?);
        }
        if let Some((name, text)) = value("Ds-Json") {
            parsed.exact = text == "exact";
            if !parsed.exact {
                return Err(malformed(name, text, "the word exact"));
            }
        }
        if let Some(priority) = value("Ds-Priority") {
            number(priority, 0, PRIORITY_MAX)?;
        }
        if let Some((name, text)) = value("traceparent")
            && !is_traceparent(text)
        {
            return Err(malformed(name, text, "a W3C trace context, version-trace-parent-flags"));
        }
        parsed.trace = value("traceparent").and_then(|(_, text)| text.split('-').nth(1).map(str::to_owned));
        Ok(parsed)
    }
}

fn number((name, text): (&str, &str), min: i64, max: i64) -> Result<i64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let parsed =
        digits.then(|| text.parse::<i64>().ok()).flatten().filter(|number| (min..=max).contains(number));
    parsed.ok_or_else(|| malformed(name, text, &format!("a number from {min} to {max}")))
}

/// `00-{32 hex}-{16 hex}-{2 hex}` in lower case, ids not zero (W3C Trace Context, level 1). Later versions may
/// carry more behind the flags.
fn is_traceparent(text: &str) -> bool {
    let hex = |part: &str, digits: usize| {
        part.len() == digits
            && part.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    let parts: Vec<&str> = text.split('-').collect();
    let [version, trace, parent, flags, rest @ ..] = parts.as_slice() else {
        return false;
    };
    let zero = |part: &str| part.bytes().all(|byte| byte == b'0');
    hex(version, 2)
        && *version != "ff"
        && hex(trace, 32)
        && !zero(trace)
        && hex(parent, 16)
        && !zero(parent)
        && hex(flags, 2)
        && (*version != "00" || rest.is_empty())
}

fn malformed(name: &str, text: &str, wanted: &str) -> Error {
    Error::invalid(format!("header {name}: {:?} is not {wanted}", shorten(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &str, value: &str) -> Result<Headers> {
        let mut headers = HeaderMap::new();
        headers.insert(name, value);
        Headers::parse(Some(&headers))
    }

    #[test]
    fn each_header_has_its_bounds() {
        for (name, good, bad) in [
            ("Ds-Timeout-Ms", vec!["1", "60000"], vec!["0", "60001", "-1", "1.5", "", "x"]),
            ("Ds-Sent-At-Ms", vec!["0", "1700000000000"], vec!["-1", "now"]),
            ("Ds-Clock", vec!["0123456789abcdef"], vec!["", "123", "0123456789abcdeg", "+123456789abcdef"]),
            ("Ds-Json", vec!["exact"], vec!["Exact", ""]),
            ("Ds-Priority", vec!["0", "9"], vec!["10", "-1"]),
            ("Ds-Tenant", vec!["anything"], vec![]),
            (
                "traceparent",
                vec!["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"],
                vec!["", "00-4bf9-00f0-01", "00-00000000000000000000000000000000-00f067aa0ba902b7-01"],
            ),
        ] {
            for value in good {
                assert!(parse(name, value).is_ok(), "{name}: {value}");
            }
            for value in bad {
                assert!(parse(name, value).is_err(), "{name}: {value}");
            }
        }
        assert_eq!(parse("Other", "x").unwrap().timeout_ms, TIMEOUT_MS_DEFAULT);
    }
}
