//! Values of arguments: durations, lifetimes, exponents.

use std::time::Duration;

/// A duration of at least a millisecond.
pub(super) fn timeout(text: &str) -> Result<Duration, String> {
    positive(text).map(|ms| Duration::from_millis(ms.unsigned_abs()))
}

pub(super) fn positive(text: &str) -> Result<i64, String> {
    let duration =
        humantime::parse_duration(text).map_err(|error| format!("{error}; write e.g. 500ms, 90s or 2h"))?;
    match i64::try_from(duration.as_millis()) {
        Ok(ms @ 1..) => Ok(ms),
        Ok(_) => Err("must be at least 1ms".to_owned()),
        Err(_) => Err("is too long".to_owned()),
    }
}

/// A lifetime as in messages: milliseconds, 0 = the namespace's default, -1 = never ends.
pub(super) fn lifetime(text: &str) -> Result<i64, String> {
    match text {
        "never" => Ok(-1),
        "default" => Ok(0),
        _ => positive(text).map_err(|error| format!("{error}; or never, or default")),
    }
}

pub(super) fn exponent(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(exponent) if (0.0..=10.0).contains(&exponent) => Ok(exponent),
        _ => Err("must be a number from 0 to 10".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_is_never_silently_the_default() {
        assert_eq!(lifetime("90s"), Ok(90_000));
        assert_eq!(lifetime("never"), Ok(-1));
        assert_eq!(lifetime("default"), Ok(0));
        assert!(lifetime("0s").is_err());
        assert!(lifetime("10us").is_err());
        assert!(lifetime("-1").is_err());
    }
}
