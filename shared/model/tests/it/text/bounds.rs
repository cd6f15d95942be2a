//! Numbers keep to the bounds of their schema, whatever these are.

use baton_contract::sampling::Sampling;
use baton_model::generation::{Error, Generation};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::constraint::{BYTES_GENERATOR, job, schema};

/// Numbers are counted in units of 1/10000, so that the test itself doesn't round.
const UNITS: i64 = 10_000;

/// A bound and whether it is excluded.
type Bound = Option<(i64, bool)>;

#[derive(Clone, Debug)]
struct Numbers {
    integer: bool,
    lower: Bound,
    upper: Bound,
    multiple: Option<i64>,
    /// Whether the bounds stand in different schemas about the number.
    apart: bool,
}

impl Numbers {
    fn schema(&self) -> Value {
        let bound = |bound: Bound, included: &str, excluded: &str| {
            let named = |(at, out): (i64, bool)| (if out { excluded } else { included }.to_owned(), number(at));
            bound.map(named).into_iter().collect::<Map<_, _>>()
        };
        let lower = bound(self.lower, "minimum", "exclusiveMinimum");
        let upper = bound(self.upper, "maximum", "exclusiveMaximum");
        let mut schema = Map::from_iter([("type".to_owned(), json!(if self.integer { "integer" } else { "number" }))]);
        schema.extend(self.multiple.map(|multiple| ("multipleOf".to_owned(), number(multiple))));
        if self.apart {
            schema.insert("allOf".to_owned(), json!([lower, upper]));
        } else {
            schema.extend(lower.into_iter().chain(upper));
        }
        Value::Object(schema)
    }

    fn holds(&self, value: i64) -> bool {
        self.lower.is_none_or(|(at, out)| value > at || (value == at && !out))
            && self.upper.is_none_or(|(at, out)| value < at || (value == at && !out))
            && (!self.integer || value % UNITS == 0)
            && self.multiple.is_none_or(|multiple| value % multiple == 0)
    }

    /// Whether no number holds; what is between two units counts, too.
    fn is_empty(&self) -> bool {
        let (Some((lower, below)), Some((upper, above))) = (self.lower, self.upper) else { return false };
        if self.integer || self.multiple.is_some() {
            return !(lower..=upper).any(|value| self.holds(value));
        }
        lower > upper || (lower == upper && (below || above))
    }
}

/// Units as a JSON number: whole ones as an integer.
fn number(units: i64) -> Value {
    text(units).parse().expect("a number")
}

/// Units as they are usually written, without zeros at the end.
fn text(units: i64) -> String {
    let (whole, part) = (units.abs() / UNITS, units.abs() % UNITS);
    let sign = if units < 0 { "-" } else { "" };
    let decimals = format!("{part:04}");
    match decimals.trim_end_matches('0') {
        "" => format!("{sign}{whole}"),
        decimals => format!("{sign}{whole}.{decimals}"),
    }
}

/// Units as they are usually written, and with any number of zeros behind.
fn spellings(units: i64) -> Vec<String> {
    let usual = text(units);
    let point = usual.find('.').unwrap_or(usual.len());
    let padded = format!("{}{}.{:04}", if units < 0 { "-" } else { "" }, units.abs() / UNITS, units.abs() % UNITS);
    let longer = (point + 2..=padded.len()).filter(|end| *end > usual.len()).map(|end| padded[..end].to_owned());
    longer.chain([usual.clone()]).collect()
}

fn start(schema_of: &Value) -> Result<Generation, Error> {
    BYTES_GENERATOR.start(&job(Sampling { constraint: Some(schema(schema_of.clone())), ..Sampling::GREEDY }), 0)
}

/// Whether an answer may be this text.
fn takes(schema: &Value, text: &str) -> bool {
    let mut answer = start(schema).expect("a good schema");
    let mut tokens = text.bytes().map(u32::from).chain([256]);
    tokens.all(|token| answer.accept(token, None).is_ok())
}

fn bound() -> impl Strategy<Value = Bound> {
    let parts = prop::sample::select(vec![0, 0, 0, 5_000, 2_500, 1_000, 1, -1, 9_999, -5_000, -10, 1_234]);
    let at = (-12i64..12, parts).prop_map(|(whole, part)| whole * UNITS + part);
    prop::option::weighted(0.85, (at, any::<bool>()))
}

/// Mostly ranges that are less than 1 wide, where llguidance needs help. Multiples are of whole numbers: of others it takes some in no
/// spelling, and refuses some ranges.
fn numbers() -> impl Strategy<Value = Numbers> {
    let width = prop::sample::select(vec![0, 0, 1, 10, 1_000, 2_500, 5_000, 5_000, 9_999, 10_000, 15_000]);
    let multiple = prop::option::weighted(0.3, prop::sample::select(vec![UNITS, 2 * UNITS, 3 * UNITS]));
    let near = (bound(), width, any::<bool>());
    (any::<[bool; 3]>(), near, bound(), multiple).prop_map(|([integer, apart, narrow], near, upper, multiple)| {
        let (lower, width, out) = near;
        let narrow = narrow.then(|| lower.map(|(at, _)| (at + width, out))).flatten();
        Numbers { integer: integer && multiple.is_none(), lower, upper: narrow.or(upper), multiple, apart }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn numbers_near_bounds_are_taken_if_they_hold(numbers in numbers()) {
        let schema = numbers.schema();
        if numbers.is_empty() {
            prop_assert!(start(&schema).is_err(), "{schema} has no number");
            return Ok(());
        }
        for (at, _) in [numbers.lower, numbers.upper, Some((0, false))].into_iter().flatten() {
            let whole = at.div_euclid(UNITS) * UNITS;
            let near = [-UNITS, -2_500, -10, -1, 0, 1, 10, 2_500, UNITS].map(|step| at + step);
            for value in near.into_iter().chain([whole, whole + UNITS]) {
                // Of a number that holds one spelling is enough: llguidance wants zeros at the end of some.
                let taken = spellings(value).iter().any(|text| takes(&schema, text));
                prop_assert_eq!(taken, numbers.holds(value), "{} in {}", text(value), &schema);
            }
        }
    }
}

#[test]
fn bounds_of_any_kind_hold() {
    let cases: &[(Value, &[&str], &[&str])] = &[
        (json!({ "exclusiveMinimum": 0, "maximum": 0.5 }), &["0.0000001", "0.5", "0.25"], &["0", "0.0", "-0", "0.51"]),
        (json!({ "minimum": -0.5, "exclusiveMaximum": 0 }), &["-0.5", "-0.000001"], &["-0", "0", "-0.0"]),
        (
            json!({ "exclusiveMinimum": true, "minimum": 9, "maximum": 9.5 }),
            &["9.1", "9.000001"],
            &["9", "9.0", "9.00"],
        ),
        (json!({ "minimum": 9.25, "exclusiveMinimum": 9, "maximum": 9.5 }), &["9.25", "9.5"], &["9.1", "9"]),
        (json!({ "minimum": 8, "exclusiveMinimum": 9, "maximum": 9.5 }), &["9.25"], &["9", "8.5"]),
        // Above 2^53 not every integer is a double.
        (
            json!({ "type": "integer", "exclusiveMinimum": 9007199254740992u64 }),
            &["9007199254740994"],
            &["9007199254740992"],
        ),
        (json!({ "type": "integer", "minimum": 9007199254740993u64 }), &["9007199254740994"], &["9007199254740992"]),
        (json!({ "type": "integer", "maximum": -9007199254740993i64 }), &["-9007199254740994"], &["-9007199254740992"]),
        // What looks like a schema and is none.
        (
            json!({ "const": { "exclusiveMinimum": 0, "maximum": 0.5 } }),
            &[r#"{"exclusiveMinimum":0,"maximum":0.5}"#],
            &["0"],
        ),
    ];
    for (schema, good, bad) in cases {
        let mut schema = schema.clone();
        if schema.get("const").is_none() && schema.get("type").is_none() {
            schema["type"] = json!("number");
        }
        for text in *good {
            assert!(takes(&schema, text), "{text} in {schema}");
        }
        for text in *bad {
            assert!(!takes(&schema, text), "{text} in {schema}");
        }
    }
}

#[test]
fn ranges_without_a_number_are_refused_in_words() {
    for numbers in [
        json!({ "type": "number", "exclusiveMinimum": 0, "maximum": 0 }),
        json!({ "type": "number", "minimum": 0.5, "exclusiveMaximum": 0.5 }),
        json!({ "type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 2 }),
        json!({ "type": "number", "exclusiveMinimum": 0.3, "maximum": 0.35, "multipleOf": 0.1 }),
        json!({ "type": "integer", "minimum": 1, "maximum": 2, "multipleOf": 1.5 }),
    ] {
        let schema = json!({ "type": "object", "properties": { "v": numbers }, "required": ["v"] });
        let message = start(&schema).err().expect("it is refused").failure().message;
        assert!(message.contains("nsatisfiable"), "{schema}: {message}");
    }
}
