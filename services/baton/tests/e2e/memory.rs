//! Little KV memory makes answers wait, and changes none of them.

use baton_contract::outcome::{Code, Status};
use serde_json::{Value, json};

use crate::support::Ground;

/// Of many lengths, each with a seed of its own.
fn requests() -> Vec<Value> {
    let request = |number: usize| {
        let prompt: String = format!("{number} sheep, ").repeat(1 + number * 7 % 25);
        let max_tokens = 40 + number * 31 % 110;
        json!({ "id": format!("job-{number}"), "prompt": prompt, "max_tokens": max_tokens, "seed": number, "temperature": 0.9 })
    };
    (0..32).map(request).collect()
}

#[tokio::test]
async fn little_memory_and_small_passes_change_no_answer() {
    let requests = requests();
    let slots = "stages.decode.slots=32";
    let ground = Ground::sim(&[slots]).await;
    let _workers = ground.workers().await;
    let expected = ground.submit_all(&requests).await;

    // A page of 64 tokens takes 96 KiB: prefill has 1,344 tokens' memory, decode 640.
    let ground = Ground::sim(&[
        slots,
        "stages.prefill.batch_tokens=48",
        "stages.prefill.kv_memory=2MiB",
        "stages.decode.kv_memory=1MiB",
        "models.sim.sim.decode_s_per_step=0.0005",
    ])
    .await;
    let _workers = ground.workers().await;
    let mut more = requests;
    more.push(json!({ "id": "too-long-for-decode", "prompt": "a".repeat(700), "max_tokens": 5 }));
    more.push(json!({ "id": "too-long-for-prefill", "prompt": "a".repeat(1500), "max_tokens": 5 }));
    more.push(json!({ "id": "too-long-in-the-end", "prompt": "a".repeat(500), "max_tokens": 300 }));
    let outcomes = ground.submit_all(&more).await;
    for (expected, outcome) in expected.iter().zip(&outcomes) {
        assert_eq!(outcome.status, Status::Completed, "{}: {:?}", outcome.id, outcome.error);
        assert_eq!(outcome.tokens, expected.tokens, "{}", outcome.id);
        assert_eq!(outcome.timings.recomputed_tokens, 0, "{}", outcome.id);
        assert_eq!((outcome.timings.prefill_attempt, outcome.timings.decode_attempt), (1, 1), "{}", outcome.id);
    }
    // Those that no memory is enough for fail alone, and say what they need.
    let told = ["for 701 tokens of prompt and answer", "for 1500 tokens", "for 641 tokens of prompt and answer"];
    for (outcome, told) in outcomes[expected.len()..].iter().zip(told) {
        let failure = outcome.error.as_ref().expect("a failure");
        assert_eq!((outcome.status, failure.code), (Status::Failed, Code::Internal));
        assert!(failure.message.contains(told), "{}", failure.message);
    }
}
