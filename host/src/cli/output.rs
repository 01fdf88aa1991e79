//! What commands write to standard output: lines, tables and times. Knows nothing of what it prints.

use std::io::{self, Write as _};
use std::time::{Duration, UNIX_EPOCH};

/// The first digits of a release are enough for people.
const RELEASE_DIGITS: usize = 12;

/// The end of the year 9999; what is later cannot be written as a date.
const DATE_MS_MAX: u64 = 253_402_300_799_999;

#[derive(Debug, thiserror::Error)]
#[error("write to standard output")]
struct OutputError(#[source] io::Error);

/// Whether a command ended only because nobody reads what it writes, as in `stoa logs catalog | head`.
pub fn is_end_of_reader(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<OutputError>()
        .is_some_and(|OutputError(error)| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Writes one line, at once.
pub fn line(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.write_all(b"\n"))
        .and_then(|()| out.flush())
        .map_err(|error| OutputError(error).into())
}

/// Writes rows in columns that are as wide as their widest cell.
pub fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> anyhow::Result<()> {
    line(&layout(&head, rows))
}

/// The same for columns that only the answer knows.
pub fn rows(head: &[String], rows: &[Vec<String>]) -> anyhow::Result<()> {
    line(&layout(head, rows))
}

fn layout(head: &[impl AsRef<str>], rows: &[impl AsRef<[String]>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.as_ref().chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row.as_ref()) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let render = |cells: &mut dyn Iterator<Item = &str>| {
        let padded = cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let head = render(&mut head.iter().map(AsRef::as_ref));
    let body = rows.iter().map(|row| render(&mut row.as_ref().iter().map(String::as_str)));
    std::iter::once(head).chain(body).collect::<Vec<_>>().join("\n")
}

/// `2026-05-02 12:13:14`, UTC.
pub fn utc_seconds(at_ms: u64) -> String {
    let at = UNIX_EPOCH + Duration::from_millis(at_ms.min(DATE_MS_MAX));
    humantime::format_rfc3339_seconds(at).to_string().replace('T', " ").replace('Z', "")
}

/// `2026-05-02 12:13:14.567`, UTC.
pub fn utc_millis(at_ms: u64) -> String {
    let at = UNIX_EPOCH + Duration::from_millis(at_ms.min(DATE_MS_MAX));
    humantime::format_rfc3339_millis(at).to_string().replace('T', " ").replace('Z', "")
}

/// Microseconds since 1970 as the other times here; what is before that is 1970.
pub fn millis_of(at_us: i64) -> u64 {
    u64::try_from(at_us / 1000).unwrap_or_default()
}

pub fn short(release: &str) -> &str {
    release.get(..RELEASE_DIGITS).unwrap_or(release)
}

/// Text from a guest or another operator, with nothing in it that a terminal would obey.
pub fn harmless(text: &str) -> String {
    let mut harmless = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\t' => harmless.push(c),
            c if c.is_control() => harmless.extend(c.escape_default()),
            c => harmless.push(c),
        }
    }
    harmless
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a".to_owned(), "1".to_owned()], ["longer".to_owned(), String::new()]];
        assert_eq!(layout(&["NAME", "N"], &rows), "NAME    N\na       1\nlonger");
    }

    #[test]
    fn times_are_utc_and_never_fail() {
        assert_eq!(utc_seconds(0), "1970-01-01 00:00:00");
        assert_eq!(utc_millis(1_767_225_600_123), "2026-01-01 00:00:00.123");
        assert_eq!(utc_seconds(u64::MAX), "9999-12-31 23:59:59");
    }

    #[test]
    fn what_a_terminal_would_obey_is_shown_instead() {
        assert_eq!(harmless("a\tb\u{1b}[2Jc"), "a\tb\\u{1b}[2Jc");
    }

    #[test]
    fn only_a_reader_who_left_ends_a_command_quietly() {
        let broken = |error| is_end_of_reader(&error);
        assert!(broken(OutputError(io::ErrorKind::BrokenPipe.into()).into()));
        assert!(!broken(OutputError(io::ErrorKind::StorageFull.into()).into()));
        assert!(!broken(io::Error::from(io::ErrorKind::BrokenPipe).into()));
    }
}
