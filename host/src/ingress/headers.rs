//! Which headers cross the border between clients and guests.

use std::net::IpAddr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::ingress::request::Peer;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACE_STATE: HeaderName = HeaderName::from_static("tracestate");
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Headers that concern one connection only (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [HeaderName; 7] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// How many headers a guest's request has more than the client's.
const ADDED: usize = 5;

/// A request's identity, as clients, guests and logs see it.
#[derive(Clone, Debug)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// The client's own, if it is one we would have in our logs; else a new one.
    pub fn of(headers: &HeaderMap) -> Self {
        let given = headers.get(REQUEST_ID).filter(|value| {
            (1..=64).contains(&value.len())
                && value.as_bytes().iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
        });
        match given {
            Some(value) => Self(value.clone()),
            None => Self(ascii_value(&[&hex(fastrand::u64(..)), &hex(fastrand::u64(..))])),
        }
    }

    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    /// Tells the client.
    pub fn stamp(&self, headers: &mut HeaderMap) {
        headers.insert(REQUEST_ID, self.0.clone());
    }
}

/// Sixteen hexadecimal digits.
fn hex(number: u64) -> [u8; 16] {
    let mut digits = [0; 16];
    for (digit, shift) in digits.iter_mut().zip((0..64).step_by(4).rev()) {
        let value = u8::try_from(number >> shift & 0xf).unwrap_or_default();
        *digit = if value < 10 { b'0' + value } else { b'a' - 10 + value };
    }
    digits
}

/// A header value of what is known to be visible ASCII.
fn ascii_value(parts: &[&[u8]]) -> HeaderValue {
    let text = bytes::Bytes::from(parts.concat());
    HeaderValue::from_maybe_shared(text).unwrap_or_else(|_| HeaderValue::from_static("invalid"))
}

/// Readies a client's headers for the guest.
pub fn inward(
    headers: &mut HeaderMap,
    peer: &Peer,
    is_trusted: bool,
    host: Option<&HeaderValue>,
    id: &RequestId,
) {
    strip_hop_by_hop(headers);
    headers.reserve(ADDED);
    headers.insert(REQUEST_ID, id.0.clone());
    trace(headers);
    forwarded(headers, peer, is_trusted, host);
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    // One look at each header that is there costs less than a search for each that might be.
    if !headers.keys().any(|name| name == header::CONNECTION || HOP_BY_HOP.contains(name)) {
        return;
    }
    while let Some(listed) = headers.remove(header::CONNECTION) {
        for name in listed.to_str().unwrap_or_default().split(',') {
            // What the client calls hop-by-hop is not for the guest; the end-to-end framing stays.
            if let Ok(name) = name.trim().parse::<HeaderName>()
                && name != header::HOST
                && name != header::CONTENT_LENGTH
            {
                headers.remove(name);
            }
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Continues the client's trace, or starts one (W3C Trace Context).
fn trace(headers: &mut HeaderMap) {
    let continued = headers.get(TRACE_PARENT).and_then(|parent| continue_trace(parent.as_bytes()));
    let parent = continued.unwrap_or_else(|| {
        headers.remove(TRACE_STATE);
        let [high, low, span] = [fastrand::u64(1..), fastrand::u64(1..), fastrand::u64(1..)].map(hex);
        ascii_value(&[b"00-", &high, &low, b"-", &span, b"-00"])
    });
    headers.insert(TRACE_PARENT, parent);
}

/// `00-<32 digits>-<16 digits>-<2 digits>`: the same trace, the host as the parent.
fn continue_trace(parent: &[u8]) -> Option<HeaderValue> {
    let is_hex = |part: &[u8]| part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_zero = |part: &[u8]| part.iter().all(|byte| *byte == b'0');
    if parent.len() != 55 {
        return None;
    }
    let (before, rest) = parent.split_at_checked(36)?;
    let (span, flags) = rest.split_at_checked(16)?;
    let trace = before.strip_prefix(b"00-")?.strip_suffix(b"-")?;
    let sampled = flags.strip_prefix(b"-")?;
    let good = is_hex(trace) && !is_zero(trace) && is_hex(span) && !is_zero(span) && is_hex(sampled);
    good.then(|| ascii_value(&[before, &hex(fastrand::u64(1..)), flags]))
}

/// Only a trusted proxy may say where a request came from.
fn forwarded(headers: &mut HeaderMap, peer: &Peer, is_trusted: bool, host: Option<&HeaderValue>) {
    if is_trusted {
        // A proxy may add a line of its own instead of adding to the first.
        let lines = headers.get_all(FORWARDED_FOR).iter().filter_map(|line| line.to_str().ok());
        let chain = lines.map(str::to_owned).chain([peer.address.to_string()]).collect::<Vec<_>>().join(", ");
        let chain = HeaderValue::from_str(&chain).ok();
        headers.insert(FORWARDED_FOR, chain.unwrap_or_else(|| peer.address_value.clone()));
        if !headers.contains_key(FORWARDED_PROTO) {
            headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
        }
        if let (false, Some(host)) = (headers.contains_key(FORWARDED_HOST), host) {
            headers.insert(FORWARDED_HOST, host.clone());
        }
        return;
    }
    headers.remove(FORWARDED);
    headers.insert(FORWARDED_FOR, peer.address_value.clone());
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    match host {
        Some(host) => headers.insert(FORWARDED_HOST, host.clone()),
        None => headers.remove(FORWARDED_HOST),
    };
}

/// Whether a trusted proxy says that the client spoke TLS to it.
pub fn client_spoke_tls(headers: &HeaderMap) -> bool {
    headers.get(FORWARDED_PROTO).is_some_and(|scheme| scheme.as_bytes().eq_ignore_ascii_case(b"https"))
}

/// Readies a guest's headers for the client.
pub fn outward(headers: &mut HeaderMap, id: &RequestId) {
    strip_hop_by_hop(headers);
    id.stamp(headers);
}

/// The peer's address as a header value.
pub fn address_value(address: IpAddr) -> HeaderValue {
    HeaderValue::from_str(&address.to_canonical().to_string())
        .unwrap_or_else(|_| HeaderValue::from_static("unknown"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(rows: &[(&'static str, &str)]) -> HeaderMap {
        rows.iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().expect("a value")))
            .collect()
    }

    #[test]
    fn what_connection_lists_does_not_reach_the_guest() {
        let mut headers = map(&[
            ("connection", "x-one, close"),
            ("x-one", "1"),
            ("x-two", "2"),
            ("te", "trailers"),
            ("content-length", "3"),
        ]);
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers, map(&[("x-two", "2"), ("content-length", "3")]));
    }

    #[test]
    fn a_guests_hop_by_hop_headers_do_not_reach_the_client() {
        let mut headers = map(&[
            ("connection", "x-one"),
            ("x-one", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("content-type", "text/plain"),
        ]);
        let id = RequestId::of(&map(&[("x-request-id", "abc")]));
        outward(&mut headers, &id);
        assert_eq!(headers, map(&[("content-type", "text/plain"), ("x-request-id", "abc")]));
    }

    #[test]
    fn a_client_cannot_take_the_framing_away_by_connection() {
        let mut headers =
            map(&[("connection", "content-length, host"), ("content-length", "3"), ("host", "a")]);
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers, map(&[("content-length", "3"), ("host", "a")]));
    }

    #[test]
    fn a_trace_goes_on_and_a_bad_one_starts_anew() {
        let given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let mut headers = map(&[("traceparent", given), ("tracestate", "a=b")]);
        trace(&mut headers);
        let passed = headers.get(TRACE_PARENT).and_then(|value| value.to_str().ok()).expect("a trace");
        assert!(
            passed.starts_with("00-0af7651916cd43dd8448eb211c80319c-")
                && passed.ends_with("-01")
                && passed != given
        );
        assert!(headers.contains_key(TRACE_STATE));

        for bad in [
            "",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-xyz",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            let mut headers = map(&[("traceparent", bad), ("tracestate", "a=b")]);
            trace(&mut headers);
            let passed = headers.get(TRACE_PARENT).expect("a trace");
            assert!(continue_trace(passed.as_bytes()).is_some(), "{passed:?}");
            assert!(!headers.contains_key(TRACE_STATE));
        }
    }

    #[test]
    fn a_request_id_that_could_forge_a_log_line_is_replaced() {
        assert_eq!(RequestId::of(&map(&[("x-request-id", "abc-1")])).as_str(), "abc-1");
        for bad in ["a b", "a\tb", "", "é", &"x".repeat(65)] {
            let id = RequestId::of(&map(&[("x-request-id", bad)]));
            assert_eq!(id.as_str().len(), 32, "{bad}");
        }
    }
}
