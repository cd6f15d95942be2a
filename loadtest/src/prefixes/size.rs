//! Sizes of caches, as people write them.

use std::{fmt, str::FromStr};

use baton_contract::size::{self, Unit};
use serde::{Serialize, Serializer};

/// The unit whose bytes another option says.
const BLOCKS: Unit = ("blocks", 1);

/// The size of a cache: `10GB`, `512MiB` or `5000blocks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    count: u64,
    unit: Unit,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected a whole number of KB, MB, GB, TB, KiB, MiB, GiB, TiB or blocks, such as 10GB or 5000blocks, found {0:?}"
)]
pub struct ParseSizeError(String);

impl Size {
    /// In bytes, where a whole block has so many.
    pub fn bytes(&self, block_bytes: u64) -> u64 {
        let bytes = if self.unit == BLOCKS { block_bytes } else { self.unit.1 };
        self.count.saturating_mul(bytes)
    }
}

impl FromStr for Size {
    type Err = ParseSizeError;

    fn from_str(text: &str) -> Result<Self, ParseSizeError> {
        let size = size::parse(text, size::BINARY.into_iter().chain(size::DECIMAL).chain([BLOCKS]));
        let size = size.filter(|(count, _)| *count > 0).map(|(count, unit)| Self { count, unit });
        size.ok_or_else(|| ParseSizeError(text.to_owned()))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.count, self.unit.0)
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
