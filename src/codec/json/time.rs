//! Times as RFC 3339 text <-> microseconds since 1970.
//!
//! Read: `YYYY-MM-DDTHH:MM:SS[.f{1,6}](Z|±HH:MM)`, `t` and `z` in either case as the RFC allows. Refused: a
//! day that the calendar lacks, a leap second (a count of microseconds has no place for it), more than six
//! fraction digits (nothing is rounded), a year outside 0000 to 9999 before or after conversion to UTC.
//! Written: UTC, `Z`, six fraction digits always.
//!
//! The calendar is Howard Hinnant's `days_from_civil` and `civil_from_days` ("chrono-Compatible Low-Level Date
//! Algorithms", <https://howardhinnant.github.io/date_algorithms.html>), for years from 0 on.

use std::fmt::{self, Write};

use crate::model::key::shorten;
use crate::model::value::TIME_US;
use crate::model::{Error, Result};

const US_PER_SECOND: i64 = 1_000_000;
const SECONDS_PER_DAY: i64 = 86_400;
const FRACTION_DIGITS: usize = 6;

/// Days of a 400-year era of the Gregorian calendar, and from 0000-03-01, where Hinnant's eras start, to 1970.
const DAYS_PER_ERA: i64 = 146_097;
const DAYS_TO_1970: i64 = 719_468;

/// Reads a time.
pub(super) fn read(text: &str) -> Result<i64> {
    parse(text.as_bytes()).ok_or_else(|| {
        let text = shorten(text);
        Error::invalid(format!(
            "bad time {text:?}: expected YYYY-MM-DDTHH:MM:SS, at most six fraction digits, then Z or an offset, within years 0000 to 9999 of UTC"
        ))
    })
}

/// Writes a time, without quotes.
pub(super) fn write(out: &mut impl Write, us: i64) -> fmt::Result {
    let (seconds, fraction) = (us.div_euclid(US_PER_SECOND), us.rem_euclid(US_PER_SECOND));
    let (days, second) = (seconds.div_euclid(SECONDS_PER_DAY), seconds.rem_euclid(SECONDS_PER_DAY));
    let (year, month, day) = civil_from_days(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:06}Z")
}

fn parse(text: &[u8]) -> Option<i64> {
    const WHOLE: usize = "YYYY-MM-DDTHH:MM:SS".len();
    let (whole, rest) = text.split_at_checked(WHOLE)?;
    let separators = [whole[4], whole[7], whole[10].to_ascii_uppercase(), whole[13], whole[16]];
    if separators != *b"--T::" {
        return None;
    }
    let days = days(number(&whole[..4])?, number(&whole[5..7])?, number(&whole[8..10])?)?;
    let second =
        second_of_day(number(&whole[11..13])?, number(&whole[14..16])?)? + below(number(&whole[17..])?, 60)?;
    let (fraction_us, zone) = fraction(rest)?;
    let seconds = days * SECONDS_PER_DAY + second - offset_seconds(zone)?;
    let us = seconds * US_PER_SECOND + fraction_us;
    TIME_US.contains(&us).then_some(us)
}

fn days(year: i64, month: i64, day: i64) -> Option<i64> {
    let days = days_from_civil(year, month, day);
    // A month or day that there is not comes back as another date.
    (civil_from_days(days) == (year, month, day)).then_some(days)
}

/// The fraction in microseconds, and what follows it.
fn fraction(text: &[u8]) -> Option<(i64, &[u8])> {
    let Some(rest) = text.strip_prefix(b".") else { return Some((0, text)) };
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if !(1..=FRACTION_DIGITS).contains(&digits) {
        return None;
    }
    let scale = (digits..FRACTION_DIGITS).fold(1, |scale, _| scale * 10);
    Some((number(&rest[..digits])? * scale, &rest[digits..]))
}

/// How far local time is ahead of UTC.
fn offset_seconds(zone: &[u8]) -> Option<i64> {
    match zone {
        b"Z" | b"z" => Some(0),
        [sign @ (b'+' | b'-'), hour @ .., b':', tens, ones] if hour.len() == 2 => {
            let ahead = second_of_day(number(hour)?, number(&[*tens, *ones])?)?;
            Some(if *sign == b'-' { -ahead } else { ahead })
        }
        _ => None,
    }
}

fn second_of_day(hour: i64, minute: i64) -> Option<i64> {
    Some(below(hour, 24)? * 3600 + below(minute, 60)? * 60)
}

fn below(number: i64, limit: i64) -> Option<i64> {
    (number < limit).then_some(number)
}

fn number(digits: &[u8]) -> Option<i64> {
    let digit = |byte: &u8| byte.is_ascii_digit().then(|| i64::from(byte - b'0'));
    digits.iter().try_fold(0, |number, byte| Some(number * 10 + digit(byte)?))
}

fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    // The year starts in March, so that the leap day is its last.
    let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * DAYS_PER_ERA + day_of_era - DAYS_TO_1970
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + DAYS_TO_1970;
    let era = days.div_euclid(DAYS_PER_ERA);
    let day_of_era = days.rem_euclid(DAYS_PER_ERA);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(us: i64) -> String {
        let mut out = String::new();
        write(&mut out, us).unwrap();
        out
    }

    proptest! {
        #[test]
        fn any_time_survives(us in TIME_US) {
            prop_assert_eq!(read(&written(us)).unwrap(), us);
        }

        #[test]
        fn any_text_reads_or_fails_without_a_panic(text in "[0-9tTzZ:.+é-]{0,34}") {
            let _ = read(&text);
        }
    }

    #[test]
    fn every_day_of_the_calendar_follows_the_one_before() {
        // Counted by hand, not by the algorithm under test.
        let mut days = days_from_civil(0, 1, 1);
        assert_eq!(days * SECONDS_PER_DAY * US_PER_SECOND, *TIME_US.start());
        for year in 0..=9999 {
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let lengths = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
            for (month, length) in (1..).zip(lengths) {
                for day in 1..=length {
                    assert_eq!(super::days(year, month, day), Some(days));
                    days += 1;
                }
                assert_eq!(super::days(year, month, length + 1), None);
            }
        }
        assert_eq!(days * SECONDS_PER_DAY * US_PER_SECOND, TIME_US.end() + 1);
    }

    #[test]
    fn good_times() {
        for (text, us) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1970-01-01t00:00:00z", 0),
            ("1969-12-31T23:59:59.999999Z", -1),
            ("1970-01-01T00:00:00.1Z", 100_000),
            ("1970-01-01T00:00:00.000001Z", 1),
            ("1970-01-01T01:00:00+01:00", 0),
            ("1969-12-31T23:30:00.5-00:30", 500_000),
            ("1970-01-01T00:00:00-00:00", 0),
            ("1970-01-01T23:59:00+23:59", 0),
            ("2000-02-29T00:00:00Z", 951_782_400_000_000),
            ("2026-07-04T12:34:56.789012Z", 1_783_168_496_789_012),
            ("0000-01-01T00:00:00Z", *TIME_US.start()),
            ("9999-12-31T23:59:59.999999Z", *TIME_US.end()),
            ("9999-12-31T23:59:59.999999+00:01", *TIME_US.end() - 60_000_000),
        ] {
            assert_eq!(read(text), Ok(us), "{text}");
        }
        assert_eq!(written(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(written(-1), "1969-12-31T23:59:59.999999Z");
        assert_eq!(written(*TIME_US.start()), "0000-01-01T00:00:00.000000Z");
        assert_eq!(written(*TIME_US.end()), "9999-12-31T23:59:59.999999Z");
    }

    #[test]
    fn bad_times() {
        for text in [
            "",
            "1970-01-01",
            "1970-01-01T00:00:00",
            "1970-01-01 00:00:00Z",
            "1970-01-01T00:00Z",
            "1970-1-01T00:00:00Z",
            "1970-13-01T00:00:00Z",
            "1970-00-01T00:00:00Z",
            "1970-01-00T00:00:00Z",
            "1970-01-32T00:00:00Z",
            "1970-02-29T00:00:00Z",
            "1900-02-29T00:00:00Z",
            "1970-01-01T24:00:00Z",
            "1970-01-01T00:60:00Z",
            "1970-12-31T23:59:60Z", // a leap second
            "1970-01-01T00:00:00.Z",
            "1970-01-01T00:00:00.1234567Z",
            "1970-01-01T00:00:00,5Z",
            "1970-01-01T00:00:00+24:00",
            "1970-01-01T00:00:00+00:60",
            "1970-01-01T00:00:00+0000",
            "1970-01-01T00:00:00+00",
            "1970-01-01T00:00:00Z ",
            " 1970-01-01T00:00:00Z",
            "+1970-01-01T00:00:00Z",
            "10000-01-01T00:00:00Z",
            "-001-01-01T00:00:00Z",
            "0000-01-01T00:00:00+00:01", // year -1 in UTC
            "9999-12-31T23:59:59-00:01", // year 10000 in UTC
            "197é-01-01T00:00:00Z",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
