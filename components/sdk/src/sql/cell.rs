//! One value of a row as serde sees it. What SQLite has no type for is read from what it keeps instead.

use serde::{
    Deserializer,
    de::{
        Error as _, Unexpected, Visitor,
        value::{SeqDeserializer, StringDeserializer},
    },
    forward_to_deserialize_any,
};

use super::{Error, Value, value::JSON};

pub(super) struct Cell(pub(super) Value);

impl Cell {
    fn json(self) -> Result<serde_json::Value, Self> {
        match &self.0 {
            Value::Json(text) | Value::Text(text) => serde_json::from_str(text).map_err(|_| self),
            _ => Err(self),
        }
    }
}

macro_rules! integers {
    ($($method:ident)*) => {$(
        /// The visitor checks that it is in range. PostgreSQL's `sum` of integers is a decimal.
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match &self.0 {
                Value::Decimal(text) => match text.parse() {
                    Ok(number) => visitor.visit_i64(number),
                    Err(_) => self.deserialize_any(visitor),
                },
                _ => self.deserialize_any(visitor),
            }
        }
    )*};
}

macro_rules! floats {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match &self.0 {
                Value::Decimal(text) => match text.parse() {
                    Ok(number) => visitor.visit_f64(number),
                    Err(_) => self.deserialize_any(visitor),
                },
                _ => self.deserialize_any(visitor),
            }
        }
    )*};
}

macro_rules! texts {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match self.0 {
                Value::Json(text) => visitor.visit_string(text),
                other => Self(other).deserialize_any(visitor),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Cell {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Boolean(truth) => visitor.visit_bool(truth),
            Value::Integer(number) | Value::Timestamp(number) => visitor.visit_i64(number),
            Value::Real(number) => visitor.visit_f64(number),
            Value::Text(text) | Value::Uuid(text) | Value::Decimal(text) => visitor.visit_string(text),
            Value::Bytes(bytes) => visitor.visit_byte_buf(bytes),
            Value::Json(text) => inside(&text)?.deserialize_any(visitor).map_err(Error::custom),
        }
    }

    integers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128
    }

    floats! { deserialize_f32 deserialize_f64 }

    texts! { deserialize_str deserialize_string deserialize_char deserialize_identifier }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Integer(number @ (0 | 1)) => visitor.visit_bool(number == 1),
            Value::Integer(number) => {
                Err(Error::invalid_value(Unexpected::Signed(number), &"true, false, 0 or 1"))
            }
            other => Self(other).deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    /// A list of numbers from bytes, and whatever else from JSON.
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Bytes(bytes) => visitor.visit_seq(SeqDeserializer::<_, Error>::new(bytes.into_iter())),
            other => Self(other).deserialize_map(visitor),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    /// What has parts is kept as JSON, and as text on SQLite.
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.json() {
            Ok(json) => json.deserialize_any(visitor).map_err(Error::custom),
            Err(cell) => cell.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_map(visitor)
    }

    /// The name of a variant as text, or a variant of any kind as JSON.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Value::Text(text) | Value::Uuid(text) | Value::Decimal(text) => {
                visitor.visit_enum(StringDeserializer::<Error>::new(text))
            }
            Value::Json(text) => {
                inside(&text)?.deserialize_enum(name, variants, visitor).map_err(Error::custom)
            }
            other => Self(other).deserialize_any(visitor),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.0 {
            Value::Json(text) | Value::Text(text) if name == JSON => {
                visitor.visit_newtype_struct(inside(text)?).map_err(Error::custom)
            }
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_any(visitor)
    }

    forward_to_deserialize_any! { bytes byte_buf unit_struct ignored_any }
}

fn inside(text: &str) -> Result<serde_json::Value, Error> {
    serde_json::from_str(text).map_err(|error| Error::Row(format!("it is no JSON: {error}")))
}
