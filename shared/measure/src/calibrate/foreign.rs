//! What prompts and steps cost at a foreign engine, as far as its answers tell: times from the outside, over HTTP.

use std::time::Duration;

use baton_contract::upstream::{Ask, Engine};
use baton_planner::{
    fit::{Fitted, Sample, fit},
    profile::{Bus, Decode, Fit, Kv, Prefill, Profile, Store, Transfer, pairs},
};
use baton_upstream::{Call, Event, Instance, Retry, Upstream};
use futures::{StreamExt, stream::FuturesUnordered};
use serde_json::json;
use tokio::time::Instant;

use super::bus;
use crate::{error::Error, progress::Steps, runs::Runs};

/// Words of prompts whose first token is timed.
const PROMPTS: [usize; 7] = [8, 32, 128, 256, 512, 1024, 2048];
/// Words of prompts that are answered together.
const CONTEXTS: [usize; 2] = [16, 384];
/// Answers at a time at most.
const MOST_TOGETHER: usize = 256;
/// Tokens of those answers.
const TOKENS: u32 = 48;
/// What more answers at a time must bring for still more to be tried, as a factor.
const WORTH: f64 = 1.03;
/// Fewer sizes explain nothing.
const ENOUGH: usize = 3;
/// How much the KV cache may hold: an engine keeps it to itself, and lets requests wait where it is full.
const KV_TOKENS: usize = 1_000_000_000;

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// The profile's name for the model.
    pub name: String,
    /// The model; only the first of its instances is asked.
    pub upstream: Upstream,
    /// How often every size is measured.
    pub repeat: usize,
}

/// A timed answer.
struct Answer {
    prompt_tokens: u32,
    tokens: u32,
    asked: Instant,
    /// When each piece came; at least one.
    pieces: Vec<Instant>,
}

/// What answers came to that were asked for together.
struct Together {
    /// The most that were answered at a time.
    at_a_time: usize,
    tokens_per_s: f64,
    /// Seconds of a step while all of them were answered, and the tokens that each attended to.
    step: Option<(f64, f64)>,
}

/// Measures an instance that nobody else asks meanwhile, and the bus, and makes a profile of it. What the engine keeps to itself is not
/// in it: prompts are computed between its steps, KV caches and their transfer cost nothing, and its memory is never full.
///
/// # Errors
///
/// If the engine fails, too few sizes fit its context, or no coefficients explain the times.
pub async fn run(options: Options, mut steps: Steps) -> Result<Profile, Error> {
    let instance = &options.upstream.instances()[0];
    let mut asking = Asking { instance, asked: 0 };
    steps.total(PROMPTS.len() + CONTEXTS.len() + 1);
    let prefill = asking.prefill(options.repeat, &mut steps).await?;
    let (decode, slots) = asking.decode(&options, &mut steps).await?;
    steps.doing("the bus");
    let bus = bus::measure(Vec::new()).await?;
    steps.done();
    let [s_per_pass, s_per_token, s_per_token_context] = prefill.coefficients;
    let [s_per_step, s_per_sequence, s_per_context_token] = decode.coefficients;
    Ok(Profile {
        name: format!("{}, {} at {}", options.name, instance.engine(), instance.url()),
        kv: Kv { raw_bytes_per_token: 1.0, stored_bytes_per_token: 1.0, memory_bytes_per_token: None, page_tokens: 16 },
        prefill: Prefill {
            s_per_pass,
            s_per_token,
            s_per_token_context,
            slots: Some(slots),
            kv_tokens: Some(KV_TOKENS),
            ..Prefill::default()
        },
        decode: Decode {
            s_per_step,
            s_per_sequence,
            s_per_context_token,
            slots: Some(slots),
            kv_tokens: Some(KV_TOKENS),
        },
        transfer: Transfer::default(),
        store: Store::default(),
        bus: Bus { hop_s: bus.hop_s, ingest_s: 0.0 },
        host: None,
        fit: Some(Fit {
            prefill_mean_error: prefill.mean_error,
            prefill_max_error: prefill.max_error,
            decode_mean_error: decode.mean_error,
            decode_max_error: decode.max_error,
            store_mean_error: 0.0,
            store_max_error: 0.0,
        }),
    })
}

/// An instance that is asked with prompts of which none begins as another.
struct Asking<'a> {
    instance: &'a Instance,
    asked: u64,
}

impl Asking<'_> {
    /// Times first tokens.
    async fn prefill(&mut self, repeat: usize, steps: &mut Steps) -> Result<Fitted<3>, Error> {
        let mut samples = Vec::new();
        for words in PROMPTS {
            steps.doing(format!("first tokens of prompts of {words} words"));
            let (mut seconds, mut prompt_tokens) = (Vec::new(), 0);
            // The first warms up.
            for run in 0..=repeat {
                let Some(answer) = self.answer(words, 1).await? else { break };
                prompt_tokens = answer.prompt_tokens;
                if run > 0 {
                    seconds.push((answer.pieces[0] - answer.asked).as_secs_f64());
                }
            }
            steps.done();
            if seconds.is_empty() {
                continue;
            }
            let tokens = f64::from(prompt_tokens);
            let features = [1.0, tokens, pairs(0.0, tokens)];
            samples.push(Sample { features, seconds: Runs::of(seconds).median });
        }
        if samples.len() < ENOUGH {
            return Err(Error::FewPrompts { found: samples.len() });
        }
        fit(&samples).ok_or(Error::NoFit { what: "first tokens" })
    }

    /// Times steps of more and more answers at a time, and finds how many at a time are worth it.
    async fn decode(&mut self, options: &Options, steps: &mut Steps) -> Result<(Fitted<3>, usize), Error> {
        let most = options.upstream.options().max_running.unwrap_or(MOST_TOGETHER).min(MOST_TOGETHER);
        let (mut samples, mut best) = (Vec::new(), (0.0, 1));
        for words in CONTEXTS {
            let mut count = 1;
            loop {
                steps.doing(format!("{count} answers at a time to prompts of {words} words"));
                let mut seconds = Vec::new();
                let (mut context, mut tokens_per_s, mut at_a_time) = (0.0, 0.0, count);
                for _ in 0..options.repeat.div_ceil(4) {
                    let Some(together) = self.together(words, count).await? else { break };
                    tokens_per_s = f64::max(tokens_per_s, together.tokens_per_s);
                    at_a_time = at_a_time.min(together.at_a_time);
                    if let Some((step_s, attended)) = together.step {
                        seconds.push(step_s);
                        context = attended;
                    }
                }
                if !seconds.is_empty() {
                    let features = [1.0, count as f64, count as f64 * context];
                    samples.push(Sample { features, seconds: Runs::of(seconds).median });
                }
                let is_worth = tokens_per_s > best.0 * WORTH;
                if words == CONTEXTS[0] && is_worth {
                    best = (tokens_per_s, at_a_time);
                }
                // Some waited for others to end, or nothing was gained.
                if at_a_time < count || count >= most || (words == CONTEXTS[0] && !is_worth) || tokens_per_s == 0.0 {
                    break;
                }
                count = (2 * count).min(most);
            }
            steps.done();
        }
        if samples.len() < ENOUGH {
            return Err(Error::FewSteps { found: samples.len() });
        }
        let fitted = fit(&samples).ok_or(Error::NoFit { what: "steps" })?;
        Ok((fitted, options.upstream.options().max_running.unwrap_or(best.1)))
    }

    /// Answers that are asked for at once; none if they don't fit the engine's context.
    async fn together(&mut self, words: usize, count: usize) -> Result<Option<Together>, Error> {
        let instance = self.instance;
        let bodies: Vec<_> = (0..count).map(|_| self.body(words, TOKENS)).collect();
        let asked: FuturesUnordered<_> = bodies.into_iter().map(|body| answer(instance, body)).collect();
        let answers: Vec<Result<Option<Answer>, Error>> = asked.collect().await;
        let answers: Option<Vec<Answer>> = answers.into_iter().collect::<Result<Option<Vec<_>>, _>>()?;
        Ok(answers.map(|answers| Together::of(&answers)))
    }

    async fn answer(&mut self, words: usize, tokens: u32) -> Result<Option<Answer>, Error> {
        let body = self.body(words, tokens);
        answer(self.instance, body).await
    }

    fn body(&mut self, words: usize, tokens: u32) -> String {
        self.asked += 1;
        // No prompt begins as one of another run of this program, either.
        let began = uuid::Uuid::now_v7();
        let prompt = (1..words as u64).fold(format!("{} {began}", self.asked), |prompt, word| {
            prompt
                + [" one", " small", " river", " runs", " down", " the", " old", " hill"]
                    [((word * 5 + self.asked) % 8) as usize]
        });
        let mut body =
            json!({ "messages": [{ "role": "user", "content": prompt }], "max_tokens": tokens, "temperature": 0 });
        if self.instance.engine() != Engine::OpenAi {
            body["ignore_eos"] = json!(true);
        }
        body.to_string()
    }
}

/// Asks, and times what comes; none if the engine refuses the request, as too long for it.
async fn answer(instance: &Instance, body: String) -> Result<Option<Answer>, Error> {
    let ask = Ask { chat: true, body, handover: None };
    let asked = Instant::now();
    let mut answer = Answer { prompt_tokens: 0, tokens: 0, asked, pieces: Vec::new() };
    let mut reply = match instance.ask(Call { ask: &ask, resume: None, trace: &[] }).await {
        Ok(reply) => reply,
        Err(fault) if fault.retry == Retry::Never => return Ok(None),
        Err(fault) => return Err(fault.into()),
    };
    while let Some(event) = reply.next().await? {
        match event {
            Event::Piece(_) => answer.pieces.push(Instant::now()),
            Event::Usage(usage) => {
                (answer.prompt_tokens, answer.tokens) = (usage.prompt_tokens, usage.completion_tokens)
            }
            Event::Prompt(_) => {}
        }
    }
    match (answer.pieces.is_empty(), answer.prompt_tokens) {
        (false, 1..) => Ok(Some(answer)),
        _ => Err(Error::NoUsage),
    }
}

impl Together {
    fn of(answers: &[Answer]) -> Self {
        let ends = answers.iter().filter_map(|answer| answer.pieces.last().copied());
        let begins = || answers.iter().filter_map(|answer| answer.pieces.first().copied());
        let at_a_time = begins().map(|begin| {
            answers.iter().filter(|other| other.pieces[0] <= begin && other.pieces.last() > Some(&begin)).count()
        });
        let tokens: u32 = answers.iter().map(|answer| answer.tokens).sum();
        let asked = answers.iter().map(|answer| answer.asked).min();
        let took = asked.zip(ends.clone().max()).map_or(Duration::ZERO, |(asked, end)| end - asked);
        let window = begins().max().zip(ends.min()).filter(|(begin, end)| begin < end);
        Self {
            at_a_time: at_a_time.max().unwrap_or(0),
            tokens_per_s: f64::from(tokens) / took.as_secs_f64().max(1e-9),
            step: window.and_then(|window| step(answers, window)),
        }
    }
}

/// Seconds of a step between the moment when all have begun and the one when the first ends, and the mean of the tokens that each
/// attends to; none if that is too short to tell.
fn step(answers: &[Answer], (begin, end): (Instant, Instant)) -> Option<(f64, f64)> {
    let tokens = answers.iter().map(|answer| {
        let pieces = answer.pieces.iter().filter(|piece| (begin..end).contains(*piece)).count();
        // A piece may have several tokens.
        pieces as f64 * f64::from(answer.tokens) / answer.pieces.len() as f64
    });
    let each = tokens.sum::<f64>() / answers.len() as f64;
    let context = answers.iter().map(|answer| f64::from(answer.prompt_tokens) + f64::from(answer.tokens) / 2.0);
    let context = context.sum::<f64>() / answers.len() as f64;
    (each >= 4.0).then(|| ((end - begin).as_secs_f64() / each, context))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_timed_while_all_are_answered_and_waiting_ones_are_seen() {
        let asked = Instant::now();
        let answer = |first: u64, every: u64| Answer {
            prompt_tokens: 10,
            tokens: 20,
            asked,
            pieces: (0..20).map(|piece| asked + Duration::from_millis(first + every * piece)).collect(),
        };
        let both = Together::of(&[answer(100, 50), answer(300, 50)]);
        assert_eq!(both.at_a_time, 2);
        let (step_s, context) = both.step.unwrap();
        assert!((0.045..0.055).contains(&step_s) && context == 20.0, "{step_s} {context}");
        let queued = Together::of(&[answer(100, 50), answer(1_200, 50)]);
        assert_eq!((queued.at_a_time, queued.step), (1, None));
        assert!((queued.tokens_per_s - 40.0 / 2.15).abs() < 0.01);
    }
}
