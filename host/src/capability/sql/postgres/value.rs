//! Values of the contract as PostgreSQL's binary formats, and back.
//!
//! | PostgreSQL | as a parameter | in a row |
//! |---|---|---|
//! | `bool` | boolean | boolean |
//! | `int2`, `int4`, `int8`, `oid` | integer in its range | integer |
//! | `float8`, `float4` | real; integer where it is exact | real |
//! | `numeric` | decimal, integer, text | decimal, with its scale |
//! | `text`, `varchar`, `char(n)`, `name`, `citext`, enums | text, uuid, json, decimal | text |
//! | `bytea` | bytes | bytes |
//! | `timestamptz`, `timestamp` (taken as UTC) | timestamp, text | timestamp |
//! | `date` | text, timestamp at midnight | text, `2026-11-21` |
//! | `time` | text | text, `07:13:40.123456` |
//! | `uuid` | uuid, text | uuid |
//! | `json`, `jsonb` | json, text | json |
//!
//! A domain is what it is made of, and `void` is null. Everything else a statement casts to text.

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgArguments, PgColumn, PgRow, PgTypeInfo, PgTypeKind, Postgres};
use sqlx::{Arguments as _, Column as _, Encode, Row as _, Type, TypeInfo as _, ValueRef as _};
use time::Date;

use super::super::bindings::{Column, Error, Row, Value};
use super::super::timestamp;
use super::numeric;

/// Types that PostgreSQL and the contract have in common, as far as their formats differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bool,
    Bytes,
    Int2,
    Int4,
    Int8,
    Oid,
    Float4,
    Float8,
    Numeric,
    Text,
    Date,
    Time,
    Timestamp,
    Uuid,
    Json,
    Jsonb,
    Void,
}

impl Kind {
    fn of(info: &PgTypeInfo) -> Option<Self> {
        // Numbers of `pg_type.dat`, which never change.
        Some(match info.oid()?.0 {
            16 => Self::Bool,
            17 => Self::Bytes,
            // "char", name, text, unknown, char(n), varchar.
            18 | 19 | 25 | 705 | 1042 | 1043 => Self::Text,
            20 => Self::Int8,
            21 => Self::Int2,
            23 => Self::Int4,
            26 => Self::Oid,
            114 => Self::Json,
            700 => Self::Float4,
            701 => Self::Float8,
            1082 => Self::Date,
            1083 => Self::Time,
            1114 | 1184 => Self::Timestamp,
            1700 => Self::Numeric,
            2278 => Self::Void,
            2950 => Self::Uuid,
            3802 => Self::Jsonb,
            // sqlx does not know the type, and must not be asked for its kind.
            _ if info.name() == "?" => return None,
            _ => match info.kind() {
                PgTypeKind::Domain(base) => return Self::of(base),
                PgTypeKind::Enum(_) => Self::Text,
                PgTypeKind::Simple if info.name().rsplit('.').next() == Some("citext") => Self::Text,
                _ => return None,
            },
        })
    }
}

/// A type as PostgreSQL writes it.
fn name_of(info: &PgTypeInfo) -> String {
    // Types of users start there, and sqlx has their names from PostgreSQL itself.
    match info.oid() {
        Some(oid) if oid.0 < 16384 => info.name().to_ascii_lowercase(),
        _ => info.name().to_owned(),
    }
}

/// Microseconds from 1970 to 2000, where PostgreSQL's time begins.
const EPOCH_MICROS: i64 = 946_684_800_000_000;
const DAY_MICROS: i64 = 86_400_000_000;

/// The Julian day of 2000-01-01.
const EPOCH_JULIAN_DAY: i32 = 2_451_545;

/// Fits parameters to the types that a statement wants; there must be as many of them.
pub fn arguments(parameters: &[Value], wanted: &[PgTypeInfo]) -> Result<PgArguments, Error> {
    let mut arguments = PgArguments::default();
    for (index, (value, info)) in parameters.iter().zip(wanted).enumerate() {
        let parameter = Parameter { value, info, number: index + 1 };
        arguments.add(parameter).map_err(|error| Error::TypeMismatch(error.to_string()))?;
    }
    Ok(arguments)
}

struct Parameter<'v> {
    value: &'v Value,
    info: &'v PgTypeInfo,
    number: usize,
}

impl Type<Postgres> for Parameter<'_> {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("unknown")
    }
}

impl Encode<'_, Postgres> for Parameter<'_> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        if matches!(self.value, Value::Null) {
            return Ok(IsNull::Yes);
        }
        let (number, given, wanted) = (self.number, name_of_value(self.value), name_of(self.info));
        let Some(kind) = Kind::of(self.info) else {
            let advice = format!("write `${number}::text::{wanted}` and give text");
            return Err(format!(
                "parameter ${number} is {given}, and the statement wants {wanted}; {advice}"
            )
            .into());
        };
        match fit(self.value, kind, buffer) {
            Ok(()) => Ok(IsNull::No),
            Err(Misfit::Type) => {
                Err(format!("parameter ${number} is {given}, and the statement wants {wanted}").into())
            }
            Err(Misfit::Content) => Err(format!("the {given} in parameter ${number} is no {wanted}").into()),
        }
    }

    fn produces(&self) -> Option<PgTypeInfo> {
        Some(self.info.clone())
    }
}

const fn name_of_value(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Boolean(_) => "boolean",
        Value::Integer(_) => "integer",
        Value::Real(_) => "real",
        Value::Text(_) => "text",
        Value::Bytes(_) => "bytes",
        Value::Timestamp(_) => "timestamp",
        Value::Uuid(_) => "uuid",
        Value::Json(_) => "json",
        Value::Decimal(_) => "decimal",
    }
}

/// Why a value is not what a statement wants.
#[derive(Debug, PartialEq, Eq)]
enum Misfit {
    Type,
    Content,
}

/// Appends a value in the binary format of a type.
fn fit(value: &Value, kind: Kind, out: &mut Vec<u8>) -> Result<(), Misfit> {
    let content = Misfit::Content;
    match (kind, value) {
        (Kind::Bool, Value::Boolean(value)) => out.push(u8::from(*value)),
        (Kind::Int2, Value::Integer(value)) => {
            out.extend(i16::try_from(*value).or(Err(content))?.to_be_bytes())
        }
        (Kind::Int4, Value::Integer(value)) => {
            out.extend(i32::try_from(*value).or(Err(content))?.to_be_bytes())
        }
        (Kind::Int8, Value::Integer(value)) => out.extend(value.to_be_bytes()),
        (Kind::Oid, Value::Integer(value)) => {
            out.extend(u32::try_from(*value).or(Err(content))?.to_be_bytes())
        }
        (Kind::Float8, Value::Real(value)) => out.extend(value.to_be_bytes()),
        (Kind::Float8, Value::Integer(value)) => {
            let real = *value as f64;
            out.extend((real as i128 == i128::from(*value)).then_some(real).ok_or(content)?.to_be_bytes());
        }
        // Who declares a column so wants it rounded; who overflows it does not.
        (Kind::Float4, Value::Real(value)) => {
            let real = *value as f32;
            out.extend(
                (real.is_finite() || !value.is_finite()).then_some(real).ok_or(content)?.to_be_bytes(),
            );
        }
        (Kind::Float4, Value::Integer(value)) => {
            let real = *value as f32;
            out.extend((real as i128 == i128::from(*value)).then_some(real).ok_or(content)?.to_be_bytes());
        }
        (Kind::Numeric, Value::Decimal(text) | Value::Text(text)) => {
            numeric::encode(text, out).ok_or(content)?
        }
        (Kind::Numeric, Value::Integer(value)) => numeric::encode(&value.to_string(), out).ok_or(content)?,
        (Kind::Text, Value::Text(text) | Value::Uuid(text) | Value::Json(text) | Value::Decimal(text)) => {
            out.extend(text.as_bytes());
        }
        (Kind::Bytes, Value::Bytes(bytes)) => out.extend(bytes),
        (Kind::Timestamp, Value::Timestamp(micros)) => {
            out.extend(since_epoch(*micros).ok_or(content)?.to_be_bytes())
        }
        (Kind::Timestamp, Value::Text(text)) => {
            let micros = timestamp::of_text(text).and_then(since_epoch);
            out.extend(micros.ok_or(content)?.to_be_bytes());
        }
        (Kind::Date, Value::Timestamp(micros)) => out.extend(day(*micros).ok_or(content)?.to_be_bytes()),
        (Kind::Date, Value::Text(text)) => out.extend(day_of_text(text).ok_or(content)?.to_be_bytes()),
        (Kind::Time, Value::Text(text)) => out.extend(time_of_text(text).ok_or(content)?.to_be_bytes()),
        (Kind::Uuid, Value::Uuid(text) | Value::Text(text)) => out.extend(uuid(text).ok_or(content)?),
        (Kind::Json, Value::Json(text) | Value::Text(text)) => out.extend(text.as_bytes()),
        (Kind::Jsonb, Value::Json(text) | Value::Text(text)) => {
            out.push(JSONB_VERSION);
            out.extend(text.as_bytes());
        }
        _ => return Err(Misfit::Type),
    }
    Ok(())
}

const JSONB_VERSION: u8 = 1;

fn since_epoch(micros: i64) -> Option<i64> {
    // The least number is PostgreSQL's `-infinity`.
    micros.checked_sub(EPOCH_MICROS).filter(|micros| *micros != i64::MIN)
}

fn day(micros: i64) -> Option<i32> {
    let micros = since_epoch(micros).filter(|micros| micros.rem_euclid(DAY_MICROS) == 0)?;
    i32::try_from(micros.div_euclid(DAY_MICROS)).ok()
}

fn day_of_text(text: &str) -> Option<i32> {
    match text {
        "infinity" => Some(i32::MAX),
        "-infinity" => Some(i32::MIN),
        _ => day(timestamp::of_text(text)?),
    }
}

fn time_of_text(text: &str) -> Option<i64> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b':' | b'.'));
    is_plain.then(|| timestamp::of_text(&format!("1970-01-01T{text}"))).flatten()
}

/// Thirty-two hexadecimal digits, with or without hyphens between the groups.
fn uuid(text: &str) -> Option<[u8; 16]> {
    let is_grouped = text.len() == 36;
    let mut number: u128 = 0;
    let mut digits = 0;
    for (at, byte) in text.bytes().enumerate() {
        if is_grouped && matches!(at, 8 | 13 | 18 | 23) {
            if byte != b'-' {
                return None;
            }
            continue;
        }
        number = number << 4 | u128::from(char::from(byte).to_digit(16)?);
        digits += 1;
    }
    (digits == 32).then_some(number.to_be_bytes())
}

/// Columns as the contract tells them.
pub fn columns(columns: &[PgColumn]) -> Vec<Column> {
    let column =
        |column: &PgColumn| Column { name: column.name().to_owned(), type_name: name_of(column.type_info()) };
    columns.iter().map(column).collect()
}

/// Reads the rows of one statement.
pub struct Reader {
    kinds: Vec<Kind>,
    row_bytes_max: u64,
}

impl Reader {
    /// # Errors
    /// When a column has a type that is no value of the contract: better before a statement runs than after it.
    pub fn of(columns: &[PgColumn], row_bytes_max: u64) -> Result<Self, Error> {
        let kind = |column: &PgColumn| {
            Kind::of(column.type_info()).ok_or_else(|| {
                let (column, kind) = (column.name(), name_of(column.type_info()));
                Error::TypeMismatch(format!(
                    "column `{column}` is {kind}, which is no value; cast it to text"
                ))
            })
        };
        Ok(Self { kinds: columns.iter().map(kind).collect::<Result<_, _>>()?, row_bytes_max })
    }

    pub fn row(&self, row: &PgRow) -> Result<Row, Error> {
        let mut bytes_left = self.row_bytes_max;
        let mut values = Vec::with_capacity(self.kinds.len());
        for (index, kind) in self.kinds.iter().enumerate() {
            let unreadable = |reason: &str| {
                let name = row.columns().get(index).map_or("?", |column| column.name());
                Error::TypeMismatch(format!("column `{name}`: {reason}"))
            };
            let raw = row.try_get_raw(index).map_err(|error| unreadable(&error.to_string()))?;
            if raw.is_null() {
                values.push(Value::Null);
                continue;
            }
            let bytes = raw.as_bytes().map_err(|error| unreadable(&error.to_string()))?;
            let Some(left) = bytes_left.checked_sub(bytes.len() as u64) else {
                return Err(Error::TooLarge("a row is larger than `sql_result`".to_owned()));
            };
            bytes_left = left;
            values.push(decode(*kind, bytes).map_err(|Unreadable(reason)| unreadable(reason))?);
        }
        Ok(values)
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Unreadable(&'static str);

fn decode(kind: Kind, bytes: &[u8]) -> Result<Value, Unreadable> {
    Ok(match kind {
        Kind::Bool => Value::Boolean(fixed::<1>(bytes)? != [0]),
        Kind::Bytes => Value::Bytes(bytes.to_vec()),
        Kind::Int2 => Value::Integer(i16::from_be_bytes(fixed(bytes)?).into()),
        Kind::Int4 => Value::Integer(i32::from_be_bytes(fixed(bytes)?).into()),
        Kind::Int8 => Value::Integer(i64::from_be_bytes(fixed(bytes)?)),
        Kind::Oid => Value::Integer(u32::from_be_bytes(fixed(bytes)?).into()),
        Kind::Float4 => Value::Real(f32::from_be_bytes(fixed(bytes)?).into()),
        Kind::Float8 => Value::Real(f64::from_be_bytes(fixed(bytes)?)),
        Kind::Numeric => {
            Value::Decimal(numeric::decode(bytes).ok_or(Unreadable("not a number; cast it to text"))?)
        }
        Kind::Text => Value::Text(text(bytes)?),
        Kind::Date => Value::Text(date_text(i32::from_be_bytes(fixed(bytes)?))?),
        Kind::Time => Value::Text(time_text(i64::from_be_bytes(fixed(bytes)?))),
        Kind::Timestamp => match i64::from_be_bytes(fixed(bytes)?).checked_add(EPOCH_MICROS) {
            // `-infinity` does not overflow.
            Some(micros) if micros != i64::MIN + EPOCH_MICROS => Value::Timestamp(micros),
            _ => return Err(Unreadable("infinity is no timestamp; cast it to text")),
        },
        Kind::Uuid => Value::Uuid(uuid_text(u128::from_be_bytes(fixed(bytes)?))),
        Kind::Json => Value::Json(text(bytes)?),
        Kind::Jsonb => match bytes.split_first() {
            Some((&JSONB_VERSION, json)) => Value::Json(text(json)?),
            _ => return Err(MALFORMED),
        },
        Kind::Void => Value::Null,
    })
}

const MALFORMED: Unreadable = Unreadable("not in the format of its type");

fn fixed<const N: usize>(bytes: &[u8]) -> Result<[u8; N], Unreadable> {
    bytes.try_into().or(Err(MALFORMED))
}

fn text(bytes: &[u8]) -> Result<String, Unreadable> {
    String::from_utf8(bytes.to_vec()).or(Err(Unreadable("not in UTF-8")))
}

fn date_text(days: i32) -> Result<String, Unreadable> {
    match days {
        i32::MAX => return Ok("infinity".to_owned()),
        i32::MIN => return Ok("-infinity".to_owned()),
        _ => {}
    }
    let date = days.checked_add(EPOCH_JULIAN_DAY).and_then(|day| Date::from_julian_day(day).ok());
    let date = date.filter(|date| date.year() > 0);
    let date = date.ok_or(Unreadable("a date beyond the years 1 to 9999; cast it to text"))?;
    Ok(format!("{:04}-{:02}-{:02}", date.year(), u8::from(date.month()), date.day()))
}

fn time_text(micros: i64) -> String {
    let (seconds, micros) = (micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000));
    let (minutes, second) = (seconds / 60, seconds % 60);
    format!("{:02}:{:02}:{second:02}.{micros:06}", minutes / 60, minutes % 60)
}

fn uuid_text(number: u128) -> String {
    let group = |shift: u32, digits: u32| (number >> shift) & ((1 << (4 * digits)) - 1);
    let (a, b, c, d, e) = (group(96, 8), group(80, 4), group(64, 4), group(48, 4), group(0, 12));
    format!("{a:08x}-{b:04x}-{c:04x}-{d:04x}-{e:012x}")
}

#[cfg(test)]
mod tests;
