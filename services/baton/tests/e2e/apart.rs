//! Foreign engines with prefill and decode on instances of their own: the tests' engine in the roles of vLLM's and SGLang's.

use baton_contract::outcome::Status;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    engine::{Act, Engine, text},
    support::{Ground, PATIENCE, any_result, name, streams},
};

const JOBS: usize = 8;
const PIECES: usize = 3;

/// A pipeline of a model whose instances are the two.
async fn ground(kind: &str, [prefill, decode]: [&Engine; 2]) -> Ground {
    let (engine, urls) = (format!("models.tiny.engine={kind}"), format!("models.tiny.urls={}", decode.url));
    let prefill_urls = format!("models.tiny.prefill_urls={}", prefill.url);
    let source = ["models.tiny.source=openai", "default_model=tiny", "stages.decode.ack_wait=2s"];
    Ground::new(&[&source[..], &[&engine, &urls, &prefill_urls]].concat()).await
}

/// Conversations, each with words of its own.
fn chats(from: usize, count: usize) -> Vec<Value> {
    let chat = |number: usize| json!({ "id": format!("job-{number}"), "messages": [{ "role": "user", "content": format!("ask-{number}-") }] });
    (from..from + count).map(chat).collect()
}

/// All are answered as one engine would answer them.
async fn all_answered(ground: &Ground, requests: &[Value]) {
    for (outcome, request) in ground.submit_all(requests).await.iter().zip(requests) {
        let asked = request["messages"][0]["content"].as_str().unwrap();
        assert_eq!((outcome.status, &outcome.text), (Status::Completed, &text(asked, PIECES)), "{:?}", outcome.error);
    }
}

/// What the decode worker tells of its instance under a name.
async fn told(ground: &Ground, figure: &str) -> u64 {
    let output = ground.baton(&["top", "--once", "--json"]).await;
    let view: Value = serde_json::from_slice(&output.stdout).unwrap();
    let worker = view["workers"].as_array().unwrap().iter().find(|worker| worker["stage"] == "decode").unwrap();
    worker["upstreams"][0][figure].as_u64().unwrap_or_else(|| panic!("{worker}"))
}

#[tokio::test]
async fn sglangs_instances_get_each_job_at_once_and_meet_in_a_room_of_its_own() {
    let (mut prefill, decode, meeting) = Engine::pair([Act::Says(PIECES)]).await;
    let ground = ground("sglang", [&prefill, &decode]).await;
    let bus = streams(&ground).await;
    let _workers = [ground.worker("ingest", "ingest-1").await, ground.worker("decode", "decode-1").await];
    all_answered(&ground, &chats(0, JOBS)).await;
    // Each waits for the other, and refuses a room that was another request's.
    assert_eq!((meeting.met(), prefill.asked().len(), decode.asked().len()), (JOBS, JOBS, JOBS));
    assert_eq!((told(&ground, "transfers").await, told(&ground, "transfer_fallbacks").await), (JOBS as u64, 0));

    // Without one of the two nothing is lost, and no try counted.
    let mut results = bus.follow(&name("acme")).await.unwrap();
    prefill.die().await;
    let request = &chats(JOBS, 1)[0];
    bus.submit(&name("acme"), &name("batch"), request.to_string().into_bytes()).await.unwrap();
    timeout(PATIENCE, decode.until_left(1)).await.expect("the decode instance was not let go");
    prefill.come_back().await;
    let outcome = any_result(&mut results).await;
    assert_eq!((outcome.status, outcome.text), (Status::Completed, text(&format!("ask-{JOBS}-"), PIECES)));
}

#[tokio::test]
async fn vllms_instances_hand_kv_caches_over_and_what_fails_is_done_without_in_the_same_try() {
    let (prefill, decode, meeting) = Engine::pair([Act::Says(PIECES)]).await;
    let ground = ground("vllm", [&prefill, &decode]).await;
    let _workers = [
        ground.worker("ingest", "ingest-1").await,
        ground.worker("prefill", "prefill-1").await,
        ground.worker("decode", "decode-1").await,
    ];
    all_answered(&ground, &chats(0, JOBS)).await;
    assert_eq!(meeting.transferred(), (JOBS, JOBS));
    assert_eq!((told(&ground, "transfers").await, told(&ground, "transfer_fallbacks").await), (JOBS as u64, 0));
    let has_params = |body: &Value| body["kv_transfer_params"].is_object();
    let asked = |from: usize| decode.asked().iter().skip(from).map(has_params).collect::<Vec<_>>();
    assert_eq!(asked(0), [true; JOBS]);

    // The instance fails with it, as when the other one has died: the same try goes on without.
    let refused = Act::Answers(500, "", r#"{"error":{"message":"KV load failed","code":500}}"#);
    decode.plays([refused, Act::Says(PIECES)]);
    all_answered(&ground, &chats(JOBS, 1)).await;
    assert_eq!(asked(JOBS), [true, false]);
    assert_eq!(told(&ground, "transfer_fallbacks").await, 1);
}
