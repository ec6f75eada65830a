//! Numbers as 16 lower-case hex digits, whose order as text is theirs. The library's own way of writing and reading them goes digit by
//! digit through its general machinery, which counts where every write has a dozen.

/// Digits of a number.
pub const DIGITS: usize = 16;

/// What each byte means as a digit; [`NONE`] for others.
const MEANS: [u8; 256] = {
    let mut means = [NONE; 256];
    let mut digit = 0;
    while digit < WRITTEN.len() {
        means[WRITTEN[digit] as usize] = digit as u8;
        digit += 1;
    }
    means
};
const NONE: u8 = 0xff;
const WRITTEN: &[u8; 16] = b"0123456789abcdef";

/// Puts a number behind a text.
pub fn push(text: &mut String, number: u64) {
    let digit = |at: usize| WRITTEN[(number >> (60 - 4 * at)) as usize & 0xf];
    let digits: [u8; DIGITS] = std::array::from_fn(digit);
    text.push_str(std::str::from_utf8(&digits).expect("hex digits are text"));
}

/// Reads a number; `None` where that is not exactly its digits.
pub fn read(digits: &[u8]) -> Option<u64> {
    let digits: &[u8; DIGITS] = digits.try_into().ok()?;
    let (mut number, mut seen) = (0, 0);
    for byte in digits {
        let digit = MEANS[usize::from(*byte)];
        seen |= digit;
        number = number << 4 | u64::from(digit);
    }
    (seen < 16).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_survive_and_nothing_else_is_one() {
        for number in [0, 1, 0x0123_4567_89ab_cdef, u64::MAX, 1 << 63] {
            let mut text = String::from("x");
            push(&mut text, number);
            assert_eq!(text, format!("x{number:016x}"));
            assert_eq!(read(&text.as_bytes()[1..]), Some(number));
        }
        for bad in ["", "0", "0123456789abcdeF", "0123456789abcdeg", "00123456789abcdef", "+123456789abcdef"]
        {
            assert_eq!(read(bad.as_bytes()), None, "{bad}");
        }
    }
}
