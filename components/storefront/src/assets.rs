//! The files beside the pages, compiled in. Pages name them with their tag, so that browsers may keep them for good.

use stoa::axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};

pub struct Asset {
    name: &'static str,
    content_type: &'static str,
    bytes: &'static [u8],
    tag: u64,
}

const ASSETS: [Asset; 4] = [
    asset("style.css", "text/css; charset=utf-8", include_bytes!("../assets/style.css")),
    asset("live.js", "text/javascript; charset=utf-8", include_bytes!("../assets/live.js")),
    asset("logo.svg", "image/svg+xml", include_bytes!("../assets/logo.svg")),
    asset("favicon.svg", "image/svg+xml", include_bytes!("../assets/favicon.svg")),
];

const fn asset(name: &'static str, content_type: &'static str, bytes: &'static [u8]) -> Asset {
    Asset { name, content_type, bytes, tag: fnv1a(bytes) }
}

/// Tells two contents of one file apart; nobody gains from forging it.
const fn fnv1a(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325;
    let mut index = 0;
    while index < bytes.len() {
        hash ^= bytes[index] as u64;
        hash = u64::wrapping_mul(hash, 0x0000_0100_0000_01b3);
        index += 1;
    }
    hash
}

pub fn find(name: &str) -> Option<&'static Asset> {
    static TABLE: [Asset; 4] = ASSETS;
    TABLE.iter().find(|asset| asset.name == name)
}

/// The address of an asset for use in a page.
pub fn address(name: &str) -> String {
    let tag = find(name).map_or(0, |asset| asset.tag);
    format!("/assets/{name}?v={tag:016x}")
}

impl Asset {
    pub fn respond(&self, uri: &Uri, headers: &HeaderMap) -> Response {
        let etag = format!("\"{:016x}\"", self.tag);
        // An address with the right tag never changes its content.
        let for_good = uri.query() == Some(&format!("v={:016x}", self.tag));
        let cache = if for_good { "public, max-age=31536000, immutable" } else { "public, max-age=60" };

        let mut response = match is_held(headers, &etag) {
            true => StatusCode::NOT_MODIFIED.into_response(),
            false => Body::from(self.bytes).into_response(),
        };
        let answer = response.headers_mut();
        answer.insert(header::CACHE_CONTROL, HeaderValue::from_static(cache));
        answer.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        answer.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if let Ok(etag) = HeaderValue::from_maybe_shared(etag) {
            answer.insert(header::ETAG, etag);
        }
        response
    }
}

fn is_held(headers: &HeaderMap, etag: &str) -> bool {
    let held = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    held.flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}
