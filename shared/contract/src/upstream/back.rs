//! The way back from what an engine is asked to a request.

use serde_json::{Map, Value, json};

use super::{Ask, ask::OWN};
use crate::{job::Job, request::Request};

impl Ask {
    /// The request by which the job asks the same again. What was put into the engine's own words stays in them.
    pub fn to_request(&self, job: Job) -> Request {
        let of_job = job.into_request();
        let mut body = self.object();
        if !self.chat
            && let Some(count) = body.remove("logprobs")
        {
            body.insert("logprobs".into(), json!(true));
            body.insert("top_logprobs".into(), count);
        }
        if let Some(seed) = body.get("seed").and_then(Value::as_i64) {
            body.insert("seed".into(), json!(seed as u64));
        }
        if body.get("top_k") == Some(&json!(-1)) {
            body.insert("top_k".into(), json!(0));
        }
        let own = |name: &str| OWN.contains(&name) || matches!(name, "messages" | "prompt");
        let (own, engine): (Map<_, _>, Map<_, _>) = body.into_iter().partition(|(name, _)| own(name));
        // It was written from a request.
        let asked: Request = serde_json::from_value(own.into()).unwrap_or_default();
        let Request { id, model, lane, deadline, metadata, .. } = of_job;
        Request { id, model, lane, deadline, metadata, engine, ..asked }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Name, sampling::Sampling, upstream::Engine};

    #[test]
    fn a_job_that_is_asked_again_asks_the_same() {
        let name = |text| Name::new(text).unwrap();
        let job = Job {
            id: crate::JobId::new("j").unwrap(),
            tenant: name("acme"),
            lane: name("batch"),
            model: name("m"),
            prompt: Vec::new(),
            max_tokens: 3,
            samples: 1,
            sampling: Sampling::GREEDY,
            stop: Vec::new(),
            deadline_ms: None,
            metadata: [("k".to_owned(), "v".to_owned())].into(),
            request_digest: String::new(),
        };
        for request in [
            json!({ "messages": [{ "role": "tool", "content": "7", "tool_call_id": "c" }], "temperature": 0.7, "top_k": 0,
                "seed": u64::MAX, "repetition_penalty": 1.5, "logprobs": true, "engine": { "tools": [{ "type": "function",
                "function": { "name": "f" } }], "tool_choice": { "type": "function", "function": { "name": "f" } } } }),
            json!({ "prompt": [1, 2], "logprobs": true, "stop": ["x"], "engine": { "guided_choice": ["a"] } }),
        ] {
            let request: Request = serde_json::from_value(request).unwrap();
            for engine in Engine::ALL {
                let ask = Ask::of(&request, engine).unwrap();
                let again = ask.to_request(job.clone());
                assert_eq!(Ask::of(&again, engine).unwrap().object(), ask.object(), "{engine}");
                assert_eq!((again.id.as_deref(), again.metadata["k"].as_str()), (Some("j"), "v"));
            }
        }
    }
}
