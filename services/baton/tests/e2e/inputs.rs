//! Bad input: one clear error on that request alone, and the workers live.

use baton_contract::{
    JobId,
    outcome::{Code, Status},
};
use serde_json::json;

use crate::support::{Ground, job_id, name, result};

#[tokio::test]
async fn each_bad_request_gets_its_own_error_and_good_ones_go_on() {
    let ground = Ground::sim(&["models.sim.sim.context=512"]).await;
    let mut workers = ground.workers().await;
    let bus = ground.bus().await;
    let (tenant, lane) = (name("acme"), name("interactive"));
    let mut follower = bus.follow(&tenant).await.unwrap();
    let bad = [
        ("unknown-model", json!({ "prompt": "a", "model": "gpt-7" }), Code::UnknownModel, "gpt-7"),
        ("unknown-field", json!({ "prompt": "a", "logit_bias": {} }), Code::UnknownField, "logit_bias"),
        ("empty-prompt", json!({ "prompt": "" }), Code::EmptyPrompt, "empty"),
        ("no-prompt", json!({ "max_tokens": 3 }), Code::EmptyPrompt, "neither"),
        ("too-long", json!({ "prompt": "x".repeat(600) }), Code::PromptTooLong, "512"),
        ("token-range", json!({ "prompt": [1, 999] }), Code::InvalidValue, "999"),
        ("wrong-type", json!({ "prompt": "a", "max_tokens": "many" }), Code::InvalidValue, "max_tokens"),
        ("late", json!({ "prompt": "a", "deadline": "2001-01-01T00:00:00Z" }), Code::DeadlineExceeded, "deadline"),
    ];
    for (id, mut request, code, part) in bad {
        request["id"] = id.into();
        bus.submit(&tenant, &lane, request.to_string().into_bytes()).await.unwrap();
        let outcome = result(&mut follower, &job_id(id)).await;
        let error = outcome.error.unwrap_or_else(|| panic!("{id} completed"));
        assert_eq!(error.code, code, "{id}: {error}");
        assert!(error.message.contains(part), "{id}: {error}");
        let expected = if code == Code::DeadlineExceeded { Status::Expired } else { Status::Failed };
        assert_eq!(outcome.status, expected, "{id}");
    }
    // What can't be read at all is told under the id that the message's place in the stream gives it.
    for (body, code) in
        [(&b"{\"prompt\": \"a\""[..], Code::InvalidJson), (b"{\"prompt\": \"\xff\"}", Code::InvalidUtf8)]
    {
        let mut all = bus.follow(&tenant).await.unwrap();
        bus.submit(&tenant, &lane, body.to_vec()).await.unwrap();
        let outcome = crate::support::any_result(&mut all).await;
        assert_eq!(outcome.error.unwrap().code, code);
        assert!(JobId::new(outcome.id.as_str()).is_ok());
    }
    let good = json!({ "id": "good", "prompt": "a", "max_tokens": 5 });
    bus.submit(&tenant, &lane, good.to_string().into_bytes()).await.unwrap();
    let outcome = result(&mut follower, &job_id("good")).await;
    assert_eq!((outcome.status, outcome.tokens.len()), (Status::Completed, 5));
    assert!(workers.iter_mut().all(|worker| worker.lives()));
}

#[tokio::test]
async fn an_id_names_one_request_for_ever() {
    let ground = Ground::sim(&[]).await;
    let _workers = ground.workers().await;
    let request = json!({ "id": "same", "prompt": "a", "max_tokens": 5 });
    let first = ground.submit_all(std::slice::from_ref(&request)).await.remove(0);
    let again = ground.submit_all(std::slice::from_ref(&request)).await.remove(0);
    assert_eq!(first, again, "the same request is the same job");
    let other = ground.baton(&["submit", "another prompt", "--id", "same", "--wait", "--json"]).await;
    assert!(!other.status.success());
    let message = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(message.contains("earlier, different request"), "{message}");
}
