//! How one instance computes a prompt's KV cache for another: vLLM's connectors, one after the other, and SGLang's bootstrap, both at
//! once.

use baton_contract::upstream::Ask;
use serde_json::{Map, Value, json};

use super::{Asked, plain};

/// What an instance tells of a KV cache may have so many bytes: it goes into a message.
pub(crate) const MOST_BYTES: usize = 512 << 10;

/// Makes vLLM's prefill instance compute the prompt and keep its KV cache until another instance has fetched it.
pub(crate) fn prefill(model: &str, ask: &Ask) -> Asked {
    let mut asked = plain(ask);
    let body = &mut asked.body;
    for name in ["min_tokens", "logprobs", "top_logprobs", "prompt_logprobs"] {
        body.remove(name);
    }
    for name in ["max_tokens", "max_completion_tokens"] {
        if name == "max_tokens" || body.contains_key(name) {
            body.insert(name.into(), 1.into());
        }
    }
    body.insert("model".into(), model.into());
    body.insert("n".into(), 1.into());
    body.insert("stream".into(), false.into());
    let transfer = json!({
        "do_remote_decode": true,
        "do_remote_prefill": false,
        "remote_engine_id": null,
        "remote_block_ids": null,
        "remote_host": null,
        "remote_port": null,
    });
    body.insert("kv_transfer_params".into(), transfer);
    Asked { choices: 1, ..asked }
}

/// What the instance that decodes is to be told, from the answer of the one that prefilled. An instance that is told half of it may end
/// itself.
pub(crate) fn handed_over(answer: &Value) -> Option<String> {
    let told = &answer["kv_transfer_params"];
    let is_whole = told["do_remote_prefill"] == true
        && told["remote_block_ids"].is_array()
        && told["remote_engine_id"].is_string()
        && told["remote_host"].is_string()
        && told["remote_port"].is_u64();
    is_whole.then(|| told.to_string())
}

/// Where two instances of SGLang find each other: at the prefill instance's bootstrap server, under a number of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Meeting {
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Below 2^63.
    pub(crate) room: u64,
}

impl Meeting {
    /// Both are told the same.
    pub(crate) fn tell(&self, body: &mut Map<String, Value>) {
        body.insert("bootstrap_host".into(), self.host.as_str().into());
        body.insert("bootstrap_port".into(), self.port.into());
        body.insert("bootstrap_room".into(), self.room.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefill_computes_one_token_of_the_same_prompt() {
        let body = r#"{"messages":[],"tools":[1],"n":2,"max_tokens":9,"max_completion_tokens":9,"min_tokens":3,"logprobs":true}"#;
        let asked = prefill("m", &Ask { chat: true, body: body.into(), handover: None });
        let transfer = json!({ "do_remote_decode": true, "do_remote_prefill": false, "remote_engine_id": null,
            "remote_block_ids": null, "remote_host": null, "remote_port": null });
        assert_eq!(
            Value::Object(asked.body),
            json!({ "messages": [], "tools": [1], "n": 1, "max_tokens": 1, "max_completion_tokens": 1, "model": "m", "stream": false,
                "kv_transfer_params": transfer })
        );
        let asked = prefill("m", &Ask { body: r#"{"prompt":"a"}"#.into(), ..Ask::default() });
        assert_eq!((&asked.body["max_tokens"], asked.body.get("max_completion_tokens")), (&json!(1), None));
    }

    #[test]
    fn a_handover_says_all_that_it_takes() {
        let whole = json!({ "do_remote_prefill": true, "remote_block_ids": [[1, 2]], "remote_engine_id": "e",
            "remote_host": "10.0.0.1", "remote_port": 5601, "more": null });
        let of = |told: &Value| handed_over(&json!({ "kv_transfer_params": told }));
        assert_eq!(of(&whole), Some(whole.to_string()));
        for name in ["do_remote_prefill", "remote_block_ids", "remote_engine_id", "remote_host", "remote_port"] {
            let mut half = whole.clone();
            half[name] = Value::Null;
            assert_eq!(of(&half), None, "{name}");
        }
        assert_eq!((of(&Value::Null), handed_over(&json!({ "choices": [] }))), (None, None));
    }
}
