//! Bad input: one clear error on that request alone, and the workers live.

use baton_contract::{
    JobId,
    outcome::{Code, FinishReason, Status},
};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::{BATON, Ground, job_id, name, result};

#[tokio::test]
async fn each_bad_request_gets_its_own_error_and_good_ones_go_on() {
    let ground = Ground::sim(&["models.sim.sim.context=512"]).await;
    let mut workers = ground.workers().await;
    let bus = ground.bus().await;
    let (tenant, lane) = (name("acme"), name("interactive"));
    let mut follower = bus.follow(&tenant).await.unwrap();
    let format = |schema: Value| json!({ "prompt": "a", "response_format": { "type": "json_schema", "json_schema": { "schema": schema } } });
    let bad = [
        ("unknown-model", json!({ "prompt": "a", "model": "gpt-7" }), Code::UnknownModel, "gpt-7"),
        ("unknown-field", json!({ "prompt": "a", "best_of": 2 }), Code::UnknownField, "best_of"),
        ("empty-prompt", json!({ "prompt": "" }), Code::EmptyPrompt, "empty"),
        ("no-prompt", json!({ "max_tokens": 3 }), Code::EmptyPrompt, "neither"),
        ("too-long", json!({ "prompt": "x".repeat(600) }), Code::PromptTooLong, "512"),
        (
            "bias-range",
            json!({ "prompt": "a", "logit_bias": { "999": 1 } }),
            Code::InvalidValue,
            "logit_bias: token id 999",
        ),
        ("schema", format(json!({ "type": "thing" })), Code::InvalidValue, "response_format.json_schema.schema: "),
        ("costly-schema", format(json!({ "multipleOf": 99_999_999 })), Code::InvalidValue, "multipleOf: "),
        (
            "regex",
            json!({ "prompt": "a", "structured_outputs": { "regex": "(" } }),
            Code::InvalidValue,
            "structured_outputs.regex: ",
        ),
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

/// Through the command line and every stage: prefill chooses the first token, decode the others.
#[tokio::test]
async fn forms_penalties_and_logprobs_hold_through_the_pipeline() {
    let ground = Ground::sim(&[]).await;
    let _workers = ground.workers().await;
    let schema = ground.directory.path().join("schema.json");
    let properties =
        json!({ "word": { "enum": ["amber", "oak"] }, "count": { "type": "integer", "minimum": 1, "maximum": 99 } });
    let object = json!({ "type": "object", "properties": properties, "required": ["word", "count"] });
    std::fs::write(&schema, object.to_string()).unwrap();
    let schema = schema.to_str().unwrap();
    let asked = ["a question", "--json", "--temperature", "1.2", "--seed", "4"];
    let sampled =
        [&asked[..], &["--min-p", "0.01", "--presence-penalty", "-0.5", "--repetition-penalty", "1.2"]].concat();
    let formed = [&sampled[..], &["--json-schema", schema]].concat();
    let through = ground.baton(&[&["submit", "--wait"], &formed[..]].concat()).await;
    let through = crate::support::outcomes(&through).remove(0);
    assert_eq!(through.finish_reason, Some(FinishReason::Stop), "{through:?}");
    let answer: Value = serde_json::from_str(&through.text).unwrap();
    assert!(["amber", "oak"].contains(&answer["word"].as_str().unwrap()), "{answer}");
    assert!((1..=99).contains(&answer["count"].as_i64().unwrap()), "{answer}");
    // The same tokens in one process.
    let run = Command::new(BATON).args(["run", "--model", "sim"]).args(&formed).output().await.unwrap();
    assert_eq!(crate::support::outcomes(&run)[0].tokens, through.tokens);

    let told = [&asked[..], &["--regex", "(ja|nein){2}", "--logprobs", "3"]].concat();
    let mut deltas = ground.bus().await.follow(&name("default")).await.unwrap();
    let told = ground.baton(&[&["submit", "--wait"], &told[..]].concat()).await;
    let told = crate::support::outcomes(&told).remove(0);
    assert!(["jaja", "janein", "neinja", "neinnein"].contains(&told.text.as_str()), "{}", told.text);
    let content = &told.logprobs.as_ref().unwrap().content;
    assert_eq!(content.iter().map(|told| told.chosen.id).collect::<Vec<_>>(), told.tokens);
    for (index, told_of) in content.iter().enumerate() {
        assert!(told_of.top_logprobs.len() == 3 && told_of.chosen.logprob <= told_of.top_logprobs[0].logprob);
        let baton_bus::clients::follower::Event::Delta { delta, .. } =
            deltas.next(&[told.id.clone()].into()).await.unwrap()
        else {
            panic!("the result came before token {index}");
        };
        assert_eq!(delta.logprobs.as_ref(), Some(told_of));
    }
}
