//! What was handled against what was published. Knows nothing of hosts.
//!
//! The numbers from 0 on are published in chunks, those of a key one after the other. Of a chunk that was cut, each key
//! has the first few numbers, or none, or all; then the chunk was published again from its beginning.

use std::collections::{HashMap, HashSet};

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// One request to publish a chunk.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// The first number of the chunk.
    pub from: u64,
    /// Whether it was acknowledged.
    pub is_whole: bool,
}

/// A row of the table of what was handled.
#[derive(Clone, Debug)]
pub struct Handled {
    pub message: String,
    pub key: String,
    pub number: u64,
}

impl Handled {
    /// Of the columns `message`, `key` and `body`.
    pub fn of((message, key, body): (String, String, String)) -> Result<Self> {
        #[derive(Deserialize)]
        struct Body {
            n: u64,
        }
        let body: Body = serde_json::from_str(&body).with_context(|| format!("read the body `{body}`"))?;
        Ok(Self { message, key, number: body.n })
    }
}

/// What is not as it should be, in words.
#[derive(Debug, Default, PartialEq)]
pub struct Faults {
    pub twice: Vec<String>,
    pub missing: Vec<String>,
    pub disordered: Vec<String>,
    pub unknown: Vec<String>,
    /// Numbers that were handled more than once because they were published more than once: no fault.
    pub published_again: usize,
}

/// `rows` in the order in which they were handled.
pub fn check(rows: &[Handled], runs: &[Run], messages: u64, keys: u64, chunk: u64) -> Faults {
    let mut found = Faults::default();
    let (mut ids, mut by_key) = (HashSet::new(), HashMap::<&str, Vec<u64>>::new());
    for row in rows {
        if !ids.insert(row.message.as_str()) {
            found.twice.push(format!("`{}`, number {}", row.message, row.number));
        }
        if row.number >= messages || row.key != format!("k{}", row.number % keys) {
            found.unknown.push(format!("`{}`, number {} of key `{}`", row.message, row.number, row.key));
        }
        by_key.entry(&row.key).or_default().push(row.number);
    }
    let mut attempts = HashMap::<u64, usize>::new();
    for run in runs {
        *attempts.entry(run.from).or_default() += 1;
    }
    for key in 0..keys.min(messages) {
        let name = format!("k{key}");
        let numbers = by_key.get(name.as_str()).map(Vec::as_slice).unwrap_or_default();
        let present: HashSet<u64> = numbers.iter().copied().collect();
        let wanted = (messages - key).div_ceil(keys);
        found.published_again += numbers.len() - present.len();
        let missing = (0..wanted).map(|index| key + index * keys).filter(|number| !present.contains(number));
        found.missing.extend(missing.map(|number| format!("number {number} of `{name}`")));
        if let Err(number) = in_order(numbers, messages, keys, chunk, &attempts) {
            found.disordered.push(format!("`{name}` at number {number}"));
        }
    }
    found
}

/// The number that is not in its place.
fn in_order(
    numbers: &[u64],
    messages: u64,
    keys: u64,
    chunk: u64,
    attempts: &HashMap<u64, usize>,
) -> Result<(), u64> {
    let begin = |number: u64| number / chunk * chunk;
    for same in numbers.chunk_by(|a, b| begin(*a) == begin(*b)) {
        let Some(first) = same.first() else { continue };
        let from = begin(*first);
        let key = first % keys;
        // Those of the chunk that have this key.
        let lowest = key + (from.saturating_sub(key)).div_ceil(keys) * keys;
        let end = (from + chunk).min(messages);
        let (mut expected, mut pieces) = (lowest, 0);
        for number in same {
            if *number == lowest {
                pieces += 1;
            } else if *number != expected {
                return Err(*number);
            }
            expected = number + keys;
        }
        // The last time is the one that was acknowledged, and so it is whole.
        if expected < end || pieces > attempts.get(&from).copied().unwrap_or_default() {
            return Err(expected);
        }
    }
    let chunks: Vec<u64> = numbers.iter().map(|number| begin(*number)).collect();
    match chunks.windows(2).position(|pair| pair[0] > pair[1]) {
        Some(place) => Err(numbers[place + 1]),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Twelve numbers of two keys, in chunks of six: `k0` has 0 2 4 and 6 8 10.
    fn faults(evens: &[u64], cut: &[u64]) -> [usize; 4] {
        let odds = [1, 3, 5, 7, 9, 11];
        let row = |(place, number): (usize, &u64)| Handled {
            message: format!("m{place}"),
            key: format!("k{}", number % 2),
            number: *number,
        };
        let rows: Vec<Handled> = evens.iter().chain(&odds).enumerate().map(row).collect();
        let whole = [0, 6].map(|from| Run { from, is_whole: true });
        let cut = cut.iter().map(|from| Run { from: *from, is_whole: false });
        let runs: Vec<Run> = cut.chain(whole).collect();
        let found = check(&rows, &runs, 12, 2, 6);
        [found.twice.len(), found.missing.len(), found.disordered.len(), found.unknown.len()]
    }

    #[test]
    fn numbers_in_their_order_are_right() {
        assert_eq!(faults(&[0, 2, 4, 6, 8, 10], &[]), [0; 4]);
    }

    #[test]
    fn what_is_missing_or_out_of_order_is_found() {
        assert_eq!(faults(&[0, 2, 6, 8, 10], &[]), [0, 1, 1, 0], "a hole is out of order, too");
        assert_eq!(faults(&[0, 2, 4, 6, 8], &[]), [0, 1, 1, 0], "the end");
        assert_eq!(faults(&[0, 2, 4], &[]), [0, 3, 0, 0], "a whole chunk");
        assert_eq!(faults(&[0, 4, 2, 6, 8, 10], &[]), [0, 0, 1, 0]);
        assert_eq!(faults(&[6, 8, 10, 0, 2, 4], &[]), [0, 0, 1, 0], "chunks the other way round");
    }

    #[test]
    fn a_chunk_that_was_cut_may_have_begun_as_often_as_it_was_cut() {
        assert_eq!(faults(&[0, 0, 2, 4, 6, 8, 10], &[0]), [0; 4]);
        assert_eq!(faults(&[0, 2, 4, 0, 2, 4, 6, 8, 10], &[0]), [0; 4], "all of it was published");
        assert_eq!(faults(&[0, 2, 4, 6, 8, 10], &[0, 0]), [0; 4], "nothing of it was");
        assert_eq!(faults(&[0, 2, 0, 0, 2, 4, 6, 8, 10], &[0]), [0, 0, 1, 0], "once too often");
        assert_eq!(faults(&[0, 2, 0, 4, 6, 8, 10], &[0]), [0, 0, 1, 0], "a piece that is none");
        assert_eq!(faults(&[0, 2, 4, 6, 6, 8, 10], &[0]), [0, 0, 1, 0], "it was another chunk");
    }

    #[test]
    fn the_same_message_twice_and_numbers_of_others_are_found() {
        let row =
            |message: &str, key: &str, number| Handled { message: message.into(), key: key.into(), number };
        let runs = [Run { from: 0, is_whole: true }, Run { from: 0, is_whole: false }];
        let found = check(&[row("a", "k0", 0), row("a", "k0", 0)], &runs, 1, 1, 6);
        assert_eq!((found.twice.len(), found.published_again), (1, 1));
        let found = check(&[row("a", "k0", 0), row("b", "k0", 5)], &runs, 1, 1, 6);
        assert_eq!(found.unknown.len(), 1);
        let found = check(&[row("a", "k1", 0)], &runs, 1, 1, 6);
        assert_eq!((found.unknown.len(), found.missing.len()), (1, 1));
    }
}
