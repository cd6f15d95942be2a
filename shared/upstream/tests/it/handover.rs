use std::time::Duration;

use baton_contract::upstream::{Ask, Engine, Handover};
use baton_upstream::{Call, Options, Retry};
use serde_json::{Value, json};

use crate::support::*;

fn call(ask: &Ask) -> Call<'_> {
    Call { ask, resume: None, trace: &[] }
}

#[tokio::test]
async fn vllm_prefills_on_one_instance_and_decodes_on_another() {
    let prefills = Scripted::new(|count, _| {
        let told = json!({ "do_remote_prefill": true, "remote_block_ids": [[1]], "remote_engine_id": "e", "remote_host": "10.0.0.1", "remote_port": 5601 });
        match count {
            0 => json("200 OK", json!({ "choices": [], "kv_transfer_params": told })),
            1 => json("200 OK", json!({ "choices": [] })),
            _ => json("400 Bad Request", json!({ "error": { "message": "no" } })),
        }
    })
    .await;
    let decodes = Scripted::always(hello()).await;
    let mut ask = chat();
    let instance = prefills.instance(Engine::Vllm).await;
    let handover = instance.prefill(call(&ask)).await.unwrap();
    assert_eq!(serde_json::from_str::<Value>(&handover).unwrap()["remote_engine_id"], "e");
    let body = prefills.seen().remove(0).body;
    assert_eq!((&body["max_tokens"], &body["stream"]), (&json!(1), &json!(false)));
    assert_eq!(body["kv_transfer_params"]["do_remote_decode"], true);

    ask.handover = Some(Handover { params: handover, at_ms: 0 });
    rest(decodes.instance(Engine::Vllm).await.ask(call(&ask)).await.unwrap()).await.unwrap();
    assert_eq!(decodes.seen()[0].body["kv_transfer_params"]["remote_host"], "10.0.0.1");

    let none = instance.prefill(call(&ask)).await.unwrap_err();
    assert!(none.retry == Retry::Elsewhere && none.message.contains("--kv-transfer-config"), "{none}");
    assert_eq!(instance.prefill(call(&ask)).await.unwrap_err().retry, Retry::Never);
}

#[tokio::test]
async fn a_transfer_that_fails_is_done_without() {
    let error = json!({ "error": { "message": "KV load failed", "code": 500 } });
    let (refusal, broken) = (json("500 Internal Server Error", error.clone()), vec![chunked(), chunk(&event(&error))]);
    for (steps, handover, retry) in [
        (refusal.clone(), true, Retry::Recompute),
        (refusal, false, Retry::Elsewhere),
        (broken.clone(), true, Retry::Recompute),
        (broken, false, Retry::Elsewhere),
        (vec![chunked(), Step::Close], true, Retry::Later(None)),
    ] {
        let engine = Scripted::always(steps).await;
        let ask = Ask { handover: handover.then(|| Handover { params: "{}".into(), at_ms: 0 }), ..chat() };
        let instance = engine.instance(Engine::Vllm).await;
        let fault = match instance.ask(call(&ask)).await {
            Ok(reply) => rest(reply).await.unwrap_err(),
            Err(fault) => fault,
        };
        assert_eq!(fault.retry, retry, "{fault}");
    }
}

#[tokio::test]
async fn a_kv_cache_that_does_not_come_is_done_without() {
    let told =
        event(&json!({ "choices": [{ "index": 0, "delta": { "role": "assistant" } }], "prompt_token_ids": [1] }));
    for (steps, retry) in [
        (vec![Step::Hold], Retry::Recompute),
        (vec![chunked(), Step::Hold], Retry::Recompute),
        (vec![chunked(), chunk(&told), Step::Hold], Retry::Recompute),
        (vec![chunked(), chunk(&told), chunk(&delta("a")), Step::Hold], Retry::Later(None)),
    ] {
        let engine = Scripted::always(steps).await;
        let short = Duration::from_millis(300);
        let instance = only(Options { timeout: short, ..options(&engine.url, Engine::Vllm) }).await;
        let ask = Ask { handover: Some(Handover { params: "{}".into(), at_ms: 0 }), ..chat() };
        let fault = match instance.ask(call(&ask)).await {
            Ok(reply) => rest(reply).await.unwrap_err(),
            Err(fault) => fault,
        };
        assert_eq!(fault.retry, retry, "{fault}");
    }
}

/// An instance of SGLang that only prefills, and does so for requests.
async fn sglang_prefill(steps: Vec<Step>) -> Scripted {
    Scripted::new(move |_, seen| match seen.head.starts_with("GET /server_info ") {
        true => json("200 OK", json!({ "disaggregation_mode": "prefill", "disaggregation_bootstrap_port": 9001 })),
        false => steps.clone(),
    })
    .await
}

fn meeting(body: &Value) -> [&Value; 3] {
    ["bootstrap_host", "bootstrap_port", "bootstrap_room"].map(|name| &body[name])
}

#[tokio::test]
async fn sglangs_instances_are_asked_at_once_and_meet() {
    // Each answers only once the other was asked too.
    let (go, wait) = tokio::sync::watch::channel(false);
    let prefill = sglang_prefill([vec![Step::Wait(wait)], hello()].concat()).await;
    let decode = Scripted::new(move |_, _| {
        go.send_replace(true);
        hello()
    })
    .await;
    let (one, other) = (decode.instance(Engine::Sglang).await, prefill.instance(Engine::Sglang).await);
    let ask = chat();
    for _ in 0..2 {
        let reply = one.ask_both(&other, call(&ask)).await.unwrap();
        assert_eq!(text(&rest(reply).await.unwrap()), "hello");
    }
    let (prefills, decodes) = (prefill.seen(), decode.seen());
    let asked: Vec<&str> = prefills.iter().map(|seen| &seen.head[..4]).collect();
    assert_eq!(asked, ["GET ", "POST", "POST"], "the port is asked for once");
    let room = |at: usize| meeting(&decodes[at].body)[2].as_u64().unwrap();
    assert_eq!(meeting(&decodes[0].body)[..2], [&json!("127.0.0.1"), &json!(9001)]);
    assert_eq!(meeting(&prefills[1].body), meeting(&decodes[0].body));
    assert!(room(0) != room(1) && room(0) < 1 << 63);
}

#[tokio::test]
async fn whichever_of_the_two_fails_fails_the_answer() {
    let no = || json("400 Bad Request", json!({ "error": { "message": "no" } }));
    let ask = chat();
    for (prefills, decodes) in [
        (no(), vec![Step::Hold]),
        (no(), vec![chunked(), Step::Hold]),
        (
            vec![chunked(), chunk(&event(&json!({ "error": { "message": "no", "code": 400 } })))],
            vec![chunked(), Step::Hold],
        ),
    ] {
        let (prefill, decode) = (sglang_prefill(prefills).await, Scripted::always(decodes).await);
        let (one, other) = (decode.instance(Engine::Sglang).await, prefill.instance(Engine::Sglang).await);
        let fault = match one.ask_both(&other, call(&ask)).await {
            Ok(reply) => rest(reply).await.unwrap_err(),
            Err(fault) => fault,
        };
        assert!(fault.retry == Retry::Never && fault.message.ends_with("no"), "{fault}");
        decode.wait_left().await;
    }
    let (prefill, decode) = (sglang_prefill(vec![chunked(), Step::Hold]).await, Scripted::always(no()).await);
    let (one, other) = (decode.instance(Engine::Sglang).await, prefill.instance(Engine::Sglang).await);
    assert_eq!(one.ask_both(&other, call(&ask)).await.err().map(|fault| fault.retry), Some(Retry::Never));
}
