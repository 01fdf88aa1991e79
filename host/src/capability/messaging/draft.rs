//! What a guest may ask for with a message, apart from its subject.

use std::time::Duration;

use super::bindings::{DeliveryTime, Draft, Error};
use super::message::{Headers, Moment, REQUEST_ID, RESERVED_HEADERS, TRACE};
use crate::limits::{HostLimits, PUBLISH_ALL_BYTES_MAX, PUBLISH_ALL_MAX};

/// Whether these may be published by one call.
pub fn check_all(drafts: &[Draft]) -> Result<(), Error> {
    let count = drafts.len();
    if count > PUBLISH_ALL_MAX {
        let problem = format!("{count} messages; one call publishes at most {PUBLISH_ALL_MAX}");
        return Err(Error::TooLarge(problem));
    }
    let bytes: usize = drafts.iter().map(bytes).sum();
    if count > 1 && bytes as u64 > PUBLISH_ALL_BYTES_MAX.get() {
        let problem =
            format!("messages of {bytes} bytes; one call publishes at most {PUBLISH_ALL_BYTES_MAX}");
        return Err(Error::TooLarge(problem));
    }
    Ok(())
}

fn bytes(draft: &Draft) -> usize {
    let key = draft.key.as_ref().map_or(0, String::len);
    draft.subject.len() + key + bytes_of(&draft.headers) + draft.body.len()
}

/// Bytes of headers, names and values.
pub fn bytes_of(headers: &Headers) -> usize {
    headers.iter().map(|(name, value)| name.len() + value.len()).sum()
}

/// Whether a header can be one of a message.
pub fn is_header(name: &str, value: &str) -> bool {
    name.parse::<http::HeaderName>().is_ok() && http::HeaderValue::from_str(value).is_ok()
}

/// Whether a guest may give it.
pub fn check_header(name: &str, value: &str) -> Result<(), Error> {
    if !is_header(name, value) {
        let shown: String = name.chars().take(80).collect();
        return Err(Error::Invalid(format!("header `{shown}`: give a name and a value as HTTP has them")));
    }
    let lower = name.to_ascii_lowercase();
    let is_the_hosts = RESERVED_HEADERS.iter().any(|start| lower.starts_with(start));
    if is_the_hosts || lower == TRACE || lower == REQUEST_ID {
        return Err(Error::Invalid(format!("header `{lower}` is the host's; choose another name")));
    }
    Ok(())
}

/// When a message is to be delivered, if that is later.
pub fn deliver_at(
    delivery: &DeliveryTime,
    now: Moment,
    limits: &HostLimits,
) -> Result<Option<Moment>, Error> {
    let at = match delivery {
        DeliveryTime::Now => return Ok(None),
        DeliveryTime::After(millis) => {
            now.saturating_add(Moment::try_from(*millis).unwrap_or(Moment::MAX).saturating_mul(1000))
        }
        DeliveryTime::At(at) => *at,
    };
    let ahead = Duration::from_micros(u64::try_from(at.saturating_sub(now)).unwrap_or_default());
    if ahead > limits.message_delay.get() {
        let limit = limits.message_delay;
        return Err(Error::TooLarge(format!("it would wait longer than `message_delay`, which is {limit}")));
    }
    Ok((at > now).then_some(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_those_of_http_and_the_hosts_are_not_given() {
        assert!(check_header("content-type", "text/plain").is_ok());
        for (name, value) in [
            ("a b", "x"),
            ("", "x"),
            ("a", "x\ny"),
            ("stoa-hops", "0"),
            ("Nats-Msg-Id", "1"),
            ("traceparent", "00"),
        ] {
            assert!(matches!(check_header(name, value), Err(Error::Invalid(_))), "{name}: {value}");
        }
    }

    #[test]
    fn a_moment_is_taken_up_to_the_limit_and_the_past_is_now() {
        let limits = HostLimits::default();
        assert!(matches!(deliver_at(&DeliveryTime::Now, 5, &limits), Ok(None)));
        assert!(matches!(deliver_at(&DeliveryTime::After(3), 5, &limits), Ok(Some(3005))));
        assert!(matches!(deliver_at(&DeliveryTime::At(4), 5, &limits), Ok(None)));
        for far in [DeliveryTime::After(u64::MAX), DeliveryTime::At(i64::MAX)] {
            assert!(matches!(deliver_at(&far, 5, &limits), Err(Error::TooLarge(_))));
        }
    }

    #[test]
    fn many_messages_or_large_ones_are_not_published_together_but_each_is_alone() {
        let draft = |bytes| Draft {
            subject: "a".to_owned(),
            key: None,
            headers: Vec::new(),
            body: vec![0; bytes],
            delivery: DeliveryTime::Now,
        };
        let drafts = |count, bytes| (0..count).map(|_| draft(bytes)).collect::<Vec<_>>();
        for (count, bytes) in [(0, 0), (1, 8 << 20), (2, (4 << 20) - 1), (1000, 1)] {
            assert!(check_all(&drafts(count, bytes)).is_ok(), "{count} × {bytes}");
        }
        for (count, bytes) in [(2, 4 << 20), (1001, 0)] {
            let refused = check_all(&drafts(count, bytes));
            assert!(matches!(refused, Err(Error::TooLarge(_))), "{count} × {bytes}");
        }
    }
}
