//! Headers and trailers between the host's lists and `http`'s map. Values move, only names are copied.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use wasip3::http::types::{ErrorCode, Fields};

type Entries = Vec<(String, Vec<u8>)>;

pub(crate) fn to_headers(entries: Entries) -> Result<HeaderMap, ErrorCode> {
    // One more than there are, for the host name.
    let mut headers = HeaderMap::try_with_capacity(entries.len() + 1).map_err(invalid)?;
    for (name, value) in entries {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(invalid)?;
        let value = HeaderValue::from_maybe_shared(Bytes::from(value)).map_err(invalid)?;
        headers.try_append(name, value).map_err(invalid)?;
    }
    Ok(headers)
}

pub(crate) fn from_headers(headers: HeaderMap) -> Result<Fields, ErrorCode> {
    if headers.is_empty() {
        return Ok(Fields::new());
    }
    Fields::from_list(&to_entries(headers)).map_err(invalid)
}

fn to_entries(headers: HeaderMap) -> Entries {
    let mut entries = Entries::with_capacity(headers.len());
    for (name, value) in headers {
        let name = match name {
            Some(name) => name.as_str().to_owned(),
            // A further value of the name before it.
            None => entries.last().map(|(name, _)| name.clone()).unwrap_or_default(),
        };
        entries.push((name, value.as_bytes().to_vec()));
    }
    entries
}

fn invalid(error: impl std::fmt::Display) -> ErrorCode {
    ErrorCode::InternalError(Some(format!("invalid header: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_values_of_one_name_survive_both_ways() {
        let entries: Entries = [("set-cookie", "a=1"), ("set-cookie", "b=2"), ("x-odd", "\u{e9}")]
            .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()))
            .to_vec();
        let headers = to_headers(entries.clone()).unwrap();
        assert_eq!(headers.get_all("set-cookie").iter().count(), 2);
        let mut back = to_entries(headers);
        back.sort();
        assert_eq!(back, entries);
    }

    #[test]
    fn a_line_break_in_a_value_is_refused() {
        let entries = vec![("x-a".to_owned(), b"a\r\nx-b: c".to_vec())];
        assert!(to_headers(entries).is_err());
    }
}
