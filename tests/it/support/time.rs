//! Wall-clock time and RFC 3339, just enough to write headers and to read `$time`.

use std::time::{SystemTime, UNIX_EPOCH};

/// Unix time in milliseconds.
#[expect(clippy::disallowed_methods, reason = "a client of the service has a clock of its own")]
pub(crate) fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

/// `2024-02-29T23:59:59.000001Z`: UTC with exactly six digits, as replies write it.
pub(crate) fn rfc3339(micros: i64) -> String {
    let (seconds, fraction) = (micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:06}Z")
}

/// The microseconds of a well-formed RFC 3339 time, of any offset.
pub(crate) fn micros(text: &str) -> i64 {
    let number = |part: &str| part.parse::<i64>().unwrap_or_else(|_| panic!("a number in {text}"));
    let days = days(number(&text[0..4]), number(&text[5..7]), number(&text[8..10]));
    let seconds = number(&text[11..13]) * 3600 + number(&text[14..16]) * 60 + number(&text[17..19]);
    let zone = text[19..].find(['Z', '+', '-']).expect("an offset") + 19;
    let fraction = text[19..zone].trim_start_matches('.');
    let offset = match &text[zone..zone + 1] {
        "Z" => 0,
        sign => {
            let offset = number(&text[zone + 1..zone + 3]) * 3600 + number(&text[zone + 4..zone + 6]) * 60;
            if sign == "-" { -offset } else { offset }
        }
    };
    (days * 86_400 + seconds - offset) * 1_000_000 + number(&format!("{fraction:0<6}"))
}

/// Days since 1970-01-01 of a civil date (Howard Hinnant's `days_from_civil`).
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let of_era = year.rem_euclid(400) * 365 + year.rem_euclid(400) / 4 - year.rem_euclid(400) / 100 + of_year;
    era * 146_097 + of_era - 719_468
}

/// The inverse of [`days`].
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, of_year - (153 * shifted + 2) / 5 + 1)
}

#[test]
fn times_convert_both_ways() {
    for text in ["1970-01-01T00:00:00.000000Z", "2024-02-29T23:59:59.000001Z", "0000-01-01T00:00:00.000000Z"]
    {
        assert_eq!(rfc3339(micros(text)), text);
    }
    assert_eq!(rfc3339(micros("9999-12-31T23:59:59.999999Z")), "9999-12-31T23:59:59.999999Z");
    assert_eq!(micros("1970-01-01T02:30:00.5+02:30"), 500_000);
    assert_eq!(micros("1969-12-31T23:59:59Z"), -1_000_000);
}
