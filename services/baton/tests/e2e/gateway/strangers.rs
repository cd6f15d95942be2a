//! A gateway without keys: whom it serves, and what unfinished requests cost it.

use std::time::Duration;

use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt},
    task::JoinSet,
    time::timeout,
};

use crate::{
    http::{Connection, call, get, post},
    support::{Ground, PATIENCE},
};

const PATH: &str = "/v1/completions";

#[tokio::test]
async fn without_keys_programs_are_served_and_pages_of_other_sites_only_if_they_are_listed() {
    let ground = Ground::sim(&[]).await;
    let _workers = ground.workers().await;
    let (_gateway, url) = ground.gateway(&["gateway.cors_origins=https://app.example"]).await;
    let body = json!({ "prompt": "x", "max_tokens": 1 }).to_string();
    let own = url.trim_start_matches("http://");
    let page = |origin: &'static str, site: &'static str| [("origin", origin), ("sec-fetch-site", site)];

    for (method, path, headers, status) in [
        ("POST", PATH, &[("host", own)][..], 200),
        ("POST", PATH, &[("host", own), ("sec-fetch-site", "same-origin")], 200),
        ("POST", PATH, &page("https://app.example", "cross-site"), 200),
        ("POST", PATH, &page("https://evil.example", "cross-site"), 403),
        ("POST", PATH, &[("origin", "http://localhost:1")], 403),
        ("POST", PATH, &[("content-type", "text/plain")], 415),
        ("POST", "/v1/files", &[("content-type", "text/plain")], 415),
        ("POST", "/v1/batches", &[("content-type", "text/plain")], 415),
        ("POST", PATH, &[("host", "evil.example")], 421),
        ("GET", "/", &[("host", "evil.example")], 421),
        ("GET", "/api/live", &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")], 403),
        ("GET", "/metrics", &[("host", "evil.example")], 421),
        ("DELETE", "/api/jobs/x", &page("https://evil.example", "cross-site"), 403),
    ] {
        let body = if method == "POST" { body.as_bytes() } else { b"" };
        let answer = call(&url, method, path, headers, body).await;
        assert_eq!(answer.head.status, status, "{method} {path} {headers:?}: {}", answer.text());
    }
    let preflight = |origin: &'static str| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "content-type,idempotency-key"),
        ];
        let url = url.clone();
        async move { call(&url, "OPTIONS", PATH, &headers, b"").await.head }
    };
    let allowed = preflight("https://app.example").await;
    assert_eq!(allowed.status, 200);
    assert_eq!(allowed.headers["access-control-allow-origin"], "https://app.example");
    assert!(allowed.headers["access-control-allow-headers"].contains("idempotency-key"), "{allowed:?}");
    assert!(!allowed.headers.contains_key("access-control-allow-credentials"));
    assert_eq!(preflight("https://evil.example").await.status, 403);
}

#[tokio::test]
async fn unfinished_bodies_take_what_there_is_and_no_more() {
    let ground = Ground::sim(&[]).await;
    let _workers = ground.workers().await;
    let (mut gateway, url) = ground.gateway(&["gateway.body_memory=16MiB"]).await;
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 4000000\r\n\r\n"
    );
    let part = [head.as_bytes(), b"{\"prompt\": \"", &vec![b'x'; 3_900_000]].concat();
    let mut unfinished = JoinSet::new();
    for _ in 0..6 {
        let mut connection = Connection::open(&url).await;
        let sent = part.clone();
        unfinished.spawn(async move {
            // What is not wanted may not be taken to its end.
            let _ = connection.stream.write_all(&sent).await;
            // Never silent for long, however slow the others are.
            while timeout(Duration::from_secs(1), connection.stream.fill_buf()).await.is_err() {
                let _ = connection.stream.write_all(b"x").await;
            }
            connection.head().await
        });
    }
    // There is room for three; the others are told so, and those three are waited for.
    for _ in 0..3 {
        let end = timeout(PATIENCE, unfinished.join_next()).await.expect("all bodies were taken").unwrap().unwrap();
        let end = end.expect("a connection was closed without an answer");
        assert_eq!((end.status, end.headers["retry-after"].as_str()), (503, "5"));
    }
    assert_eq!(get(&url, "/healthz").await.head.status, 200);
    unfinished.shutdown().await;
    let served = async {
        while post(&url, PATH, "", &json!({ "prompt": "x", "max_tokens": 1 })).await.head.status != 200 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, served).await.expect("the room did not come back");
    assert!(gateway.lives());
}
