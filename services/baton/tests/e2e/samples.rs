//! Several answers to one prompt, and prompts that decode prefills itself: both change no token.

use std::collections::BTreeMap;

use baton_bus::clients::follower::Event;
use baton_contract::outcome::{Outcome, Status};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::{self, BATON, Ground, PATIENCE, name};

const MAX_TOKENS: u32 = 12;

/// Some of the reference prompts: greedy, with a seed, and with a seed and three answers; the last one fills several chunks.
fn requests() -> Vec<Value> {
    let long = json!({ "id": "long", "prompt": "One sheep, two sheep, three sheep. ".repeat(60), "max_tokens": 4 });
    let mut requests = Vec::new();
    for request in support::reference_requests(MAX_TOKENS).into_iter().step_by(5).chain([long]) {
        let id = request["id"].as_str().unwrap().to_owned();
        let mut seeded = request.clone();
        seeded["id"] = format!("{id}-seeded").into();
        seeded["seed"] = 7.into();
        seeded["temperature"] = 0.9.into();
        let mut sampled = seeded.clone();
        sampled["id"] = format!("{id}-sampled").into();
        sampled["n"] = 3.into();
        requests.extend([request, seeded, sampled]);
    }
    requests
}

/// Tokens of all of a job's answers.
fn answers(outcome: &Outcome) -> Vec<Vec<u32>> {
    assert_eq!(outcome.status, Status::Completed, "{}: {:?}", outcome.id, outcome.error);
    match &outcome.choices[..] {
        [] => vec![outcome.tokens.clone()],
        choices => choices.iter().map(|choice| choice.tokens.clone()).collect(),
    }
}

fn one_process(requests: &[Value]) -> BTreeMap<String, Outcome> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("requests.jsonl");
    std::fs::write(&file, support::lines(requests)).unwrap();
    support::provisioned();
    let output = std::process::Command::new(BATON).args(["run", "--json", "--jsonl"]).arg(&file).output().unwrap();
    support::outcomes(&output).into_iter().map(|outcome| (outcome.id.to_string(), outcome)).collect()
}

#[tokio::test]
async fn who_prefills_and_how_many_answers_there_are_changes_no_token() {
    let requests = requests();
    let expected = one_process(&requests);
    for prefill_tokens in [0, 200] {
        let ground = Ground::new(&[&format!("stages.decode.prefill_tokens={prefill_tokens}")]).await;
        let _workers = ground.workers().await;
        let (mut straight, mut through) = (0, 0);
        for outcome in ground.submit_all(&requests).await {
            let place = format!("{prefill_tokens}, {}", outcome.id);
            assert_eq!(answers(&outcome), answers(&expected[outcome.id.as_str()]), "{place}");
            let (timings, prompt) = (&outcome.timings, outcome.usage.prompt_tokens);
            assert_eq!(timings.recomputed_tokens, 0, "{place}");
            let answers = outcome.choices.len().max(1) as u32;
            if prompt * answers <= prefill_tokens {
                straight += 1;
                assert_eq!((timings.decode_prefilled_tokens, timings.prefill_worker.as_str()), (prompt, ""), "{place}");
                assert_eq!((timings.kv_raw_bytes, timings.kv_get_ms), (0, 0.0), "{place}");
                assert!(timings.prefill_ms > 0.0 && timings.first_token_ms >= timings.prefill_ms, "{place}");
            } else {
                through += 1;
                assert_eq!(timings.decode_prefilled_tokens, 0, "{place}");
                assert_eq!(timings.prefill_worker, "prefill-1", "{place}");
                assert!(timings.kv_get_ms > 0.0, "{place}");
            }
        }
        assert!(through >= 3 && (straight > 0) == (prefill_tokens > 0), "{straight} went straight to decode");
    }
}

#[tokio::test]
async fn several_answers_share_one_prefill_and_stream_beside_each_other() {
    // Decode has memory for 640 tokens: not for all answers at once.
    let settings =
        ["stages.decode.kv_memory=1MiB", "models.sim.sim.decode_s_per_step=0.0005", "models.sim.sim.context=10000"];
    let ground = Ground::sim(&settings).await;
    let _workers = ground.workers().await;
    let (bus, tenant) = (ground.bus().await, name("acme"));
    let request = |id: &str, n: u32, temperature: f32| {
        let prompt = "All happy families are alike. ".repeat(5);
        json!({ "id": id, "prompt": prompt, "max_tokens": 90, "seed": 3, "temperature": temperature, "n": n })
    };
    let mut outcomes = Vec::new();
    for request in [request("sixteen", 16, 0.9), request("one", 1, 0.9), request("greedy", 2, 0.0)] {
        let mut follower = bus.follow(&tenant).await.unwrap();
        bus.submit(&tenant, &name("batch"), request.to_string().into_bytes()).await.unwrap();
        let pending = [support::job_id(request["id"].as_str().unwrap())].into();
        let mut streamed = vec![Vec::new(); request["n"].as_u64().unwrap() as usize];
        let outcome = loop {
            match timeout(PATIENCE, follower.next(&pending)).await.expect("no result in time").unwrap() {
                Event::Delta { delta, .. } => {
                    let answer: &mut Vec<u32> = &mut streamed[delta.choice as usize];
                    assert_eq!(delta.index as usize, answer.len());
                    answer.extend(delta.token);
                }
                Event::Result(outcome) => break *outcome,
                Event::Refused(refusal) => panic!("{refusal:?}"),
            }
        };
        assert_eq!(answers(&outcome), streamed);
        outcomes.push(outcome);
    }
    let [sixteen, one, greedy] = &outcomes[..] else { unreachable!() };
    // The first answer is the one that the request has alone, and stands where that does.
    assert_eq!((&sixteen.tokens, &sixteen.text), (&one.tokens, &one.text));
    assert_eq!((&sixteen.choices[0].tokens, &sixteen.choices[0].text), (&one.tokens, &one.text));
    assert!(one.choices.is_empty() && sixteen.choices[0].finish_reason == one.finish_reason);
    let different: std::collections::BTreeSet<_> = answers(sixteen).into_iter().collect();
    assert_eq!(different.len(), 16);
    assert!(greedy.choices.len() == 2 && greedy.choices[0].tokens == greedy.choices[1].tokens);
    // One prompt, one KV cache: 2 layers of 192 values in K and in V, 2 bytes each.
    let prompt = sixteen.usage.prompt_tokens;
    assert_eq!((prompt, sixteen.usage.completion_tokens), (one.usage.prompt_tokens, 16 * 90));
    assert_eq!(sixteen.timings.kv_raw_bytes, u64::from(prompt) * 2 * 192 * 2 * 2);
    assert_eq!(sixteen.timings.recomputed_tokens, 0);
    // What their result might not hold is refused.
    let mut large = request("large", 16, 0.9);
    large["logprobs"] = true.into();
    large["top_logprobs"] = 20.into();
    large["max_tokens"] = 200.into();
    let mut long = request("long", 16, 0.9);
    long["max_tokens"] = 8_200.into();
    let refused: Vec<String> = ground
        .submit_all(&[large, long])
        .await
        .iter()
        .map(|outcome| outcome.error.as_ref().unwrap().to_string())
        .collect();
    assert!(refused[0].contains("at most 50000 log-probabilities in all answers, found 67200"), "{refused:?}");
    assert!(refused[1].contains("at most 131072 tokens in all answers together, found 131200"), "{refused:?}");
}

#[tokio::test]
async fn the_short_rest_of_a_stored_prompt_is_left_to_decode() {
    let request = |id: &str, prompt: &str, n: u32| json!({ "id": id, "prompt": prompt, "max_tokens": 30, "seed": 3, "temperature": 0.9, "n": n });
    let shared = "What is stored need not be computed. ".repeat(6);
    // 231 tokens, of which three chunks of 64 are shared.
    let first = request("first", &format!("{shared}And this?"), 1);
    let others = [
        request("rest", &format!("{shared}And that?"), 1),
        request("rest-of-two", &format!("{shared}Or those?"), 2),
        request("rest-of-four", &format!("{shared}Or these?"), 4),
        request("whole", &shared[..192], 1),
    ];
    let mut expected: Vec<Vec<Vec<u32>>> = Vec::new();
    for prefill_tokens in [0, 80] {
        let key = format!("stages.decode.prefill_tokens={prefill_tokens}");
        let ground = Ground::sim(&["store.chunk_tokens=64", &key]).await;
        let _workers = ground.workers().await;
        let mut outcomes = ground.submit_all(std::slice::from_ref(&first)).await;
        outcomes.extend(ground.submit_all(&others).await);
        let tokens: Vec<_> = outcomes.iter().map(answers).collect();
        if prefill_tokens == 0 {
            expected = tokens;
        } else {
            assert_eq!(tokens, expected);
        }
        let told: Vec<_> = outcomes
            .iter()
            .map(|outcome| {
                let (timings, usage) = (&outcome.timings, &outcome.usage);
                assert_eq!(
                    (timings.recomputed_tokens, timings.prefill_worker.as_str()),
                    (0, "prefill-1"),
                    "{}",
                    outcome.id
                );
                assert!(timings.decode_prefilled_tokens == 0 || timings.kv_raw_bytes == 0, "{}", outcome.id);
                (usage.cached_tokens, timings.decode_prefilled_tokens)
            })
            .collect();
        // Rests of 39 tokens are short enough for one answer or two, and 64 tokens for one.
        match prefill_tokens {
            0 => assert_eq!(told, [(0, 0), (192, 0), (192, 0), (192, 0), (191, 0)]),
            _ => assert_eq!(told, [(0, 0), (192, 39), (192, 39), (192, 0), (128, 64)]),
        }
    }
}
