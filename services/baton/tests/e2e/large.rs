//! What no message of the broker's holds: large results are read whole by everybody, and everything else ends.

use std::time::Duration;

use baton_contract::{
    Name,
    outcome::{Code, Outcome, Part, Status},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tokio::time::{interval, timeout};

use crate::{
    http, python,
    support::{Ground, PATIENCE, job_id, outcomes},
};

const MAX_PAYLOAD: usize = 64 << 10;

/// Has the running broker take smaller messages than ours does by itself.
async fn narrow(ground: &Ground) {
    let path = ground.directory.path().join("nats/nats.conf");
    let text = std::fs::read_to_string(&path).unwrap();
    let narrowed = text.replace("max_payload: 8MB", &format!("max_payload: {MAX_PAYLOAD}"));
    assert_ne!(narrowed, text);
    std::fs::write(&path, narrowed).unwrap();
    kill(Pid::from_raw(ground.server.process().unwrap() as i32), Signal::SIGHUP).unwrap();
    let narrowed = async {
        let mut tick = interval(Duration::from_millis(20));
        while ground.bus().await.max_request_bytes() > MAX_PAYLOAD {
            tick.tick().await;
        }
    };
    timeout(PATIENCE, narrowed).await.expect("the broker did not read its configuration again");
}

fn request(id: &str) -> Value {
    json!({ "id": id, "prompt": "hi", "max_tokens": 200, "logprobs": true, "top_logprobs": 20 })
}

#[tokio::test]
async fn a_result_that_no_message_holds_is_read_whole_by_everybody() {
    let ground = Ground::sim(&[]).await;
    narrow(&ground).await;
    let _workers = ground.workers().await;
    let (_gateway, url) = ground.gateway(&[]).await;
    let (tenant, id) = (Name::default_tenant(), job_id("large"));

    let whole = ground.submit_all(&[request("large")]).await.remove(0);
    assert_eq!((whole.status, whole.tokens.len(), &whole.stored), (Status::Completed, 200, &None), "{:?}", whole.error);
    assert_eq!(whole.logprobs.as_ref().unwrap().content.len(), 200);
    assert!(serde_json::to_vec(&whole).unwrap().len() > MAX_PAYLOAD);
    assert_eq!(outcomes(&ground.baton(&["result", "large", "--json"]).await), std::slice::from_ref(&whole));

    let jobs = ground.bus().await.jobs().await.unwrap();
    let told = jobs.told(&tenant, &id).await.unwrap().unwrap();
    let stored = told.stored.clone().unwrap();
    assert_eq!(stored.left_out, [Part::Logprobs]);
    assert_eq!(Outcome { logprobs: whole.logprobs.clone(), stored: None, ..told }, whole);

    // A client that knows no more of Baton than its messages.
    let script = format!(
        r#"
import asyncio, json, os, nats
async def main():
    nc = await nats.connect(os.environ["NATS_URL"])
    js = nc.jetstream()
    message = await js.get_last_msg("baton_res", "baton.res.{tenant}.large")
    stored = json.loads(message.data)["stored"]
    bucket = await js.object_store(stored["bucket"])
    found = await bucket.get(stored["name"])
    assert len(found.data) == stored["bytes"] and found.info.digest == stored["digest"], stored
    print(len(json.loads(found.data)["logprobs"]["content"]))
    await nc.close()
asyncio.run(main())
"#
    );
    assert_eq!(python::run(&ground, &script).await.trim(), "200");

    // A worker that comes too late leaves nothing behind.
    let late = Outcome { text: "late".into(), ..whole.clone() };
    assert!(!jobs.finish(&late, Default::default()).await.unwrap());
    assert_eq!(jobs.result(&tenant, &id).await.unwrap(), Some(whole));

    let body = json!({ "messages": [{ "role": "user", "content": "hi" }], "max_tokens": 200, "logprobs": true, "top_logprobs": 20 });
    let answer = http::post(&url, "/v1/chat/completions", "", &body).await.json();
    assert_eq!(answer["choices"][0]["logprobs"]["content"].as_array().unwrap().len(), 200);
    assert!(answer["system_fingerprint"].as_str().unwrap().starts_with("fp_"), "{answer}");
}

/// Its message has room where it waits for prefill, and with the names of its chunks none.
#[tokio::test]
async fn a_job_whose_message_grows_too_large_fails_with_the_reason() {
    let ground = Ground::sim(&["models.sim.sim.context=200000"]).await;
    narrow(&ground).await;
    let _workers = ground.workers().await;
    let prompt = "x".repeat(MAX_PAYLOAD - 5_000);
    let outcome = ground.submit_all(&[json!({ "id": "long", "prompt": prompt, "max_tokens": 2 })]).await.remove(0);
    let error = outcome.error.expect("it has no room");
    assert_eq!((outcome.status, error.code), (Status::Failed, Code::PromptTooLong), "{error}");
    assert!(error.message.contains("max_payload"), "{error}");
}
