//! The gateway as its users meet it: the vendor's clients, keys, clients that leave, and hostile bytes.

mod hostile;
mod lives;
mod strangers;

use std::{path::Path, process::Stdio, time::Duration};

use baton_contract::outcome::Status;
use serde_json::json;
use tokio::{process::Command, time::timeout};

use crate::{
    http::{Connection, call, get, post},
    sdks,
    support::{Ground, PATIENCE, Worker, name},
};

/// A pipeline with keys, its gateway, and a key of tenant `acme`.
async fn guarded(settings: &[&str]) -> (Ground, Vec<Worker>, String, String) {
    let ground = Ground::sim(settings).await;
    let keys = ground.directory.path().join("keys.toml");
    let made = ground.baton(&["gateway", "key", "ours", "--tenant", "acme", "--file", keys.to_str().unwrap()]).await;
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let key = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    let mut workers: Vec<Worker> = ground.workers().await.into();
    let (gateway, url) = ground.gateway(&[&format!("gateway.keys_file={}", keys.display())]).await;
    workers.push(gateway);
    (ground, workers, url, key)
}

async fn runs(command: &mut Command) {
    let client = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(PATIENCE, client).await.expect("too slow").unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && stdout.contains("all is well"), "{stdout}\n{stderr}");
}

fn client(file: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/clients").join(file)
}

#[tokio::test]
async fn openais_own_clients_work_unchanged() {
    let (_ground, _workers, url, key) = guarded(&[]).await;
    let python = sdks::python_sdk();
    runs(
        Command::new("python3")
            .arg(client("openai_sdk.py"))
            .env("PYTHONPATH", python)
            .envs([("GATEWAY", &url), ("KEY", &key)]),
    )
    .await;
    let (node, sdk) = sdks::node_sdk();
    runs(Command::new(node).arg(client("openai_sdk.mjs")).env("SDK", sdk).envs([("GATEWAY", &url), ("KEY", &key)]))
        .await;
}

#[tokio::test]
async fn keys_are_tenants_and_limits() {
    let (ground, _workers, url, ours) = guarded(&[]).await;
    let keys = ground.directory.path().join("keys.toml");
    let ask = json!({ "prompt": "ours", "max_tokens": 4 });
    let path = "/v1/completions";

    // Theirs is made while the gateway runs, with limits.
    let made = ground.baton(&["gateway", "key", "theirs", "--tenant", "other", "--file", keys.to_str().unwrap()]).await;
    let theirs = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    let text = std::fs::read_to_string(&keys).unwrap() + "requests_per_minute = 1\n";
    assert!(!text.contains(&theirs) && !text.contains(&ours), "keys are written nowhere");
    std::fs::write(&keys, text).unwrap();

    for (key, status) in [("", 401), ("bt-wrong", 401), (&ours, 200)] {
        let answer = post(&url, path, key, &ask).await;
        assert_eq!(answer.head.status, status, "{}", answer.text());
    }
    assert_eq!(get(&url, "/v1/models").await.head.status, 401);
    assert_eq!(get(&url, "/healthz").await.head.status, 200);

    // One tenant's job under an id is not the other's.
    let bearer = |key: &str| format!("Bearer {key}");
    let named = |key: String, prompt: &'static str| {
        let url = url.clone();
        async move {
            let body = json!({ "prompt": prompt, "max_tokens": 4 }).to_string();
            let headers = [("authorization", key.as_str()), ("idempotency-key", "same")];
            call(&url, "POST", "/v1/completions", &headers, body.as_bytes()).await
        }
    };
    assert_eq!(named(bearer(&ours), "ours").await.head.status, 200);
    let theirs_is_known = async {
        loop {
            let answer = named(bearer(&theirs), "theirs").await;
            if answer.head.status != 401 {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let answer = timeout(PATIENCE, theirs_is_known).await.expect("the file was not read again");
    assert_eq!(answer.head.status, 200, "{}", answer.text());
    let jobs = ground.bus().await.jobs().await.unwrap();
    for tenant in ["acme", "other"] {
        let outcome = jobs.result(&name(tenant), &crate::support::job_id("same")).await.unwrap().unwrap();
        assert_eq!((outcome.tenant.as_str(), outcome.status), (tenant, Status::Completed));
    }
    assert_eq!(named(bearer(&ours), "something else").await.head.status, 409);

    // One a minute, and that one is spent.
    let answer = post(&url, path, &theirs, &ask).await;
    assert_eq!(answer.head.status, 429, "{}", answer.text());
    let wait: u32 = answer.head.headers["retry-after"].parse().unwrap();
    assert!((2..=60).contains(&wait), "told to come back in {wait} s");
    // What makes work counts, whatever it is.
    let theirs = bearer(&theirs);
    for (method, path) in [
        ("POST", "/v1/files"),
        ("DELETE", "/v1/files/file-x"),
        ("POST", "/v1/batches"),
        ("POST", "/v1/batches/batch_x/cancel"),
        ("DELETE", "/api/jobs/same"),
    ] {
        let answer = call(&url, method, path, &[("authorization", &theirs)], b"").await;
        assert_eq!(answer.head.status, 429, "{method} {path}: {}", answer.text());
    }
}

#[tokio::test]
async fn a_gateway_listens_to_others_only_with_keys_and_says_what_is_wrong() {
    let ground = Ground::sim(&[]).await;
    let _workers = ground.workers().await;
    let (_gateway, url) = ground.gateway(&[]).await;
    let taken = url.trim_start_matches("http://");
    for (listen, expected) in
        [("0.0.0.0:0", "gateway.keys_file"), (taken, "choose another address with gateway.listen")]
    {
        let refused = ground.baton(&["gateway", "--listen", listen]).await;
        let stderr = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && stderr.contains(expected), "{stderr}");
    }
    assert_eq!(get(&url, "/readyz").await.text(), "ready\n");
    let metrics = get(&url, "/metrics").await.text();
    assert!(
        metrics.contains("baton_gateway_requests_total{method=\"GET\",route=\"/readyz\",status=\"200\"} 1"),
        "{metrics}"
    );

    // Without its broker it lives, is not ready, and takes nothing.
    ground.server.kill().await.unwrap();
    assert_eq!(get(&url, "/healthz").await.head.status, 200);
    let unready = get(&url, "/readyz").await;
    assert_eq!((unready.head.status, unready.head.headers["retry-after"].as_str()), (503, "1"));
    let refused = post(&url, "/v1/completions", "", &json!({ "prompt": "x" })).await;
    assert_eq!((refused.head.status, refused.json()["error"]["code"].as_str()), (503, Some("unavailable")));
}

#[tokio::test]
async fn a_full_queue_is_told_and_takes_nothing() {
    let ground = Ground::sim(&["limits.backlog_messages=1"]).await;
    let (_gateway, url) = ground.gateway(&[]).await;
    let bus = ground.bus().await;
    let ask = json!({ "prompt": "x", "max_tokens": 1 });
    let mut waits = Connection::open(&url).await;
    waits.request("POST", "/v1/completions", &[], ask.to_string().as_bytes()).await;
    let queued = async { while bus.queues().await.unwrap().iter().all(|queue| queue.waiting == 0) {} };
    timeout(PATIENCE, queued).await.expect("the first request was not published");
    let refused = post(&url, "/v1/completions", "", &ask).await;
    assert_eq!((refused.head.status, refused.head.headers["retry-after"].as_str()), (429, "1"), "{}", refused.text());
    assert_eq!(refused.json()["error"]["type"], "rate_limit_error");
    // Nobody was there to take the first; now somebody is.
    let _workers = ground.workers().await;
    assert_eq!(waits.answer().await.unwrap().head.status, 200);
}
