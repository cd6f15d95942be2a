//! Requests in, Baton's requests or errors that name the field out; results in, OpenAI's answers out.

use std::collections::BTreeMap;

use baton_contract::{
    JobId, Name,
    outcome::{
        Alternative, Choice, Code, Delta, Failure, FinishReason, Logprobs, Outcome, Status, Timings, TokenLogprob,
        Usage,
    },
    request::{ChatMessage, Prompt, Stop},
    upstream::Engines,
};
use serde_json::{Value, json};

use super::*;

mod foreign;

fn chat(extra: Value) -> Result<Call, ApiError> {
    let mut body = json!({ "model": "m", "messages": [{ "role": "user", "content": "Hi" }] });
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    read(Endpoint::ChatCompletions, body.to_string().as_bytes(), &Engines::default())
}

fn completion(extra: Value) -> Result<Call, ApiError> {
    let mut body = json!({ "prompt": "Hi" });
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    read(Endpoint::Completions, body.to_string().as_bytes(), &Engines::default())
}

#[test]
fn every_supported_field_arrives() {
    let call = chat(json!({
        "messages": [
            { "role": "developer", "content": "Be brief." },
            { "role": "user", "content": [{ "type": "text", "text": "One" }, { "type": "text", "text": "two" }], "name": null },
            { "role": "assistant", "content": "ok", "refusal": null, "tool_calls": [], "annotations": null, "audio": null },
        ],
        "stream": true, "stream_options": { "include_usage": true },
        "temperature": 0.5, "top_p": 0.9, "top_k": -1, "min_p": 0.1, "repetition_penalty": 1.1, "presence_penalty": 0.5,
        "frequency_penalty": -0.5, "logit_bias": { "7": -100 }, "logprobs": true, "top_logprobs": 3, "n": 2, "stop": ["a", "b"],
        "seed": -1, "max_completion_tokens": 9, "max_tokens": 9, "metadata": { "k": "v" }, "user": "u-1", "deadline": 30,
        "service_tier": "batch", "store": false, "tools": [], "prompt_cache_key": null, "tool_choice": "none", "modalities": ["text"],
        "response_format": { "type": "json_schema", "json_schema": { "name": "x", "strict": true, "schema": { "type": "object" } } },
    }))
    .unwrap();
    let request = &call.request;
    let messages = request.messages.as_ref().unwrap();
    let said = [("system", "Be brief."), ("user", "One\ntwo"), ("assistant", "ok")];
    assert_eq!(*messages, said.map(|(role, content)| ChatMessage::text(role, content)));
    assert!(call.stream && call.include_usage);
    assert_eq!(call.model.as_deref(), Some("m"));
    assert_eq!(
        (request.seed, request.top_k, request.max_tokens, request.n),
        (Some(u64::MAX), Some(0), Some(9), Some(2))
    );
    assert_eq!((request.logprobs, request.top_logprobs), (Some(true), Some(3)));
    assert_eq!(request.metadata.get("user").map(String::as_str), Some("u-1"));
    assert_eq!(request.lane.as_deref(), Some("batch"));
    assert!(matches!(&request.stop, Some(Stop::Many(stops)) if stops.len() == 2));

    let call =
        completion(json!({ "prompt": [1, 2], "logprobs": 2, "best_of": 1, "echo": false, "guided_regex": "a+" }))
            .unwrap();
    assert_eq!(call.request.prompt, Some(Prompt::Tokens(vec![1, 2])));
    assert_eq!((call.request.max_tokens, call.request.top_logprobs), (Some(16), Some(2)));
    assert_eq!(call.request.structured_outputs.unwrap().regex, "a+");
    // OpenAI's default is not Baton's, which is greedy.
    assert_eq!(call.request.temperature, Some(1.0));
    let call = completion(json!({ "prompt": ["only one"], "service_tier": "auto" })).unwrap();
    assert_eq!(call.request.prompt, Some(Prompt::Text("only one".into())));
    assert_eq!(call.request.lane, None);
}

#[test]
fn what_a_request_leaves_out_is_what_a_result_can_hold() {
    let tokens = |extra: Value| chat(extra).unwrap().request.max_tokens.unwrap();
    assert!(tokens(json!({})) > 1 << 24, "the model's context ends it");
    assert!(u64::from(tokens(json!({ "n": 16 }))) * 16 <= 128 << 10);
    assert!(tokens(json!({ "logprobs": true, "top_logprobs": 20, "n": 4 })) * 21 * 4 <= 50_000);
}

#[test]
fn what_can_not_be_followed_is_refused_by_name() {
    let text = |url: &str| json!({ "messages": [{ "role": "user", "content": [{ "type": url, "image_url": {} }] }] });
    for (extra, param) in [
        (json!({ "tools": [{}] }), "tools"),
        (json!({ "store": true }), "store"),
        (json!({ "audio": {} }), "audio"),
        (json!({ "frobnicate": 1 }), "frobnicate"),
        (json!({ "temperature": 3 }), "temperature"),
        (json!({ "temperature": "hot" }), "temperature"),
        (json!({ "n": 17 }), "n"),
        (json!({ "top_logprobs": 2 }), "top_logprobs"),
        (json!({ "stream_options": {} }), "stream_options"),
        (json!({ "stream": true, "stream_options": { "x": 1 } }), "stream_options.x"),
        (json!({ "max_tokens": 1, "max_completion_tokens": 2 }), "max_completion_tokens"),
        (json!({ "messages": [{ "role": "tool", "content": "x" }] }), "messages[0].role"),
        (json!({ "messages": [{ "role": "user" }] }), "messages[0].content"),
        (json!({ "messages": [{ "role": "user", "content": "x", "name": "bob" }] }), "messages[0].name"),
        (text("image_url"), "messages[0].content[0].type"),
        (json!({ "response_format": { "type": "grammar" } }), "response_format.type"),
        (json!({ "response_format": ["json_object"] }), "response_format"),
        (
            json!({ "response_format": { "type": "json_schema", "json_schema": ["n", null, {}] } }),
            "response_format.json_schema",
        ),
        (json!({ "structured_outputs": ["a+"] }), "structured_outputs"),
        (json!({ "stream": true, "stream_options": [true] }), "stream_options"),
        (json!({ "messages": [["user", "x"]] }), "messages[0]"),
        (json!({ "seed": 1.5 }), "seed"),
        (json!({ "logit_bias": { "x": 1 } }), "logit_bias"),
        (json!({ "messages": [] }), "messages"),
        (
            json!({ "messages": [{ "role": "assistant", "content": "x", "annotations": [{}] }] }),
            "messages[0].annotations",
        ),
        (json!({ "moderation": { "model": "x" } }), "moderation"),
        (json!({ "prompt_cache_key": "x" }), "prompt_cache_key"),
        (json!({ "user": "u", "metadata": { "user": "v" } }), "user"),
        (json!({ "safety_identifier": "x".repeat(513) }), "safety_identifier"),
        (json!({ "user": "u", "metadata": (0..16).map(|i| (i.to_string(), "x")).collect::<BTreeMap<_, _>>() }), "user"),
    ] {
        let error = chat(extra.clone()).unwrap_err();
        assert_eq!((error.status, error.param.as_deref()), (400, Some(param)), "{extra}: {error}");
        assert_eq!(error.body()["error"]["type"], "invalid_request_error");
    }
    for (extra, param) in [
        (json!({ "prompt": ["a", "b"] }), "prompt"),
        (json!({ "prompt": [1, -2] }), "prompt[1]"),
        (json!({ "prompt": [] }), "prompt"),
        (json!({ "echo": true }), "echo"),
        (json!({ "suffix": "x" }), "suffix"),
        (json!({ "best_of": 3 }), "best_of"),
        (json!({ "best_of": 1, "n": 2 }), "best_of"),
        (json!({ "prompt": "" }), "prompt"),
        (json!({ "messages": [] }), "messages"),
    ] {
        let error = completion(extra.clone()).unwrap_err();
        assert_eq!((error.status, error.param.as_deref()), (400, Some(param)), "{extra}: {error}");
    }
    for body in [&b"\xff{}"[..], b"", b"[]", b"{", b"{} x", "[".repeat(100_000).as_bytes()] {
        assert_eq!(read(Endpoint::Completions, body, &Engines::default()).unwrap_err().status, 400);
    }
}

fn logprob(token: &str) -> TokenLogprob {
    let one =
        |token: &str, logprob| Alternative { token: token.into(), id: 1, logprob, bytes: token.as_bytes().to_vec() };
    TokenLogprob { chosen: one(token, -0.5), top_logprobs: vec![one(token, -0.5), one("z", -2.0)] }
}

fn choice(index: u32, tokens: &[&str]) -> Choice {
    Choice {
        index,
        text: tokens.concat(),
        tokens: (0..tokens.len() as u32).collect(),
        finish_reason: Some(FinishReason::Stop),
        logprobs: Some(Logprobs { content: tokens.iter().map(|token| logprob(token)).collect() }),
        message: Default::default(),
    }
}

fn outcome(choices: Vec<Choice>) -> Outcome {
    let first = choices[0].clone();
    Outcome {
        id: JobId::new("job-1").unwrap(),
        tenant: Name::default_tenant(),
        lane: Name::new("batch").unwrap(),
        model: Name::new("m").ok(),
        status: Status::Completed,
        finish_reason: first.finish_reason,
        error: None,
        text: first.text,
        tokens: first.tokens,
        logprobs: first.logprobs,
        message: Default::default(),
        choices: if choices.len() > 1 { choices } else { Vec::new() },
        usage: Usage { prompt_tokens: 5, completion_tokens: 3, cached_tokens: 4 },
        metadata: Default::default(),
        timings: Timings { accepted_at_ms: 1_700_000_000_999, ..Timings::default() },
        request_digest: String::new(),
        model_fingerprint: None,
        stored: None,
    }
}

#[test]
fn answers_have_openais_shape() {
    let chat = response(Endpoint::ChatCompletions, &outcome(vec![choice(0, &["é", "b"])])).unwrap();
    assert_eq!(chat["id"], "chatcmpl-job-1");
    assert_eq!(
        (&chat["object"], &chat["created"], &chat["model"]),
        (&json!("chat.completion"), &json!(1_700_000_000), &json!("m"))
    );
    assert_eq!(chat["choices"][0]["message"], json!({ "role": "assistant", "content": "éb", "refusal": null }));
    assert_eq!(chat["choices"][0]["finish_reason"], "stop");
    assert_eq!(chat["choices"][0]["logprobs"]["content"][0]["bytes"], json!([195, 169]));
    assert_eq!(chat["choices"][0]["logprobs"]["content"][1]["top_logprobs"][1]["token"], "z");
    let usage = json!({ "prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8, "prompt_tokens_details": { "cached_tokens": 4 } });
    assert_eq!(chat["usage"], usage);

    let old = response(Endpoint::Completions, &outcome(vec![choice(0, &["é", "b"]), choice(1, &["c"])])).unwrap();
    assert_eq!((&old["id"], &old["object"]), (&json!("cmpl-job-1"), &json!("text_completion")));
    assert_eq!(old["choices"][1]["text"], "c");
    let logprobs = &old["choices"][0]["logprobs"];
    assert_eq!((&logprobs["tokens"], &logprobs["text_offset"]), (&json!(["é", "b"]), &json!([0, 1])));
    assert_eq!(logprobs["top_logprobs"][0], json!({ "é": -0.5, "z": -2.0 }));
    // The token that was drawn is there though it is none of the likeliest.
    let mut drawn = logprob("é");
    drawn.top_logprobs.remove(0);
    let told = response::logprobs_of(Endpoint::Completions, &[drawn], 0);
    assert_eq!(told["top_logprobs"][0], json!({ "z": -2.0, "é": -0.5 }));

    // A character may be several tokens, of which the last makes it text.
    let pieces = "a中é".bytes().map(|byte| {
        let mut piece = logprob("");
        (piece.chosen.token, piece.chosen.bytes) = ("\u{fffd}".into(), vec![byte]);
        piece
    });
    // The token that ends the text has none of its own, and lies within the text like the others.
    let mut last = logprob("");
    last.chosen.bytes.clear();
    let (pieces, expected): (Vec<_>, _) = (pieces.chain([last]).collect(), [0, 1, 1, 1, 2, 2, 2]);
    let whole = response::logprobs_of(Endpoint::Completions, &pieces, 0);
    assert_eq!(whole["text_offset"], json!(expected));
    let mut stream = Chunks::new(Endpoint::Completions, "j", "m", 0, 1, false);
    let mut streamed = Vec::new();
    for (index, (piece, text)) in pieces.into_iter().zip(["a", "", "", "中", "", "é", ""]).enumerate() {
        let (text, logprobs) = (text.into(), Some(piece));
        let chunks = stream.token(&Delta { index: index as u32, token: Some(1), text, logprobs, ..Delta::default() });
        streamed.extend(chunks.iter().map(|chunk| chunk["choices"][0]["logprobs"]["text_offset"][0].clone()));
    }
    assert_eq!(json!(streamed), json!(expected));

    for (code, status) in [
        (Code::InvalidValue, 400),
        (Code::PromptTooLong, 400),
        (Code::UnknownModel, 404),
        (Code::Conflict, 409),
        (Code::Cancelled, 409),
        (Code::DeadlineExceeded, 408),
        (Code::Internal, 500),
    ] {
        let mut failed = outcome(vec![choice(0, &[])]);
        failed.error = Some(Failure::new(code, "temperature: expected 0 to 2"));
        assert_eq!(response(Endpoint::Completions, &failed).unwrap_err().status, status, "{code:?}");
    }
}

/// What a client puts together from chunks: texts, log-probabilities and ends, by choice.
fn assembled(chunks: &[Value], n: usize) -> Vec<(String, usize, Vec<String>)> {
    let mut answers = vec![(String::new(), 0, Vec::new()); n];
    for choice in chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap()) {
        let answer = &mut answers[choice["index"].as_u64().unwrap() as usize];
        answer.0.push_str(choice["delta"]["content"].as_str().unwrap_or_default());
        answer.1 += choice["logprobs"]["content"].as_array().map_or(0, Vec::len);
        answer.2.extend(choice["finish_reason"].as_str().map(str::to_owned));
    }
    answers
}

#[test]
fn a_stream_is_the_whole_answer_once_whatever_is_missing_or_doubled() {
    let tokens: [&[&str]; 2] = [&["Hé", "llo", "", " wor", "ld"], &["a", "b", "c"]];
    let outcome = outcome(vec![choice(0, tokens[0]), choice(1, tokens[1])]);
    let all: Vec<Delta> = (0..2)
        .flat_map(|choice| {
            tokens[choice].iter().enumerate().map(move |(index, text)| Delta {
                choice: choice as u32,
                index: index as u32,
                token: Some(index as u32),
                text: (*text).into(),
                logprobs: Some(logprob(text)),
                ..Delta::default()
            })
        })
        .collect();
    // What was shown of another answer can't be taken back, and must not pass for this one.
    let mut stream = Chunks::new(Endpoint::ChatCompletions, "job-1", "m", 7, 2, true);
    assert!(!stream.token(&Delta { text: "Hoo".into(), ..all[0].clone() }).is_empty());
    assert_eq!(stream.end(&outcome).unwrap_err().status, 500);
    // What a stop text may take back waits.
    let mut stream = Chunks::new(Endpoint::ChatCompletions, "job-1", "m", 7, 2, true);
    let told = |chunks: &[Value]| -> Vec<usize> {
        let logprobs = chunks.iter().map(|chunk| &chunk["choices"][0]["logprobs"]["content"]);
        logprobs.filter_map(|content| Some(content.as_array()?.len())).collect()
    };
    let first = |at: usize, settled| Delta { settled: Some(settled), ..all[at].clone() };
    assert!(told(&stream.token(&first(0, 0))).is_empty());
    assert_eq!(told(&stream.token(&first(1, 1))), [1]);
    assert_eq!(told(&stream.end(&outcome).unwrap()), [4, 3], "all that was not told, of both answers");
    // Each of these is a history of live tokens: all, none, every gap, and everything twice.
    let gaps = (0..all.len()).map(|gap| (0..all.len()).filter(|at| *at != gap).collect::<Vec<_>>());
    let twice = (0..all.len()).chain(0..all.len()).collect();
    let stutter = (0..all.len()).flat_map(|at| [at, at]).collect();
    for history in gaps.chain([(0..all.len()).collect(), Vec::new(), twice, stutter]) {
        let mut stream = Chunks::new(Endpoint::ChatCompletions, "job-1", "m", 7, 2, true);
        let mut chunks: Vec<Value> = history.iter().flat_map(|at| stream.token(&all[*at])).collect();
        chunks.extend(stream.end(&outcome).unwrap());
        let expected: Vec<_> =
            tokens.iter().map(|tokens| (tokens.concat(), tokens.len(), vec!["stop".to_owned()])).collect();
        assert_eq!(assembled(&chunks, 2), expected, "{history:?}");
        for index in 0..2 {
            let first = chunks.iter().find(|chunk| chunk["choices"][0]["index"] == index).unwrap();
            assert_eq!(first["choices"][0]["delta"]["role"], "assistant", "{history:?}");
        }
        let last = chunks.last().unwrap();
        assert_eq!((&last["choices"], &last["usage"]["total_tokens"]), (&json!([]), &json!(8)));
        assert!(
            chunks.iter().all(|chunk| chunk["object"] == "chat.completion.chunk" && chunk["id"] == "chatcmpl-job-1")
        );
    }
}
