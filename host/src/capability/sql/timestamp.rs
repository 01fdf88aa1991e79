//! Moments as text, the way SQLite's own date functions write and read them.

use std::fmt::Write as _;

use time::{Date, Duration, Month, OffsetDateTime, PrimitiveDateTime, Time};

/// `2026-11-21 07:13:40.123456`, UTC; none beyond the years 0 to 9999.
pub fn to_text(micros: i64) -> Option<String> {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000).ok()?;
    if !(0..=9999).contains(&at.year()) {
        return None;
    }
    let mut text = String::with_capacity(26);
    let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
    let (hour, minute, second) = at.to_hms();
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{:06}",
        at.microsecond()
    );
    Some(text)
}

/// Reads `YYYY-MM-DD`, with a time of day to any precision and an offset if they are there.
pub fn of_text(text: &str) -> Option<i64> {
    let (date, rest) = match text.split_at_checked(10)? {
        (date, "") => (date, "00:00"),
        (date, rest) => (date, rest.strip_prefix([' ', 'T'])?),
    };
    let mut parts = date.splitn(3, '-');
    let year = number(parts.next()?, 4)?;
    let month = Month::try_from(u8::try_from(number(parts.next()?, 2)?).ok()?).ok()?;
    let day = u8::try_from(number(parts.next()?, 2)?).ok()?;
    let date = Date::from_calendar_date(year, month, day).ok()?;

    let (clock, offset_minutes) = split_offset(rest)?;
    let mut parts = clock.splitn(3, ':');
    let hour = u8::try_from(number(parts.next()?, 2)?).ok()?;
    let minute = u8::try_from(number(parts.next()?, 2)?).ok()?;
    let (second, micros) = match parts.next() {
        None => (0, 0),
        Some(seconds) => {
            let (whole, fraction) = seconds.split_once('.').unwrap_or((seconds, "0"));
            let digits: String = fraction.chars().chain("000000".chars()).take(6).collect();
            (u8::try_from(number(whole, 2)?).ok()?, u32::try_from(number(&digits, 6)?).ok()?)
        }
    };
    let time = Time::from_hms_micro(hour, minute, second, micros).ok()?;
    let at = PrimitiveDateTime::new(date, time).assume_utc() - Duration::minutes(offset_minutes);
    i64::try_from(at.unix_timestamp_nanos() / 1000).ok()
}

/// The time of day, and how many minutes it is ahead of UTC.
fn split_offset(text: &str) -> Option<(&str, i64)> {
    if let Some(clock) = text.strip_suffix(['Z', 'z']) {
        return Some((clock, 0));
    }
    let Some(at) = text.rfind(['+', '-']) else { return Some((text, 0)) };
    let (clock, offset) = text.split_at_checked(at)?;
    let sign = if offset.starts_with('-') { -1 } else { 1 };
    let digits: String = offset.chars().filter(char::is_ascii_digit).chain("00".chars()).take(4).collect();
    let (hours, minutes) = digits.split_at_checked(2)?;
    Some((clock, sign * (i64::from(number(hours, 2)?) * 60 + i64::from(number(minutes, 2)?))))
}

fn number(digits: &str, length: usize) -> Option<i32> {
    let good = digits.len() == length && digits.bytes().all(|byte| byte.is_ascii_digit());
    good.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_survives_as_text() {
        for micros in [0, 1_763_709_220_123_456, -1, -62_135_596_800_000_000] {
            let text = to_text(micros).expect("in range");
            assert_eq!(of_text(&text), Some(micros), "{text}");
        }
        assert_eq!(to_text(0).as_deref(), Some("1970-01-01 00:00:00.000000"));
        assert_eq!(to_text(i64::MAX), None);
    }

    #[test]
    fn the_ways_in_which_sqlite_writes_a_moment_are_read() {
        for (text, micros) in [
            ("1970-01-02", Some(86_400_000_000)),
            ("1970-01-01 00:01", Some(60_000_000)),
            ("1970-01-01T00:00:01Z", Some(1_000_000)),
            ("1970-01-01 00:00:01.5", Some(1_500_000)),
            ("1970-01-01 01:00:00+01:00", Some(0)),
            ("1970-01-01 00:00:00-0130", Some(5_400_000_000)),
            ("yesterday", None),
            ("1970-13-01", None),
            ("1970-01-01 25:00", None),
            ("", None),
        ] {
            assert_eq!(of_text(text), micros, "{text}");
        }
    }
}
