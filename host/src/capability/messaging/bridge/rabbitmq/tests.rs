//! URLs, and messages as AMQP has them.

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{FieldArray, LongString};

use super::*;

fn message(headers: &[(&str, &str)]) -> Message {
    Message {
        id: "m1".to_owned().into(),
        subject: "orders.placed".parse().expect("a subject"),
        key: Some("Käufer 7".into()),
        headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        body: Bytes::from_static(b"\0body"),
        published_at: 1_700_000_000_123_456,
        deliver_at: None,
        may_come_again: false,
    }
}

/// The message as the broker would give it back.
fn given_back(properties: BasicProperties) -> Incoming {
    let mut delivery = Delivery::mock(7, "shop".into(), "orders.placed".into(), false, b"\0body".to_vec());
    delivery.properties = properties;
    properties::incoming(delivery, "stoa-key")
}

#[test]
fn a_url_is_read_and_what_is_none_is_refused_without_its_password() {
    let uri = parse("amqp://u:p@rabbit.example/shop").expect("a URL");
    assert_eq!(
        (uri.authority.host.as_str(), uri.authority.port, uri.vhost.as_str()),
        ("rabbit.example", 5672, "shop")
    );
    assert_eq!(uri.query.heartbeat, Some(10));
    let uri = parse("amqps://[::1]:7000/%2f").expect("a URL");
    assert_eq!((uri.authority.host.as_str(), uri.authority.port, uri.vhost.as_str()), ("::1", 7000, "/"));
    for wrong in
        ["", "rabbit", "http://u:secret@a", "amqp://", "amqp://u:secret@:5672", "amqp://u:secret@a:x"]
    {
        let why = parse(wrong).expect_err(wrong);
        assert!(!why.contains("secret"), "{why}");
    }
}

#[test]
fn a_message_goes_out_with_properties_and_headers() {
    let headers = [
        ("content-type", "text/plain"),
        ("Correlation-Id", "c-1"),
        ("color", "red"),
        ("color", "blue"),
        ("empty", ""),
        ("stoa-publisher", "orders"),
        ("stoa-hops", "2"),
    ];
    let properties = properties::outgoing(&message(&headers), "stoa-key").expect("it fits");
    let text = |value: &Option<ShortString>| value.as_ref().map(|value| value.as_str().to_owned());
    assert_eq!(text(properties.message_id()).as_deref(), Some("m1"));
    assert_eq!(text(properties.content_type()).as_deref(), Some("text/plain"));
    assert_eq!(text(properties.correlation_id()).as_deref(), Some("c-1"));
    assert_eq!(text(properties.app_id()).as_deref(), Some("orders"));
    assert_eq!((*properties.delivery_mode(), *properties.timestamp()), (Some(2), Some(1_700_000_000)));
    let table = properties.headers().clone().expect("headers");
    let long = |text: &str| AMQPValue::LongString(LongString::from(text));
    let list = AMQPValue::FieldArray(FieldArray::from(vec![long("red"), long("blue")]));
    assert_eq!(table.inner().get("color"), Some(&list));
    assert_eq!(table.inner().get("stoa-key"), Some(&long("Käufer 7")));
    assert_eq!(table.inner().get("stoa-subject"), Some(&long("orders.placed")));
    assert_eq!(table.inner().get("stoa-published-at"), Some(&long("1700000000123456")));
    assert!(!table.contains_key("content-type") && table.contains_key("empty"));
}

#[test]
fn a_message_that_went_out_comes_in_with_the_same_things() {
    let headers = [("content-type", "text/plain"), ("color", "red"), ("color", "blue"), ("stoa-hops", "2")];
    let found = given_back(properties::outgoing(&message(&headers), "stoa-key").expect("it fits"));
    assert_eq!((found.tag, found.subject.as_str(), found.id.as_deref()), (7, "orders.placed", Some("m1")));
    assert_eq!((found.key.as_deref(), &found.body[..]), (Some("Käufer 7"), &b"\0body"[..]));
    for (name, value) in headers {
        assert!(found.headers.contains(&(name.to_owned(), value.to_owned())), "{name}: {:?}", found.headers);
    }
    assert!(found.headers.contains(&("timestamp".to_owned(), "1700000000".to_owned())));
}

#[test]
fn plain_values_come_in_as_text_and_others_do_not() {
    let mut table = FieldTable::default();
    table.insert("number".into(), AMQPValue::LongInt(-7));
    table.insert("yes".into(), AMQPValue::Boolean(true));
    table.insert("bytes".into(), AMQPValue::LongString(LongString::from(vec![0xff])));
    table.insert("table".into(), AMQPValue::FieldTable(FieldTable::default()));
    table.insert("Stoa-Key".into(), AMQPValue::LongLongInt(12));
    // A header that calls itself a property is none.
    table.insert("Content-Type".into(), AMQPValue::LongString("text/html".into()));
    let properties = BasicProperties::default().with_headers(table).with_content_type("text/plain".into());
    let found = given_back(properties);
    let wanted = [("content-type", "text/plain"), ("number", "-7"), ("yes", "true")];
    let wanted: Vec<_> =
        wanted.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    assert_eq!((found.headers, found.key.as_deref(), found.id), (wanted, Some("12"), None));
}

#[test]
fn what_amqp_has_no_room_for_is_shortened_or_refused() {
    let long = Message { id: "x".repeat(300).into(), ..message(&[]) };
    let id = |message: &Message| {
        let properties = properties::outgoing(message, "stoa-key").expect("it fits");
        properties.message_id().clone().map(|id| id.as_str().to_owned())
    };
    assert_eq!(id(&long).map(|id| id.len()), Some(64));
    assert_eq!(id(&long), id(&long));
    let value = "v".repeat(300);
    let found = given_back(properties::outgoing(&message(&[("type", &value)]), "stoa-key").expect("it fits"));
    assert!(found.headers.contains(&("type".to_owned(), value)), "it is a header instead of a property");
    let huge = "h".repeat(200_000);
    assert!(properties::outgoing(&message(&[("huge", &huge)]), "stoa-key").is_err());
}
