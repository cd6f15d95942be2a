//! A prompt's beginning that was computed once is not computed again: by the same worker, by another, by many at once.

use std::collections::BTreeSet;

use baton_contract::outcome::{Outcome, Status};
use serde_json::{Value, json};
use tokio::{task::yield_now, time::timeout};

use crate::support::{self, BATON, Ground, PATIENCE, any_result, job_id, name, result};

/// Text of so many bytes, which are as many tokens of the sim.
fn text(bytes: usize) -> String {
    let words = ["sea ", "calm ", "boat ", "wind ", "star "];
    let text: String = (0..bytes).map(|place| words[place * place % 97 % words.len()]).collect();
    text[..bytes].to_owned()
}

fn request(id: &str, prompt: &str) -> Value {
    json!({ "id": id, "prompt": prompt, "max_tokens": 20, "temperature": 0.8, "seed": 3 })
}

async fn answer(ground: &Ground, id: &str, prompt: &str) -> Outcome {
    let outcome = ground.submit_all(&[request(id, prompt)]).await.remove(0);
    assert_eq!(outcome.status, Status::Completed, "{:?}", outcome.error);
    assert_eq!(outcome.timings.recomputed_tokens, 0, "{id}");
    assert_eq!(outcome.usage.cached_tokens, outcome.timings.cached_tokens, "{id}");
    outcome
}

#[tokio::test]
async fn a_prompt_that_comes_again_is_fetched_and_answered_alike() {
    let ground = Ground::sim(&["models.sim.sim.prefill_s_per_token=0.001"]).await;
    let _workers = ground.workers().await;
    let prompt = text(1024);
    let first = answer(&ground, "first", &format!("{prompt} And then?")).await;
    assert_eq!(first.usage.cached_tokens, 0);
    let second = answer(&ground, "second", &format!("{prompt} And then?")).await;
    assert_eq!((&second.tokens, second.usage.cached_tokens), (&first.tokens, 1024));
    let ratio = second.timings.prefill_ms / first.timings.prefill_ms;
    assert!(ratio <= 0.15, "{ratio}: {:?}", second.timings);
    assert!(second.timings.kv_stored_bytes * 10 < first.timings.kv_stored_bytes, "what is stored was put again");

    // Nothing but whole chunks: the last token is computed all the same.
    let whole = answer(&ground, "whole", &prompt).await;
    assert_eq!(whole.usage.cached_tokens, 1023);
    let other = answer(&ground, "other", &format!("{}?{}", &prompt[..600], &prompt[601..])).await;
    assert_eq!(other.usage.cached_tokens, 512);

    // Another tenant's is another's.
    let bus = ground.bus().await;
    let mut follower = bus.follow(&name("other")).await.unwrap();
    bus.submit(&name("other"), &name("batch"), request("first", &prompt).to_string().into_bytes()).await.unwrap();
    let foreign = result(&mut follower, &job_id("first")).await;
    assert_eq!((&foreign.tokens, foreign.usage.cached_tokens), (&whole.tokens, 0));
}

#[tokio::test]
async fn a_real_models_answer_is_the_same_with_a_reused_prefix_and_with_a_damaged_one() {
    let prompt = format!("{}\nContinue this story.", "The sea was calm, and the boat went out. ".repeat(94));
    let expected = {
        support::provisioned();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("request.jsonl");
        std::fs::write(&file, support::lines(&[request("alone", &prompt)])).unwrap();
        let output = std::process::Command::new(BATON).args(["run", "--json", "--jsonl"]).arg(file).output().unwrap();
        support::outcomes(&output).remove(0)
    };
    assert!(expected.usage.prompt_tokens > 1024);
    let ground = Ground::new(&[]).await;
    let _workers = ground.workers().await;
    let first = answer(&ground, "first", &prompt).await;
    assert_eq!((&first.tokens, first.usage.cached_tokens), (&expected.tokens, 0));
    let chunks = support::files(&ground.store());
    let second = answer(&ground, "second", &prompt).await;
    assert_eq!((&second.tokens, second.usage.cached_tokens), (&first.tokens, first.usage.prompt_tokens / 256 * 256));
    let ratio = second.timings.prefill_ms / first.timings.prefill_ms;
    // 0.05 on a quiet machine.
    assert!(ratio < 0.3, "{ratio}: {:?}", second.timings);

    // A worker whose memory holds nothing reads what is damaged.
    let _another = ground.worker("prefill", "prefill-2").await;
    for chunk in chunks.iter().skip(1).step_by(2) {
        let bytes = std::fs::read(chunk).unwrap();
        std::fs::write(chunk, &bytes[..bytes.len() / 2]).unwrap();
    }
    for id in ["third", "fourth", "fifth"] {
        assert_eq!(answer(&ground, id, &prompt).await.tokens, first.tokens, "{id}");
    }
}

#[tokio::test]
async fn many_jobs_at_once_compute_what_they_share_once() {
    const JOBS: u32 = 20;
    const SHARED: u32 = 768;
    let ground = Ground::sim(&["models.sim.sim.prefill_s_per_token=0.001", "stages.prefill.slots=5"]).await;
    let _ingest = ground.worker("ingest", "ingest-1").await;
    let mut prefills = Vec::new();
    for prefill in ["prefill-1", "prefill-2", "prefill-3", "prefill-4"] {
        prefills.push(ground.worker("prefill", prefill).await);
    }
    let _decode = ground.worker("decode", "decode-1").await;
    let bus = ground.bus().await;
    let tenant = name("acme");
    let mut follower = bus.follow(&tenant).await.unwrap();
    let system = text(SHARED as usize);
    for number in 0..JOBS {
        let request = request(&format!("job-{number}"), &format!("{system}Question {number}"));
        bus.submit(&tenant, &name("batch"), request.to_string().into_bytes()).await.unwrap();
    }
    let (mut all, mut computed, mut own, mut workers) = (0, 0, 0, BTreeSet::new());
    for _ in 0..JOBS {
        let outcome = any_result(&mut follower).await;
        assert_eq!(outcome.status, Status::Completed, "{:?}", outcome.error);
        assert_eq!((outcome.timings.recomputed_tokens, outcome.timings.prefill_attempt), (0, 1));
        all += outcome.usage.prompt_tokens;
        computed += outcome.usage.prompt_tokens - outcome.usage.cached_tokens;
        own += outcome.usage.prompt_tokens - SHARED;
        workers.insert(outcome.timings.prefill_worker);
    }
    assert!(workers.len() > 2, "{workers:?}");
    // Once, or at worst twice; each worker for itself would be four times.
    assert!(computed <= own + 2 * SHARED, "{computed} tokens were computed");
    assert!(computed * 4 <= all);
}

#[tokio::test]
async fn a_worker_that_dies_with_a_prefix_holds_others_up_no_longer_than_its_own_job() {
    let ground = Ground::sim(&["models.sim.sim.prefill_s_per_token=0.004", "stages.prefill.ack_wait=2s"]).await;
    let _ingest = ground.worker("ingest", "ingest-1").await;
    let _decode = ground.worker("decode", "decode-1").await;
    let killed = ground.worker("prefill", "prefill-1").await;
    let bus = ground.bus().await;
    let tenant = name("acme");
    let mut follower = bus.follow(&tenant).await.unwrap();
    let prompt = text(1024);
    let lane = name("batch");
    let submit = |id: &'static str| bus.submit(&tenant, &lane, request(id, &prompt).to_string().into_bytes());
    submit("one").await.unwrap();
    let stored = async {
        while !ground.store().is_dir() || support::files(&ground.store()).is_empty() {
            yield_now().await;
        }
    };
    timeout(PATIENCE, stored).await.expect("nothing was stored");
    let _second = ground.worker("prefill", "prefill-2").await;
    submit("two").await.unwrap();
    killed.kill().await;
    let mut outcomes = [any_result(&mut follower).await, any_result(&mut follower).await];
    outcomes.sort_by(|one, two| one.id.cmp(&two.id));
    let [one, two] = outcomes;
    for outcome in [&one, &two] {
        assert_eq!(outcome.status, Status::Completed, "{:?}", outcome.error);
        assert_eq!(outcome.timings.prefill_worker, "prefill-2");
        assert!(outcome.usage.cached_tokens >= 256, "what the dead worker stored was computed again");
    }
    assert_eq!(one.tokens, two.tokens);
    let computed = 2 * 1024 - one.usage.cached_tokens - two.usage.cached_tokens;
    assert!(computed <= 769, "{computed} tokens were computed twice");
}
