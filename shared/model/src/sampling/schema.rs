//! What is refused of a JSON schema before it is compiled: the compiler bounds most of its work, but not all.
//!
//! Each bound here stands for a schema of a few hundred bytes that took gigabytes or minutes (llguidance 1.9.1).

use serde_json::Value;

/// Objects and lists in a schema.
const MAX_NODES: usize = 2_000;
/// A `multipleOf` is followed by counting remainders, one state each; several of one number by those of their least
/// common multiple.
const MAX_MULTIPLE: u128 = 20_000;
/// Digits after the point that a `multipleOf` may have.
const MAX_DECIMALS: u32 = 6;
/// Patterns and formats that one text might have to match at once: the work is exponential in their number.
const MAX_MERGED_PATTERNS: usize = 4;

/// Keywords whose schemas are about the same value as the schema they are in.
const COMBINING: [&str; 4] = ["allOf", "anyOf", "oneOf", "$ref"];
/// Keywords that are about a value's parts or text.
const DESCRIBING: [&str; 8] = [
    "pattern",
    "format",
    "properties",
    "patternProperties",
    "additionalProperties",
    "propertyNames",
    "items",
    "prefixItems",
];

/// Says what is wrong with a schema, if anything is.
pub(super) fn refusal(schema: &Value) -> Option<String> {
    let mut found = Found::default();
    let mut waiting = vec![schema];
    while let Some(value) = waiting.pop() {
        match value {
            Value::Object(fields) => {
                found.nodes += 1;
                found.patterns += ["pattern", "format"].iter().filter(|key| fields.contains_key(**key)).count();
                let combining = COMBINING.iter().filter(|key| fields.contains_key(**key)).count();
                let describes = DESCRIBING.iter().any(|key| fields.contains_key(*key));
                found.merges |= fields.contains_key("allOf") || combining + usize::from(describes) > 1;
                found.multiples.extend(fields.get("multipleOf").and_then(Value::as_f64));
                waiting.extend(fields.values());
            }
            Value::Array(items) => {
                found.nodes += 1;
                waiting.extend(items);
            }
            _ => {}
        }
    }
    found.refusal()
}

#[derive(Default)]
struct Found {
    nodes: usize,
    /// Patterns and formats.
    patterns: usize,
    /// Whether several schemas may be about one value, all of which it must fit.
    merges: bool,
    multiples: Vec<f64>,
}

impl Found {
    fn refusal(&self) -> Option<String> {
        if self.nodes > MAX_NODES {
            return Some(format!("expected at most {MAX_NODES} objects and lists, found {}", self.nodes));
        }
        if self.merges && self.patterns > MAX_MERGED_PATTERNS {
            return Some(format!(
                "expected at most {MAX_MERGED_PATTERNS} of `pattern` and `format` in a schema that combines others for \
                 one value (as `allOf` does), found {}",
                self.patterns
            ));
        }
        let unit = 10f64.powi(MAX_DECIMALS as i32);
        let mut common = 1;
        for &multiple in &self.multiples {
            let scaled = multiple * unit;
            let near = scaled.round();
            // Not exact: what a decimal number is in binary is off by less than this.
            if !((1.0..1e15).contains(&near) && (scaled - near).abs() < 1e-6 * near) {
                return Some(format!(
                    "multipleOf: expected above 0 and at most {MAX_DECIMALS} decimals, found {multiple}"
                ));
            }
            common = least_common_multiple(common, near as u128);
        }
        // In units of the last decimal that is needed.
        let decimals = self.multiples.iter().map(|&multiple| decimals(multiple)).max().unwrap_or(0);
        let common = common / 10u128.pow(MAX_DECIMALS - decimals);
        (common > MAX_MULTIPLE).then(|| {
            format!(
                "multipleOf: expected a least common multiple of all in the schema of at most {MAX_MULTIPLE} units of \
                 the last decimal, found {common}"
            )
        })
    }
}

fn decimals(multiple: f64) -> u32 {
    let scaled = |decimals: u32| multiple * 10f64.powi(decimals as i32);
    (0..MAX_DECIMALS)
        .find(|&decimals| (scaled(decimals) - scaled(decimals).round()).abs() < 1e-9)
        .unwrap_or(MAX_DECIMALS)
}

/// At most `u128::MAX`.
fn least_common_multiple(a: u128, b: u128) -> u128 {
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    (a / x.max(1)).saturating_mul(b)
}
