//! Values on their way into a statement: what Rust types become, and the types that Rust has none for.

use std::{
    borrow::Cow,
    fmt,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Visitor};

use super::{Error, Value};

/// What a parameter of a statement can be: see [`Query::bind`](super::Query::bind).
///
/// It is there for numbers (up to `u32` and `i64`), `bool`, texts, bytes, [`SystemTime`], [`serde_json::Value`], the
/// types of this module, and an `Option` of each of them.
pub trait Parameter {
    /// The value, or [`Error::TypeMismatch`] if a [`Json`] cannot be written as JSON.
    fn into_value(self) -> Result<Value, Error>;
}

impl Parameter for Value {
    fn into_value(self) -> Result<Value, Error> {
        Ok(self)
    }
}

impl<P: Parameter> Parameter for Option<P> {
    fn into_value(self) -> Result<Value, Error> {
        self.map_or(Ok(Value::Null), P::into_value)
    }
}

impl<T: Serialize> Parameter for Json<T> {
    fn into_value(self) -> Result<Value, Error> {
        serde_json::to_string(&self.0).map(Value::Json).map_err(|error| {
            Error::TypeMismatch(format!("a parameter of the type Json cannot be written: {error}"))
        })
    }
}

macro_rules! parameters {
    ($($type:ty => |$it:ident| $value:expr;)*) => {$(
        impl From<$type> for Value {
            fn from($it: $type) -> Self {
                $value
            }
        }

        impl Parameter for $type {
            fn into_value(self) -> Result<Value, Error> {
                Ok(self.into())
            }
        }
    )*};
}

parameters! {
    bool => |it| Self::Boolean(it);
    i8 => |it| Self::Integer(it.into());
    i16 => |it| Self::Integer(it.into());
    i32 => |it| Self::Integer(it.into());
    i64 => |it| Self::Integer(it);
    u8 => |it| Self::Integer(it.into());
    u16 => |it| Self::Integer(it.into());
    u32 => |it| Self::Integer(it.into());
    f32 => |it| Self::Real(it.into());
    f64 => |it| Self::Real(it);
    &str => |it| Self::Text(it.to_owned());
    &String => |it| Self::Text(it.clone());
    String => |it| Self::Text(it);
    Cow<'_, str> => |it| Self::Text(it.into_owned());
    &[u8] => |it| Self::Bytes(it.to_vec());
    Vec<u8> => |it| Self::Bytes(it);
    serde_json::Value => |it| Self::Json(it.to_string());
    Timestamp => |it| Self::Timestamp(it.0);
    SystemTime => |it| Self::Timestamp(Timestamp::from(it).0);
    Uuid => |it| Self::Uuid(it.0);
    Decimal => |it| Self::Decimal(it.0);
}

/// A moment, in microseconds since 1970-01-01T00:00:00Z. In JSON it is that number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp(pub i64);

impl Timestamp {
    pub fn now() -> Self {
        SystemTime::now().into()
    }
}

/// Cut to whole microseconds, and to what a [`Timestamp`] reaches: 290,000 years to either side.
impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let microseconds = |duration: Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Self(match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(since) => microseconds(since),
            Err(before) => -microseconds(before.duration()),
        })
    }
}

/// The epoch itself for a moment that this machine's clock cannot show.
impl From<Timestamp> for SystemTime {
    fn from(timestamp: Timestamp) -> Self {
        let distance = Duration::from_micros(timestamp.0.unsigned_abs());
        let time = match timestamp.0 {
            ..0 => Self::UNIX_EPOCH.checked_sub(distance),
            _ => Self::UNIX_EPOCH.checked_add(distance),
        };
        time.unwrap_or(Self::UNIX_EPOCH)
    }
}

macro_rules! texts {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub struct $name(pub String);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

texts! {
    /// A uuid in its text form, five groups of lower-case hexadecimal digits. The database checks it, not this type.
    Uuid;
    /// A decimal number in its text form, such as `-12.50`. The database checks it, not this type.
    Decimal;
}

/// Anything that serde can write, kept as JSON: a parameter, a field of a row, or a row of one column.
///
/// ```
/// use stoa::sql::{self, Json};
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct Address { street: String, town: String }
///
/// # async fn example(address: Address) -> Result<(), sql::Error> {
/// sql::query("update people set address = $2 where id = $1").bind(7).bind(Json(address)).execute().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Json<T>(pub T);

/// The name by which the deserialiser of a row knows that a text is to be read as JSON, whatever is inside.
pub(super) const JSON: &str = "stoa::sql::Json";

impl<T: Serialize> Serialize for Json<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Json<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Inside<T>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Inside<T> {
            type Value = Json<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<Json<T>, D::Error> {
                T::deserialize(inner).map(Json)
            }
        }

        deserializer.deserialize_newtype_struct(JSON, Inside(std::marker::PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[track_caller]
    fn check(parameter: impl Parameter, value: Value) {
        assert_eq!(parameter.into_value().unwrap(), value);
    }

    #[test]
    fn rust_types_become_values() {
        check(true, Value::Boolean(true));
        check(-1i8, Value::Integer(-1));
        check(u32::MAX, Value::Integer(4_294_967_295));
        check(i64::MIN, Value::Integer(i64::MIN));
        check(0.5f32, Value::Real(0.5));
        check("tea", Value::Text("tea".into()));
        check("tea".to_owned(), Value::Text("tea".into()));
        check(&[1u8, 2][..], Value::Bytes(vec![1, 2]));
        check(vec![0u8], Value::Bytes(vec![0]));
        check(serde_json::json!({"a": [1]}), Value::Json(r#"{"a":[1]}"#.into()));
        check(Json(("a", 1)), Value::Json(r#"["a",1]"#.into()));
        check(Timestamp(-5), Value::Timestamp(-5));
        check(SystemTime::UNIX_EPOCH + Duration::from_millis(3), Value::Timestamp(3000));
        check(Uuid("00000000-0000-0000-0000-000000000000".into()), {
            Value::Uuid("00000000-0000-0000-0000-000000000000".into())
        });
        check(Decimal("-12.50".into()), Value::Decimal("-12.50".into()));
    }

    #[test]
    fn nothing_becomes_null_whatever_it_would_have_been() {
        check(None::<i64>, Value::Null);
        check(None::<Json<Vec<u8>>>, Value::Null);
        check(Some(1u8), Value::Integer(1));
        check(Some(Json(1)), Value::Json("1".into()));
    }

    #[test]
    fn what_is_no_json_is_refused() {
        let odd = Json(HashMap::from([((1, 2), 3)]));
        assert!(matches!(odd.into_value(), Err(Error::TypeMismatch(_))));
    }

    #[test]
    fn a_timestamp_goes_to_system_time_and_back() {
        for microseconds in [0, 1, -1, 1_700_000_000_123_456, -62_000_000_000_000_000] {
            let time = SystemTime::from(Timestamp(microseconds));
            assert_eq!(Timestamp::from(time), Timestamp(microseconds));
        }
    }
}
