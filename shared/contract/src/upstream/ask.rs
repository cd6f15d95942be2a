//! A request as it is put to an engine.

use bincode::{Decode, Encode};
use serde_json::{Map, Value, json};

use super::{
    Engine,
    fields::{Fate, fate},
    unsupported, wording,
};
use crate::{
    Name,
    outcome::{Code, Failure},
    request::{Request, invalid},
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
/// What has a place of its own in requests.
pub(super) const OWN: [&str; 15] = [
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "max_tokens",
    "metadata",
    "min_p",
    "n",
    "presence_penalty",
    "repetition_penalty",
    "seed",
    "stop",
    "temperature",
    "top_k",
    "top_logprobs",
    "top_p",
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
    /// What the instance that has computed the prompt's KV cache told of it.
    pub handover: Option<Handover>,
}

/// What an instance of an engine tells of a prompt's KV cache, which it keeps for another one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Handover {
    /// JSON that the instance that decodes is told.
    pub params: String,
    /// When it was told, in milliseconds since 1970 by the broker's clock. The cache is kept for some seconds, until it was fetched: what
    /// lies in its place then may be another prompt's.
    pub at_ms: u64,
}

impl Ask {
    /// What a request asks of an engine, in its words. Only what the request sets is set: the engine's own defaults hold for the
    /// rest.
    ///
    /// # Errors
    ///
    /// Names a field that the engine is known not to have, those of [`Request::engine`] after `engine.`.
    pub fn of(request: &Request, engine: Engine) -> Result<Self, Failure> {
        let chat = request.messages.is_some();
        // By way of the text, so that numbers keep the digits that they were written with.
        let written = serde_json::to_string(request).and_then(|text| serde_json::from_str(&text));
        let Ok(Value::Object(mut body)) = written else {
            return Err(Failure::new(Code::Internal, "the request can't be written as JSON"));
        };
        body.retain(|name, _| !OURS.contains(&name.as_str()));
        if let Some(seed) = request.seed {
            // A negative one came as the unsigned one of the same bits.
            body.insert("seed".into(), json!(seed as i64));
        }
        if !chat {
            // The older endpoint has one field for both.
            let top = body.shift_remove("top_logprobs").unwrap_or(json!(0));
            if body.shift_remove("logprobs") == Some(json!(true)) {
                body.insert("logprobs".into(), top);
            }
        }
        add(&mut body, chat, &request.engine, engine)?;
        wording::put(&mut body, chat, engine).map_err(|failure| {
            let name = failure.message.split([':', '.']).next().unwrap_or_default();
            let at = if request.engine.contains_key(name) { "engine." } else { "" };
            Failure { message: format!("{at}{}", failure.message), ..failure }
        })?;
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
fn add(body: &mut Map<String, Value>, chat: bool, fields: &Map<String, Value>, engine: Engine) -> Result<(), Failure> {
    for (name, value) in fields {
        if OWN.contains(&name.as_str()) {
            return Err(invalid(format!("engine.{name}: expected it beside engine, not in it")));
        }
        if SET.contains(&name.as_str()) || body.contains_key(name) {
            return Err(invalid(format!("engine.{name}: expected a field that Baton does not set itself")));
        }
        match fate(engine, chat, name) {
            Fate::Taken => drop(body.insert(name.clone(), value.clone())),
            Fate::Unknown => {
                let (shown, what) = (shown(name), if chat { "for conversations" } else { "for prompts" });
                return Err(unsupported(format!("engine.{shown}: {engine} has no such field {what}")));
            }
            Fate::Untold => {
                let shown = shown(name);
                return Err(unsupported(format!("engine.{shown}: results have no place for what it asks for")));
            }
        }
    }
    Ok(())
}

fn shown(name: &str) -> String {
    name.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(request: &str, engine: Engine) -> Result<Value, Failure> {
        let request: Request = serde_json::from_str(request).unwrap();
        Ask::of(&request, engine).map(|ask| Value::Object(ask.object()))
    }

    /// What is asked of an engine beside a message, or a prompt.
    fn with(chat: bool, fields: &str, engine: Engine) -> Result<Value, Failure> {
        let input = if chat { r#""messages":[{"role":"user","content":"a"}]"# } else { r#""prompt":"a""# };
        let mut asked = ask(&format!("{{{input},{fields}}}"), engine)?;
        asked.as_object_mut().unwrap().retain(|name, _| !matches!(name.as_str(), "messages" | "prompt"));
        Ok(asked)
    }

    #[test]
    fn only_what_a_request_sets_is_asked_in_the_engines_words() {
        let request = r#"{"id":"j","model":"m","lane":"batch","deadline":5,"metadata":{"k":"v"},"messages":[{"role":"user","content":"a"}],
            "max_tokens":3,"temperature":0.7,"repetition_penalty":1.3,"top_k":0,"structured_outputs":{"regex":"a+"}}"#;
        let messages = json!([{ "role": "user", "content": "a" }]);
        let asked = ask(request, Engine::Vllm).unwrap();
        assert_eq!(
            asked,
            json!({ "messages": messages, "max_tokens": 3, "temperature": 0.7, "repetition_penalty": 1.3, "top_k": 0,
                "structured_outputs": { "regex": "a+" } })
        );
        let asked = ask(request, Engine::Sglang).unwrap();
        assert_eq!((&asked["regex"], asked.get("structured_outputs")), (&json!("a+"), None));
        assert_eq!(asked["top_k"], -1);
        let refused = ask(request, Engine::LlamaCpp).unwrap_err();
        let message = "structured_outputs.regex: llama.cpp has no regular expressions";
        assert_eq!((refused.code, refused.message.as_str()), (Code::UnknownField, message));
        let asked =
            ask(r#"{"prompt":[1,2],"logprobs":true,"top_logprobs":2,"repetition_penalty":1.5}"#, Engine::LlamaCpp);
        assert_eq!(
            asked.unwrap(),
            json!({ "prompt": [1, 2], "logprobs": 2, "repeat_penalty": 1.5, "repeat_last_n": 131072 })
        );
        // Where none is asked for besides the drawn one, it must be asked for one.
        let told = r#""logprobs":true"#;
        assert_eq!(with(false, told, Engine::OpenAi).unwrap(), json!({ "logprobs": 0 }));
        assert_eq!(with(false, told, Engine::LlamaCpp).unwrap(), json!({ "logprobs": 1 }));
        assert_eq!(with(true, told, Engine::Vllm).unwrap(), json!({ "logprobs": true }));
        assert_eq!(with(true, told, Engine::LlamaCpp).unwrap(), json!({ "logprobs": true, "top_logprobs": 1 }));
        assert_eq!(with(true, r#""seed":18446744073709551615"#, Engine::Vllm).unwrap(), json!({ "seed": -1 }));
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
        for engine in Engine::ALL {
            let tools = r#""engine":{"tools":[{"type":"function"}],"tool_choice":"required","max_completion_tokens":7,
                "response_format":{"type":"structural_tag"}}"#;
            let asked = with(true, tools, engine).unwrap();
            assert_eq!((&asked["tools"][0]["type"], &asked["tool_choice"]), (&json!("function"), &json!("required")));
            assert_eq!(
                (&asked["max_completion_tokens"], &asked["response_format"]["type"]),
                (&json!(7), &json!("structural_tag"))
            );
            for name in SET.into_iter().chain(OWN) {
                let refused = with(true, &format!(r#""engine":{{"{name}":1}}"#), engine).unwrap_err();
                assert_eq!(refused.code, Code::InvalidValue, "{name}");
            }
            let refused = with(true, r#""engine":{"prompt_logprobs":1}"#, engine).unwrap_err();
            assert_eq!(refused.code, Code::UnknownField, "{engine}");
        }
        assert_eq!(with(false, r#""engine":{"frobnicate":1}"#, Engine::OpenAi).unwrap(), json!({ "frobnicate": 1 }));
        for (chat, fields, engine) in [
            (true, r#""lora_path":"x""#, Engine::Vllm),
            (true, r#""guided_regex":"a""#, Engine::LlamaCpp),
            (true, r#""frobnicate":1"#, Engine::Sglang),
            (true, r#""suffix":"x""#, Engine::Vllm),
            (false, r#""tools":[]"#, Engine::Vllm),
            (false, r#""max_completion_tokens":1"#, Engine::LlamaCpp),
        ] {
            let refused = with(chat, &format!(r#""engine":{{{fields}}}"#), engine).unwrap_err();
            let named = fields.split('"').nth(1).unwrap();
            let begins = refused.message.starts_with(&format!("engine.{named}: "));
            assert_eq!((refused.code, begins), (Code::UnknownField, true), "{fields}: {refused}");
        }
    }

    #[test]
    fn forms_are_asked_for_in_the_words_that_an_engine_has() {
        let asked = |fields: &str, engine| with(false, &format!(r#""engine":{{{fields}}}"#), engine);
        let both = r#""guided_choice":["a.b","c"],"guided_json":{}"#;
        assert_eq!(
            asked(both, Engine::Vllm).unwrap(),
            json!({ "structured_outputs": { "choice": ["a.b", "c"], "json": {} } }),
            "vLLM itself says what it thinks of two"
        );
        let choice = r#""guided_choice":["a.b","c \"d"]"#;
        assert_eq!(asked(choice, Engine::Sglang).unwrap(), json!({ "regex": "a\\.b|c \\\"d" }));
        assert_eq!(asked(choice, Engine::LlamaCpp).unwrap(), json!({ "grammar": "root ::= \"a.b\" | \"c \\\"d\"" }));
        let schema = r#""structured_outputs":{"json":"{\"type\":\"integer\"}"}"#;
        assert_eq!(asked(schema, Engine::LlamaCpp).unwrap(), json!({ "json_schema": { "type": "integer" } }));
        let of_sglang =
            json!({ "type": "json_schema", "json_schema": { "name": "answer", "schema": { "type": "integer" } } });
        assert_eq!(asked(schema, Engine::Sglang).unwrap(), json!({ "response_format": of_sglang }));
        let format = format!(r#""response_format":{of_sglang}"#);
        assert_eq!(asked(&format, Engine::LlamaCpp).unwrap(), json!({ "json_schema": { "type": "integer" } }));
        for (fields, engine, code) in [
            (both, Engine::Sglang, Code::InvalidValue),
            (both, Engine::LlamaCpp, Code::InvalidValue),
            (r#""guided_choice":[]"#, Engine::Sglang, Code::InvalidValue),
            (r#""guided_json":{},"grammar":"x","json_schema":{}"#, Engine::LlamaCpp, Code::InvalidValue),
            (r#""guided_json":{},"structured_outputs":{"json":{}}"#, Engine::Vllm, Code::InvalidValue),
            (r#""structured_outputs":{"whitespace_pattern":" "}"#, Engine::Sglang, Code::UnknownField),
        ] {
            let refused = asked(fields, engine).unwrap_err();
            assert_eq!((refused.code, refused.message.starts_with("engine.")), (code, true), "{fields}: {refused}");
        }
    }

    #[test]
    fn llama_cpp_is_told_of_the_chosen_tool_alone() {
        let tool = |name: &str| json!({ "type": "function", "function": { "name": name } });
        let asked = |choice: Value| {
            let fields = json!({ "tools": [tool("f"), tool("g")], "tool_choice": choice });
            with(true, &format!(r#""engine":{fields}"#), Engine::LlamaCpp)
        };
        let one = asked(tool("g")).unwrap();
        assert_eq!(one, json!({ "tools": [tool("g")], "tool_choice": "required" }));
        assert_eq!(asked(json!("auto")).unwrap()["tools"].as_array().unwrap().len(), 2);
        assert!(asked(tool("h")).unwrap_err().message.starts_with("engine.tool_choice: "));
        assert_eq!(asked(json!({ "type": "allowed_tools" })).unwrap_err().code, Code::UnknownField);
    }
}
