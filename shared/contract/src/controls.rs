//! What a request says about sampling, the answer's form and log-probabilities, checked.

use std::collections::BTreeMap;

use crate::{
    form::{FormatKind, JsonSchema, MAX_REGEX_BYTES, MAX_SCHEMA_BYTES, ResponseFormat, StructuredOutputs},
    outcome::Failure,
    request::{Request, invalid},
    sampling::{Constraint, MAX_TOP_LOGPROBS, Sampling},
    schema,
};

/// Entries that `logit_bias` may have.
pub const MAX_LOGIT_BIAS: usize = 1_024;
impl Request {
    /// The sampling parameters, without the seed.
    pub(crate) fn sampling(&self) -> Result<Sampling, Failure> {
        let none = Sampling::GREEDY;
        Ok(Sampling {
            temperature: within("temperature", self.temperature, none.temperature, 0.0..=2.0)?,
            top_k: self.top_k.unwrap_or(none.top_k),
            top_p: above_zero("top_p", self.top_p, none.top_p, 1.0)?,
            min_p: within("min_p", self.min_p, none.min_p, 0.0..=1.0)?,
            repetition_penalty: above_zero(
                "repetition_penalty",
                self.repetition_penalty,
                none.repetition_penalty,
                10.0,
            )?,
            presence_penalty: within("presence_penalty", self.presence_penalty, none.presence_penalty, -2.0..=2.0)?,
            frequency_penalty: within("frequency_penalty", self.frequency_penalty, none.frequency_penalty, -2.0..=2.0)?,
            logit_bias: logit_bias(self.logit_bias.as_ref())?,
            constraint: self.constraint()?,
            logprobs: self.told_logprobs()?,
            seed: none.seed,
        })
    }

    fn told_logprobs(&self) -> Result<Option<u32>, Failure> {
        let told = self.logprobs == Some(true);
        match self.top_logprobs {
            None => Ok(told.then_some(0)),
            Some(count) if count > MAX_TOP_LOGPROBS => {
                Err(invalid(format!("top_logprobs: expected 0 to {MAX_TOP_LOGPROBS}, found {count}")))
            }
            Some(count) if told => Ok(Some(count)),
            Some(0) => Ok(None),
            Some(_) => {
                Err(invalid("top_logprobs: expected `logprobs` to be true with it, found that it is not".into()))
            }
        }
    }

    fn constraint(&self) -> Result<Option<Constraint>, Failure> {
        let format = match &self.response_format {
            None => None,
            Some(format) => format.constraint()?,
        };
        let regex = match &self.structured_outputs {
            None => None,
            Some(StructuredOutputs { regex }) if (1..=MAX_REGEX_BYTES).contains(&regex.len()) => {
                Some(Constraint::Regex(regex.clone()))
            }
            Some(StructuredOutputs { regex }) => {
                let found = regex.len();
                let message = format!("structured_outputs.regex: expected 1 to {MAX_REGEX_BYTES} bytes, found {found}");
                return Err(invalid(message));
            }
        };
        match (format, regex) {
            (Some(_), Some(_)) => {
                Err(invalid("structured_outputs: expected no other form with `response_format`, found both".into()))
            }
            (format, regex) => Ok(format.or(regex)),
        }
    }
}

impl ResponseFormat {
    /// Whether Baton's own models can follow it.
    pub fn can_be_followed(&self) -> bool {
        self.constraint().is_ok()
    }

    fn constraint(&self) -> Result<Option<Constraint>, Failure> {
        let refused = |expected: &str, found: String| {
            Err(invalid(format!("response_format.json_schema{expected}, found {found}")))
        };
        match (self.kind, &self.json_schema) {
            (FormatKind::Text, None) => Ok(None),
            (FormatKind::JsonObject, None) => Ok(Some(Constraint::JsonObject)),
            (FormatKind::JsonSchema, None) => refused(": expected an object with a `schema`", "none".into()),
            (FormatKind::JsonSchema, Some(JsonSchema { schema, strict, .. })) if schema.is_object() => {
                let mut schema = schema.clone();
                if *strict == Some(true) {
                    schema::close(&mut schema)
                        .map_err(|message| invalid(format!("response_format.json_schema.schema: {message}")))?;
                }
                let constraint = Constraint::schema(&schema);
                match &constraint {
                    Constraint::JsonSchema(text) if text.len() > MAX_SCHEMA_BYTES => {
                        refused(&format!(".schema: expected at most {MAX_SCHEMA_BYTES} bytes"), text.len().to_string())
                    }
                    _ => Ok(Some(constraint)),
                }
            }
            (FormatKind::JsonSchema, Some(_)) => refused(".schema: expected an object", "another value".into()),
            (_, Some(_)) => refused(": expected it with type \"json_schema\" only", "another type".into()),
        }
    }
}

fn within(name: &str, value: Option<f32>, default: f32, range: std::ops::RangeInclusive<f32>) -> Result<f32, Failure> {
    let value = value.unwrap_or(default);
    if range.contains(&value) {
        Ok(value)
    } else {
        Err(invalid(format!("{name}: expected {} to {}, found {value}", range.start(), range.end())))
    }
}

fn above_zero(name: &str, value: Option<f32>, default: f32, most: f32) -> Result<f32, Failure> {
    let value = value.unwrap_or(default);
    if value > 0.0 && value <= most {
        Ok(value)
    } else {
        Err(invalid(format!("{name}: expected above 0 and up to {most}, found {value}")))
    }
}

/// Token ids, ascending, and their biases.
fn logit_bias(given: Option<&BTreeMap<String, f32>>) -> Result<Vec<(u32, f32)>, Failure> {
    let Some(given) = given else { return Ok(Vec::new()) };
    if given.len() > MAX_LOGIT_BIAS {
        return Err(invalid(format!("logit_bias: expected at most {MAX_LOGIT_BIAS} tokens, found {}", given.len())));
    }
    let mut biases = given
        .iter()
        .map(|(key, &bias)| {
            // "007" and "+7" would be second names of token 7.
            let token = key.parse::<u32>().ok().filter(|token| token.to_string() == *key);
            let token =
                token.ok_or_else(|| invalid(format!("logit_bias: expected token ids as keys, found {key:?}")))?;
            within(&format!("logit_bias.{token}"), Some(bias), 0.0, -100.0..=100.0).map(|bias| (token, bias))
        })
        .collect::<Result<Vec<_>, _>>()?;
    biases.sort_unstable_by_key(|&(token, _)| token);
    Ok(biases)
}
