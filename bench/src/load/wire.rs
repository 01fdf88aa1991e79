//! Just enough HTTP/1.1 to write a request and to read a whole reply. Strict: what is not well formed is a failure.

use anyhow::{Result, bail, ensure};

/// The largest reply that is read; nothing that the scenarios check is near it.
pub const REPLY_BYTES_MAX: usize = 1 << 20;

const HEADERS_MAX: usize = 64;

/// A GET request, ready to send.
pub fn get(path: &str, close: bool) -> Vec<u8> {
    let connection = if close { "connection: close\r\n" } else { "" };
    format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{connection}\r\n").into_bytes()
}

/// A POST request without content, on a connection that is kept alive.
pub fn post(path: &str) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 0\r\n\r\n").into_bytes()
}

/// A request with JSON as its content, on a connection that is kept alive.
pub fn json(method: &str, path: &str, content: &str) -> Vec<u8> {
    let length = content.len();
    format!(
        "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{content}"
    )
    .into_bytes()
}

/// A whole reply.
pub struct Reply<'a> {
    pub status: u16,
    pub body: &'a [u8],
    /// Whether the connection can take another request.
    pub keep_alive: bool,
    head: &'a [u8],
}

impl<'a> Reply<'a> {
    /// The first value of a header field, if it is text.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        header_of(self.head, name)
    }

    /// The body without white space around it; empty if it is no text.
    pub fn text(&self) -> &'a str {
        std::str::from_utf8(self.body).unwrap_or_default().trim()
    }
}

fn header_of<'a>(head: &'a [u8], name: &str) -> Option<&'a str> {
    let text = std::str::from_utf8(head).ok()?;
    let fields = text.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
    fields.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next()
}

/// Reads the one reply that is in `bytes`; `None` when some of it is still to come. `body` is room for a chunked body.
/// `ended` says that nothing is to come any more.
pub fn parse<'a>(bytes: &'a [u8], ended: bool, body: &'a mut Vec<u8>) -> Result<Option<Reply<'a>>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(length) = parsed.parse(bytes)? else {
        ensure!(!ended, "the reply ends within its head");
        return Ok(None);
    };
    let (head, rest) = bytes.split_at(length);
    let status = parsed.code.unwrap_or_default();
    if (100..200).contains(&status) {
        return parse(rest, ended, body);
    }
    let mut fields = Framing::default();
    for header in parsed.headers.iter() {
        fields.read(header)?;
    }
    let keep_alive = parsed.version == Some(1) && !fields.close;
    let reply = |body, keep_alive| Some(Reply { status, body, keep_alive, head });

    if status == 204 || status == 304 {
        ensure!(rest.is_empty(), "{} bytes after a reply without a body", rest.len());
        return Ok(reply(rest, keep_alive));
    }
    if fields.chunked {
        body.clear();
        let whole = unchunk(rest, body)?;
        ensure!(whole || !ended, "the reply ends within its chunked body");
        return Ok(whole.then(|| reply(body, keep_alive)).flatten());
    }
    let Some(length) = fields.length else {
        return Ok(if ended { reply(rest, false) } else { None });
    };
    ensure!(rest.len() <= length, "{} bytes after the body", rest.len() - length.min(rest.len()));
    ensure!(rest.len() == length || !ended, "the reply ends after {} of {length} bytes", rest.len());
    Ok((rest.len() == length).then(|| reply(rest, keep_alive)).flatten())
}

#[derive(Default)]
struct Framing {
    length: Option<usize>,
    chunked: bool,
    close: bool,
}

impl Framing {
    fn read(&mut self, header: &httparse::Header<'_>) -> Result<()> {
        if header.name.eq_ignore_ascii_case("content-length") {
            self.length = Some(std::str::from_utf8(header.value)?.trim().parse()?);
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            self.chunked = header.value.eq_ignore_ascii_case(b"chunked");
        } else if header.name.eq_ignore_ascii_case("connection") {
            self.close = header.value.eq_ignore_ascii_case(b"close");
        }
        Ok(())
    }
}

/// Appends the chunks to `body`; answers whether the last one was there.
fn unchunk(mut rest: &[u8], body: &mut Vec<u8>) -> Result<bool> {
    loop {
        let (start, size) = match httparse::parse_chunk_size(rest) {
            Ok(httparse::Status::Complete(found)) => found,
            Ok(httparse::Status::Partial) => return Ok(false),
            Err(_) => bail!("the size of a chunk is no number"),
        };
        rest = &rest[start..];
        if size == 0 {
            return skip_trailers(rest);
        }
        let size = usize::try_from(size)?;
        ensure!(size <= REPLY_BYTES_MAX, "a chunk of {size} bytes");
        if rest.len() < size + 2 {
            return Ok(false);
        }
        body.extend_from_slice(&rest[..size]);
        ensure!(&rest[size..size + 2] == b"\r\n", "a chunk does not end where it should");
        rest = &rest[size + 2..];
    }
}

fn skip_trailers(mut rest: &[u8]) -> Result<bool> {
    while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
        rest = &rest[end + 2..];
        if end == 0 {
            ensure!(rest.is_empty(), "{} bytes after the last chunk", rest.len());
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Status and body of a reply; every part of it that is not the whole must ask for more.
    fn read(bytes: &str) -> (u16, String) {
        for cut in 0..bytes.len() {
            assert!(
                parse(&bytes.as_bytes()[..cut], false, &mut Vec::new()).unwrap().is_none(),
                "cut at {cut}"
            );
            assert!(parse(&bytes.as_bytes()[..cut], true, &mut Vec::new()).is_err(), "ends at {cut}");
        }
        let mut body = Vec::new();
        let reply = parse(bytes.as_bytes(), false, &mut body).unwrap().unwrap();
        (reply.status, String::from_utf8(reply.body.to_vec()).unwrap())
    }

    #[test]
    fn replies_with_a_length_are_read() {
        assert_eq!(read("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n"), (200, "hello\n".into()));
        assert_eq!(read("HTTP/1.1 204 No Content\r\n\r\n"), (204, String::new()));
        assert_eq!(
            read("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Made\r\ncontent-length: 0\r\n\r\n"),
            (201, "".into())
        );
    }

    #[test]
    fn chunked_replies_are_read() {
        let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        assert_eq!(read(&format!("{head}5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n")), (200, "hello!".into()));
        assert_eq!(read(&format!("{head}0\r\nx-sum: 1\r\n\r\n")), (200, String::new()));
    }

    #[test]
    fn malformed_replies_are_refused() {
        for bytes in [
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nab",
            "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nabc",
            "hello",
        ] {
            assert!(parse(bytes.as_bytes(), false, &mut Vec::new()).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn a_reply_without_a_length_ends_with_the_connection() {
        let bytes = b"HTTP/1.1 200 OK\r\nx-release: a\r\n\r\nhello";
        assert!(parse(bytes, false, &mut Vec::new()).unwrap().is_none());
        let mut body = Vec::new();
        let reply = parse(bytes, true, &mut body).unwrap().unwrap();
        assert_eq!((reply.text(), reply.keep_alive, reply.header("X-Release")), ("hello", false, Some("a")));
        assert_eq!(reply.header("x-other"), None);
    }
}
