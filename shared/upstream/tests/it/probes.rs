use baton_contract::upstream::Engine;
use baton_upstream::Retry;
use serde_json::json;

use crate::support::*;

#[tokio::test]
async fn an_instance_tells_its_models_metrics_and_health() {
    let engine = Scripted::new(|_, seen| match seen.head.split(' ').nth(1).unwrap() {
        "/base/v1/models" => {
            json("200 OK", json!({ "data": [{ "id": "a", "aliases": ["a", "b"] }, { "id": "lora" }] }))
        }
        "/base/metrics" => response("200 OK", "text/plain", "vllm:num_requests_waiting 3\n"),
        "/base/health" => response("200 OK", "text/plain", ""),
        _ => json("404 Not Found", json!({ "detail": "Not Found" })),
    })
    .await;
    let instance = only(options(&format!("{}/base/", engine.url), Engine::Vllm)).await;
    assert_eq!(instance.models().await.unwrap(), ["a", "b", "lora"]);
    assert_eq!(instance.metrics().await.unwrap(), "vllm:num_requests_waiting 3\n");
    instance.health().await.unwrap();
    let elsewhere = engine.instance(Engine::LlamaCpp).await;
    assert_eq!(elsewhere.health().await.unwrap_err().retry, Retry::Elsewhere);
    assert_eq!(elsewhere.models().await.unwrap_err().retry, Retry::Elsewhere);
    // Of any other engine nothing but its models is known.
    assert_eq!(only(options(&format!("{}/base", engine.url), Engine::OpenAi)).await.health().await, Ok(()));
}

#[tokio::test]
async fn what_an_instance_tells_is_bounded_and_checked() {
    let head = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n";
    let endless = Scripted::always(vec![say(head), Step::Repeat(vec![b'a'; 1 << 16])]).await;
    let fault = endless.instance(Engine::Vllm).await.metrics().await.unwrap_err();
    assert!(fault.message.contains("more than 4194304 bytes"), "{fault}");
    let odd = Scripted::always(response("200 OK", "text/html", "<html>")).await;
    let fault = odd.instance(Engine::Vllm).await.models().await.unwrap_err();
    assert!(fault.message.contains("no list of models"), "{fault}");
    let loading = Scripted::always(json(
        "503 Service Unavailable",
        json!({ "error": { "message": "Loading model", "code": 503 } }),
    ))
    .await;
    let fault = loading.instance(Engine::LlamaCpp).await.health().await.unwrap_err();
    assert!(matches!(fault.retry, Retry::Later(Some(_))) && fault.message.contains("Loading model"), "{fault}");
}
