//! Line and column of a field.
//!
//! The YAML reader tells the place of an error but not of a value. So the text is read once more by a visitor that follows
//! the path and fails on purpose when it has arrived; the error then carries the place.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// One step into the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

/// A field of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Place(Vec<Step>);

impl Place {
    pub(super) fn root() -> Self {
        Self::default()
    }

    /// The field `name` below this one.
    pub(super) fn key(&self, name: &str) -> Self {
        self.step(Step::Key(name.to_owned()))
    }

    /// The entry `index` below this one.
    pub(super) fn index(&self, index: usize) -> Self {
        self.step(Step::Index(index))
    }

    fn step(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) if key.contains(['/', '.', ' ']) => write!(f, "[{key:?}]")?,
                Step::Key(key) if position == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
            }
        }
        Ok(())
    }
}

/// Line and column, both from 1, of the value at `place` or of the nearest value around it.
pub(super) fn locate(text: &str, place: &Place) -> Option<(usize, usize)> {
    let walk = Walk { steps: &place.0 };
    let error = walk.deserialize(serde_yaml_ng::Deserializer::from_str(text)).err()?;
    let location = error.location()?;
    Some((location.line(), location.column()))
}

/// Always fails; the place of the failure is the answer.
struct Walk<'a> {
    steps: &'a [Step],
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

fn arrived<T, E: Error>() -> Result<T, E> {
    Err(E::custom("arrived"))
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        if let Some((Step::Key(wanted), rest)) = self.steps.split_first() {
            while let Some(Scalar(key)) = map.next_key()? {
                if key == *wanted {
                    return map.next_value_seed(Walk { steps: rest });
                }
                map.next_value::<IgnoredAny>()?;
            }
        }
        arrived()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        if let Some((Step::Index(wanted), rest)) = self.steps.split_first() {
            for _ in 0..*wanted {
                if seq.next_element::<IgnoredAny>()?.is_none() {
                    return arrived();
                }
            }
            if seq.next_element_seed(Walk { steps: rest })?.is_some() {
                return Ok(());
            }
        }
        arrived()
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        arrived()
    }
    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        arrived()
    }
    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        arrived()
    }
    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        arrived()
    }
    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        arrived()
    }
    fn visit_unit<E: Error>(self) -> Result<(), E> {
        arrived()
    }
}

/// A mapping key as text.
struct Scalar(String);

impl<'de> serde::Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Scalar;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_bool<E: Error>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }
            fn visit_i64<E: Error>(self, value: i64) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }
            fn visit_u64<E: Error>(self, value: u64) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }
            fn visit_f64<E: Error>(self, value: f64) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }
            fn visit_str<E: Error>(self, value: &str) -> Result<Scalar, E> {
                Ok(Scalar(value.to_owned()))
            }
            fn visit_unit<E: Error>(self) -> Result<Scalar, E> {
                Ok(Scalar("null".to_owned()))
            }
        }
        deserializer.deserialize_any(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_found_in_block_and_flow_style() {
        let text = "a:\n  - {x: 1, y: [true, two]}\n  - x: {80: q}\nb: end\n";
        let a = Place::root().key("a");
        let rows = [
            (Place::root().key("b"), (4, 4)),
            (a.index(0).key("x"), (2, 9)),
            (a.index(0).key("y").index(1), (2, 22)),
            (a.index(1).key("x").key("80"), (3, 13)),
            // What is missing is reported where it should be.
            (a.index(0).key("z"), (2, 5)),
        ];
        for (place, expected) in rows {
            assert_eq!(locate(text, &place), Some(expected), "{place}");
        }
        assert!(locate(text, &a.index(7)).is_some());
        assert_eq!(locate(": :", &a), locate(": :", &Place::root()));
    }

    #[test]
    fn places_are_written_as_in_the_file() {
        let place = Place::root().key("workloads").index(3).key("services").key("ns/web.x");
        assert_eq!(place.to_string(), "workloads[3].services[\"ns/web.x\"]");
    }
}
