//! The way back from a job to a request.

use std::{
    collections::BTreeMap,
    time::{Duration, UNIX_EPOCH},
};

use serde_json::Value;

use super::Job;
use crate::{
    request::{Deadline, FormatKind, JsonSchema, Prompt, Request, ResponseFormat, Stop, StructuredOutputs},
    sampling::{Constraint, Sampling},
};

impl Job {
    /// The request that says what the job says; its prompt is token ids.
    pub fn into_request(self) -> Request {
        let Sampling {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            logit_bias,
            constraint,
            logprobs,
            seed,
        } = self.sampling;
        let format = |kind, json_schema| Some(ResponseFormat { kind, json_schema });
        let (response_format, structured_outputs) = match constraint {
            None => (None, None),
            Some(Constraint::JsonObject) => (format(FormatKind::JsonObject, None), None),
            Some(Constraint::JsonSchema(text)) => {
                let schema = serde_json::from_str(&text).unwrap_or(Value::String(text));
                let schema = JsonSchema { schema, name: None, description: None, strict: None };
                (format(FormatKind::JsonSchema, Some(schema)), None)
            }
            Some(Constraint::Regex(regex)) => (None, Some(StructuredOutputs { regex })),
        };
        let logit_bias: BTreeMap<_, _> =
            logit_bias.into_iter().map(|(token, bias)| (token.to_string(), bias)).collect();
        Request {
            id: Some(self.id.into()),
            model: Some(self.model.into()),
            messages: None,
            prompt: Some(Prompt::Tokens(self.prompt)),
            max_tokens: Some(self.max_tokens),
            temperature: Some(temperature),
            top_p: Some(top_p),
            top_k: Some(top_k),
            min_p: Some(min_p),
            repetition_penalty: Some(repetition_penalty),
            presence_penalty: Some(presence_penalty),
            frequency_penalty: Some(frequency_penalty),
            logit_bias: (!logit_bias.is_empty()).then_some(logit_bias),
            logprobs: logprobs.map(|_| true),
            top_logprobs: logprobs,
            response_format,
            structured_outputs,
            seed: Some(seed),
            n: Some(self.samples),
            stop: (!self.stop.is_empty()).then_some(Stop::Many(self.stop)),
            lane: Some(self.lane.into()),
            deadline: self.deadline_ms.map(|deadline| Deadline::At(time(deadline))),
            metadata: self.metadata,
            engine: serde_json::Map::new(),
        }
    }
}

fn time(unix_ms: u64) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(unix_ms)).to_string()
}
