//! Standard output and standard error of a guest, as log lines of its service.
//!
//! Everything that arrives here is hostile: it may be endless, be no text at all, forge lines of the host, or steer
//! the terminal of the person who reads it. What leaves is bounded in length and rate, and only printable.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use crate::limits::{ByteCount, LOG_LINE_BYTES_MAX};
use crate::name::{ReleaseId, ServiceName};

/// The span that the byte budget is for.
const WINDOW: Duration = Duration::from_secs(1);

/// The longest UTF-8 sequence, less its last byte: what a cut character may leave behind.
const PARTIAL_CHAR_BYTES_MAX: usize = 3;

/// Which of its two outputs a guest wrote to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestStream {
    Stdout,
    Stderr,
}

impl GuestStream {
    /// As log lines show it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// One output of one instance. Writing never waits; what is left is written at drop.
pub struct GuestOutput {
    service: ServiceName,
    release: ReleaseId,
    stream: GuestStream,
    splitter: LineSplitter,
}

impl GuestOutput {
    /// `bytes_per_second` is the service's limit `log_bytes`.
    pub fn new(
        service: ServiceName,
        release: ReleaseId,
        stream: GuestStream,
        bytes_per_second: ByteCount,
    ) -> Self {
        Self { service, release, stream, splitter: LineSplitter::new(bytes_per_second) }
    }

    /// Takes all of `bytes` and emits the lines that are complete.
    pub fn write(&mut self, bytes: &[u8]) {
        let Self { service, release, stream, splitter } = self;
        splitter.push(bytes, Instant::now(), &mut |line| emit(service, release, *stream, line));
    }

    /// Emits an unfinished last line.
    pub fn flush(&mut self) {
        let Self { service, release, stream, splitter } = self;
        splitter.flush(Instant::now(), &mut |line| emit(service, release, *stream, line));
    }
}

impl Drop for GuestOutput {
    fn drop(&mut self) {
        self.flush();
    }
}

fn emit(service: &ServiceName, release: &ReleaseId, stream: GuestStream, line: &str) {
    tracing::info!(
        target: "guest",
        service = service.as_str(),
        release = release.short(),
        stream = stream.label(),
        "{line}"
    );
}

/// Turns chunks of bytes into clean lines within a budget. It has no clock: the caller says what time it is.
///
/// A line is at most [`LOG_LINE_BYTES_MAX`] bytes; a longer one is split. When the lines of one second are more than
/// the budget, the rest of that second is dropped, and a line says how much as soon as there is something to say again.
pub struct LineSplitter {
    bytes_per_second: usize,
    /// The line so far, without its end; below [`LOG_LINE_BYTES_MAX`] bytes.
    line: Vec<u8>,
    window_start: Option<Instant>,
    window_bytes: usize,
    dropped_bytes: u64,
    /// The window's budget is spent.
    spent: bool,
    /// The beginning of the current line was dropped, so its rest is, too.
    inside_dropped_line: bool,
    /// The beginning of the current line was emitted because it became too long.
    inside_split_line: bool,
}

impl LineSplitter {
    pub fn new(bytes_per_second: ByteCount) -> Self {
        Self {
            bytes_per_second: bytes_per_second.as_usize(),
            line: Vec::new(),
            window_start: None,
            window_bytes: 0,
            dropped_bytes: 0,
            spent: false,
            inside_dropped_line: false,
            inside_split_line: false,
        }
    }

    /// Takes all of `bytes`; `emit` gets each line that is complete, without its end.
    pub fn push(&mut self, bytes: &[u8], now: Instant, emit: &mut dyn FnMut(&str)) {
        self.roll_window(now, emit);
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.spent {
                self.drop_rest(rest);
                return;
            }
            if self.inside_dropped_line {
                rest = self.skip_dropped_line(rest);
                continue;
            }
            rest = self.take_some(rest, emit);
        }
    }

    /// Emits an unfinished line and what there is to say about dropped bytes: the instance ends.
    pub fn flush(&mut self, now: Instant, emit: &mut dyn FnMut(&str)) {
        self.roll_window(now, emit);
        let line = std::mem::take(&mut self.line);
        if self.inside_dropped_line {
            self.count_dropped(line.len());
        } else if !line.is_empty() {
            self.deliver(&line, emit);
        }
        self.report_dropped(emit);
    }

    /// Takes bytes up to the end of the line, or as many as fit; answers what is left.
    fn take_some<'a>(&mut self, bytes: &'a [u8], emit: &mut dyn FnMut(&str)) -> &'a [u8] {
        let room = LOG_LINE_BYTES_MAX.saturating_sub(self.line.len()).max(1);
        let (near, _) = bytes.split_at(room.min(bytes.len()));
        let (taken, rest, ends) = match near.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                let (line, rest) = bytes.split_at(end);
                (line, rest.get(1..).unwrap_or_default(), true)
            }
            None => (near, bytes.get(near.len()..).unwrap_or_default(), false),
        };
        self.line.extend_from_slice(taken);
        if ends {
            let mut line = std::mem::take(&mut self.line);
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            // Nothing is left of a line that was split at its very end.
            if !(line.is_empty() && self.inside_split_line) {
                self.deliver(&line, emit);
            }
            self.inside_dropped_line = false;
            self.inside_split_line = false;
            line.clear();
            self.line = line;
        } else if self.line.len() >= LOG_LINE_BYTES_MAX {
            let partial = partial_char_bytes(&self.line);
            let tail = self.line.split_off(self.line.len().saturating_sub(partial));
            let line = std::mem::replace(&mut self.line, tail);
            self.inside_split_line = true;
            self.deliver(&line, emit);
        }
        rest
    }

    /// Emits one line, split as often as its escapes make it too long.
    fn deliver(&mut self, line: &[u8], emit: &mut dyn FnMut(&str)) {
        let mut clean = String::with_capacity(line.len());
        for chunk in line.utf8_chunks() {
            for character in chunk.valid().chars() {
                self.append(character, &mut clean, emit);
            }
            if !chunk.invalid().is_empty() {
                self.append(char::REPLACEMENT_CHARACTER, &mut clean, emit);
            }
        }
        self.spend(&clean, emit);
    }

    fn append(&mut self, character: char, clean: &mut String, emit: &mut dyn FnMut(&str)) {
        let escaped = is_unsafe(character);
        let bytes = if escaped { character.escape_unicode().len() } else { character.len_utf8() };
        if clean.len() + bytes > LOG_LINE_BYTES_MAX {
            self.spend(clean, emit);
            clean.clear();
        }
        if escaped {
            // Writing to a string cannot fail.
            let _ = write!(clean, "{}", character.escape_unicode());
        } else {
            clean.push(character);
        }
    }

    /// Emits a clean line if the window has room for it, else drops it and all that follow in the window.
    fn spend(&mut self, clean: &str, emit: &mut dyn FnMut(&str)) {
        let cost = clean.len() + 1;
        if self.spent || self.window_bytes.saturating_add(cost) > self.bytes_per_second {
            self.spent = true;
            self.inside_dropped_line = true;
            self.count_dropped(cost);
            return;
        }
        self.window_bytes += cost;
        emit(clean);
    }

    fn roll_window(&mut self, now: Instant, emit: &mut dyn FnMut(&str)) {
        let start = *self.window_start.get_or_insert(now);
        if now.saturating_duration_since(start) < WINDOW {
            return;
        }
        self.window_start = Some(now);
        self.window_bytes = 0;
        self.spent = false;
        self.report_dropped(emit);
    }

    fn report_dropped(&mut self, emit: &mut dyn FnMut(&str)) {
        if self.dropped_bytes > 0 {
            emit(&format!(
                "{} bytes of output were dropped: more than {} in one second (limit `log_bytes`)",
                self.dropped_bytes,
                ByteCount(u64::try_from(self.bytes_per_second).unwrap_or(u64::MAX)),
            ));
            self.dropped_bytes = 0;
        }
    }

    /// The window is spent: nothing of `bytes` is looked at but its last byte.
    fn drop_rest(&mut self, bytes: &[u8]) {
        self.count_dropped(self.line.len() + bytes.len());
        self.line.clear();
        self.inside_dropped_line = bytes.last() != Some(&b'\n');
        self.inside_split_line = false;
    }

    fn skip_dropped_line<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let skipped = end.map_or(bytes.len(), |end| end + 1);
        self.inside_dropped_line = end.is_none();
        self.inside_split_line = false;
        self.count_dropped(self.line.len() + skipped);
        self.line.clear();
        bytes.get(skipped..).unwrap_or_default()
    }

    fn count_dropped(&mut self, bytes: usize) {
        self.dropped_bytes = self.dropped_bytes.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
    }
}

/// How many bytes at the end of `line` are the beginning of a character whose rest may still come.
fn partial_char_bytes(line: &[u8]) -> usize {
    let tail = line.get(line.len().saturating_sub(PARTIAL_CHAR_BYTES_MAX)..).unwrap_or_default();
    for (index, byte) in tail.iter().enumerate() {
        let wanted = match byte {
            0xC2..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF4 => 4,
            _ => continue,
        };
        let there = tail.len() - index;
        if there < wanted {
            return there;
        }
    }
    0
}

/// Whether a character could forge a line, steer a terminal, or make a line look like another one.
fn is_unsafe(character: char) -> bool {
    match character {
        '\t' => false,
        // Line and paragraph separators; marks that turn the direction of writing; the byte order mark.
        '\u{2028}' | '\u{2029}' | '\u{061C}' | '\u{200E}' | '\u{200F}' | '\u{FEFF}' => true,
        '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' => true,
        other => other.is_control(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes out of these chunks, all written in the same instant, with the flush at the end.
    fn lines_of(chunks: &[&[u8]]) -> Vec<String> {
        let mut splitter = LineSplitter::new(ByteCount::mib(1));
        let (now, mut lines) = (Instant::now(), Vec::new());
        for chunk in chunks {
            splitter.push(chunk, now, &mut |line| lines.push(line.to_owned()));
        }
        splitter.flush(now, &mut |line| lines.push(line.to_owned()));
        lines
    }

    #[test]
    fn lines_are_the_same_however_the_bytes_are_cut() {
        let text = "one\r\ntwo \u{e9}\u{20ac}\u{1f980}\n\nlast".as_bytes();
        let whole = lines_of(&[text]);
        assert_eq!(whole, ["one", "two \u{e9}\u{20ac}\u{1f980}", "", "last"]);
        for cut in 0..=text.len() {
            let (before, after) = text.split_at(cut);
            assert_eq!(lines_of(&[before, after]), whole, "cut at {cut}");
        }
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(lines_of(&bytes), whole);
    }

    #[test]
    fn nothing_written_is_no_line() {
        assert_eq!(lines_of(&[]), Vec::<String>::new());
        assert_eq!(lines_of(&[b""]), Vec::<String>::new());
    }

    #[test]
    fn a_carriage_return_inside_a_line_cannot_overwrite_it() {
        assert_eq!(lines_of(&[b"paid\rfree\n"]), ["paid\\u{d}free"]);
    }

    #[test]
    fn control_characters_are_escaped_and_tabs_are_not() {
        assert_eq!(lines_of(&[b"\x1b[2J\x07\x00\tok\n"]), ["\\u{1b}[2J\\u{7}\\u{0}\tok"]);
        assert_eq!(
            lines_of(&["a\u{9b}31m\u{2028}\u{202e}b\n".as_bytes()]),
            ["a\\u{9b}31m\\u{2028}\\u{202e}b"]
        );
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced() {
        assert_eq!(lines_of(&[b"a\xff\xfeb\xe2\x82\n"]), ["a\u{fffd}\u{fffd}b\u{fffd}"]);
    }

    #[test]
    fn a_long_line_is_split_and_no_piece_is_longer_than_the_limit() {
        let text = "\u{20ac}".repeat(LOG_LINE_BYTES_MAX);
        let lines = lines_of(&[text.as_bytes()]);
        assert!(lines.len() >= 3, "{} pieces", lines.len());
        assert!(lines.iter().all(|line| line.len() <= LOG_LINE_BYTES_MAX));
        assert_eq!(lines.concat(), text, "no character is torn apart");
    }

    #[test]
    fn a_line_as_long_as_the_limit_stays_one_line() {
        let text = "x".repeat(LOG_LINE_BYTES_MAX);
        for end in ["\n", "\r\n", ""] {
            assert_eq!(lines_of(&[text.as_bytes(), end.as_bytes()]), [text.as_str()], "ends with {end:?}");
        }
        assert_eq!(lines_of(&[text.as_bytes(), b"y\n\n"]), [text.as_str(), "y", ""]);
    }

    #[test]
    fn escapes_cannot_make_a_line_longer_than_the_limit() {
        let lines = lines_of(&[&[0x1b; LOG_LINE_BYTES_MAX]]);
        assert!(lines.iter().all(|line| line.len() <= LOG_LINE_BYTES_MAX));
        assert_eq!(lines.concat(), "\\u{1b}".repeat(LOG_LINE_BYTES_MAX));
    }

    #[test]
    fn bytes_without_a_line_end_do_not_pile_up() {
        let mut splitter = LineSplitter::new(ByteCount::gib(1));
        let now = Instant::now();
        for _ in 0..1000 {
            splitter.push(&[b'x'; 1000], now, &mut |_| {});
            assert!(splitter.line.len() < LOG_LINE_BYTES_MAX);
        }
    }

    #[test]
    fn lines_over_the_budget_are_dropped_and_counted() {
        let mut splitter = LineSplitter::new(ByteCount(12));
        let (start, mut lines) = (Instant::now(), Vec::new());
        splitter.push(b"12345\n67890\nover\n", start, &mut |line| lines.push(line.to_owned()));
        splitter.push(b"more\nhalf a li", start, &mut |line| lines.push(line.to_owned()));
        assert_eq!(lines, ["12345", "67890"]);

        let later = start + WINDOW;
        splitter.push(b"ne\nnext\n", later, &mut |line| lines.push(line.to_owned()));
        assert_eq!(
            lines,
            [
                "12345",
                "67890",
                "19 bytes of output were dropped: more than 12B in one second (limit `log_bytes`)",
                "next"
            ]
        );
    }

    #[test]
    fn lines_within_the_budget_are_kept_for_ever() {
        let mut splitter = LineSplitter::new(ByteCount(12));
        let (start, mut count) = (Instant::now(), 0);
        for second in 0..100 {
            splitter.push(b"12345\n67890\n", start + WINDOW * second, &mut |line| {
                assert!(["12345", "67890"].contains(&line), "{line}");
                count += 1;
            });
        }
        assert_eq!(count, 200);
    }

    #[test]
    fn dropped_bytes_are_reported_when_the_instance_ends() {
        let mut splitter = LineSplitter::new(ByteCount(4));
        let (now, mut lines) = (Instant::now(), Vec::new());
        splitter.push(b"too long\n", now, &mut |line| lines.push(line.to_owned()));
        assert_eq!(lines, Vec::<String>::new());
        splitter.flush(now, &mut |line| lines.push(line.to_owned()));
        assert_eq!(lines.len(), 1);
        assert!(lines.concat().starts_with("9 bytes of output were dropped"));
    }

    #[test]
    fn a_clock_that_goes_back_drops_nothing() {
        let mut splitter = LineSplitter::new(ByteCount::mib(1));
        let (now, mut lines) = (Instant::now(), Vec::new());
        splitter.push(b"one\n", now + WINDOW, &mut |line| lines.push(line.to_owned()));
        splitter.push(b"two\n", now, &mut |line| lines.push(line.to_owned()));
        assert_eq!(lines, ["one", "two"]);
    }
}
