//! Sizes of caches, as people write them.

use std::{fmt, str::FromStr};

use serde::{Serialize, Serializer};

/// What may follow the number, and how many bytes that is; of blocks somebody else must say.
const UNITS: [(&str, Option<u64>); 9] = [
    ("KB", Some(1_000)),
    ("MB", Some(1_000_000)),
    ("GB", Some(1_000_000_000)),
    ("TB", Some(1_000_000_000_000)),
    ("KiB", Some(1 << 10)),
    ("MiB", Some(1 << 20)),
    ("GiB", Some(1 << 30)),
    ("TiB", Some(1 << 40)),
    ("blocks", None),
];

/// The size of a cache: `10GB`, `512MiB` or `5000blocks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    count: u64,
    unit: &'static str,
    unit_bytes: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected a whole number of KB, MB, GB, TB, KiB, MiB, GiB, TiB or blocks, such as 10GB or 5000blocks, found {0:?}"
)]
pub struct ParseSizeError(String);

impl Size {
    /// In bytes, where a whole block has so many.
    pub fn bytes(&self, block_bytes: u64) -> u64 {
        self.count.saturating_mul(self.unit_bytes.unwrap_or(block_bytes))
    }
}

impl FromStr for Size {
    type Err = ParseSizeError;

    fn from_str(text: &str) -> Result<Self, ParseSizeError> {
        let size = UNITS.into_iter().find_map(|(unit, unit_bytes)| {
            let count = text.strip_suffix(unit)?.parse().ok()?;
            let fits = count > 0 && u64::checked_mul(count, unit_bytes.unwrap_or(1)).is_some();
            fits.then_some(Self { count, unit, unit_bytes })
        });
        size.ok_or_else(|| ParseSizeError(text.to_owned()))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.count, self.unit)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_written_or_not_at_all() {
        for (text, bytes) in [("10GB", 10_000_000_000), ("3MiB", 3 << 20), ("2TB", 2_000_000_000_000), ("7blocks", 70)]
        {
            let size: Size = text.parse().unwrap();
            assert_eq!((size.bytes(10), size.to_string().as_str()), (bytes, text));
        }
        for text in ["", "10", "GB", "0GB", "0blocks", "-1GB", "1.5TB", "10 GB", "99999999999TB", "5block"] {
            assert_eq!(text.parse::<Size>(), Err(ParseSizeError(text.to_owned())));
        }
    }
}
