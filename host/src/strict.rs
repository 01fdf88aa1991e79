//! Strict TOML: an unknown key, a wrong type or a bad value is refused with its line, its key and the
//! nearest known key.
//!
//! `service.toml` and `stoa.toml` share it. serde alone names neither the line nor the near miss, and it
//! repeats a wrong value in its message, which may be a secret. Knows nothing about either file.

use std::fmt::Write as _;
use std::ops::Range;

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The longest span of time that a file may name. Adding it to a clock never overflows.
pub const SPAN_SECONDS_MAX: u64 = 366 * 24 * 60 * 60;

/// Which keys a file may have; what is in them is serde's to check.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// Anything.
    Value,
    /// A table with these keys and no others.
    Table(&'static [(&'static str, Shape)]),
    /// A table with these keys, each a plain value.
    Keys(&'static [&'static str]),
    /// A table whose keys the author chooses.
    Map(&'static Shape),
    /// A list of tables, written `[[key]]`.
    Each(&'static Shape),
    /// A key that a later release of the host will know.
    Later,
}

/// Why a file was refused. Each one names the line to look at.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StrictError {
    #[error("line {line}: unknown key `{key}` in {place}; {hint}")]
    UnknownKey { line: usize, key: String, place: String, hint: String },
    #[error("line {line}: `{key}`: this release of the host does not offer it yet; remove it")]
    NotYet { line: usize, key: String },
    #[error("line {line}: `{key}`: {problem}")]
    Value { line: usize, key: String, problem: String },
    #[error("line {line}: missing key `{key}` in {place}")]
    Missing { line: usize, key: String, place: String },
    #[error("line {line}: {problem}")]
    Syntax { line: usize, problem: String },
}

/// A file whose keys are all known.
pub struct Document<'t> {
    text: &'t str,
    root: Spanned<DeTable<'t>>,
}

impl<'t> Document<'t> {
    /// Parses the text and refuses the first key, from the top, that `shape` does not have.
    pub fn parse(text: &'t str, shape: &Shape) -> Result<Self, StrictError> {
        let root = DeTable::parse(text).map_err(|error| StrictError::Syntax {
            line: line_at(text, error.span().map_or(0, |span| span.start)),
            problem: one_line(error.message()),
        })?;
        let document = Self { text, root };
        let mut found = Vec::new();
        check_table(document.root.get_ref(), shape, &Place::root(), &mut found);
        match found.into_iter().min_by_key(|(offset, _)| *offset) {
            None => Ok(document),
            Some((offset, problem)) => Err(problem.at(line_at(text, offset))),
        }
    }

    /// Reads the file into its type.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, StrictError> {
        toml::from_str(self.text).map_err(|error| self.explain(&error))
    }

    /// The refusal of a value that has the right type and still makes no sense.
    ///
    /// `path` is the way from the top: keys, and positions in lists.
    pub fn refuse(&self, path: &[&str], problem: impl Into<String>) -> StrictError {
        let offset = offset_of(self.root.get_ref(), path).unwrap_or(0);
        StrictError::Value { line: line_at(self.text, offset), key: path.join("."), problem: problem.into() }
    }

    /// Refuses a limit of zero, unless zero makes sense for it, and a span of more than a year.
    pub fn check_limits<T: Serialize>(
        &self,
        table: &str,
        limits: &T,
        zero_allowed: &[&str],
    ) -> Result<(), StrictError> {
        let rows = toml::Table::try_from(limits)
            .map_err(|error| self.refuse(&[table], format!("cannot be read back: {error}")))?;
        for (key, value) in &rows {
            let zero = value.as_integer() == Some(0) || matches!(value.as_str(), Some("0B" | "0s"));
            if zero && !zero_allowed.contains(&key.as_str()) {
                let problem = "zero would serve nothing; leave it out for the default";
                return Err(self.refuse(&[table, key], problem));
            }
            let span = value.as_str().and_then(|text| humantime::parse_duration(text).ok());
            if span.is_some_and(|span| span.as_secs() > SPAN_SECONDS_MAX) {
                return Err(self.refuse(&[table, key], "more than a year; give a shorter span"));
            }
        }
        Ok(())
    }

    fn explain(&self, error: &toml::de::Error) -> StrictError {
        let offset = error.span().map_or(0, |span| span.start);
        let line = line_at(self.text, offset);
        let problem = one_line(error.message());
        let path = path_at(self.root.get_ref(), offset);
        if let Some(key) = problem.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`')) {
            let place = path.map_or_else(|| Place::root().name(), |path| format!("`[{}]`", path.join(".")));
            return StrictError::Missing { line, key: key.to_owned(), place };
        }
        match path {
            Some(path) => StrictError::Value { line, key: path.join("."), problem },
            None => StrictError::Syntax { line, problem },
        }
    }
}

/// Where in the file a table is, for the message.
struct Place {
    path: Vec<String>,
    listed: bool,
}

impl Place {
    fn root() -> Self {
        Self { path: Vec::new(), listed: false }
    }

    fn within(&self, key: &str, listed: bool) -> Self {
        let mut path = self.path.clone();
        path.push(key.to_owned());
        Self { path, listed }
    }

    fn name(&self) -> String {
        match (self.path.is_empty(), self.listed) {
            (true, _) => "the top level".to_owned(),
            (false, true) => format!("`[[{}]]`", self.path.join(".")),
            (false, false) => format!("`[{}]`", self.path.join(".")),
        }
    }
}

/// A refusal that does not know its line yet.
enum Problem {
    Unknown { key: String, place: String, hint: String },
    NotYet { key: String },
    Type { key: String, expected: String },
}

impl Problem {
    fn at(self, line: usize) -> StrictError {
        match self {
            Self::Unknown { key, place, hint } => StrictError::UnknownKey { line, key, place, hint },
            Self::NotYet { key } => StrictError::NotYet { line, key },
            Self::Type { key, expected } => StrictError::Value { line, key, problem: expected },
        }
    }
}

type Found = Vec<(usize, Problem)>;

fn check_table(table: &DeTable<'_>, shape: &Shape, place: &Place, found: &mut Found) {
    for (key, value) in table {
        let name: &str = key.get_ref();
        let start = key.span().start;
        match shape.child(name) {
            Ok(Shape::Later) => found.push((start, Problem::NotYet { key: name.to_owned() })),
            Ok(child) => {
                check_value(value, &child, &place.within(name, matches!(child, Shape::Each(_))), found);
            }
            Err(known) => {
                let hint = hint(name, &known);
                found.push((start, Problem::Unknown { key: name.to_owned(), place: place.name(), hint }));
            }
        }
    }
}

fn check_value(value: &Spanned<DeValue<'_>>, shape: &Shape, place: &Place, found: &mut Found) {
    // The value itself stays out of the message: it may be a secret in the wrong place.
    let expected = match (shape, value.get_ref()) {
        (Shape::Value | Shape::Later, _) => return,
        (Shape::Table(_) | Shape::Keys(_) | Shape::Map(_), DeValue::Table(table)) => {
            return check_table(table, shape, place, found);
        }
        (Shape::Each(item), DeValue::Array(items)) => {
            return items.iter().for_each(|value| check_value(value, item, place, found));
        }
        (Shape::Table(entries), _) => {
            format!(
                "expected a table with {}",
                list(&entries.iter().map(|entry| entry.0).collect::<Vec<_>>())
            )
        }
        (Shape::Keys(_) | Shape::Map(_), _) => format!("expected a table, written {}", place.name()),
        (Shape::Each(_), _) => format!("expected a list of tables, each written {}", place.name()),
    };
    found.push((value.span().start, Problem::Type { key: place.path.join("."), expected }));
}

impl Shape {
    /// The shape below a key, or the keys that are known instead.
    fn child(&self, key: &str) -> Result<Shape, Vec<&'static str>> {
        match self {
            Self::Value | Self::Later | Self::Each(_) => Ok(Self::Value),
            Self::Map(value) => Ok(**value),
            Self::Keys(keys) if keys.contains(&key) => Ok(Self::Value),
            Self::Keys(keys) => Err(keys.to_vec()),
            Self::Table(entries) => match entries.iter().find(|entry| entry.0 == key) {
                Some((_, shape)) => Ok(*shape),
                None => {
                    Err(entries.iter().filter(|entry| entry.1.is_offered()).map(|entry| entry.0).collect())
                }
            },
        }
    }

    /// Every key that is offered, as the dotted path from the top; an author's own key reads `*`.
    pub fn keys(&self) -> Vec<String> {
        let below = |key: &str, shape: &Shape| {
            let nested = shape.keys();
            if nested.is_empty() {
                return vec![key.to_owned()];
            }
            nested.into_iter().map(|rest| format!("{key}.{rest}")).collect()
        };
        match self {
            Self::Value | Self::Later => Vec::new(),
            Self::Each(item) => item.keys(),
            Self::Map(value) => below("*", value),
            Self::Keys(keys) => keys.iter().map(|key| (*key).to_owned()).collect(),
            Self::Table(entries) => entries
                .iter()
                .filter(|entry| entry.1.is_offered())
                .flat_map(|(key, shape)| below(key, shape))
                .collect(),
        }
    }

    fn is_offered(&self) -> bool {
        !matches!(self, Self::Later)
    }
}

/// The nearest known key when one is near, else all of them.
fn hint(key: &str, known: &[&str]) -> String {
    let near = known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(key, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).max(1))
        .min_by_key(|(distance, _)| *distance);
    match near {
        Some((_, candidate)) => format!("did you mean `{candidate}`?"),
        None => format!("known here: {}", list(known)),
    }
}

fn list(names: &[&str]) -> String {
    names.iter().enumerate().fold(String::new(), |mut text, (index, name)| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{}`{name}`", if index == 0 { "" } else { ", " });
        text
    })
}

/// The keys down to the value that starts at `offset`, or whose table header does.
fn path_at(table: &DeTable<'_>, offset: usize) -> Option<Vec<String>> {
    table.iter().find_map(|(key, value)| {
        let below = path_in(value, offset)?;
        Some(std::iter::once(key.get_ref().to_string()).chain(below).collect())
    })
}

fn path_in(value: &Spanned<DeValue<'_>>, offset: usize) -> Option<Vec<String>> {
    let nested = match value.get_ref() {
        DeValue::Table(table) => path_at(table, offset),
        DeValue::Array(items) => items.iter().find_map(|item| path_in(item, offset)),
        _ => None,
    };
    nested.or_else(|| contains(&value.span(), offset).then(Vec::new))
}

fn contains(span: &Range<usize>, offset: usize) -> bool {
    span.start == offset || span.contains(&offset)
}

/// Where the longest known part of `path` is written.
fn offset_of(table: &DeTable<'_>, path: &[&str]) -> Option<usize> {
    let (first, rest) = path.split_first()?;
    let (key, value) = table.iter().find(|(key, _)| key.get_ref() == first)?;
    Some(offset_in(value, rest).unwrap_or(key.span().start))
}

fn offset_in(value: &Spanned<DeValue<'_>>, path: &[&str]) -> Option<usize> {
    match value.get_ref() {
        DeValue::Table(table) => offset_of(table, path),
        DeValue::Array(items) => {
            let (position, rest) = path.split_first()?;
            let item = items.get(position.parse::<usize>().ok()?)?;
            Some(offset_in(item, rest).unwrap_or(item.span().start))
        }
        _ => None,
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

fn one_line(message: &str) -> String {
    message.trim().replace('\n', "; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape::Table(&[
        ("name", Shape::Value),
        ("size", Shape::Value),
        ("limits", Shape::Keys(&["memory", "queue"])),
        ("item", Shape::Each(&Shape::Table(&[("path", Shape::Value), ("methods", Shape::Value)]))),
        ("secrets", Shape::Map(&Shape::Table(&[("env", Shape::Value)]))),
        ("database", Shape::Later),
    ]);

    #[derive(Debug, serde::Deserialize)]
    struct Sample {
        #[serde(rename = "name")]
        _name: String,
        #[serde(default, rename = "size")]
        _size: u8,
        #[serde(default, rename = "item")]
        _items: Vec<SampleItem>,
    }

    #[derive(Debug, serde::Deserialize)]
    struct SampleItem {
        #[serde(rename = "path")]
        _path: String,
    }

    fn read(text: &str) -> Result<Sample, StrictError> {
        Document::parse(text, &SHAPE)?.read()
    }

    fn check(text: &str, expected: &str) {
        let message = read(text).map_or_else(|error| error.to_string(), |_| "accepted".to_owned());
        assert_eq!(message, expected, "for:\n{text}");
    }

    #[test]
    fn every_known_key_is_accepted() {
        check(
            "name = 'a'\nsize = 3\n[limits]\nmemory = 1\n[[item]]\npath = '/'\n[secrets]\nk = {env = 'K'}",
            "accepted",
        );
    }

    #[test]
    fn an_unknown_key_is_refused_with_line_place_and_nearest_key() {
        check("nmae = 'a'", "line 1: unknown key `nmae` in the top level; did you mean `name`?");
        check(
            "name='a'\n[limits]\nmemroy = 1",
            "line 3: unknown key `memroy` in `[limits]`; did you mean `memory`?",
        );
        check(
            "name='a'\n[[item]]\npath='/'\n[[item]]\nmetods=[]",
            "line 5: unknown key `metods` in `[[item]]`; did you mean `methods`?",
        );
        check(
            "name='a'\n[secrets]\nk = { vault = 'x' }",
            "line 3: unknown key `vault` in `[secrets.k]`; known here: `env`",
        );
        check("limits.zzz = 1", "line 1: unknown key `zzz` in `[limits]`; known here: `memory`, `queue`");
    }

    #[test]
    fn the_first_unknown_key_from_the_top_is_named() {
        check(
            "zzzzz = 1\naaaaa = 1\n",
            "line 1: unknown key `zzzzz` in the top level; known here: `name`, `size`, `limits`, `item`, `secrets`",
        );
    }

    #[test]
    fn a_wrong_value_is_refused_with_line_and_key() {
        check("name = 'a'\nsize = 'x'", "line 2: `size`: invalid type: string \"x\", expected u8");
        check(
            "name = 'a'\n[[item]]\npath = 3",
            "line 3: `item.path`: invalid type: integer `3`, expected a string",
        );
        check("name = 'a'\nitem = 3", "line 2: `item`: expected a list of tables, each written `[[item]]`");
        check("name = 'a'\nlimits = 3", "line 2: `limits`: expected a table, written `[limits]`");
    }

    #[test]
    fn a_secret_in_the_wrong_place_is_not_repeated() {
        check("name='a'\n[secrets]\nk = 'hunter2'", "line 3: `secrets.k`: expected a table with `env`");
    }

    #[test]
    fn a_missing_key_is_named() {
        check("size = 1", "line 1: missing key `name` in the top level");
        check("name = 'a'\n[[item]]\nmethods = []", "line 2: missing key `path` in `[item]`");
    }

    #[test]
    fn a_key_of_a_later_release_says_so() {
        check(
            "name = 'a'\n[database]\nx = 1",
            "line 2: `database`: this release of the host does not offer it yet; remove it",
        );
    }

    #[test]
    fn broken_toml_is_refused_with_its_line() {
        let message =
            read("name = 'a'\nsize = = 3").map_or_else(|error| error.to_string(), |_| String::new());
        assert!(message.starts_with("line 2: "), "{message}");
    }

    #[test]
    fn keys_are_listed_as_dotted_paths() {
        let expected =
            ["name", "size", "limits.memory", "limits.queue", "item.path", "item.methods", "secrets.*.env"];
        assert_eq!(SHAPE.keys(), expected);
    }

    #[test]
    fn a_refusal_finds_keys_in_lists() {
        let document = Document::parse("name='a'\n[[item]]\npath='/'\n[[item]]\n\npath='x'", &SHAPE);
        let error = document.map(|document| document.refuse(&["item", "1", "path"], "bad"));
        assert_eq!(error.map(|error| error.to_string()), Ok("line 6: `item.1.path`: bad".to_owned()));
    }
}
