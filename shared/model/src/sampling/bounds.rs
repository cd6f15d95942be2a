//! Bounds of numbers that llguidance (1.9.1) would not keep to are said in another way.
//!
//! Where a number's integer part is certain, as between 0 and 0.5, it takes an excluded bound that is an integer for one that
//! is included: such a bound becomes the nearest number beyond. It reads bounds as `f64`: an integer that is none becomes the
//! nearest inside.

use baton_contract::schema::for_each;
use serde_json::{Map, Number, Value};

/// Numbers that are nearer to an excluded zero than this share of the range are not said: each further digit is one more
/// level of the expression, of which 250 are taken.
const NEAREST: f64 = 1e-40;

/// An end of a range: the lower one, or the upper one as the lower one of the negated numbers.
#[derive(Clone, Copy)]
struct End {
    included: &'static str,
    excluded: &'static str,
    sign: f64,
}

const LOWER: End = End { included: "minimum", excluded: "exclusiveMinimum", sign: 1.0 };
const UPPER: End = End { included: "maximum", excluded: "exclusiveMaximum", sign: -1.0 };

/// Rewrites the bounds in a schema that llguidance would not keep to. Says what is wrong with bounds that leave no number,
/// where llguidance would not see it.
pub(super) fn rewrite(schema: &mut Value) -> Result<(), String> {
    let mut refusal = None;
    for_each(schema, &mut |fields| refusal = refusal.take().or_else(|| without_multiple(fields)));
    if let Some(refusal) = refusal {
        return Err(refusal);
    }
    // Schemas about one value are merged, so any of these may be the other end of a range.
    let (mut lower, mut upper) = (Vec::new(), Vec::new());
    for_each(schema, &mut |fields| {
        for (end, found) in [(LOWER, &mut lower), (UPPER, &mut upper)] {
            found.extend([end.included, end.excluded].iter().filter_map(|key| fields.get(*key)?.as_f64()));
            let listed = fields.get("enum").and_then(Value::as_array).into_iter().flatten();
            found.extend(listed.chain(fields.get("const")).filter_map(Value::as_f64));
        }
    });
    for_each(schema, &mut |fields| {
        LOWER.rewrite(fields, &upper);
        UPPER.rewrite(fields, &lower);
    });
    Ok(())
}

/// Says that no multiple is within a number's bounds. It is counted in billionths: binary fractions would be off.
fn without_multiple(fields: &Map<String, Value>) -> Option<String> {
    let whole = match fields.get("type")?.as_str()? {
        "integer" => true,
        "number" => false,
        _ => return None,
    };
    let billionths = |key: &str| {
        let scaled = fields.get(key)?.as_f64()? * BILLION as f64;
        let near = scaled.round();
        (near.abs() < MAX_EXACT && (scaled - near).abs() <= 1e-6).then_some(near as i128)
    };
    let step = billionths("multipleOf").map(i128::abs).filter(|step| *step > 0)?;
    let step = if whole { step / greatest_common_divisor(step, BILLION) * BILLION } else { step };
    let [least, most] = [LOWER, UPPER].map(|end| {
        let excluded = billionths(end.excluded).map(|bound| bound + end.sign as i128);
        let bounds = [billionths(end.included), excluded].into_iter().flatten();
        bounds.max_by_key(|bound| *bound * end.sign as i128)
    });
    let (least, most) = (least?, most?);
    let first = -(-least).div_euclid(step) * step;
    (first > most).then(|| "multipleOf: unsatisfiable, no multiple is within the bounds".to_owned())
}

const BILLION: i128 = 1_000_000_000;

fn greatest_common_divisor(mut a: i128, mut b: i128) -> i128 {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}

impl End {
    fn rewrite(self, fields: &mut Map<String, Value>, others: &[f64]) {
        let old_style = fields.get(self.excluded) == Some(&Value::Bool(true));
        let included = fields.get(self.included).and_then(Value::as_number).cloned();
        let inside = included.as_ref().and_then(|bound| self.inside(bound));
        let excluded = match fields.get(self.excluded) {
            Some(Value::Number(bound)) => Some(bound.clone()),
            // Before draft 6 of JSON Schema.
            Some(Value::Bool(true)) => included.clone(),
            _ => None,
        };
        let beyond = excluded.and_then(|bound| self.beyond(&bound, others));
        let bound = match (beyond, inside) {
            (Some(beyond), _) => {
                fields.remove(self.excluded);
                let kept = inside.or(included.and_then(|bound| bound.as_f64())).filter(|_| !old_style);
                kept.map_or(beyond, |kept| self.sign * (self.sign * kept).max(self.sign * beyond))
            }
            (None, Some(inside)) if !old_style => inside,
            _ => return,
        };
        fields.insert(self.included.to_owned(), Value::from(bound));
    }

    /// The bound to include in place of one that is excluded, if that is needed.
    fn beyond(self, bound: &Number, others: &[f64]) -> Option<f64> {
        let from = self.sign * self.inside(bound).or(bound.as_f64())?;
        let exact = self.inside(bound).is_none();
        // How far the range goes, at least.
        let distances = others.iter().map(|other| self.sign * other - from);
        let distance = distances.filter(|distance| *distance > 0.0 && *distance < 1.0).min_by(f64::total_cmp);
        match distance {
            Some(distance) if from >= 0.0 && from.fract() == 0.0 => {
                let beyond = from + distance * NEAREST;
                Some(self.sign * if beyond > from { beyond } else { from.next_up() })
            }
            // Of so large integers the next one is not the next number, or this was one already.
            _ if from.abs() >= MAX_EXACT => Some(self.sign * if exact { from.next_up() } else { from }),
            _ => None,
        }
    }

    /// The nearest number inside, if an integer is no `f64` and would be rounded to the outside.
    fn inside(self, bound: &Number) -> Option<f64> {
        let exact = bound.as_i128()?;
        let rounded = bound.as_f64()?;
        let outside = if self.sign > 0.0 { (rounded as i128) < exact } else { rounded as i128 > exact };
        outside.then(|| self.sign * (self.sign * rounded).next_up())
    }
}

/// From here on not every integer is an `f64`.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;
