//! Sizes and durations as people write them: "1MiB", "100ms". A bare number is bytes, or milliseconds.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// Why some text is not a size or a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {what}; write {example}")]
pub struct UnitError {
    text: String,
    what: &'static str,
    example: &'static str,
}

/// Longest time that can be set, in milliseconds: a clock can be moved so far without overflowing.
const SPAN_MAX_MS: u64 = 10_000 * 3_600_000;

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// A length of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// The number in front and the unit behind it.
fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number = text[..digits].parse().ok()?;
    Some((number, text[digits..].trim()))
}

impl FromStr for Size {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Size, UnitError> {
        let error = || UnitError {
            text: text.to_owned(),
            what: "size",
            example: "bytes or, say, 64KiB, 1MiB, 2GiB, 500MB",
        };
        let (number, unit) = split(text).ok_or_else(error)?;
        let factor = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1u64 << 40,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            _ => return Err(error()),
        };
        number.checked_mul(factor).map(Size).ok_or_else(error)
    }
}

impl FromStr for Span {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Span, UnitError> {
        let error = || UnitError {
            text: text.to_owned(),
            what: "duration",
            example: "milliseconds or, say, 100ms, 5s, 2m, at most 10000h",
        };
        let (number, unit) = split(text).ok_or_else(error)?;
        let factor = match unit {
            "" | "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            _ => return Err(error()),
        };
        let ms = number.checked_mul(factor).filter(|ms| *ms <= SPAN_MAX_MS);
        ms.map(|ms| Span(Duration::from_millis(ms))).ok_or_else(error)
    }
}

/// Takes a number or a text.
struct NumberOrText<T>(std::marker::PhantomData<T>);

impl<T: FromStr<Err = UnitError>> Visitor<'_> for NumberOrText<T> {
    type Value = T;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, or a text with a number and a unit")
    }
    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        number.to_string().parse().map_err(E::custom)
    }
    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        number.to_string().parse().map_err(E::custom)
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
        deserializer.deserialize_any(NumberOrText(std::marker::PhantomData))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
        deserializer.deserialize_any(NumberOrText(std::marker::PhantomData))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sizes_take_the_usual_units() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("1KiB", 1024),
            ("1MiB", 1 << 20),
            ("2 GiB", 2 << 30),
            ("500MB", 500_000_000),
            ("8m", 8 << 20),
        ] {
            assert_eq!(text.parse::<Size>().unwrap(), Size(bytes), "{text}");
        }
        for bad in ["", "MiB", "-1", "1.5MiB", "1XB", "99999999999TiB"] {
            assert!(bad.parse::<Size>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn durations_take_the_usual_units() {
        for (text, ms) in [("250", 250), ("100ms", 100), ("5s", 5_000), ("2m", 120_000)] {
            assert_eq!(text.parse::<Span>().unwrap(), Span(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["5 parsecs", "10001h", "18446744073709551615"] {
            assert!(bad.parse::<Span>().is_err(), "{bad:?}");
        }
    }
}
