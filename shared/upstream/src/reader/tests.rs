use serde_json::json;

use super::*;

fn read(reader: &mut Reader, chunks: &[Value]) -> Result<Vec<Event>, Broken> {
    for chunk in chunks {
        reader.read(chunk.to_string().as_bytes(), false)?;
    }
    reader.read(b"[DONE]", false)?;
    Ok(std::iter::from_fn(|| reader.next()).collect())
}

fn one(engine: Engine, chunks: &[Value]) -> Result<Vec<Event>, Broken> {
    read(&mut Reader::new(engine, 1, None), chunks)
}

fn delta(delta: Value) -> Value {
    json!({ "choices": [{ "index": 0, "delta": delta, "finish_reason": null }] })
}

fn finish(reason: &str) -> Value {
    json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": reason }] })
}

fn text(text: &str) -> Event {
    Event::Piece(Piece { text: text.into(), ..Piece::default() })
}

fn end(reason: FinishReason) -> Event {
    Event::Piece(Piece { finish_reason: Some(reason), ..Piece::default() })
}

#[test]
fn a_chat_of_llama_cpp_is_read() {
    let usage =
        json!({ "prompt_tokens": 32, "completion_tokens": 2, "prompt_tokens_details": { "cached_tokens": 31 } });
    let events = one(
        Engine::LlamaCpp,
        &[
            delta(json!({ "role": "assistant", "content": null })),
            delta(json!({ "content": "I" })),
            delta(json!({ "content": "'m" })),
            finish("length"),
            json!({ "choices": [], "usage": usage }),
        ],
    );
    let usage = Usage { prompt_tokens: 32, completion_tokens: 2, cached_tokens: 31 };
    assert_eq!(events.unwrap(), [text("I"), text("'m"), end(FinishReason::Length), Event::Usage(usage)]);
}

#[test]
fn token_ids_come_with_the_text_that_they_complete() {
    let chunk = |text: &str, ids: &[u32]| json!({ "choices": [{ "index": 0, "delta": { "content": text }, "token_ids": ids }] });
    let mut first = chunk("", &[]);
    first["prompt_token_ids"] = json!([1, 2]);
    let mut last = chunk("", &[9]);
    last["choices"][0]["finish_reason"] = json!("stop");
    let events =
        one(Engine::Vllm, &[first, chunk("a", &[5]), chunk("", &[6]), chunk("\u{e9}", &[7, 8]), last]).unwrap();
    let piece = |text: &str, tokens: &[u32]| Piece { text: text.into(), tokens: tokens.into(), ..Piece::default() };
    let last = Piece { finish_reason: Some(FinishReason::Stop), ..piece("", &[9]) };
    assert_eq!(
        events,
        [
            Event::Prompt(vec![1, 2]),
            Event::Piece(piece("a", &[5])),
            Event::Piece(piece("\u{e9}", &[6, 7, 8])),
            Event::Piece(last),
        ]
    );
}

#[test]
fn everything_that_a_message_has_is_kept() {
    let call = json!([{ "index": 0, "id": "a", "type": "function", "function": { "name": "f", "arguments": "" } }]);
    let deltas = [
        json!({ "role": "assistant", "reasoning_content": "h" }),
        json!({ "reasoning": "m", "tool_calls": [], "refusal": null, "audio": {}, "content": "" }),
        json!({ "tool_calls": call, "made_up": 7 }),
        json!({ "content": [{ "type": "thinking", "thinking": "x" }] }),
    ];
    let kept: [Value; 4] = [
        json!({ "reasoning_content": "h" }),
        json!({ "reasoning": "m" }),
        json!({ "tool_calls": call, "made_up": 7 }),
        json!({ "content": [{ "type": "thinking", "thinking": "x" }] }),
    ];
    let mut chunks: Vec<Value> = deltas.into_iter().map(delta).collect();
    chunks.push(finish("tool_calls"));
    let mut expected: Vec<Event> = kept
        .into_iter()
        .map(|message| Event::Piece(Piece { message: message.as_object().unwrap().clone(), ..Piece::default() }))
        .collect();
    expected.push(end(FinishReason::ToolCalls));
    assert_eq!(one(Engine::Vllm, &chunks).unwrap(), expected);
}

#[test]
fn several_answers_of_a_completion_are_read_with_the_usage_of_all() {
    let chunk = |index: u32, text: &str, reason: Option<&str>| json!({ "choices": [{ "index": index, "text": text, "finish_reason": reason }] });
    let mut chunks = vec![
        chunk(0, "a", None),
        chunk(1, "b", None),
        chunk(1, "", Some("stop")),
        chunk(1, "", None),
        chunk(0, "", Some("length")),
    ];
    for place in [2, 4] {
        chunks[place]["usage"] = json!({ "prompt_tokens": 4, "completion_tokens": 3 });
    }
    for (engine, completion_tokens) in [(Engine::LlamaCpp, 6), (Engine::Vllm, 3)] {
        let events = read(&mut Reader::new(engine, 2, None), &chunks).unwrap();
        let second = |event| matches!(event, Event::Piece(piece) if piece.choice == 1);
        let seconds = events.iter().cloned().filter_map(|event| second(event).then_some(())).count();
        let usage = Usage { prompt_tokens: 4, completion_tokens, cached_tokens: 0 };
        assert_eq!((events.len(), seconds, events.last()), (5, 2, Some(&Event::Usage(usage))), "{engine}");
    }
}

#[test]
fn what_was_generated_before_counts_as_the_answers() {
    let mut reader = Reader::new(Engine::Vllm, 1, Some(10));
    let mut last = finish("stop");
    last["prompt_token_ids"] = json!([1]);
    last["usage"] =
        json!({ "prompt_tokens": 30, "completion_tokens": 5, "prompt_tokens_details": { "cached_tokens": 28 } });
    let usage = Usage { prompt_tokens: 20, completion_tokens: 15, cached_tokens: 20 };
    assert_eq!(read(&mut reader, &[last]).unwrap(), [end(FinishReason::Stop), Event::Usage(usage)]);
}

#[test]
fn a_whole_answer_is_read_as_one_piece() {
    let mut reader = Reader::new(Engine::OpenAi, 1, None);
    let message = json!({ "role": "assistant", "content": "hi", "refusal": null });
    let body = json!({ "choices": [{ "index": 0, "message": message, "finish_reason": "stop" }], "usage": { "prompt_tokens": 1 } });
    reader.whole(body.to_string().as_bytes()).unwrap();
    let events: Vec<Event> = std::iter::from_fn(|| reader.next()).collect();
    let piece = Piece { text: "hi".into(), finish_reason: Some(FinishReason::Stop), ..Piece::default() };
    assert_eq!(events[0], Event::Piece(piece));
    assert!(reader.is_over() && events.len() == 2);
    let whole = |body: &str| Reader::new(Engine::OpenAi, 1, None).whole(body.as_bytes());
    assert_eq!(whole(r#"{"status":"ok"}"#), Err(Broken::NoCompletion));
    assert_eq!(whole("[1]"), Err(Broken::NoJson("[1]".into())));
    assert!(matches!(whole(r#"{"error":{"message":"m"}}"#), Err(Broken::Error(_))));
}

#[test]
fn what_is_no_answer_is_named() {
    let broken = |chunk: &str, is_error: bool| Reader::new(Engine::Vllm, 1, None).read(chunk.as_bytes(), is_error);
    assert!(matches!(broken(r#"{"error":{"code":500}}"#, false), Err(Broken::Error(_))));
    assert_eq!(broken("boom", true), Err(Broken::Error("boom".into())));
    assert_eq!(broken("<html>", false), Err(Broken::NoJson("<html>".into())));
    assert_eq!(broken("7", false), Err(Broken::NoJson("7".into())));
    assert_eq!(broken("[DONE]", false), Err(Broken::Unfinished));
    for reason in ["abort", "error"] {
        assert_eq!(broken(&finish(reason).to_string(), false), Err(Broken::GivenUp(reason.into())));
    }
    assert_eq!(broken(r#"{"choices":[{"index":1,"text":"a"}]}"#, false), Err(Broken::Choice(1)));
    for harmless in ["", " ", "{}", r#"{"type":"ping"}"#, r#"{"error":null,"choices":[]}"#] {
        assert_eq!(broken(harmless, false), Ok(()), "{harmless}");
    }
    assert_eq!(one(Engine::Vllm, &[finish("stop"), delta(json!({ "content": "more" }))]), Err(Broken::WentOn));
    assert_eq!(Reader::new(Engine::Vllm, 1, None).end(), Err(Broken::CutOff));
    let mut reader = Reader::new(Engine::Vllm, 1, None);
    let large = delta(json!({ "content": "a".repeat(1 << 20) })).to_string();
    let taken = (0..).find(|_| reader.read(large.as_bytes(), false) == Err(Broken::TooLarge));
    assert_eq!(taken, Some(MOST_BYTES >> 20));
}
