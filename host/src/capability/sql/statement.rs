//! What has to be known of a statement before a database sees it: where it ends, what kind it is, how many
//! parameters it has, and what it looks like without its literals.
//!
//! This is a scanner, not a parser: it knows strings, quoted names, comments and parameters, and leaves the
//! rest to the database. It is no boundary either; that is the role on PostgreSQL and the authorizer on SQLite.

use std::str::from_utf8;

/// A guest's statement, read once.
#[derive(Debug, PartialEq, Eq)]
pub struct Statement {
    /// What it does: its first word in lower case; of a `with`, the word after its list.
    pub keyword: String,
    /// The highest `$N`.
    pub parameters: usize,
    /// Where it has a parameter of another form, or what PostgreSQL takes for an operator: `?`, `:name`, `@name`.
    pub odd_parameter: Option<usize>,
    /// It is the host's, which may touch its own tables.
    pub is_by_host: bool,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    #[error("the statement is empty")]
    Empty,
    #[error("more than one statement; send one at a time")]
    Several(usize),
    #[error("`{0}` is no parameter; write $1, $2 …")]
    Parameter(String, usize),
    #[error("a NUL character")]
    Nul(usize),
    #[error("`{0}` is not for guests; {1}")]
    Denied(String, &'static str),
}

impl ScanError {
    /// Where, in bytes.
    pub const fn position(&self) -> Option<usize> {
        match self {
            Self::Several(at) | Self::Parameter(_, at) | Self::Nul(at) => Some(*at),
            Self::Empty | Self::Denied(..) => None,
        }
    }
}

/// Characters of a shape that are kept: a log line is no place for a whole statement.
const SHAPE_CHARS_MAX: usize = 200;

impl Statement {
    /// # Errors
    /// When it is not exactly one statement of a kind that guests may send, with parameters as the contract says.
    pub fn scan(text: &str) -> Result<Self, ScanError> {
        if let Some(at) = text.find('\0') {
            return Err(ScanError::Nul(at));
        }
        let mut scanner = Scanner { text: text.as_bytes(), at: 0 };
        let (mut keyword, mut parameters, mut is_empty) = (String::new(), 0, true);
        let (mut odd_parameter, mut depth) = (None, 0_u32);
        let (mut is_over, mut has_body, mut was_semicolon) = (false, false, false);
        while let Some((token, at)) = scanner.next() {
            let is_after_semicolon = std::mem::replace(&mut was_semicolon, matches!(token, Token::Semicolon));
            if is_over && !has_body && !matches!(token, Token::Semicolon) {
                return Err(ScanError::Several(at));
            }
            let is_first = is_empty;
            is_empty &= matches!(token, Token::Semicolon);
            match token {
                Token::Semicolon if has_body => {}
                Token::Semicolon => is_over |= !is_empty,
                Token::Literal => {}
                Token::Parameter(0) => {
                    return Err(ScanError::Parameter("$0".to_owned(), at));
                }
                Token::Parameter(number) => parameters = parameters.max(number),
                Token::Word(word) => {
                    let word_in_lower_case = word.to_ascii_lowercase();
                    if is_first || (keyword == "with" && depth == 0 && VERBS.contains(&&*word_in_lower_case))
                    {
                        keyword = word_in_lower_case;
                    } else if keyword == "create" && word_in_lower_case == "trigger" {
                        // Its body has statements of its own, up to `; end`.
                        has_body = true;
                    } else if has_body && is_after_semicolon && word_in_lower_case == "end" {
                        has_body = false;
                    }
                }
                Token::Odd(_) => odd_parameter = odd_parameter.or(Some(at)),
                Token::Other("(") => depth += 1,
                Token::Other(")") => depth = depth.saturating_sub(1),
                Token::Other(_) => {}
            }
        }
        if is_empty {
            return Err(ScanError::Empty);
        }
        if let Some((_, advice)) = DENIED.iter().find(|(denied, _)| *denied == keyword) {
            return Err(ScanError::Denied(keyword, advice));
        }
        Ok(Self { keyword, parameters, odd_parameter, is_by_host: false })
    }

    /// A statement of the host's own.
    pub fn by_host(keyword: &str, parameters: usize) -> Self {
        Self { keyword: keyword.to_owned(), parameters, odd_parameter: None, is_by_host: true }
    }

    /// One line, literals replaced by `?`, for logs and traces. It costs a scan, so it is made for those who want it.
    pub fn shape(text: &str) -> String {
        let mut scanner = Scanner { text: text.as_bytes(), at: 0 };
        let mut shape = Shape::default();
        while let Some((token, _)) = scanner.next() {
            match token {
                Token::Semicolon => {}
                Token::Literal => shape.push("?"),
                Token::Parameter(_) => shape.push("$"),
                Token::Word(text) | Token::Odd(text) | Token::Other(text) => shape.push(text),
            }
        }
        shape.text
    }

    /// The first statement of a script that would begin or end a transaction.
    ///
    /// `end` is not looked for: it also ends the body of a trigger.
    pub fn transaction_keyword(script: &str) -> Option<String> {
        let mut scanner = Scanner { text: script.as_bytes(), at: 0 };
        let mut is_first = true;
        while let Some((token, _)) = scanner.next() {
            if let (true, Token::Word(word)) = (is_first, &token) {
                let word = word.to_ascii_lowercase();
                if word != "end" && DENIED.contains(&(word.as_str(), TRANSACTIONS)) {
                    return Some(word);
                }
            }
            is_first = matches!(token, Token::Semicolon);
        }
        None
    }

    /// Whether it may be one that changes rows, and tells how many.
    pub fn changes_rows(&self) -> bool {
        matches!(self.keyword.as_str(), "insert" | "update" | "delete" | "replace" | "merge")
    }

    /// Whether it certainly writes.
    pub fn writes(&self) -> bool {
        !matches!(self.keyword.as_str(), "select" | "values" | "explain" | "table" | "")
    }
}

/// What a `with` may be for.
const VERBS: &[&str] = &["select", "insert", "update", "delete", "merge", "replace", "values", "table"];

const TRANSACTIONS: &str = "use `begin`, `commit` and `rollback` of the contract";
const SESSION: &str = "a connection belongs to no guest, so its state cannot be changed";
const FILES: &str = "a guest has no files";

/// Statements that would change what the next guest finds on a connection, or that leave the database.
const DENIED: &[(&str, &str)] = &[
    ("abort", TRANSACTIONS),
    ("attach", FILES),
    ("begin", TRANSACTIONS),
    ("close", SESSION),
    ("commit", TRANSACTIONS),
    ("copy", FILES),
    ("deallocate", SESSION),
    ("declare", SESSION),
    ("detach", FILES),
    ("discard", SESSION),
    ("do", SESSION),
    ("end", TRANSACTIONS),
    ("execute", SESSION),
    ("listen", SESSION),
    ("load", FILES),
    ("lock", TRANSACTIONS),
    ("notify", SESSION),
    ("pragma", SESSION),
    ("prepare", SESSION),
    ("release", TRANSACTIONS),
    ("reset", SESSION),
    ("rollback", TRANSACTIONS),
    ("savepoint", TRANSACTIONS),
    ("set", SESSION),
    ("start", TRANSACTIONS),
    ("unlisten", SESSION),
    ("vacuum", "the host does that"),
];

/// A statement without its literals, grown token by token.
#[derive(Default)]
struct Shape {
    text: String,
    chars: usize,
}

impl Shape {
    fn push(&mut self, token: &str) {
        if self.chars >= SHAPE_CHARS_MAX {
            return;
        }
        let sticks = matches!(token, "," | ")" | "." | ";") || self.text.ends_with(['(', '.']);
        if !self.text.is_empty() && !sticks {
            self.text.push(' ');
            self.chars += 1;
        }
        for char in token.chars().take(SHAPE_CHARS_MAX - self.chars.min(SHAPE_CHARS_MAX)) {
            self.text.push(if char.is_control() { ' ' } else { char });
            self.chars += 1;
        }
    }
}

enum Token<'t> {
    Word(&'t str),
    Literal,
    Parameter(usize),
    Semicolon,
    Odd(&'t str),
    Other(&'t str),
}

struct Scanner<'t> {
    text: &'t [u8],
    at: usize,
}

impl<'t> Scanner<'t> {
    fn peek(&self, ahead: usize) -> Option<u8> {
        self.text.get(self.at + ahead).copied()
    }

    fn slice(&self, from: usize) -> &'t str {
        from_utf8(self.text.get(from..self.at).unwrap_or_default()).unwrap_or("?")
    }

    fn next(&mut self) -> Option<(Token<'t>, usize)> {
        self.skip_blanks();
        let from = self.at;
        let first = self.peek(0)?;
        self.at += 1;
        let token = match first {
            b';' => Token::Semicolon,
            b'\'' => {
                self.quoted(b'\'');
                Token::Literal
            }
            b'"' | b'`' => {
                self.quoted(first);
                Token::Other(self.slice(from))
            }
            b'$' if self.peek(0).is_some_and(|byte| byte.is_ascii_digit()) => {
                self.skip_while(|byte| byte.is_ascii_digit());
                Token::Parameter(self.slice(from + 1).parse().unwrap_or(usize::MAX))
            }
            b'$' => match self.dollar_quoted(from) {
                true => Token::Literal,
                false => Token::Odd("$"),
            },
            b'?' => Token::Odd("?"),
            b':' if self.peek(0) == Some(b':') => {
                self.at += 1;
                Token::Other("::")
            }
            b':' | b'@' if self.peek(0).is_some_and(|byte| is_word(byte) || byte.is_ascii_digit()) => {
                Token::Odd(self.slice(from))
            }
            b'0'..=b'9' => {
                self.skip_while(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_'));
                Token::Literal
            }
            byte if is_word(byte) => {
                self.skip_while(|byte| is_word(byte) || byte.is_ascii_digit() || byte == b'$');
                let word = self.slice(from);
                // A prefix of a string: `e'…'`, `x'…'`.
                if word.len() == 1 && self.peek(0) == Some(b'\'') {
                    self.at += 1;
                    if word.eq_ignore_ascii_case("e") {
                        self.escaped()
                    } else {
                        self.quoted(b'\'')
                    }
                    Token::Literal
                } else {
                    Token::Word(word)
                }
            }
            _ => Token::Other(self.slice(from)),
        };
        Some((token, from))
    }

    fn skip_while(&mut self, test: impl Fn(u8) -> bool) {
        while self.peek(0).is_some_and(&test) {
            self.at += 1;
        }
    }

    fn skip_blanks(&mut self) {
        loop {
            self.skip_while(|byte| byte.is_ascii_whitespace() || byte == 0x0b);
            match (self.peek(0), self.peek(1)) {
                (Some(b'-'), Some(b'-')) => self.skip_while(|byte| byte != b'\n'),
                (Some(b'/'), Some(b'*')) => self.skip_comment(),
                _ => return,
            }
        }
    }

    /// SQLite ends a block comment at the first `*/`, PostgreSQL nests them; a nested one is read as
    /// SQLite does, so what follows is looked at rather than skipped.
    fn skip_comment(&mut self) {
        self.at += 2;
        while let Some(byte) = self.peek(0) {
            if byte == b'*' && self.peek(1) == Some(b'/') {
                self.at += 2;
                return;
            }
            self.at += 1;
        }
    }

    fn quoted(&mut self, quote: u8) {
        while let Some(byte) = self.peek(0) {
            self.at += 1;
            if byte == quote {
                if self.peek(0) != Some(quote) {
                    return;
                }
                self.at += 1;
            }
        }
    }

    /// PostgreSQL's `e'…'`, where a backslash hides a quote.
    fn escaped(&mut self) {
        while let Some(byte) = self.peek(0) {
            self.at += 1;
            match byte {
                b'\\' => self.at += 1,
                b'\'' if self.peek(0) == Some(b'\'') => self.at += 1,
                b'\'' => return,
                _ => {}
            }
        }
    }

    /// PostgreSQL's `$tag$ … $tag$`.
    fn dollar_quoted(&mut self, from: usize) -> bool {
        let mut end = self.at;
        while self.text.get(end).is_some_and(|byte| is_word(*byte) || byte.is_ascii_digit()) {
            end += 1;
        }
        if self.text.get(end) != Some(&b'$') {
            return false;
        }
        let tag = self.text.get(from..=end).unwrap_or_default();
        let rest = self.text.get(end + 1..).unwrap_or_default();
        let length = rest.windows(tag.len()).position(|window| window == tag);
        self.at = end + 1 + length.map_or(rest.len(), |length| length + tag.len());
        true
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, keyword: &str, parameters: usize, shape: &str) {
        let read = Statement::scan(text).expect("a statement");
        let found = (&*read.keyword, read.parameters, &*Statement::shape(text));
        assert_eq!(found, (keyword, parameters, shape), "{text}");
    }

    #[test]
    fn a_statement_is_known_by_its_first_word_its_parameters_and_its_shape() {
        check(
            "SELECT name\n FROM products -- all\n WHERE sku = $1 AND n > 10;",
            "select",
            1,
            "SELECT name FROM products WHERE sku = $ AND n > ?",
        );
        check(
            "/* a; b */ insert into t(a) values ('x;''y', $2)",
            "insert",
            2,
            "insert into t (a) values (?, $)",
        );
        check("select \"a;b\", x'00', e'\\';' , $tag$ ; $tag$", "select", 0, "select \"a;b\", ?, ?, ?");
        check("select 'ä' as ü;;", "select", 0, "select ? as ü");
    }

    #[test]
    fn a_with_is_what_comes_after_its_list() {
        let keyword = |text: &str| Statement::scan(text).expect("a statement").keyword;
        assert_eq!(keyword("with x as (select 1) insert into t select * from x"), "insert");
        assert_eq!(keyword("WITH RECURSIVE a(n) AS (values (1)), b AS (delete from t) SELECT 1"), "select");
    }

    #[test]
    fn parameters_of_other_forms_are_noticed_and_casts_are_none() {
        let odd = |text: &str| Statement::scan(text).expect("a statement").odd_parameter;
        assert_eq!(odd("select ?"), Some(7));
        assert_eq!(odd("select :name, @x"), Some(7));
        assert_eq!(odd("select $name"), Some(7));
        assert_eq!(odd("select $1::text, '?', a -> 'b'"), None);
    }

    #[test]
    fn a_trigger_has_statements_in_its_body() {
        let trigger = "create trigger a after insert on t begin update t set n = 1; delete from u; end";
        assert!(Statement::scan(trigger).is_ok());
        let two = format!("{trigger}; drop table t");
        assert_eq!(Statement::scan(&two), Err(ScanError::Several(trigger.len() + 2)));
    }

    #[test]
    fn what_is_not_one_statement_is_refused() {
        assert_eq!(Statement::scan("  -- nothing"), Err(ScanError::Empty));
        assert_eq!(Statement::scan(";"), Err(ScanError::Empty));
        assert_eq!(Statement::scan("select 1; drop table t"), Err(ScanError::Several(10)));
        assert_eq!(Statement::scan("select $0"), Err(ScanError::Parameter("$0".to_owned(), 7)));
        assert_eq!(Statement::scan("select '\0'"), Err(ScanError::Nul(8)));
    }

    #[test]
    fn what_would_outlast_its_call_is_denied_however_it_is_written() {
        for text in [
            "ATTACH 'x' as y",
            " /**/ pragma foreign_keys=0",
            "begin",
            "Set role postgres",
            "copy t to program 'x'",
        ] {
            assert!(matches!(Statement::scan(text), Err(ScanError::Denied(..))), "{text}");
        }
        assert!(Statement::scan("select 'begin'").is_ok());
    }
}
