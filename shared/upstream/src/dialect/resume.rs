//! How an engine goes on with an answer that another worker left: by its token ids, or by its text; pure.
//!
//! Only where the rest means what it would have meant. Fields are therefore listed that hold as well where the beginning of the
//! answer has become a part of the prompt; any other one begins the answer anew. Penalties of the answer alone, least lengths, grammars and
//! tools would begin anew with the rest; a part of a stop text may be in the beginning.

use baton_contract::{
    checkpoint::Partial,
    outcome::{FinishReason, Usage},
    upstream::{Ask, Engine},
};
use serde_json::{Map, Value, json};

use super::{Asked, COMPLETION, Next, plain};

/// Where another worker left an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resume {
    /// What it had come to.
    pub partial: Partial,
    /// Its token ids, if the engine told them.
    pub tokens: Vec<u32>,
}

/// Fields that concern one token at a time, or prompt and answer alike, in all engines.
const EVEN: [&str; 24] = [
    "allowed_token_ids",
    "cache_prompt",
    "cache_salt",
    "dynatemp_exponent",
    "dynatemp_range",
    "id_slot",
    "ignore_eos",
    "logit_bias",
    "max_tokens",
    "min_keep",
    "min_p",
    "priority",
    "repeat_last_n",
    "repeat_penalty",
    "repetition_penalty",
    "samplers",
    "seed",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "stop_token_ids",
    "temperature",
    "top_k",
    "top_n_sigma",
    "top_p",
];
/// Fields that make the prompt: done with where its token ids are known.
const PROMPT: [&str; 9] = [
    "add_generation_prompt",
    "add_special_tokens",
    "chat_template",
    "chat_template_kwargs",
    "continue_final_message",
    "documents",
    "messages",
    "prompt",
    "truncate_prompt_tokens",
];

/// Tokens of vLLM's completions that name no `max_tokens`.
const VLLM_MOST_TOKENS: u64 = 16;

/// Whether an engine can go on with an answer.
pub(crate) fn resumes(engine: Engine, ask: &Ask, resume: &Resume) -> bool {
    rest(engine, ask, resume).is_some()
}

/// The request for the rest of an answer.
pub(super) fn rest(engine: Engine, ask: &Ask, resume: &Resume) -> Option<Next> {
    let asked = plain(ask);
    let Resume { partial, tokens } = resume;
    if partial.text.is_empty() || !partial.message.is_empty() || asked.choices != 1 {
        return None;
    }
    // Engines tell a token a piece where they tell no ids.
    let begun = if tokens.is_empty() { partial.pieces } else { tokens.len() as u32 };
    if let Some(finish_reason) = partial.finish_reason {
        return Some(Next::Over(finish_reason, usage(partial, begun)));
    }
    let most = match asked.body.get("max_tokens").and_then(Value::as_u64) {
        None if asked.path == COMPLETION => match engine {
            Engine::Vllm => Some(VLLM_MOST_TOKENS),
            Engine::LlamaCpp => None,
            // How many that are differs from release to release.
            Engine::Sglang | Engine::OpenAi => return None,
        },
        most => most,
    };
    // A chat may have as many tokens as there is room for, which a completion has no word for.
    let has_ids = !tokens.is_empty() && !partial.prompt.is_empty() && most.is_some();
    let by_ids = if engine == Engine::Vllm && has_ids { by_ids(&asked, resume) } else { None };
    let (path, mut body) = match by_ids {
        Some(body) => (COMPLETION, body),
        None => (asked.path, by_text(engine, &asked, &partial.text)?),
    };
    match most.map(|most| most.saturating_sub(begun.into())) {
        Some(0) => return Some(Next::Over(FinishReason::Length, usage(partial, begun))),
        Some(left) => drop(body.insert("max_tokens".into(), left.into())),
        None => {}
    }
    Some(Next::Ask(Asked { path, body, choices: 1, begun: Some(begun) }))
}

fn usage(partial: &Partial, completion_tokens: u32) -> Usage {
    Usage { prompt_tokens: partial.prompt.len() as u32, completion_tokens, cached_tokens: 0 }
}

/// As a prompt of token ids: those of the prompt, and those of the answer so far. Where texts end answers the engine holds back what may be the
/// beginning of one, so that its ids are ahead of its text.
fn by_ids(asked: &Asked, resume: &Resume) -> Option<Map<String, Value>> {
    let mut body = asked.body.clone();
    let has_text_alone = |message: &Value| match &message["content"] {
        Value::Array(parts) => parts.iter().all(|part| part["type"] == "text"),
        content => content.is_string() || content.is_null(),
    };
    let messages = body.get("messages").and_then(Value::as_array);
    if messages.is_some_and(|messages| !messages.iter().all(has_text_alone)) {
        return None;
    }
    body.retain(|name, value| !PROMPT.contains(&name.as_str()) && !is_default(name, value));
    if !body.keys().all(|name| EVEN.contains(&name.as_str())) {
        return None;
    }
    let ids: Vec<u32> = resume.partial.prompt.iter().chain(&resume.tokens).copied().collect();
    body.insert("prompt".into(), ids.into());
    Some(body)
}

/// As a message that the engine goes on with, or as a longer prompt.
fn by_text(engine: Engine, asked: &Asked, text: &str) -> Option<Map<String, Value>> {
    let mut body = asked.body.clone();
    body.retain(|name, value| !is_default(name, value));
    // SGLang tells a text that may be the beginning of one that ends the answer.
    let holds = |name: &String| match name.as_str() {
        "messages" | "prompt" | "chat_template" | "chat_template_kwargs" | "documents" | "add_special_tokens" => true,
        "stop" => engine != Engine::Sglang,
        name => EVEN.contains(&name),
    };
    if engine == Engine::OpenAi || !body.keys().all(holds) {
        return None;
    }
    if asked.path == COMPLETION {
        let longer = match body.get("prompt") {
            Some(Value::String(prompt)) => Value::String(format!("{prompt}{text}")),
            // llama.cpp takes ids and texts mixed.
            Some(Value::Array(ids)) if engine == Engine::LlamaCpp => {
                ids.iter().cloned().chain([Value::String(text.to_owned())]).collect()
            }
            _ => return None,
        };
        body.insert("prompt".into(), longer);
        return Some(body);
    }
    // Templates cut white space at a message's end, and the answer would have it twice.
    if engine != Engine::LlamaCpp && text.ends_with(char::is_whitespace) {
        return None;
    }
    let Some(Value::Array(messages)) = body.get_mut("messages") else { return None };
    // Its own beginning of an answer would be another message.
    if messages.last().is_none_or(|last| last["role"] == "assistant") {
        return None;
    }
    messages.push(json!({ "role": "assistant", "content": text }));
    if engine != Engine::LlamaCpp {
        // llama.cpp goes on with an assistant's last message by itself, in releases that know these fields as well as in others.
        body.insert("continue_final_message".into(), true.into());
    }
    if engine == Engine::Vllm {
        body.insert("add_generation_prompt".into(), false.into());
    }
    Some(body)
}

/// Whether a field says what holds without it.
fn is_default(name: &str, value: &Value) -> bool {
    match name {
        "n" => value == 1,
        "presence_penalty" | "frequency_penalty" | "min_tokens" => value.as_f64() == Some(0.0),
        "logprobs" | "echo" => value == false,
        "stop" => value.as_array().is_some_and(Vec::is_empty),
        "response_format" => value["type"] == "text",
        _ => value.is_null(),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::CHAT, *};

    fn left(tokens: &[u32], prompt: &[u32]) -> Resume {
        let partial = Partial { text: "One, two".into(), pieces: 3, prompt: prompt.into(), ..Partial::default() };
        Resume { partial, tokens: tokens.into() }
    }

    fn rest_of(engine: Engine, chat: bool, body: &Value, resume: &Resume) -> Option<(&'static str, Value)> {
        match rest(engine, &Ask { chat, body: body.to_string(), handover: None }, resume)? {
            Next::Ask(asked) => {
                let begun = if resume.tokens.is_empty() { 3 } else { resume.tokens.len() as u32 };
                assert_eq!((asked.begun, asked.choices), (Some(begun), 1));
                Some((asked.path, Value::Object(asked.body)))
            }
            over => panic!("{over:?}"),
        }
    }

    #[test]
    fn vllm_goes_on_from_token_ids_as_a_completion() {
        let known = left(&[5, 6], &[1, 2]);
        let user = json!([{ "role": "user", "content": "count" }]);
        let chat = json!({ "messages": user, "max_tokens": 8, "temperature": 0.5, "repetition_penalty": 1.1, "logit_bias": { "7": 1.0 },
            "n": 1, "presence_penalty": 0.0, "chat_template_kwargs": { "x": 1 }, "response_format": { "type": "text" } });
        let expected = json!({ "prompt": [1, 2, 5, 6], "max_tokens": 6, "temperature": 0.5, "repetition_penalty": 1.1, "logit_bias": { "7": 1.0 } });
        assert_eq!(rest_of(Engine::Vllm, true, &chat, &known), Some((COMPLETION, expected)));
        let unbounded = json!({ "messages": user });
        assert_eq!(rest_of(Engine::Vllm, true, &unbounded, &known).unwrap().0, CHAT);
        let completion = json!({ "prompt": "count" });
        let expected = json!({ "prompt": [1, 2, 5, 6], "max_tokens": 14 });
        assert_eq!(rest_of(Engine::Vllm, false, &completion, &known), Some((COMPLETION, expected)));
    }

    #[test]
    fn a_chat_goes_on_as_its_last_message() {
        let user = json!({ "role": "user", "content": "count" });
        let chat = json!({ "messages": [user], "max_tokens": 8, "stop": "x" });
        let longer = json!([user, { "role": "assistant", "content": "One, two" }]);
        let mut expected = json!({ "messages": longer, "max_tokens": 5, "stop": "x" });
        assert_eq!(rest_of(Engine::LlamaCpp, true, &chat, &left(&[], &[])), Some((CHAT, expected.clone())));
        expected["continue_final_message"] = true.into();
        assert_eq!(rest_of(Engine::Sglang, true, &chat, &left(&[], &[])), None, "a part of the stop text may be told");
        let free = json!({ "messages": [user], "max_tokens": 8 });
        let mut without = expected.clone();
        without.as_object_mut().unwrap().remove("stop");
        assert_eq!(rest_of(Engine::Sglang, true, &free, &left(&[], &[])), Some((CHAT, without)));
        expected["add_generation_prompt"] = false.into();
        assert_eq!(rest_of(Engine::Vllm, true, &chat, &left(&[], &[])), Some((CHAT, expected.clone())));
        // With a stop text the ids are ahead of the text.
        expected["max_tokens"] = 6.into();
        assert_eq!(rest_of(Engine::Vllm, true, &chat, &left(&[5, 6], &[1])), Some((CHAT, expected)));
        // So does what ids do not say.
        let image = json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] });
        assert_eq!(rest_of(Engine::Vllm, true, &image, &left(&[5, 6], &[1])).unwrap().0, CHAT);

        let mut spaced = left(&[], &[]);
        spaced.partial.text.push('\n');
        assert_eq!(rest_of(Engine::Vllm, true, &chat, &spaced), None);
        assert!(rest_of(Engine::LlamaCpp, true, &chat, &spaced).is_some());
        let own = json!({ "messages": [{ "role": "assistant", "content": "One" }] });
        assert_eq!(rest_of(Engine::LlamaCpp, true, &own, &left(&[], &[])), None);
    }

    #[test]
    fn a_prompt_goes_on_as_a_longer_one() {
        let text = json!({ "prompt": "Count: ", "max_tokens": 7 });
        for engine in [Engine::Vllm, Engine::Sglang, Engine::LlamaCpp] {
            let expected = json!({ "prompt": "Count: One, two", "max_tokens": 4 });
            assert_eq!(rest_of(engine, false, &text, &left(&[], &[])), Some((COMPLETION, expected)));
        }
        let ids = json!({ "prompt": [1, 2] });
        let expected = json!({ "prompt": [1, 2, "One, two"] });
        assert_eq!(rest_of(Engine::LlamaCpp, false, &ids, &left(&[], &[])), Some((COMPLETION, expected)));
        assert_eq!(rest_of(Engine::Sglang, false, &ids, &left(&[], &[])), None);
    }

    #[test]
    fn what_would_mean_something_else_begins_anew() {
        let known = left(&[5, 6], &[1, 2]);
        let chat = |field: &str, value: Value| {
            let mut body = json!({ "messages": [{ "role": "user", "content": "count" }] });
            body[field] = value;
            Ask { chat: true, body: body.to_string(), handover: None }
        };
        let plain = chat("temperature", json!(1));
        assert!(resumes(Engine::Vllm, &plain, &known) && !resumes(Engine::OpenAi, &plain, &known));
        for (field, value) in [
            ("n", json!(2)),
            ("tools", json!([{}])),
            ("logprobs", json!(true)),
            ("presence_penalty", json!(0.5)),
            ("frequency_penalty", json!(0.5)),
            ("min_tokens", json!(5)),
            ("response_format", json!({ "type": "json_object" })),
            ("structured_outputs", json!({ "regex": "a" })),
            ("guided_json", json!({})),
            ("grammar", json!("root ::= \"a\"")),
            ("bad_words", json!(["a"])),
            ("made_up_tomorrow", json!(1)),
        ] {
            for engine in Engine::ALL {
                assert!(!resumes(engine, &chat(field, value.clone()), &known), "{engine} {field}");
            }
        }
        let mut thought = known.clone();
        thought.partial.message = r#"{"reasoning":"hm"}"#.into();
        assert!(!resumes(Engine::Vllm, &plain, &thought));
        let nothing = Resume { partial: Partial::default(), tokens: Vec::new() };
        assert!(!resumes(Engine::Vllm, &plain, &nothing));
    }

    #[test]
    fn an_answer_that_has_all_its_tokens_is_over() {
        let ask = Ask {
            chat: true,
            body: r#"{"messages":[{"role":"user","content":"a"}],"max_tokens":2}"#.into(),
            handover: None,
        };
        let usage = Usage { prompt_tokens: 2, completion_tokens: 2, cached_tokens: 0 };
        let mut whole = left(&[5, 6], &[1, 2]);
        assert_eq!(rest(Engine::Vllm, &ask, &whole), Some(Next::Over(FinishReason::Length, usage)));
        whole.partial.finish_reason = Some(FinishReason::Stop);
        assert_eq!(rest(Engine::Vllm, &ask, &whole), Some(Next::Over(FinishReason::Stop, usage)));
    }
}
