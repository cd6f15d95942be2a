//! Workers that serve other models under one name: no answer is of both.

use baton_contract::outcome::{Outcome, Status};
use serde_json::json;

use crate::support::Ground;

#[tokio::test]
async fn an_answer_is_wholly_of_one_model() {
    // Sim engines whose KV caches have other widths are other models.
    let ground = Ground::sim(&[]).await;
    let other = ["worker", "decode", "--name", "other", "--set", "models.sim.sim.kv_width=32"];
    let _ingest = ground.worker("ingest", "ingest-1").await;
    let _prefill = ground.worker("prefill", "prefill-1").await;
    let _other = ground.process(&other).await;
    let prompt = "Which rivers end in the Black Sea? ".repeat(15);
    let request = |number: usize| json!({ "id": format!("job-{number}"), "prompt": prompt, "max_tokens": 12 });
    let facts = |outcome: &Outcome| {
        assert_eq!(outcome.status, Status::Completed, "{:?}", outcome.error);
        let again = outcome.timings.decode_prefilled_tokens == outcome.usage.prompt_tokens;
        assert!(again || outcome.timings.decode_prefilled_tokens == 0, "all of the prompt, or nothing");
        (outcome.model_fingerprint.clone().unwrap(), again)
    };

    // Nobody has the model that prefill has.
    let outcome = ground.submit_all(&[request(0)]).await.remove(0);
    let (other, again) = facts(&outcome);
    assert!(again, "prefill's first token is no beginning of this answer");
    assert_eq!(outcome.timings.decode_worker, "other");

    // Somebody has it, and gets the jobs; the other one begins again what it had too often.
    let _own = ground.worker("decode", "own").await;
    let requests: Vec<_> = (1..7).map(request).collect();
    let mut own = 0;
    for outcome in ground.submit_all(&requests).await {
        let (fingerprint, again) = facts(&outcome);
        let worker = if again { "other" } else { "own" };
        assert_eq!((fingerprint == other, outcome.timings.decode_worker.as_str()), (again, worker));
        own += usize::from(!again);
    }
    assert!(own > 0, "no job was left to the worker with its model");
}
