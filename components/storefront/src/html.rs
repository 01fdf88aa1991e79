//! Text that is safe to put into HTML and into addresses.

use std::fmt::{Display, Formatter, Result, Write};

/// Shows text so that it is text in HTML, in an element or in a quoted attribute.
pub struct Text<'a>(pub &'a str);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let mut rest = self.0;
        while let Some(at) = rest.find(['&', '<', '>', '"', '\'']) {
            let (plain, special) = rest.split_at(at);
            f.write_str(plain)?;
            f.write_str(match special.as_bytes().first() {
                Some(b'&') => "&amp;",
                Some(b'<') => "&lt;",
                Some(b'>') => "&gt;",
                Some(b'"') => "&quot;",
                _ => "&#39;",
            })?;
            // All of them are one byte long.
            rest = special.get(1..).unwrap_or_default();
        }
        f.write_str(rest)
    }
}

/// Shows text as one value of a query; safe in an attribute as well.
pub struct QueryValue<'a>(pub &'a str);

impl Display for QueryValue<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        for byte in self.0.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    f.write_char(char::from(byte))?
                }
                _ => write!(f, "%{byte:02X}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_becomes_text() {
        assert_eq!(Text("a <b> & \"c\" 'd' é").to_string(), "a &lt;b&gt; &amp; &quot;c&quot; &#39;d&#39; é");
        assert_eq!(Text("plain").to_string(), "plain");
    }

    #[test]
    fn a_query_value_cannot_leave_its_place() {
        assert_eq!(QueryValue("tea & é\"").to_string(), "tea%20%26%20%C3%A9%22");
    }
}
