//! Durations, sizes, and how far two words are apart.

use toml::Value;

/// Units of a size, longest name first.
const SIZES: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// Bytes of a size such as `"8MiB"` or `8388608`.
pub(super) fn size(value: &Value) -> Option<u64> {
    match value {
        Value::Integer(bytes) => u64::try_from(*bytes).ok(),
        Value::String(text) => {
            let text = text.trim();
            let unit = SIZES.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, *bytes)));
            let (number, bytes) = unit.unwrap_or((text, 1));
            number.trim().parse::<u64>().ok()?.checked_mul(bytes)
        }
        _ => None,
    }
}

/// Milliseconds of a duration such as `"10s"`.
pub(super) fn duration_ms(value: &Value) -> Option<i64> {
    let duration = humantime::parse_duration(value.as_str()?.trim()).ok()?;
    i64::try_from(duration.as_millis()).ok()
}

/// Letters to change, add or leave out to make one word of the other (Levenshtein).
pub(super) fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (at, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = at + 1;
        for (column, to) in b.iter().enumerate() {
            let change = diagonal + usize::from(from != *to);
            diagonal = row[column + 1];
            row[column + 1] = change.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[b.len()]
}
