//! A request as it is put to an engine.

use bincode::{Decode, Encode};
use serde_json::{Map, Value, json};

use super::Engine;
use crate::{
    Name,
    outcome::{Code, Failure},
    request::{Prompt, Request, invalid},
};

/// What of a request is Baton's affair, and no engine's.
const OURS: [&str; 6] = ["id", "model", "lane", "deadline", "metadata", "engine"];
/// What Baton sets itself in each request to an engine.
const SET: [&str; 10] = [
    "model",
    "stream",
    "stream_options",
    "messages",
    "prompt",
    "kv_transfer_params",
    "bootstrap_host",
    "bootstrap_port",
    "bootstrap_room",
    "return_token_ids",
];

/// Bytes of a prompt's beginning by which requests are told that are likely to share it.
const BEGINNING: usize = 4 << 10;

/// What an engine is asked, whichever of its instances that will be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Ask {
    /// Whether it is a conversation (`/v1/chat/completions`), and not a prompt (`/v1/completions`).
    pub chat: bool,
    /// The request's JSON object, without `model`, `stream`, and what depends on the instance that is asked.
    pub body: String,
    /// What the instance that has computed the prompt's KV cache told of it, as JSON: the instance that decodes is told the same.
    pub handover: Option<String>,
}

impl Ask {
    /// What a request asks of an engine. Only what the request sets is set: the engine's own defaults hold for the rest.
    ///
    /// # Errors
    ///
    /// Names a field that the engine is known not to have.
    pub fn of(request: &Request, engine: Engine) -> Result<Self, Failure> {
        let chat = request.messages.is_some();
        let written = serde_json::to_value(request);
        let Ok(Value::Object(mut body)) = written else {
            return Err(Failure::new(Code::Internal, "the request can't be written as JSON"));
        };
        body.retain(|name, _| !OURS.contains(&name.as_str()));
        if !chat {
            // The older endpoint has one field for both.
            let top = body.remove("top_logprobs").unwrap_or(json!(0));
            if body.remove("logprobs") == Some(json!(true)) {
                body.insert("logprobs".into(), top);
            }
        }
        match engine {
            Engine::Vllm | Engine::OpenAi => {}
            Engine::Sglang => {
                if let Some(structured) = &request.structured_outputs {
                    body.remove("structured_outputs");
                    body.insert("regex".into(), structured.regex.as_str().into());
                }
            }
            Engine::LlamaCpp => {
                let (given, why) =
                    (&request.structured_outputs, "structured_outputs: llama.cpp has no regular expressions");
                if given.is_some() {
                    return Err(unsupported(why));
                }
                if let Some(penalty) = body.remove("repetition_penalty") {
                    body.insert("repeat_penalty".into(), penalty);
                    // Of the whole text, as elsewhere.
                    body.insert("repeat_last_n".into(), json!(-1));
                }
                if matches!(request.prompt, Some(Prompt::Tokens(_))) && request.n.unwrap_or(1) > 1 {
                    return Err(unsupported("n: llama.cpp gives one answer to token ids"));
                }
            }
        }
        add(&mut body, &request.engine, engine)?;
        Ok(Self { chat, body: Value::Object(body).to_string(), handover: None })
    }

    /// The request's JSON object.
    pub fn object(&self) -> Map<String, Value> {
        match serde_json::from_str(&self.body) {
            Ok(Value::Object(body)) => body,
            _ => Map::new(),
        }
    }

    /// A number that requests of one tenant have in common whose prompts begin alike: their first message, or the first bytes of
    /// their text. An instance that has answered one of them has the beginning of the others in its KV cache.
    pub fn affinity(&self, tenant: &Name) -> u64 {
        let body = self.object();
        let beginning = match (body.get("messages"), body.get("prompt")) {
            (Some(messages), _) => messages.get(0).map(Value::to_string),
            (None, Some(Value::String(text))) => Some(text.clone()),
            (None, prompt) => prompt.map(Value::to_string),
        };
        let beginning = beginning.unwrap_or_default();
        let mut hasher = blake3::Hasher::new();
        hasher.update(tenant.as_str().as_bytes()).update(&[0]);
        hasher.update(&beginning.as_bytes()[..beginning.len().min(BEGINNING)]);
        let [a, b, c, d, e, f, g, h, ..] = *hasher.finalize().as_bytes();
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}

/// Adds the fields that only the engine has a meaning for.
fn add(body: &mut Map<String, Value>, fields: &Map<String, Value>, engine: Engine) -> Result<(), Failure> {
    for (name, value) in fields {
        if SET.contains(&name.as_str()) || body.contains_key(name) {
            return Err(invalid(format!("engine.{name}: expected a field that Baton does not set itself")));
        }
        if !engine.takes(name) {
            return Err(unsupported(format!("engine.{name}: {engine} has no such field")));
        }
        match (engine, name.as_str()) {
            (Engine::Vllm, "guided_choice") => guide(body, "choice", value),
            (Engine::Vllm, "guided_grammar") => guide(body, "grammar", value),
            (Engine::Vllm, "guided_json") => guide(body, "json", value),
            (Engine::Vllm, "guided_regex") => guide(body, "regex", value),
            (Engine::Sglang, "guided_grammar") => rename(body, "ebnf", value),
            (Engine::Sglang, "guided_regex") => rename(body, "regex", value),
            (Engine::Sglang | Engine::LlamaCpp, "guided_json") => rename(body, "json_schema", value),
            (Engine::Sglang, "guided_choice") => {
                let choices: Option<Vec<String>> =
                    value.as_array().and_then(|list| list.iter().map(|one| one.as_str().map(escaped)).collect());
                let choices =
                    choices.ok_or_else(|| invalid("engine.guided_choice: expected a list of texts".into()))?;
                rename(body, "regex", &choices.join("|").into());
            }
            _ => {
                body.insert(name.clone(), value.clone());
            }
        }
    }
    Ok(())
}

/// vLLM's older names of what is one object now.
fn guide(body: &mut Map<String, Value>, name: &str, value: &Value) {
    let outputs = body.entry("structured_outputs").or_insert_with(|| json!({}));
    if let Value::Object(outputs) = outputs {
        outputs.insert(name.to_owned(), value.clone());
    }
}

fn rename(body: &mut Map<String, Value>, name: &str, value: &Value) {
    body.insert(name.to_owned(), value.clone());
}

/// A text as a regular expression that matches it alone.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        if !c.is_alphanumeric() && c.is_ascii() && !c.is_ascii_whitespace() {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

fn unsupported(message: impl Into<String>) -> Failure {
    Failure::new(Code::UnknownField, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(request: &str, engine: Engine) -> Result<Value, Failure> {
        let request: Request = serde_json::from_str(request).unwrap();
        Ask::of(&request, engine).map(|ask| Value::Object(ask.object()))
    }

    #[test]
    fn only_what_a_request_sets_is_asked_in_the_engines_words() {
        let request = r#"{"id":"j","model":"m","lane":"batch","deadline":5,"metadata":{"k":"v"},"messages":[{"role":"user","content":"a"}],
            "max_tokens":3,"temperature":0.5,"repetition_penalty":1.5,"structured_outputs":{"regex":"a+"}}"#;
        let messages = json!([{ "role": "user", "content": "a" }]);
        let asked = ask(request, Engine::Vllm).unwrap();
        assert_eq!(
            asked,
            json!({ "messages": messages, "max_tokens": 3, "temperature": 0.5, "repetition_penalty": 1.5,
                "structured_outputs": { "regex": "a+" } })
        );
        let asked = ask(request, Engine::Sglang).unwrap();
        assert_eq!((&asked["regex"], asked.get("structured_outputs")), (&json!("a+"), None));
        let refused = ask(request, Engine::LlamaCpp).unwrap_err();
        assert_eq!((refused.code, refused.message.starts_with("structured_outputs: ")), (Code::UnknownField, true));
        let asked =
            ask(r#"{"prompt":[1,2],"logprobs":true,"top_logprobs":2,"repetition_penalty":1.5}"#, Engine::LlamaCpp);
        assert_eq!(
            asked.unwrap(),
            json!({ "prompt": [1, 2], "logprobs": 2, "repeat_penalty": 1.5, "repeat_last_n": -1 })
        );
        assert_eq!(
            ask(r#"{"prompt":"a","logprobs":true}"#, Engine::OpenAi).unwrap(),
            json!({ "prompt": "a", "logprobs": 0 })
        );
    }

    #[test]
    fn requests_of_a_tenant_that_begin_alike_have_one_affinity() {
        let affinity = |tenant: &str, body: Value| {
            let ask = Ask { body: body.to_string(), ..Ask::default() };
            ask.affinity(&Name::new(tenant).unwrap())
        };
        let chat = |system: &str, user: &str| json!({ "messages": [{ "role": "system", "content": system }, { "role": "user", "content": user }], "seed": user.len() });
        assert_eq!(affinity("acme", chat("be brief", "a")), affinity("acme", chat("be brief", "bb")));
        assert_ne!(affinity("acme", chat("be brief", "a")), affinity("acme", chat("be kind", "a")));
        assert_ne!(affinity("acme", chat("be brief", "a")), affinity("zeta", chat("be brief", "a")));
        let text = |end: &str| json!({ "prompt": format!("{}{end}", "x".repeat(BEGINNING)) });
        assert_eq!(affinity("acme", text("a")), affinity("acme", text("b")));
        assert_ne!(affinity("acme", json!({ "prompt": "a" })), affinity("acme", json!({ "prompt": "b" })));
        assert_ne!(affinity("acme", json!({ "prompt": [1, 2] })), affinity("acme", json!({ "prompt": [1, 3] })));
    }

    #[test]
    fn an_engines_own_fields_are_passed_on_or_refused_by_name() {
        let with = |fields: &str, engine| ask(&format!(r#"{{"prompt":"a","engine":{{{fields}}}}}"#), engine);
        for engine in Engine::ALL {
            let asked = with(r#""tools":[{"type":"function"}],"tool_choice":"required""#, engine).unwrap();
            assert_eq!((&asked["tools"][0]["type"], &asked["tool_choice"]), (&json!("function"), &json!("required")));
            for set in SET {
                let refused = with(&format!(r#""{set}":1"#), engine).unwrap_err();
                assert_eq!(refused.code, Code::InvalidValue, "{set}");
            }
        }
        let asked = with(r#""guided_choice":["a.b","c"],"guided_json":{}"#, Engine::Vllm).unwrap();
        assert_eq!(asked["structured_outputs"], json!({ "choice": ["a.b", "c"], "json": {} }));
        assert_eq!(with(r#""guided_choice":["a.b","c d"]"#, Engine::Sglang).unwrap()["regex"], json!("a\\.b|c d"));
        assert_eq!(with(r#""frobnicate":1"#, Engine::OpenAi).unwrap()["frobnicate"], json!(1));
        for (fields, engine) in [
            (r#""lora_path":"x""#, Engine::Vllm),
            (r#""guided_choice":["a"]"#, Engine::LlamaCpp),
            (r#""frobnicate":1"#, Engine::Sglang),
        ] {
            let refused = with(fields, engine).unwrap_err();
            assert_eq!((refused.code, refused.message.starts_with("engine.")), (Code::UnknownField, true), "{fields}");
        }
    }
}
