//! Models that foreign engines serve: what is passed on and what is refused, and their messages, whole and streamed.

use baton_contract::upstream::{Ask, Engine, merge, whole};
use proptest::{prelude::*, sample::select};
use serde_json::Map;

use super::*;

fn engines(engine: Engine) -> Engines {
    let name = Name::new("m").unwrap();
    Engines::new([(name.clone(), engine)], &name)
}

fn ask(endpoint: Endpoint, engine: Engine, fields: Value) -> Result<(Call, Value), ApiError> {
    let mut body = match endpoint {
        Endpoint::ChatCompletions => json!({ "messages": [{ "role": "user", "content": "Hi" }] }),
        Endpoint::Completions => json!({ "prompt": "Hi" }),
    };
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let call = read(endpoint, body.to_string().as_bytes(), &engines(engine))?;
    // What the bus carries is what ingest asks.
    let carried = serde_json::from_slice(&serde_json::to_vec(&call.request).unwrap()).unwrap();
    assert_eq!(call.request, carried);
    let asked = Ask::of(&carried, engine).unwrap();
    Ok((call, asked.object().into()))
}

fn tool() -> Value {
    json!({ "type": "function", "function": { "name": "f", "strict": true, "parameters": { "type": "object" } } })
}

#[test]
fn what_a_request_sets_reaches_the_engine_and_nothing_else_does() {
    for engine in Engine::ALL {
        let (call, asked) = ask(Endpoint::ChatCompletions, engine, json!({})).unwrap();
        assert_eq!(asked, json!({ "messages": [{ "role": "user", "content": "Hi" }] }), "{engine}");
        assert_eq!(call.request.max_tokens, None);
        // As agents send it on, with what SDKs leave null.
        let messages = json!([
            { "role": "developer", "content": "Be brief.", "name": "boss" },
            { "role": "user", "content": [{ "type": "text", "text": "What is it?" },
                { "type": "image_url", "image_url": { "url": "data:image/png;base64,AA==" } }] },
            { "role": "assistant", "content": null, "refusal": null, "audio": null, "reasoning_content": "Hm.",
                "tool_calls": [{ "id": "c", "type": "function", "function": { "name": "f", "arguments": "{}" } }] },
            { "role": "tool", "tool_call_id": "c", "content": "7" },
        ]);
        let form = json!({ "type": "json_schema", "json_schema": { "name": "x", "strict": true, "schema": { "type": "object",
            "properties": { "a": { "type": "integer" } } } } });
        let fields = json!({
            "model": "m", "messages": messages, "tools": [tool()], "tool_choice": "required", "parallel_tool_calls": false,
            "max_completion_tokens": 9, "temperature": 0.7, "top_p": 0.9, "seed": -3, "stop": "x", "n": 2, "logprobs": true,
            "top_logprobs": 2, "reasoning_effort": "low", "response_format": form, "logit_bias": null,
            "user": "u", "metadata": { "k": "v" }, "service_tier": "batch", "deadline": 9, "stream": true,
            "stream_options": { "include_usage": true },
        });
        let (call, mut asked) = ask(Endpoint::ChatCompletions, engine, fields.clone()).unwrap();
        let mut expected = fields;
        for ours in ["model", "user", "metadata", "service_tier", "deadline", "stream", "stream_options", "logit_bias"]
        {
            expected.as_object_mut().unwrap().remove(ours);
        }
        for unsaid in ["content", "refusal", "audio"] {
            expected["messages"][2].as_object_mut().unwrap().remove(unsaid);
        }
        assert_eq!(asked["messages"].take(), expected["messages"].take(), "{engine}");
        assert_eq!(asked, expected, "{engine}");
        assert!(call.stream && call.include_usage);
        assert_eq!((call.request.lane.as_deref(), &call.request.metadata["user"]), (Some("batch"), &"u".to_owned()));
        let (_, asked) = ask(Endpoint::Completions, engine, json!({ "temperature": 0, "max_tokens": 3 })).unwrap();
        assert_eq!(asked, json!({ "prompt": "Hi", "temperature": 0.0, "max_tokens": 3 }), "{engine}");
    }
    let own = Engines::new([(Name::new("theirs").unwrap(), Engine::Vllm)], &Name::new("ours").unwrap());
    let body =
        json!({ "model": "ours", "messages": [{ "role": "user", "content": "Hi" }], "tools": [tool()] }).to_string();
    let refused = read(Endpoint::ChatCompletions, body.as_bytes(), &own).unwrap_err();
    assert_eq!(refused.param.as_deref(), Some("tools"), "a pipeline's own models stay as they are");
    let theirs = body.replace("ours", "theirs");
    assert!(read(Endpoint::ChatCompletions, theirs.as_bytes(), &own).is_ok());
}

#[test]
fn what_an_engine_is_known_to_lack_is_refused_by_the_name_that_it_was_written_with() {
    let chat = Endpoint::ChatCompletions;
    for (endpoint, engine, fields, param) in [
        (chat, Engine::Vllm, json!({ "functions": [{}] }), "functions"),
        (chat, Engine::Vllm, json!({ "store": true }), "store"),
        (chat, Engine::Vllm, json!({ "modalities": ["text", "audio"] }), "modalities"),
        (chat, Engine::Vllm, json!({ "prompt_cache_key": "x" }), "prompt_cache_key"),
        (chat, Engine::Sglang, json!({ "chat_template": "x" }), "chat_template"),
        (chat, Engine::LlamaCpp, json!({ "guided_regex": "a+" }), "guided_regex"),
        (chat, Engine::LlamaCpp, json!({ "structured_outputs": { "regex": "a+" } }), "structured_outputs.regex"),
        (chat, Engine::LlamaCpp, json!({ "tools": [tool()], "tool_choice": { "type": "custom" } }), "tool_choice"),
        (chat, Engine::LlamaCpp, json!({ "frobnicate": 1 }), "frobnicate"),
        (chat, Engine::OpenAi, json!({ "prompt_logprobs": 1 }), "prompt_logprobs"),
        (chat, Engine::OpenAi, json!({ "kv_transfer_params": {} }), "kv_transfer_params"),
        (chat, Engine::OpenAi, json!({ "temperature": 3 }), "temperature"),
        (chat, Engine::OpenAi, json!({ "max_tokens": 1, "max_completion_tokens": 2 }), "max_completion_tokens"),
        (chat, Engine::OpenAi, json!({ "messages": [{ "content": "x" }] }), "messages[0].role"),
        (chat, Engine::OpenAi, json!({ "messages": [{ "role": "user", "content": 7 }] }), "messages[0].content"),
        (Endpoint::Completions, Engine::Vllm, json!({ "tools": [tool()] }), "tools"),
        (Endpoint::Completions, Engine::LlamaCpp, json!({ "echo": true }), "echo"),
        (Endpoint::Completions, Engine::Vllm, json!({ "prompt": ["a", "b"] }), "prompt"),
    ] {
        let error = ask(endpoint, engine, fields.clone()).unwrap_err();
        assert_eq!((error.status, error.param.as_deref()), (400, Some(param)), "{fields}: {error}");
        assert!(error.message.starts_with(&format!("{param}: ")), "{error}");
    }
    // What says what is the case anyway passes; of an engine of which nothing is known, everything does.
    let neutral = json!({ "store": false, "modalities": ["text"], "functions": [], "function_call": "auto" });
    let (_, asked) = ask(chat, Engine::Vllm, neutral.clone()).unwrap();
    assert_eq!(asked.as_object().unwrap().len(), 1, "{asked}");
    let (_, asked) = ask(chat, Engine::OpenAi, neutral).unwrap();
    assert_eq!(asked.as_object().unwrap().len(), 5, "{asked}");
    let all =
        json!({ "store": true, "audio": { "voice": "x" }, "prediction": {}, "verbosity": "low", "frobnicate": 1 });
    assert_eq!(ask(chat, Engine::OpenAi, all).unwrap().1["frobnicate"], 1);
    let neutral = json!({ "best_of": 2, "n": 2, "echo": false, "suffix": "" });
    let (_, asked) = ask(Endpoint::Completions, Engine::LlamaCpp, neutral).unwrap();
    assert_eq!(asked, json!({ "prompt": "Hi", "n": 2 }));
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

#[test]
fn messages_keep_what_they_have_besides_a_text() {
    let calls = json!([{ "index": 0, "id": "a", "type": "function", "function": { "name": "f", "arguments": "{}" } }]);
    let message = object(json!({ "tool_calls": calls, "reasoning_content": "Hm." }));
    let finish_reason = Some(FinishReason::ToolCalls);
    let called = Choice { message, finish_reason, logprobs: None, ..choice(0, &[]) };
    let mut outcome = outcome(vec![called.clone()]);
    outcome.message = called.message.clone();
    let expected = json!({ "role": "assistant", "content": null, "refusal": null, "reasoning_content": "Hm.",
        "tool_calls": [{ "id": "a", "type": "function", "function": { "name": "f", "arguments": "{}" } }] });
    let answer = response(Endpoint::ChatCompletions, &outcome).unwrap();
    assert_eq!(
        (&answer["choices"][0]["message"], &answer["choices"][0]["finish_reason"]),
        (&expected, &json!("tool_calls"))
    );
    let refusal = Choice { index: 1, message: object(json!({ "refusal": "No." })), ..choice(1, &[]) };
    outcome.choices = vec![called, refusal];
    let answer = response(Endpoint::ChatCompletions, &outcome).unwrap();
    assert_eq!(answer["choices"][0]["message"], expected);
    assert_eq!(answer["choices"][1]["message"], json!({ "role": "assistant", "content": "", "refusal": "No." }));
}

/// A piece of an answer: its text, of its reasoning, and of calls, each by its index.
type Part = (&'static str, Option<&'static str>, Vec<(u64, &'static str, bool)>);

fn parts() -> impl Strategy<Value = Vec<Part>> {
    let text = || select(vec!["", "a", "b", "é", "中b"]);
    let calls = prop::collection::vec((0..3_u64, text(), any::<bool>()), 0..2);
    prop::collection::vec((text(), prop::option::of(text()), calls), 0..7)
}

/// The deltas of an answer, and the answer.
fn told(parts: &[Part]) -> (Vec<Delta>, Choice) {
    let (mut calls, mut answer) = (0, Choice { logprobs: None, ..choice(0, &[]) });
    let mut deltas = Vec::new();
    for (place, (text, reasoning, parts)) in parts.iter().enumerate() {
        let mut list = Vec::new();
        for (index, arguments, again) in parts {
            let index = (*index).min(calls);
            let mut call = json!({ "index": index, "function": { "arguments": arguments } });
            if index == calls || *again {
                call["function"]["name"] = format!("f{index}").into();
                (call["id"], call["type"]) = (format!("a{index}").into(), "function".into());
            }
            calls = calls.max(index + 1);
            list.push(call);
        }
        let mut message = Map::new();
        message.extend(reasoning.map(|text| ("reasoning_content".to_owned(), text.into())));
        message.extend((!list.is_empty()).then(|| ("tool_calls".to_owned(), list.into())));
        answer.text.push_str(text);
        merge(&mut answer.message, &message);
        let message = (!message.is_empty()).then(|| Box::new(message));
        deltas.push(Delta { index: place as u32, text: (*text).to_owned(), message, ..Delta::default() });
    }
    answer.message = whole(&answer.message);
    (deltas, answer)
}

/// What a client makes of chunks, as OpenAI's SDKs do: all texts grow but for the type.
fn put_together(chunks: &[Value]) -> Value {
    let (mut message, mut calls) = (json!({ "content": "", "reasoning_content": "" }), Vec::<Value>::new());
    let grow = |text: &mut Value, part: &Value| {
        if let Some(part) = part.as_str() {
            *text = format!("{}{part}", text.as_str().unwrap_or_default()).into();
        }
    };
    for choice in chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap()) {
        let delta = &choice["delta"];
        grow(&mut message["content"], &delta["content"]);
        grow(&mut message["reasoning_content"], &delta["reasoning_content"]);
        for part in delta["tool_calls"].as_array().into_iter().flatten() {
            let index = part["index"].as_u64().expect("a call without its index") as usize;
            if index == calls.len() {
                calls.push(json!({ "function": {} }));
            }
            let call = &mut calls[index];
            grow(&mut call["id"], &part["id"]);
            ["name", "arguments"].iter().for_each(|name| grow(&mut call["function"][*name], &part["function"][*name]));
        }
    }
    message["tool_calls"] = calls.into();
    message
}

fn expected(answer: &Choice) -> Value {
    let mut calls = answer.message.get("tool_calls").cloned().unwrap_or(json!([]));
    calls.as_array_mut().unwrap().iter_mut().for_each(|call| drop(call.as_object_mut().unwrap().remove("type")));
    let reasoning = answer.message.get("reasoning_content").cloned().unwrap_or(json!(""));
    json!({ "content": answer.text, "reasoning_content": reasoning, "tool_calls": calls })
}

/// Whether what was sent may go on to the whole; calls may lack what was not sent yet.
fn begins(sent: &Value, whole: &Value) -> bool {
    match (sent, whole) {
        (Value::String(sent), Value::String(whole)) => whole.starts_with(sent.as_str()),
        (Value::Object(sent), whole) => sent.iter().all(|(name, sent)| begins(sent, &whole[name])),
        (Value::Array(sent), Value::Array(whole)) => {
            sent.len() <= whole.len() && sent.iter().zip(whole).all(|(sent, whole)| begins(sent, whole))
        }
        _ => false,
    }
}

proptest! {
    #[test]
    fn a_stream_is_the_whole_message_once_or_an_error(
        (first, second) in (parts(), parts()),
        same in any::<bool>(),
        begun in 0..8_usize,
        from in prop::option::of(0..8_usize),
        fates in prop::collection::vec(select(vec![0, 1, 1, 1, 1, 2]), 20),
    ) {
        let (deltas, answer) = told(&first);
        // A worker tells the beginning; the next goes on from some place, in the same words or in others.
        let (history, answer) = match from {
            None => (deltas, answer),
            Some(from) => {
                let begun = begun.min(deltas.len());
                let from = from.min(begun);
                let other: Vec<Part> = first[..from].iter().chain(&second).cloned().collect();
                let (anew, answer) = if same { (deltas.clone(), answer) } else { told(&other) };
                let mark = Delta { index: from as u32, restart: true, ..Delta::default() };
                (deltas[..begun].iter().cloned().chain([mark]).chain(anew[from..].iter().cloned()).collect(), answer)
            }
        };
        let mut stream = Chunks::new(Endpoint::ChatCompletions, "job-1", "m", 7, 1, false);
        let mut chunks = Vec::new();
        for (delta, fate) in history.iter().zip(fates) {
            let times = if delta.restart { 1 } else { fate };
            (0..times).for_each(|_| chunks.extend(stream.token(delta)));
        }
        let mut outcome = outcome(vec![answer.clone()]);
        outcome.message = answer.message.clone();
        match stream.end(&outcome) {
            Ok(rest) => {
                chunks.extend(rest);
                prop_assert_eq!(put_together(&chunks), expected(&answer));
                let ends = chunks.iter().filter(|chunk| chunk["choices"][0]["finish_reason"] == "stop").count();
                prop_assert_eq!(ends, 1);
            }
            Err(error) => {
                prop_assert_eq!(error.status, 500);
                prop_assert!(!begins(&put_together(&chunks), &expected(&answer)), "what was sent is no mistake");
            }
        }
    }
}

#[test]
fn a_live_stream_passes_parts_on_as_they_come() {
    let parts: [Part; 3] =
        [("", Some("Hm"), vec![]), ("", None, vec![(0, "{", false)]), ("", None, vec![(0, "}", true)])];
    let (deltas, answer) = told(&parts);
    let mut stream = Chunks::new(Endpoint::ChatCompletions, "job-1", "m", 7, 1, false);
    let chunks: Vec<Value> = deltas.iter().flat_map(|delta| stream.token(delta)).collect();
    let deltas: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]).collect();
    assert_eq!(
        deltas,
        [
            &json!({ "role": "assistant", "content": "", "refusal": null }),
            &json!({ "reasoning_content": "Hm" }),
            &json!({ "tool_calls": [{ "index": 0, "function": { "arguments": "{", "name": "f0" }, "id": "a0", "type": "function" }] }),
            &json!({ "tool_calls": [{ "index": 0, "function": { "arguments": "}" } }] }),
        ]
    );
    let mut outcome = outcome(vec![answer.clone()]);
    outcome.message = answer.message;
    assert_eq!(stream.end(&outcome).unwrap().len(), 1, "only how it ended");
    // What was shown of a call can't be taken back.
    outcome.message = object(json!({ "reasoning_content": "Hm", "tool_calls": [{ "id": "b" }] }));
    let mut stream = Chunks::new(Endpoint::ChatCompletions, "job-1", "m", 7, 1, false);
    assert!(
        !stream
            .token(&Delta {
                message: Some(Box::new(object(json!({ "tool_calls": [{ "index": 0, "id": "a" }] })))),
                ..Delta::default()
            })
            .is_empty()
    );
    assert_eq!(stream.end(&outcome).unwrap_err().status, 500);
}

#[test]
fn an_answer_that_begins_again_waits_and_goes_on_if_its_words_are_the_same() {
    let texts = |parts: &[&'static str]| parts.iter().map(|text| (*text, None, vec![])).collect::<Vec<Part>>();
    let mark = Delta { restart: true, ..Delta::default() };
    for (anew, rest) in [(&["ab", "c"][..], Ok("bc")), (&["b", "c"][..], Err(500))] {
        let ((before, _), (after, answer)) = (told(&texts(&["a"])), told(&texts(anew)));
        let mut stream = Chunks::new(Endpoint::ChatCompletions, "job-1", "m", 7, 1, false);
        assert_eq!(stream.token(&before[0]).len(), 2);
        assert!(std::iter::once(&mark).chain(&after).all(|delta| stream.token(delta).is_empty()));
        let ended = stream.end(&outcome(vec![answer])).map_err(|error| error.status);
        let ended = ended.map(|chunks| chunks[0]["choices"][0]["delta"]["content"].as_str().unwrap().to_owned());
        assert_eq!(ended, rest.map(str::to_owned));
    }
}
