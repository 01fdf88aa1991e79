use super::*;

fn fitted(value: Value, kind: Kind) -> Result<Vec<u8>, Misfit> {
    let mut bytes = Vec::new();
    fit(&value, kind, &mut bytes).map(|()| bytes)
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

/// What comes back of a value that was written to a column of a type.
fn kept(value: Value, kind: Kind) -> String {
    let bytes = fitted(value, kind).expect("it fits");
    // The generated type shows its name before its case.
    format!("{:?}", decode(kind, &bytes).expect("readable")).replace("Value::", "")
}

#[test]
fn a_value_comes_back_as_it_went() {
    for (kind, value) in [
        (Kind::Bool, Value::Boolean(true)),
        (Kind::Int2, Value::Integer(-7)),
        (Kind::Int4, Value::Integer(i32::MIN.into())),
        (Kind::Int8, Value::Integer(i64::MAX)),
        (Kind::Oid, Value::Integer(u32::MAX.into())),
        (Kind::Float8, Value::Real(0.1)),
        (Kind::Float4, Value::Real(0.5)),
        (Kind::Numeric, Value::Decimal("-12.50".to_owned())),
        (Kind::Text, text("grüß")),
        (Kind::Bytes, Value::Bytes(vec![0, 255])),
        (Kind::Timestamp, Value::Timestamp(-1)),
        (Kind::Date, text("2026-11-21")),
        (Kind::Date, text("infinity")),
        (Kind::Time, text("07:13:40.123456")),
        (Kind::Uuid, Value::Uuid("00112233-4455-6677-8899-aabbccddeeff".to_owned())),
        (Kind::Json, Value::Json("{}".to_owned())),
        (Kind::Jsonb, Value::Json("[1]".to_owned())),
    ] {
        assert_eq!(kept(value.clone(), kind), format!("{value:?}").replace("Value::", ""));
    }
}

#[test]
fn a_value_of_another_type_fits_where_nothing_is_lost() {
    let cases = [
        (Kind::Float8, Value::Integer(1 << 53), "Real(9007199254740992.0)"),
        (Kind::Float4, Value::Integer(1 << 24), "Real(16777216.0)"),
        (Kind::Numeric, Value::Integer(-5), "Decimal(\"-5\")"),
        (Kind::Numeric, text("1.0"), "Decimal(\"1.0\")"),
        (Kind::Text, Value::Decimal("1.0".to_owned()), "Text(\"1.0\")"),
        (Kind::Timestamp, text("1970-01-01T00:00:01Z"), "Timestamp(1000000)"),
        (Kind::Date, Value::Timestamp(86_400_000_000), "Text(\"1970-01-02\")"),
        (Kind::Time, text("07:13"), "Text(\"07:13:00.000000\")"),
        (
            Kind::Uuid,
            text("00112233445566778899AABBCCDDEEFF"),
            "Uuid(\"00112233-4455-6677-8899-aabbccddeeff\")",
        ),
        (Kind::Jsonb, text("null"), "Json(\"null\")"),
    ];
    for (kind, value, expected) in cases {
        assert_eq!(kept(value, kind), expected);
    }
}

#[test]
fn a_value_that_would_lose_something_is_refused() {
    for (kind, value) in [
        (Kind::Int2, Value::Integer(32_768)),
        (Kind::Int4, Value::Integer(1 << 31)),
        (Kind::Oid, Value::Integer(-1)),
        (Kind::Float8, Value::Integer((1 << 53) + 1)),
        (Kind::Float8, Value::Integer(i64::MAX)),
        (Kind::Float4, Value::Integer((1 << 24) + 1)),
        (Kind::Float4, Value::Real(1e300)),
        (Kind::Numeric, text("1e5")),
        (Kind::Timestamp, text("yesterday")),
        (Kind::Timestamp, Value::Timestamp(i64::MIN)),
        (Kind::Timestamp, Value::Timestamp(i64::MIN + EPOCH_MICROS)),
        (Kind::Date, Value::Timestamp(1)),
        (Kind::Date, text("2026-11-21 07:13")),
        (Kind::Time, text("07:13+01:00")),
        (Kind::Uuid, text("00112233-4455-6677-8899-aabbccddeef")),
        (Kind::Uuid, text("0011223344556677-8899-aabb-ccddeeff-")),
    ] {
        let what = format!("{value:?}");
        assert_eq!(fitted(value, kind), Err(Misfit::Content), "{what}");
    }
}

#[test]
fn a_value_of_the_wrong_type_is_refused() {
    for (kind, value) in [
        (Kind::Int4, text("1")),
        (Kind::Int4, Value::Real(1.0)),
        (Kind::Text, Value::Integer(1)),
        (Kind::Text, Value::Bytes(Vec::new())),
        (Kind::Bytes, text("")),
        (Kind::Bool, Value::Integer(1)),
        (Kind::Numeric, Value::Real(1.0)),
        (Kind::Void, text("")),
    ] {
        let what = format!("{value:?}");
        assert_eq!(fitted(value, kind), Err(Misfit::Type), "{what}");
    }
}

#[test]
fn the_message_names_the_parameter_and_both_types() {
    let refused =
        |value: Value, info: PgTypeInfo| match arguments(&[Value::Null, value], &[info.clone(), info]) {
            Err(Error::TypeMismatch(message)) => message,
            _ => "no mismatch".to_owned(),
        };
    let int2 = <i16 as Type<Postgres>>::type_info;
    assert_eq!(refused(text("a"), int2()), "parameter $2 is text, and the statement wants int2");
    assert_eq!(refused(Value::Integer(1 << 15), int2()), "the integer in parameter $2 is no int2");
    assert_eq!(refused(Value::Integer(1), int2()), "no mismatch");
    let array = <Vec<i16> as Type<Postgres>>::type_info;
    let advice =
        "parameter $2 is text, and the statement wants int2[]; write `$2::text::int2[]` and give text";
    assert_eq!(refused(text("{1}"), array()), advice);
    assert_eq!(refused(Value::Null, array()), "no mismatch");
}

#[test]
fn what_the_contract_cannot_hold_is_told() {
    for micros in [i64::MAX, i64::MIN] {
        let infinity = decode(Kind::Timestamp, &micros.to_be_bytes());
        assert!(matches!(infinity, Err(Unreadable("infinity is no timestamp; cast it to text"))));
    }
    assert!(decode(Kind::Date, &(-1_000_000_i32).to_be_bytes()).is_err());
    assert!(matches!(decode(Kind::Int4, &[0]), Err(MALFORMED)));
    assert!(matches!(decode(Kind::Jsonb, &[2, b'1']), Err(MALFORMED)));
}
