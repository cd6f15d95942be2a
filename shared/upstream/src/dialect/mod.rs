//! How each engine wants to be asked; pure.

mod handover;
mod resume;

use baton_contract::{
    outcome::{FinishReason, Usage},
    upstream::{Ask, Engine},
};
use serde_json::{Map, Value, json};

pub use self::resume::Resume;
pub(crate) use self::{
    handover::{MOST_BYTES as MOST_HANDOVER_BYTES, Meeting, handed_over, prefill},
    resume::resumes,
};

const CHAT: &str = "/v1/chat/completions";
const COMPLETION: &str = "/v1/completions";

/// A request as it goes out.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Asked {
    /// Which of the two ways.
    pub(crate) path: &'static str,
    /// JSON.
    pub(crate) body: Map<String, Value>,
    /// Answers that it asks for.
    pub(crate) choices: usize,
    /// Tokens of the answer that are a part of the prompt now, if it goes on with one.
    pub(crate) begun: Option<u32>,
}

/// A request, or an answer that needs none.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Next {
    /// The engine has to be asked.
    Ask(Asked),
    /// Its beginning is all of the answer.
    Over(FinishReason, Usage),
}

/// A request for an answer, or for the rest of one; nothing if the engine can't go on with this one.
pub(crate) fn ask(engine: Engine, model: &str, ask: &Ask, resume: Option<&Resume>) -> Option<Next> {
    let mut asked = match resume {
        None => plain(ask),
        Some(resume) => match resume::rest(engine, ask, resume)? {
            Next::Ask(asked) => asked,
            over => return Some(over),
        },
    };
    let body = &mut asked.body;
    body.insert("model".into(), model.into());
    body.insert("stream".into(), true.into());
    body.insert("stream_options".into(), json!({ "include_usage": true }));
    if engine == Engine::Vllm {
        body.insert("return_token_ids".into(), true.into());
        let handover = ask.handover.as_ref().filter(|_| resume.is_none());
        if let Some(Ok(handover)) = handover.map(|handover| serde_json::from_str::<Value>(&handover.params)) {
            body.insert("kv_transfer_params".into(), handover);
        }
    }
    Some(Next::Ask(asked))
}

fn plain(ask: &Ask) -> Asked {
    let body = ask.object();
    let choices = body.get("n").and_then(Value::as_u64).map_or(1, |n| n as usize);
    Asked { path: if ask.chat { CHAT } else { COMPLETION }, body, choices, begun: None }
}

#[cfg(test)]
mod tests {
    use baton_contract::upstream::Handover;

    use super::*;

    #[test]
    fn each_engine_is_asked_to_stream_and_only_vllm_for_token_ids() {
        let put = Ask {
            chat: true,
            body: r#"{"messages":[],"n":2}"#.into(),
            handover: Some(Handover { params: r#"{"x":1}"#.into(), at_ms: 0 }),
        };
        for engine in Engine::ALL {
            let Some(Next::Ask(asked)) = ask(engine, "m", &put, None) else { panic!("nothing was asked") };
            let mut expected = json!({ "messages": [], "n": 2, "model": "m", "stream": true, "stream_options": { "include_usage": true } });
            if engine == Engine::Vllm {
                expected["return_token_ids"] = true.into();
                expected["kv_transfer_params"] = json!({ "x": 1 });
            }
            assert_eq!((asked.path, asked.choices, Value::Object(asked.body)), (CHAT, 2, expected));
        }
        let put = Ask { body: r#"{"prompt":"a"}"#.into(), ..Ask::default() };
        let Some(Next::Ask(asked)) = ask(Engine::OpenAi, "m", &put, None) else { panic!("nothing was asked") };
        assert_eq!((asked.path, asked.choices, asked.begun), (COMPLETION, 1, None));
    }
}
