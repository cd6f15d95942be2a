//! Sizes in bytes, as people write them.

use std::fmt;

use baton_contract::size;
use serde::{Serialize, Serializer};

/// A size in bytes: `2GiB` as a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl Bytes {
    /// Reads a whole number of `KiB`, `MiB`, `GiB` or `TiB`, from 1 MiB to 1,024 TiB.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        // Between number and unit there may be spaces.
        let (number, unit) = text.trim().split_at_checked(text.trim().len().checked_sub(3)?)?;
        let (count, (_, unit)) = size::parse(&format!("{}{unit}", number.trim_end()), size::BINARY)?;
        let bytes = count * unit;
        (1 << 20..=1 << 50).contains(&bytes).then_some(Self(bytes))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = size::BINARY.into_iter().find(|(_, bytes)| self.0 > 0 && self.0.is_multiple_of(*bytes));
        match unit {
            Some((unit, bytes)) => write!(f, "{}{unit}", self.0 / bytes),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them_or_not_at_all() {
        let found = ["2GiB", " 3 MiB ", "1024TiB", "2049KiB"].map(|text| Bytes::parse(text).unwrap().0);
        assert_eq!(found, [2 << 30, 3 << 20, 1 << 50, 2049 << 10]);
        for text in ["", "2", "2GB", "-1GiB", "0.5GiB", "1023KiB", "1025TiB", "99999999999999999999TiB", "GiB"] {
            assert_eq!(Bytes::parse(text), None, "{text:?}");
        }
    }
}
