//! A manifest's document as it was written: values with neither meaning nor position. Maps keep their order
//! and their duplicate keys, so that the reader can name what is wrong with them.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

#[derive(Debug, Clone, PartialEq)]
pub enum Raw {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Raw>),
    Map(Vec<(String, Raw)>),
}

impl Raw {
    pub fn text(text: impl fmt::Display) -> Raw {
        Raw::Text(text.to_string())
    }

    pub fn integer(value: impl Into<i128>) -> Raw {
        Raw::Integer(value.into())
    }

    /// A map of the entries that are there.
    pub fn map<'a>(entries: impl IntoIterator<Item = (&'a str, Option<Raw>)>) -> Raw {
        let present = |(key, value): (&str, Option<Raw>)| value.map(|value| (key.to_owned(), value));
        Raw::Map(entries.into_iter().filter_map(present).collect())
    }
}

/// What stands in the manifest, short enough for a message.
impl fmt::Display for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Raw::Null => f.write_str("nothing"),
            Raw::Bool(value) => write!(f, "{value}"),
            Raw::Integer(value) => write!(f, "{value}"),
            Raw::Float(value) => write!(f, "{value}"),
            Raw::Text(text) if text.chars().count() > 60 => {
                write!(f, "`{}…`", text.chars().take(60).collect::<String>().escape_debug())
            }
            Raw::Text(text) => write!(f, "`{}`", text.escape_debug()),
            Raw::List(_) => f.write_str("a list"),
            Raw::Map(_) => f.write_str("a map"),
        }
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Raw, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map, a list, a text, a number, true or false")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Integer(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Raw, E> {
        Ok(Raw::Integer(value))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Raw, E> {
        Ok(i128::try_from(value).map_or(Raw::Float(value as f64), Raw::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Float(value))
    }

    fn visit_str<E>(self, text: &str) -> Result<Raw, E> {
        Ok(Raw::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, value)) = access.next_entry::<Raw, Raw>()? {
            let key = match key {
                Raw::Text(key) => key,
                other => other.to_string(),
            };
            entries.push((key, value));
        }
        Ok(Raw::Map(entries))
    }
}

impl Serialize for Raw {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Raw::Null => serializer.serialize_unit(),
            Raw::Bool(value) => serializer.serialize_bool(*value),
            Raw::Integer(value) => match i64::try_from(*value) {
                Ok(value) => serializer.serialize_i64(value),
                Err(_) => serializer.serialize_i128(*value),
            },
            Raw::Float(value) => serializer.serialize_f64(*value),
            Raw::Text(text) => serializer.serialize_str(text),
            Raw::List(items) => {
                let mut list = serializer.serialize_seq(Some(items.len()))?;
                for item in items {
                    list.serialize_element(item)?;
                }
                list.end()
            }
            Raw::Map(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (key, value) in entries {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }
    }
}
