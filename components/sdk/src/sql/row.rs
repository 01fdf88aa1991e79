//! A row as serde sees it: a struct by the names of its columns, a tuple by their order, or the one value there is.

use std::{fmt::Display, vec};

use serde::{
    Deserializer,
    de::{self, DeserializeOwned, DeserializeSeed, MapAccess, SeqAccess, Visitor, value::StrDeserializer},
    forward_to_deserialize_any,
};

use super::{Error, Value, bindings::types::Column, cell::Cell, value::JSON};

/// Reads one row as `R`.
pub(super) fn read<R: DeserializeOwned>(columns: &[Column], values: Vec<Value>) -> Result<R, Error> {
    R::deserialize(Row { columns, values })
}

/// Reads the first column of a row as `T`.
pub(super) fn read_scalar<T: DeserializeOwned>(columns: &[Column], values: Vec<Value>) -> Result<T, Error> {
    let value = values.into_iter().next();
    let value = value.ok_or_else(|| Error::Row("there is no column".to_owned()))?;
    T::deserialize(Cell(value)).map_err(|error| at(columns.first(), error))
}

impl de::Error for Error {
    fn custom<T: Display>(message: T) -> Self {
        Self::Row(message.to_string())
    }
}

/// Says which column it was.
fn at(column: Option<&Column>, error: Error) -> Error {
    match (column, error) {
        (Some(column), Error::Row(detail)) => Error::Row(format!("column `{}`: {detail}", column.name)),
        (_, error) => error,
    }
}

struct Row<'a> {
    columns: &'a [Column],
    values: Vec<Value>,
}

impl<'a> Row<'a> {
    /// The value of a row that has one column only.
    fn single(self) -> Result<(Option<&'a Column>, Cell), Error> {
        let mut values = self.values;
        match (values.pop(), values.pop()) {
            (Some(value), None) => Ok((self.columns.first(), Cell(value))),
            _ => Err(Error::Row(format!(
                "a single value is asked for and there are {} columns",
                self.columns.len()
            ))),
        }
    }

    fn cells(self) -> Cells<'a> {
        Cells { columns: self.columns, index: 0, values: self.values.into_iter() }
    }
}

macro_rules! single {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            let (column, cell) = self.single()?;
            cell.$method(visitor).map_err(|error| at(column, error))
        }
    )*};
}

impl<'de> Deserializer<'de> for Row<'_> {
    type Error = Error;

    single! {
        deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128 deserialize_f32
        deserialize_f64 deserialize_char deserialize_str deserialize_string deserialize_bytes
        deserialize_byte_buf deserialize_option
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let (column, cell) = self.single()?;
        cell.deserialize_enum(name, variants, visitor).map_err(|error| at(column, error))
    }

    /// `Json` is of the one column; any other newtype may be around a single value as well as around a struct.
    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        if name != JSON {
            return visitor.visit_newtype_struct(self);
        }
        let (column, cell) = self.single()?;
        cell.deserialize_newtype_struct(name, visitor).map_err(|error| at(column, error))
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_map(self.cells())
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(self.cells())
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, Error> {
        if length != self.values.len() {
            let columns = self.values.len();
            return Err(Error::Row(format!("{length} columns are asked for and there are {columns}")));
        }
        visitor.visit_seq(self.cells())
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_tuple(length, visitor)
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! { map struct identifier ignored_any }
}

/// What is left to be read of a row.
struct Cells<'a> {
    columns: &'a [Column],
    index: usize,
    values: vec::IntoIter<Value>,
}

impl Cells<'_> {
    fn read<'de, S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        let Some(value) = self.values.next() else {
            return Ok(None);
        };
        let column = self.columns.get(self.index);
        self.index += 1;
        seed.deserialize(Cell(value)).map(Some).map_err(|error| at(column, error))
    }
}

impl<'de> SeqAccess<'de> for Cells<'_> {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        self.read(seed)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.values.len())
    }
}

impl<'de> MapAccess<'de> for Cells<'_> {
    type Error = Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        match self.columns.get(self.index) {
            Some(column) if self.values.len() > 0 => {
                seed.deserialize(StrDeserializer::<Error>::new(&column.name)).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
        let value = self.read(seed)?;
        value.ok_or_else(|| Error::Row("the row has fewer values than columns".to_owned()))
    }
}

#[cfg(test)]
mod tests;
