//! Log-probabilities as engines write them, in both of OpenAI's forms; pure.

use baton_contract::outcome::{Alternative, TokenLogprob};
use serde_json::Value;

/// Below this no log-probability is told.
const LOWEST: f32 = -9_999.0;

/// Those of a piece of an answer. Where the engine tells no token's id (vLLM does not, OpenAI neither), the chosen token's is taken
/// from the piece's `tokens` if there is one for each, and all others are 0.
pub(crate) fn read(logprobs: &Value, tokens: &[u32]) -> Vec<TokenLogprob> {
    let mut read = match (&logprobs["content"], &logprobs["tokens"]) {
        (Value::Array(content), _) => content.iter().map(of_chat).collect(),
        (_, Value::Array(texts)) => of_completion(logprobs, texts),
        _ => Vec::new(),
    };
    if read.len() == tokens.len() {
        for (one, token) in read.iter_mut().zip(tokens) {
            one.chosen.id = *token;
        }
    }
    read
}

/// An entry of a chat's `content`; llama.cpp has these in completions too, with ids.
fn of_chat(entry: &Value) -> TokenLogprob {
    let top = entry["top_logprobs"].as_array().map_or(&[][..], Vec::as_slice);
    TokenLogprob { chosen: alternative(entry), top_logprobs: top.iter().map(alternative).collect() }
}

fn alternative(entry: &Value) -> Alternative {
    let token = entry["token"].as_str().unwrap_or_default().to_owned();
    let number = |value: &Value| value.as_u64().and_then(|byte| u8::try_from(byte).ok());
    let bytes: Option<Vec<u8>> = entry["bytes"].as_array().and_then(|bytes| bytes.iter().map(number).collect());
    let id = entry["id"].as_u64().and_then(|id| u32::try_from(id).ok()).unwrap_or_default();
    Alternative {
        bytes: bytes.unwrap_or_else(|| token.clone().into_bytes()),
        token,
        id,
        logprob: logprob(&entry["logprob"]),
    }
}

/// The lists of a completion: `tokens`, `token_logprobs`, and of each token a map in `top_logprobs`.
fn of_completion(logprobs: &Value, texts: &[Value]) -> Vec<TokenLogprob> {
    let one = |text: &str, value: &Value| Alternative {
        token: text.to_owned(),
        id: 0,
        logprob: logprob(value),
        bytes: text.as_bytes().to_vec(),
    };
    let entry = |(place, text): (usize, &Value)| {
        let top = logprobs["top_logprobs"][place].as_object();
        let mut top: Vec<Alternative> = top.into_iter().flatten().map(|(text, value)| one(text, value)).collect();
        top.sort_by(|one, other| other.logprob.total_cmp(&one.logprob));
        let chosen = one(text.as_str().unwrap_or_default(), &logprobs["token_logprobs"][place]);
        TokenLogprob { chosen, top_logprobs: top }
    };
    texts.iter().enumerate().map(entry).collect()
}

fn logprob(value: &Value) -> f32 {
    (value.as_f64().unwrap_or_default() as f32).max(LOWEST)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn token(text: &str, id: u32, logprob: f32) -> Alternative {
        Alternative { token: text.into(), id, logprob, bytes: text.into() }
    }

    #[test]
    fn both_forms_mean_the_same() {
        let entry = |text: &str, logprob: f64| json!({ "token": text, "logprob": logprob, "bytes": text.as_bytes() });
        let mut first = entry("a", -0.5);
        first["top_logprobs"] = json!([entry("a", -0.5), entry("b", -1.5)]);
        let chat = json!({ "content": [first, entry("c", -1e9)] });
        let completion = json!({
            "tokens": ["a", "c"], "token_logprobs": [-0.5, -1e9], "text_offset": [0, 1],
            "top_logprobs": [{ "b": -1.5, "a": -0.5 }, null],
        });
        let expected = vec![
            TokenLogprob { chosen: token("a", 7, -0.5), top_logprobs: vec![token("a", 0, -0.5), token("b", 0, -1.5)] },
            TokenLogprob { chosen: token("c", 8, -9_999.0), top_logprobs: Vec::new() },
        ];
        assert_eq!(read(&chat, &[7, 8]), expected);
        assert_eq!(read(&completion, &[7, 8]), expected);
        assert_eq!(read(&chat, &[7]).first().unwrap().chosen.id, 0, "which token has the id is not told");
        assert_eq!(read(&Value::Null, &[7]), Vec::new());
    }

    #[test]
    fn llama_cpps_ids_and_halves_of_characters_are_kept() {
        let told = json!({ "content": [{ "id": 9, "token": "\u{fffd}", "bytes": [195], "logprob": -0.25, "top_logprobs": [] }] });
        let chosen = Alternative { bytes: vec![195], ..token("\u{fffd}", 9, -0.25) };
        assert_eq!(read(&told, &[]), vec![TokenLogprob { chosen, top_logprobs: Vec::new() }]);
    }
}
