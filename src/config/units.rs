//! Texts that mean something: durations, sizes, addresses, subjects, URLs. Pure; each refusal says what the
//! text should be and never repeats it, because the text may hold a secret.

use std::net::SocketAddr;

use crate::client::connect::NatsSettings;

/// Longest duration, a hundred years: added to a time it cannot overflow.
pub(super) const DURATION_MS_MAX: i64 = 100 * 366 * 24 * 3600 * 1000;

/// What NATS can be reached by in this build.
const NATS_SCHEMES: [&str; 2] = ["nats", "tls"];

/// Milliseconds of a text such as `1h 30m`. What is below a millisecond is refused rather than rounded to 0,
/// which has a meaning of its own.
pub(super) fn duration_ms(text: &str) -> Result<i64, String> {
    let expected = || "should be a duration such as \"250ms\", \"60s\" or \"1h 30m\"".to_owned();
    let duration = humantime::parse_duration(text).map_err(|_| expected())?;
    if !duration.subsec_nanos().is_multiple_of(1_000_000) {
        return Err("should be whole milliseconds".to_owned());
    }
    let ms = i64::try_from(duration.as_millis()).ok().filter(|ms| *ms <= DURATION_MS_MAX);
    ms.ok_or_else(|| "should be at most 100 years".to_owned())
}

/// Bytes of a text such as `8MiB` or `100`.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let expected = || "should be a size such as \"8MiB\" (B, KiB, MiB, GiB) or a number of bytes".to_owned();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_start() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err(expected()),
    };
    if number.is_empty() {
        return Err(expected());
    }
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    bytes.filter(|bytes| i64::try_from(*bytes).is_ok()).ok_or_else(|| "is too large a size".to_owned())
}

/// Any text.
#[expect(clippy::unnecessary_wraps, reason = "one of the checks")]
pub(super) fn any(_: &str) -> Result<(), String> {
    Ok(())
}

/// Text that is not empty.
pub(super) fn filled(text: &str) -> Result<(), String> {
    if text.is_empty() { Err("must not be empty".to_owned()) } else { Ok(()) }
}

/// Replicas of Riak that must answer.
pub(super) fn quorum(text: &str) -> Result<(), String> {
    crate::backend::riak::Quorum::parse(text).map(drop)
}

/// A filter of the log.
pub(super) fn log_level(text: &str) -> Result<(), String> {
    filled(text)?;
    crate::telemetry::filter(text).map(drop)
}

/// The URL of a Redis server, or "".
pub(super) fn redis_url(text: &str) -> Result<(), String> {
    match text {
        "" => Ok(()),
        url => crate::link::redis::Redis::check(url)
            .map_err(|fault| format!("should be a URL such as \"redis://host:6379\": {fault}")),
    }
}

/// An address to listen at, or "".
pub(super) fn listen(text: &str) -> Result<(), String> {
    match text.is_empty() || text.parse::<SocketAddr>().is_ok() {
        true => Ok(()),
        false => {
            Err("should be an address and port such as \"127.0.0.1:8280\", or \"\" to turn it off".to_owned())
        }
    }
}

/// First tokens of a subject.
pub(super) fn subject_prefix(text: &str) -> Result<(), String> {
    let bad = |c: char| c.is_whitespace() || c.is_control() || c == '*' || c == '>';
    match text.split('.').all(|token| !token.is_empty() && !token.contains(bad)) {
        true => Ok(()),
        false => Err("should be one or more tokens joined by `.`, without spaces, `*` or `>`".to_owned()),
    }
}

/// URLs of NATS servers, comma separated.
pub(super) fn nats_urls(text: &str) -> Result<(), String> {
    let servers = NatsSettings { url: text.to_owned(), ..NatsSettings::default() }.servers();
    match !servers.is_empty() && servers.iter().all(|url| is_url(url, &NATS_SCHEMES)) {
        true => Ok(()),
        false => {
            Err("should be a URL such as \"nats://127.0.0.1:4222\" (nats or tls), several comma separated"
                .to_owned())
        }
    }
}

/// `scheme://[login@]host[:port]`, with anything behind.
fn is_url(text: &str, schemes: &[&str]) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or("");
    let host = authority.rsplit('@').next().unwrap_or("");
    // The colons inside an IPv6 address stand before its `]`.
    let port_at = host.rfind(':').filter(|at| host.rfind(']').is_none_or(|end| end < *at));
    let (name, port) = port_at.map_or((host, None), |at| (&host[..at], Some(&host[at + 1..])));
    let blank = |c: char| c.is_whitespace() || c.is_control();
    schemes.contains(&scheme)
        && !text.contains(blank)
        && !name.is_empty()
        && (!name.contains(':') || name.starts_with('['))
        && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// The name that was probably meant.
pub(super) fn near<'n>(word: &str, names: &[&'n str]) -> Option<&'n str> {
    let distances = names.iter().map(|name| (distance(word, name), *name));
    let (distance, name) = distances.min_by_key(|(distance, _)| *distance)?;
    // Two slips in a word of six letters, one in a short one.
    (distance <= (name.len() / 3).clamp(1, 3)).then_some(name)
}

/// How many letters to insert, remove or replace between two words; two neighbours swapped count as one.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_whole_milliseconds_up_to_a_hundred_years() {
        let good = [
            ("0s", 0),
            ("250ms", 250),
            ("60s", 60_000),
            ("1h 30m", 5_400_000),
            ("99years", 3_124_162_396_800),
        ];
        for (text, ms) in good {
            let found = duration_ms(text).unwrap();
            // The library's year has a leap day's share.
            assert!(
                (found - ms).abs() <= if text.ends_with("years") { 10_000_000_000 } else { 0 },
                "{text}: {found}"
            );
        }
        for text in ["", "60", "sixty", "-1s", "1.5.s", "5us", "1s 1ns", "200years", "99999999999999999999s"]
        {
            assert!(duration_ms(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_have_binary_units() {
        let good =
            [("0", 0), ("100", 100), ("100B", 100), ("64KiB", 65_536), ("8MiB", 8 << 20), ("2 GiB", 2 << 30)];
        for (text, size) in good {
            assert_eq!(bytes(text), Ok(size), "{text}");
        }
        for text in
            ["", "MiB", "8MB", "8mib", "1.5MiB", "-1", "8 MiB x", "18446744073709551616", "99999999999GiB"]
        {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn nats_urls_have_a_scheme_and_a_host() {
        let good = [
            "nats://127.0.0.1:4222",
            "tls://nats.example",
            "nats://a:1, nats://b:2",
            "nats://u:p@h:4222",
            "nats://tok@h",
            "nats://[::1]:4222",
            "nats://[::1]",
            "nats://h/",
        ];
        for url in good {
            assert_eq!(nats_urls(url), Ok(()), "{url}");
        }
        let bad = [
            "",
            " ",
            ",",
            "localhost",
            "localhost:4222",
            "nats://",
            "nats://:4222",
            "nats://h:port",
            "nats://h:99999",
            "http://h",
            "nats:/h",
            "nats://a b",
            "nats://::1:4222",
            "nats://a,b",
            "ws://h",
        ];
        for url in bad {
            assert!(nats_urls(url).is_err(), "{url}");
        }
    }

    #[test]
    fn subject_prefixes_are_plain_tokens() {
        for good in ["ds", "prod.ds", "Ä_1-x"] {
            assert_eq!(subject_prefix(good), Ok(()), "{good}");
        }
        for bad in ["", ".", "ds.", ".ds", "a..b", "d s", "ds.*", "ds.>", "d\tx"] {
            assert!(subject_prefix(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn near_finds_slips_and_not_other_words() {
        let names = ["url", "token", "subject_prefix", "max_in_flight"];
        for (word, meant) in [
            ("ulr", "url"),
            ("urls", "url"),
            ("tokn", "token"),
            ("subjectprefix", "subject_prefix"),
            ("max-in-flight", "max_in_flight"),
        ] {
            assert_eq!(near(word, &names), Some(meant), "{word}");
        }
        for word in ["", "x", "listen", "prefix"] {
            assert_eq!(near(word, &names), None, "{word}");
        }
        assert_eq!(near("x", &[]), None);
    }
}
