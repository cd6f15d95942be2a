//! Sizes in bytes, as people write them.

use std::fmt;

use serde::{Serialize, Serializer};

const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];

/// A size in bytes: `2GiB` as a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl Bytes {
    /// Reads a whole number of `KiB`, `MiB`, `GiB` or `TiB`, from 1 MiB to 1,024 TiB.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let (number, shift) = UNITS.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)))?;
        let number: u64 = number.trim_end().parse().ok()?;
        let bytes = number.checked_mul(1 << shift)?;
        (1 << 20..=1 << 50).contains(&bytes).then_some(Self(bytes))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS.iter().find(|(_, shift)| self.0 > 0 && self.0.is_multiple_of(1 << shift));
        match unit {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
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
