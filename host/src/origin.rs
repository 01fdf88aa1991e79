//! Parsed origins: whom a service may talk to, as `service.toml` writes it.

use std::net::IpAddr;
use std::str::FromStr;

use http::Uri;
use http::uri::PathAndQuery;
use serde::Deserialize;

/// Scheme, host and port.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Origin {
    pub https: bool,
    pub host: Host,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    Address(IpAddr),
    /// In lower case.
    Name(String),
    /// `*.example.com`: any name below it, kept as `.example.com`.
    Below(String),
}

#[derive(Debug, thiserror::Error)]
#[error(
    "`{entry}` is not an origin: {reason}; write it as `https://api.example.com` or `http://10.0.0.7:8080`"
)]
pub struct OriginError {
    entry: String,
    reason: &'static str,
}

impl FromStr for Origin {
    type Err = OriginError;

    fn from_str(entry: &str) -> Result<Self, Self::Err> {
        let bad = |reason| OriginError { entry: entry.to_owned(), reason };
        // A wildcard label is no valid host for the parser.
        let (below, text) = match entry.split_once("://*.") {
            Some((scheme, rest)) => (true, format!("{scheme}://{rest}")),
            None => (false, entry.to_owned()),
        };
        let uri: Uri = text.parse().map_err(|_| bad("it cannot be parsed"))?;
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(bad("the scheme must be http or https")),
        };
        let path = uri.path_and_query().map_or("", PathAndQuery::as_str);
        if !matches!(path, "" | "/") || text.ends_with('/') {
            return Err(bad("it must end after the host or the port"));
        }
        let authority = uri.authority().ok_or_else(|| bad("there is no host"))?;
        if authority.as_str().contains('@') {
            return Err(bad("it must not carry a user name"));
        }
        let host = match (parse_address(authority.host()), authority.host()) {
            (_, "") => return Err(bad("there is no host")),
            (Some(_), _) if below => return Err(bad("an address cannot have a wildcard")),
            (Some(address), _) => Host::Address(address),
            (None, name) if below => Host::Below(format!(".{}", name.to_ascii_lowercase())),
            (None, name) => Host::Name(name.to_ascii_lowercase()),
        };
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        Ok(Self { https, host, port })
    }
}

impl TryFrom<String> for Origin {
    type Error = OriginError;

    fn try_from(entry: String) -> Result<Self, Self::Error> {
        entry.parse()
    }
}

/// A host that is an address, with or without the brackets of a URI.
pub fn parse_address(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_without_a_port_has_the_port_of_its_scheme() {
        for (entry, https, port) in [
            ("https://api.example.com", true, 443),
            ("http://api.example.com", false, 80),
            ("http://api.example.com:8080", false, 8080),
        ] {
            let origin: Origin = entry.parse().expect("an origin");
            let host = Host::Name("api.example.com".to_owned());
            assert_eq!(origin, Origin { https, host, port }, "{entry}");
        }
    }

    #[test]
    fn an_entry_that_is_no_origin_is_refused() {
        for entry in [
            "",
            "api.example.com",
            "ftp://a.example",
            "https://",
            "https://a.example/path",
            "https://a.example/",
            "https://a.example?x",
            "https://user@a.example",
            "https://*.10.0.0.1",
        ] {
            assert!(entry.parse::<Origin>().is_err(), "{entry}");
        }
    }
}
