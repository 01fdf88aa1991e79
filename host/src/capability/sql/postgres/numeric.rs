//! PostgreSQL's `numeric` on the wire, as plain decimal digits and back.
//!
//! By hand, because the scale of a number (`12.50`) is part of it here and is not in a `BigDecimal`, and
//! because the work must grow with the number of digits and no faster: they are a guest's.
//!
//! The format is that of `numeric_send` in PostgreSQL's `numeric.c`: how many digits to the base 10000
//! there are, the weight of the first one, the sign, how many decimal digits follow the point, the digits.

const POSITIVE: u16 = 0x0000;
const NEGATIVE: u16 = 0x4000;

/// Decimal digits after the point that PostgreSQL allows.
const SCALE_MAX: usize = 16383;

/// Digits to the base 10000 before the point that PostgreSQL allows.
const WHOLE_GROUPS_MAX: usize = 1 << 15;

/// Appends digits with an optional sign and point; nothing, and `None`, if it is anything else.
pub fn encode(text: &str, out: &mut Vec<u8>) -> Option<()> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (NEGATIVE, digits),
        None => (POSITIVE, text.strip_prefix('+').unwrap_or(text)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let is_number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(fraction) || whole.len() + fraction.len() == 0 {
        return None;
    }
    let whole = whole.trim_start_matches('0');
    let whole_groups = whole.len().div_ceil(4);
    if fraction.len() > SCALE_MAX || whole_groups > WHOLE_GROUPS_MAX {
        return None;
    }
    let groups = groups(whole, fraction);
    let leading = groups.iter().take_while(|group| **group == 0).count();
    let kept = groups.iter().rposition(|group| *group != 0).map_or(0, |last| last + 1 - leading);
    let (weight, sign) = match kept {
        0 => (0, POSITIVE),
        _ => (whole_groups as isize - 1 - leading as isize, sign),
    };
    write(
        out,
        u16::try_from(kept).ok()?,
        i16::try_from(weight).ok()?,
        sign,
        u16::try_from(fraction.len()).ok()?,
    );
    out.extend(groups.iter().skip(leading).take(kept).flat_map(|group| group.to_be_bytes()));
    Some(())
}

fn write(out: &mut Vec<u8>, count: u16, weight: i16, sign: u16, scale: u16) {
    out.extend(count.to_be_bytes());
    out.extend(weight.to_be_bytes());
    out.extend(sign.to_be_bytes());
    out.extend(scale.to_be_bytes());
}

/// Digits to the base 10000, counted from the point in both directions.
fn groups(whole: &str, fraction: &str) -> Vec<u16> {
    let front = whole.len().next_multiple_of(4) - whole.len();
    let back = fraction.len().next_multiple_of(4) - fraction.len();
    let zeros = |count: usize| std::iter::repeat_n(b'0', count);
    let digits = zeros(front).chain(whole.bytes()).chain(fraction.bytes()).chain(zeros(back));
    let mut groups = Vec::with_capacity((front + whole.len() + fraction.len() + back) / 4);
    let mut group = 0;
    for (at, digit) in digits.enumerate() {
        group = group * 10 + u16::from(digit - b'0');
        if at % 4 == 3 {
            groups.push(std::mem::take(&mut group));
        }
    }
    groups
}

/// The digits, with as many of them after the point as the number's scale says.
pub fn decode(bytes: &[u8]) -> Option<String> {
    let (words, []) = bytes.as_chunks::<2>() else { return None };
    let mut words = words.iter().map(|word| u16::from_be_bytes(*word));
    let count = words.next()?;
    let weight = words.next()?.cast_signed();
    let sign = words.next()?;
    let scale = usize::from(words.next()?);
    let mut text = match sign {
        POSITIVE => String::new(),
        NEGATIVE => "-".to_owned(),
        // `NaN` and the infinities.
        _ => return None,
    };
    let groups: Vec<u16> = words.take(usize::from(count)).collect();
    let group = |place: i32| {
        let at = usize::try_from(i32::from(weight) - place).ok();
        at.and_then(|at| groups.get(at)).copied().unwrap_or_default()
    };
    // Before the point places count down to 0, and behind it they are negative.
    text.push_str(&group(i32::from(weight.max(0))).to_string());
    for place in (0..i32::from(weight.max(0))).rev() {
        text.push_str(&format!("{:04}", group(place)));
    }
    if scale > 0 {
        text.push('.');
        let end = text.len() + scale;
        let mut place = -1;
        while text.len() < end {
            text.push_str(&format!("{:04}", group(place)));
            place -= 1;
        }
        text.truncate(end);
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(text: &str) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        encode(text, &mut bytes).map(|()| bytes)
    }

    #[test]
    fn a_decimal_keeps_its_digits_and_its_scale() {
        for text in [
            "0",
            "1",
            "-1",
            "10000",
            "9999",
            "12345678",
            "0.1",
            "0.0001",
            "0.00001",
            "-12.50",
            "100000000.000000001",
            "0.00",
            "1.0000",
            "123456789012345678901234567890.123456789",
        ] {
            let bytes = encoded(text).expect("a number");
            assert_eq!(decode(&bytes).as_deref(), Some(text), "{bytes:?}");
        }
    }

    #[test]
    fn it_is_written_as_postgres_writes_it() {
        assert_eq!(encoded("-12.50"), Some(vec![0, 2, 0, 0, 0x40, 0, 0, 2, 0, 12, 0x13, 0x88]));
        assert_eq!(encoded("20000"), Some(vec![0, 1, 0, 1, 0, 0, 0, 0, 0, 2]));
        assert_eq!(encoded("-0.0"), Some(vec![0, 0, 0, 0, 0, 0, 0, 1]));
    }

    #[test]
    fn other_ways_to_write_the_same_number_are_read() {
        for (given, kept) in [("+1", "1"), ("007", "7"), (".5", "0.5"), ("5.", "5"), ("-0", "0")] {
            assert_eq!(decode(&encoded(given).expect("a number")).as_deref(), Some(kept), "{given}");
        }
    }

    #[test]
    fn what_is_no_decimal_is_refused() {
        for text in ["", ".", "-", "1e5", "1,5", "0x1", " 1", "--1", "NaN", "Infinity", "١"] {
            assert_eq!(encoded(text), None, "{text}");
        }
        assert_eq!(encoded(&"9".repeat(131_073)), None);
        assert!(encoded(&"9".repeat(131_072)).is_some());
        assert_eq!(encoded(&format!("0.{}", "1".repeat(16_384))), None);
        assert_eq!(decode(&[0, 1, 0]), None);
    }
}
