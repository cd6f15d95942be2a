//! Requests to foreign engines that Baton's own models can answer in their stead.

use serde_json::Value;

use super::Ask;
use crate::{
    job::Job,
    request::{ChatMessage, Input, Prompt, messages_of},
    sampling::Constraint,
};

/// Fields that mean the same to Baton's own models; all but the prompt's are in the job, too.
const OWN: [&str; 16] = [
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "max_tokens",
    "messages",
    "min_p",
    "n",
    "presence_penalty",
    "prompt",
    "repetition_penalty",
    "seed",
    "stop",
    "temperature",
    "top_k",
    "top_logprobs",
    "top_p",
];

impl Ask {
    /// The prompt of a request that asks nothing which only its engine can do; else the field that does.
    pub fn own_input(&self, job: &Job) -> Result<Input, String> {
        let mut body = self.object();
        let (regex, is_json) = match &job.sampling.constraint {
            Some(Constraint::Regex(regex)) => (Some(Value::from(regex.as_str())), false),
            constraint => (None, constraint.is_some()),
        };
        for (name, value) in &body {
            let means_the_same = match name.as_str() {
                // Other engines' words for what is in the job.
                "max_completion_tokens" => *value == job.max_tokens,
                // The engine may have others.
                "response_format" => is_json || value["type"] == "text",
                "regex" => regex.as_ref() == Some(value),
                "structured_outputs" => {
                    regex.is_some() && value.as_object().is_some_and(|form| form.keys().eq(["regex"]))
                }
                "repeat_penalty" => true,
                "repeat_last_n" => body.contains_key("repeat_penalty"),
                name => OWN.contains(&name),
            };
            if !means_the_same {
                return Err(name.chars().take(80).collect());
            }
        }
        if let Some(messages) = body.remove("messages") {
            let messages: Vec<ChatMessage> = serde_json::from_value(messages).map_err(|_| "messages")?;
            return match messages_of(messages) {
                Input::Rich { at } => Err(at),
                input => Ok(input),
            };
        }
        let prompt = body.remove("prompt").unwrap_or_default();
        Ok(match serde_json::from_value(prompt).map_err(|_| "prompt")? {
            Prompt::Text(text) => Input::Text(text),
            Prompt::Tokens(_) => return Err("prompt".into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        JobId, Name,
        request::{self, Message},
        upstream::Engine,
    };

    /// The prompt for Baton's own models, through the request's whole way.
    fn own(request: Value, engine: Engine) -> Result<Input, String> {
        let name = |text| Name::new(text).unwrap();
        let read = request::read(request.to_string().as_bytes()).unwrap();
        let ask = Ask::of(&read, engine).unwrap();
        let most_tokens = read.most_tokens();
        let checked = read.check(&name("batch"), 0).unwrap();
        let id = JobId::new("j").unwrap();
        let max_tokens = most_tokens.unwrap_or(checked.max_tokens);
        let job = Job {
            sampling: checked.sampling(&id),
            id,
            tenant: name("acme"),
            lane: name("batch"),
            model: name("m"),
            prompt: Vec::new(),
            max_tokens,
            samples: checked.n,
            stop: checked.stop,
            deadline_ms: None,
            metadata: checked.metadata,
            request_digest: String::new(),
        };
        ask.own_input(&job)
    }

    #[test]
    fn what_baton_understands_itself_it_can_answer_itself() {
        let messages = json!([{ "role": "user", "content": "a" }]);
        let plain = Input::Messages(vec![Message { role: "user".into(), content: "a".into() }]);
        for engine in Engine::ALL {
            let all = json!({ "messages": messages, "max_tokens": 3, "temperature": 0.5, "top_p": 0.5, "top_k": 3, "min_p": 0.1,
                "repetition_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": 0.5, "logit_bias": { "7": 1 }, "logprobs": true,
                "top_logprobs": 2, "response_format": { "type": "json_object" }, "seed": 7, "n": 2, "stop": "x", "metadata": { "k": "v" } });
            assert_eq!(own(all, engine), Ok(plain.clone()), "{engine}");
            assert_eq!(own(json!({ "prompt": "a", "logprobs": true }), engine), Ok(Input::Text("a".into())));
            let newer = json!({ "messages": messages, "engine": { "max_completion_tokens": 3 } });
            assert_eq!(own(newer, engine), Ok(plain.clone()), "{engine}");
            if engine != Engine::LlamaCpp {
                let form = json!({ "messages": messages, "structured_outputs": { "regex": "a+" } });
                assert_eq!(own(form, engine), Ok(plain.clone()), "{engine}");
            }
        }
    }

    #[test]
    fn what_only_the_engine_understands_is_named() {
        let parts = json!([{ "role": "user", "content": [{ "type": "text", "text": "a" }] }]);
        for (request, engine, field) in [
            (json!({ "prompt": "a", "engine": { "tools": [] } }), Engine::OpenAi, "tools"),
            (json!({ "messages": parts }), Engine::Vllm, "messages[0].content"),
            // Its ids are another vocabulary's.
            (json!({ "prompt": [1, 2] }), Engine::Vllm, "prompt"),
            (json!({ "prompt": "a", "engine": { "regex": "b" } }), Engine::Sglang, "regex"),
            (
                json!({ "prompt": "a", "engine": { "response_format": { "type": "structural_tag" } } }),
                Engine::Vllm,
                "response_format",
            ),
            (json!({ "prompt": "a", "engine": { "guided_choice": ["b"] } }), Engine::Vllm, "structured_outputs"),
            (json!({ "prompt": "a", "engine": { "repeat_last_n": 4 } }), Engine::LlamaCpp, "repeat_last_n"),
        ] {
            assert_eq!(own(request, engine), Err(field.into()));
        }
    }
}
