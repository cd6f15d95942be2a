//! One trace a job, from the client's `traceparent` through all processes.

use serde_json::json;

use crate::{
    http::call,
    receiver::Receiver,
    support::{Ground, job_id, name, result},
};

#[tokio::test]
async fn a_job_is_one_trace_across_all_stages() {
    let receiver = Receiver::start().await;
    let setting = format!("telemetry.otlp_endpoint={}", receiver.endpoint());
    let ground = Ground::sim(&[&setting]).await;
    let _workers = ground.workers().await;
    let bus = ground.bus().await;
    let (tenant, lane) = (name("acme"), name("batch"));
    let mut follower = bus.follow(&tenant).await.unwrap();
    let output = ground.baton(&["submit", "hello", "--id", "traced", "--tenant", "acme", "--wait"]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // A second job, so that two traces would show if they ran into one.
    let other = json!({ "id": "other", "prompt": "b", "max_tokens": 3 });
    bus.submit(&tenant, &lane, other.to_string().into_bytes()).await.unwrap();
    result(&mut follower, &job_id("other")).await;

    let of_job = |span: &crate::receiver::Span, job: &str| span.attributes.get("job").is_some_and(|value| value == job);
    let spans = receiver
        .wait_for(|spans| {
            // Each process sends its spans when it likes.
            let sent = |name: &str, job: &str| spans.iter().any(|span| span.name == name && of_job(span, job));
            let children = ["kv.put", "kv.get"].iter().all(|name| spans.iter().any(|span| span.name == *name));
            ["submit", "ingest", "prefill", "decode"].iter().all(|name| sent(name, "traced"))
                && children
                && sent("ingest", "other")
        })
        .await;
    let named = |name: &str, job: &str| {
        let mut found = spans.iter().filter(|span| span.name == name && of_job(span, job));
        let span = found.next().unwrap_or_else(|| panic!("no span {name} of {job}"));
        assert!(found.next().is_none(), "two spans {name} of {job}");
        span
    };
    let chain = ["submit", "ingest", "prefill", "decode"].map(|name| named(name, "traced"));
    for pair in chain.windows(2) {
        assert_eq!(pair[1].trace, pair[0].trace, "{} is in another trace than {}", pair[1].name, pair[0].name);
        assert_eq!(pair[1].parent, pair[0].id, "{} is no child of {}", pair[1].name, pair[0].name);
    }
    for (child, parent) in [("kv.put", chain[2]), ("kv.get", chain[3])] {
        assert!(spans.iter().any(|span| span.name == child && span.parent == parent.id), "no {child}");
    }
    for (span, service) in chain.iter().zip(["baton-submit", "baton-ingest", "baton-prefill", "baton-decode"]) {
        assert_eq!(span.resource.get("service.name").map(String::as_str), Some(service));
    }
    assert_ne!(named("ingest", "other").trace, chain[0].trace);
}

#[tokio::test]
async fn a_trace_goes_on_through_http() {
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    let receiver = Receiver::start().await;
    let setting = format!("telemetry.otlp_endpoint={}", receiver.endpoint());
    let ground = Ground::sim(&[&setting]).await;
    let _workers = ground.workers().await;
    let (_gateway, url) = ground.gateway(&[]).await;
    let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
    let body = br#"{"prompt": "hello", "max_tokens": 3}"#;
    let answer = call(&url, "POST", "/v1/completions", &[("traceparent", &parent)], body).await;
    assert_eq!(answer.head.status, 200, "{}", answer.text());
    let of_trace = |spans: &[crate::receiver::Span], name: &str| {
        spans.iter().find(|span| span.name == name && span.trace == TRACE).cloned()
    };
    let names = ["gateway", "ingest", "prefill", "decode"];
    let spans = receiver.wait_for(|spans| names.iter().all(|name| of_trace(spans, name).is_some())).await;
    let chain = names.map(|name| of_trace(&spans, name).unwrap());
    assert_eq!(chain[0].parent, "b7ad6b7169203331");
    for pair in chain.windows(2) {
        assert_eq!(pair[1].parent, pair[0].id, "{} is no child of {}", pair[1].name, pair[0].name);
    }
    assert_eq!(chain[0].attributes["job"], answer.head.headers["baton-job-id"]);
}
