//! Sizes, as people write them.

/// A unit of sizes: its name, and its bytes.
pub type Unit = (&'static str, u64);

/// Powers of 1024, the largest first.
pub const BINARY: [Unit; 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
/// Powers of 1000, the largest first.
pub const DECIMAL: [Unit; 4] = [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("KB", 1_000)];

/// Reads a whole number and one of some units, as in `2GiB`; nothing where it is another text, or more than a `u64` of bytes.
pub fn parse(text: &str, units: impl IntoIterator<Item = Unit>) -> Option<(u64, Unit)> {
    let (number, unit) = units.into_iter().find_map(|unit| Some((text.strip_suffix(unit.0)?, unit)))?;
    let count: u64 = number.parse().ok()?;
    count.checked_mul(unit.1).map(|_| (count, unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_a_whole_number_of_a_unit() {
        let read = |text: &str| parse(text, BINARY.into_iter().chain(DECIMAL)).map(|(count, (_, bytes))| count * bytes);
        for (text, bytes) in [("2GiB", 2 << 30), ("0KiB", 0), ("10GB", 10_000_000_000), ("7KB", 7_000)] {
            assert_eq!(read(text), Some(bytes), "{text}");
        }
        for text in ["", "2", "GiB", "-1GiB", "0.5GiB", "1 GiB", "1gib", "99999999999TB"] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(parse("2GB", BINARY), None);
    }
}
