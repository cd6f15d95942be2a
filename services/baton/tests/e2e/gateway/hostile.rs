//! Bytes that no client sends: each is answered with a clear 4xx or a closed connection, and the gateway goes on.

use serde_json::json;
use tokio::io::AsyncReadExt;

use crate::{
    http::{Connection, call, get, post},
    sdks,
    support::{Ground, PATIENCE},
};

const PATH: &str = "/v1/completions";

#[tokio::test]
async fn hostile_requests_get_a_4xx_and_cost_nothing() {
    let ground = Ground::sim(&[]).await;
    let _workers = ground.workers().await;
    let (mut gateway, url) = ground.gateway(&[]).await;

    let deep = "[".repeat(100_000);
    let huge = format!("{{\"prompt\": \"{}\"}}", "x".repeat(5 << 20));
    let bodies: [(&[u8], u16); 7] = [
        (b"", 400),
        (b"\xff\xfe\x00", 400),
        (b"{\"prompt\": \"\xff\"}", 400),
        (b"{\"prompt\": ", 400),
        (b"[]", 400),
        (deep.as_bytes(), 400),
        (huge.as_bytes(), 413),
    ];
    for (body, status) in bodies {
        let answer = call(&url, "POST", PATH, &[("content-type", "application/json")], body).await;
        assert_eq!(answer.head.status, status, "{}", answer.text());
        assert_eq!(answer.json()["error"]["type"], "invalid_request_error");
    }

    for (path, status) in [
        ("/v1/models/..%2f..%2fetc%2fpasswd", 404),
        ("/v1/models/%ff", 400),
        ("/v1/files/file-%2e%2e", 404),
        ("/v1/batches/batch_*", 404),
        ("/../../etc/passwd", 404),
        ("/nothing", 404),
    ] {
        assert_eq!(get(&url, path).await.head.status, status, "{path}");
    }
    assert_eq!(call(&url, "DELETE", PATH, &[], b"").await.head.status, 405);
    for key in ["a.b", "a b", "*", "../x", &"x".repeat(65), "é"] {
        let answer = call(&url, "POST", PATH, &[("idempotency-key", key)], b"{\"prompt\": \"x\"}").await;
        assert_eq!(answer.head.status, 400, "{key}: {}", answer.text());
    }

    // Heads that are too large, too many, or no heads at all.
    let many: String = (0..200).map(|number| format!("x-{number}: y\r\n")).collect();
    let heads = [
        format!("GET /healthz HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(1 << 20)),
        format!("GET /healthz HTTP/1.1\r\nhost: x\r\n{many}\r\n"),
        format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "y".repeat(1 << 20)),
        "\0\0\0\0\r\n\r\n".to_owned(),
        "GET /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n".to_owned(),
    ];
    for head in heads {
        let mut connection = Connection::open(&url).await;
        // It may be closed while more is being sent.
        let _ = tokio::io::AsyncWriteExt::write_all(&mut connection.stream, head.as_bytes()).await;
        if let Some(answer) = connection.head().await {
            assert!((400..500).contains(&answer.status) || head.contains("chunked"), "{answer:?}");
        }
    }

    // A head that never ends is not waited for.
    let mut slow = Connection::open(&url).await;
    slow.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n").await;
    let mut rest = Vec::new();
    tokio::time::timeout(PATIENCE, slow.stream.read_to_end(&mut rest)).await.expect("it is waited for").unwrap();
    assert!(!String::from_utf8_lossy(&rest).contains(" 200 "), "{rest:?}");

    assert!(gateway.lives());
    assert_eq!(post(&url, PATH, "", &json!({ "prompt": "x", "max_tokens": 1 })).await.head.status, 200);
}

#[tokio::test]
async fn a_fuzzer_that_reads_the_document_finds_no_5xx() {
    let ground = Ground::sim(&["models.sim.sim.answer_tokens.min=1", "models.sim.sim.answer_tokens.max=4"]).await;
    let _workers = ground.workers().await;
    let (mut gateway, url) = ground.gateway(&[]).await;
    let document = get(&url, "/openapi.json").await.json();
    assert_eq!(document["openapi"], "3.1.0");
    let fuzzer = sdks::python(&["schemathesis==4.32.5"]);
    let mut command = tokio::process::Command::new("python3");
    command.args(["-m", "schemathesis.cli", "run", &format!("{url}/openapi.json"), "--url", &url]);
    command.args(["--checks", "not_a_server_error", "--phases", "examples,coverage,fuzzing", "--max-examples", "12"]);
    // Events without an end.
    command.args([
        "--exclude-path",
        "/api/live",
        "--seed",
        "7",
        // Two threads that compile at once trip over a fault of Python 3.11's parser.
        "--workers",
        "1",
        "--request-timeout",
        "60",
        "--no-color",
    ]);
    command.env("PYTHONPATH", fuzzer).current_dir(ground.directory.path()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("too slow").unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(told.contains("Fuzzing") && told.contains(" generated, "), "{told}");
    assert!(gateway.lives());
}
