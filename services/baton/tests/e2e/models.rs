//! Workers that serve other models under one name: no answer is of both.

use std::{io::ErrorKind::NotFound, path::Path};

use baton_contract::outcome::{Outcome, Status};
use serde_json::json;

use crate::support::{self, Ground};

#[tokio::test]
async fn an_answer_is_wholly_of_one_model() {
    // The file is replaced while workers serve it, as in an update worker by worker.
    let directory = tempfile::tempdir().unwrap();
    let [path, own, other] = ["model.gguf", "own.gguf", "other.gguf"].map(|name| directory.path().join(name));
    let mut bytes = std::fs::read(&support::provisioned().1).unwrap();
    std::fs::write(&own, &bytes).unwrap();
    let place = bytes.len() - 200;
    bytes[place] ^= 1;
    std::fs::write(&other, &bytes).unwrap();
    let put = |from: &Path| {
        // Those who have the old file keep it.
        std::fs::remove_file(&path)
            .or_else(|error| if error.kind() == NotFound { Ok(()) } else { Err(error) })
            .unwrap();
        std::fs::hard_link(from, &path).unwrap();
    };
    put(&own);
    let ground = Ground::new(&[&format!("models.m.source={}", path.display()), "default_model=m"]).await;
    let _ingest = ground.worker("ingest", "ingest-1").await;
    let _prefill = ground.worker("prefill", "prefill-1").await;
    put(&other);
    let _other = ground.worker("decode", "other").await;
    put(&own);
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
