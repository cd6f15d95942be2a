//! Prefill and decode on two instances of vLLM that hand each other KV caches over NIXL.

use std::{sync::Arc, time::Duration};

use baton_contract::Name;
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{
    Error, Ground, MODEL, Row, Step,
    kills::{Count, Jobs, request, texts},
    server::Engine,
    stack::Shape,
};

const AWAY: Duration = Duration::from_secs(10);
const ROUND: Duration = Duration::from_millis(100);
/// Long enough for a block of the KV cache and a part of another.
const PROMPT_TOKENS: u32 = 200;
/// Requests at a time where the undisturbed texts are made.
const AT_A_TIME: usize = 4;

pub(super) async fn run(ground: &Ground<'_>) -> Result<Vec<Row>, Error> {
    let (all, max_tokens) = ((ground.options.jobs / 3) as usize, ground.options.output_tokens);
    let texts = texts(all, PROMPT_TOKENS);
    let mut decode = ground.engine(2, Some("1")).await?;
    decode.start().await?;
    let expected = undisturbed(&decode, &texts, max_tokens).await?;
    // Now it has all their KV caches, and would ask for none.
    decode.kill().await;
    let mut prefill = ground.engine(1, Some("0")).await?;
    prefill.launch()?;
    decode.start().await?;
    prefill.wait().await?;

    let shape = Shape { engine: &decode, prefill: Some(&prefill), decoders: 1, max_running: "auto".into() };
    let mut stack = ground.stack(shape).await?;
    let mut jobs = Jobs::submit(&stack, Step::Apart, &texts, max_tokens).await?;
    let (mut decode_at, mut prefill_at): (Option<Instant>, Option<Instant>) = (None, None);
    let (mut next, mut fetched) = (0, 0.0);
    while !jobs.over() {
        stack.tend().await?;
        for (engine, at) in [(&mut decode, &mut decode_at), (&mut prefill, &mut prefill_at)] {
            if at.take_if(|at| *at <= Instant::now()).is_some() {
                engine.launch()?;
            }
        }
        let ended = jobs.ended();
        match next {
            0 if ended >= all / 4 => {
                fetched += from_elsewhere(&decode).await;
                decode.kill().await;
                (decode_at, next) = (Some(Instant::now() + AWAY), 1);
            }
            1 if ended >= all / 2 => {
                prefill.kill().await;
                (prefill_at, next) = (Some(Instant::now() + AWAY), 2);
            }
            _ => {}
        }
        sleep(ROUND).await;
    }
    fetched += from_elsewhere(&decode).await;
    let count = jobs.count(&stack).await?;
    let kept = stack.bus.jobs().await?;
    let mut equal = 0;
    for (id, expected) in jobs.ids.iter().zip(&expected) {
        let outcome = kept.result(&Name::default_tenant(), id).await?;
        equal += usize::from(outcome.is_some_and(|outcome| outcome.text == *expected));
    }
    let (transfers, fallbacks) = (stack.told("transfers").await?, stack.told("transfer_fallbacks").await?);
    stack.stop().await;
    decode.kill().await;
    prefill.kill().await;
    let what = format!(
        "{all} jobs, prefill and decode on a vLLM each over NIXL; each killed once and started 10 s later ({next} of 2 done)"
    );
    let found = format!(
        "{} completed, {} failed, {} lost, {} twice; {equal} greedy texts as from one vLLM; {transfers} transfers, {fallbacks} fallbacks, \
         {fetched:.0} prompt tokens fetched by vLLM's count",
        count.completed, count.failed, count.lost, count.twice
    );
    let holds = next == 2 && count == Count { completed: all, ..Count::default() } && equal == all && transfers > 0;
    Ok(vec![Row::judged(what, found, "0 lost, 0 twice, all texts alike", holds)])
}

/// Prompt tokens whose KV cache the engine has fetched since its start.
async fn from_elsewhere(engine: &Engine) -> f64 {
    let fetched = engine.metric("vllm:prompt_tokens_by_source_total", "external_kv_transfer").await;
    fetched.unwrap_or_default()
}

/// What the engine alone answers.
async fn undisturbed(engine: &Engine, texts: &[String], max_tokens: u32) -> Result<Vec<String>, Error> {
    let (room, mut asking) = (Arc::new(Semaphore::new(AT_A_TIME)), JoinSet::new());
    for (number, text) in texts.iter().enumerate() {
        let (http, url, room) = (engine.http().clone(), engine.url(), room.clone());
        let body = serde_json::to_value(request(None, text, max_tokens)).unwrap_or_default();
        asking.spawn(async move {
            let _room = room.acquire_owned().await;
            let asked = http.post(format!("{url}/v1/chat/completions")).timeout(Duration::from_secs(600));
            let asked = asked.header("content-type", "application/json").body(body.to_string());
            let text = match asked.send().await {
                Ok(response) => response.text().await.unwrap_or_default(),
                Err(error) => error.to_string(),
            };
            let answer: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
            let found = answer["choices"][0]["message"]["content"].as_str().map(str::to_owned);
            found.map(|found| (number, found)).ok_or(text)
        });
    }
    let mut answers = vec![String::new(); texts.len()];
    for answer in asking.join_all().await {
        let (number, text) = answer.map_err(|said| Error::Undisturbed(format!("{MODEL}: {said}")))?;
        answers[number] = text;
    }
    Ok(answers)
}
