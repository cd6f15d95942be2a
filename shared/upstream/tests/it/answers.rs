use baton_contract::{
    checkpoint::Partial,
    outcome::{FinishReason, Usage},
    upstream::{Ask, Engine, Handover},
};
use baton_upstream::{Call, Event, Resume};
use serde_json::json;

use crate::support::*;

#[tokio::test]
async fn an_answer_is_streamed_as_it_comes() {
    let (go, wait) = tokio::sync::watch::channel(false);
    let usage = event(&json!({ "choices": [], "usage": { "prompt_tokens": 3, "completion_tokens": 2 } }));
    let steps = vec![
        chunked(),
        chunk(": a comment\n\n"),
        chunk(&delta("he")),
        Step::Wait(wait),
        chunk(&delta("llo")),
        chunk(&finish("stop")),
        chunk(&usage),
        chunk(DONE),
        say("0\r\n\r\n"),
    ];
    let engine = Scripted::always(steps).await;
    let instance = engine.instance(Engine::OpenAi).await;
    let mut reply = ask(&instance).await.unwrap();
    let first = reply.next().await.unwrap().unwrap();
    go.send_replace(true);
    let events = rest(reply).await.unwrap();
    assert_eq!((text(&[first]), text(&events)), ("he".into(), "llo".into()));
    assert_eq!(events[2], Event::Usage(Usage { prompt_tokens: 3, completion_tokens: 2, cached_tokens: 0 }));

    let seen = engine.seen().remove(0);
    assert!(seen.head.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{}", seen.head);
    let messages = json!([{ "role": "user", "content": "hi" }]);
    let body = json!({ "messages": messages, "max_tokens": 9, "model": "served", "stream": true, "stream_options": { "include_usage": true } });
    assert_eq!(seen.body, body);
}

#[tokio::test]
async fn the_engines_spans_join_the_jobs_trace() {
    let engine = Scripted::always(hello()).await;
    let instance = engine.instance(Engine::Vllm).await;
    let trace = [("traceparent".to_owned(), "00-0af7-b7ad-01".to_owned()), ("tracestate".to_owned(), "a=b".to_owned())];
    let ask = chat();
    rest(instance.ask(Call { ask: &ask, resume: None, trace: &trace }).await.unwrap()).await.unwrap();
    let seen = engine.seen().remove(0);
    assert_eq!((seen.header("traceparent"), seen.header("tracestate")), (Some("00-0af7-b7ad-01"), Some("a=b")));
}

#[tokio::test]
async fn an_answer_that_is_not_streamed_is_taken_whole() {
    let choice = json!({ "index": 0, "message": { "role": "assistant", "content": "hello" }, "finish_reason": "stop" });
    let engine = Scripted::always(json("200 OK", json!({ "choices": [choice] }))).await;
    assert_eq!(text(&answer(&engine.instance(Engine::OpenAi).await).await.unwrap()), "hello");
}

#[tokio::test]
async fn an_answer_goes_on_after_its_beginning_or_is_over_with_it() {
    let engine = Scripted::new(|_, seen| {
        let rest = json!({ "choices": [{ "index": 0, "text": " three", "token_ids": [7], "prompt_token_ids": seen.body["prompt"], "finish_reason": "length" }],
            "usage": { "prompt_tokens": 4, "completion_tokens": 1 } });
        vec![chunked(), chunk(&event(&rest)), chunk(DONE), say("0\r\n\r\n")]
    })
    .await;
    let instance = engine.instance(Engine::Vllm).await;
    let begun = |most: u32| {
        let body = json!({ "messages": [{ "role": "user", "content": "count" }], "max_tokens": most });
        Ask { chat: true, body: body.to_string(), handover: Some(Handover { params: "{}".into(), at_ms: 0 }) }
    };
    let partial = Partial { text: "one two".into(), pieces: 2, prompt: vec![1, 2], ..Partial::default() };
    let resume = Resume { partial, tokens: vec![5, 6] };
    let (three, two) = (begun(3), begun(2));
    assert!(instance.resumes(&three, &resume));
    let call = |ask| Call { ask, resume: Some(&resume), trace: &[] };
    let events = rest(instance.ask(call(&three)).await.unwrap()).await.unwrap();
    let Event::Piece(piece) = &events[0] else { panic!("{events:?}") };
    assert_eq!((&*piece.text, &*piece.tokens), (" three", &[7][..]));
    assert_eq!(events[1], Event::Usage(Usage { prompt_tokens: 2, completion_tokens: 3, cached_tokens: 0 }));

    let events = rest(instance.ask(call(&two)).await.unwrap()).await.unwrap();
    let Event::Piece(piece) = &events[0] else { panic!("{events:?}") };
    assert_eq!((&*piece.text, piece.finish_reason), ("", Some(FinishReason::Length)));
    let seen = engine.seen();
    assert_eq!(
        (seen.len(), &seen[0].body["prompt"], &seen[0].body["max_tokens"]),
        (1, &json!([1, 2, 5, 6]), &json!(1))
    );
    assert!(seen[0].head.starts_with("POST /v1/completions ") && seen[0].body.get("kv_transfer_params").is_none());
}
