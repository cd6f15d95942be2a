//! The choice of a token: each rule on small distributions, and all together on anything.

use std::collections::BTreeMap;

use baton_contract::job::Job;
use baton_contract::outcome::Code;
use baton_contract::sampling::{Constraint, Sampling};
use baton_model::generation::Generator;
use baton_model::sampling::{Distribution, Sampler, greedy, pick};
use proptest::prelude::*;

use super::BYTES;
use super::constraint::job;

#[test]
fn sampling_is_a_function_of_seed_and_position() {
    // Token i has the weight i + 1 at temperature 1; the ties at the end test the order of equals.
    let logits: Vec<f32> = (1..=9).chain([9]).map(|weight| (weight as f32).ln()).collect();
    let sampling = |temperature, top_p, top_k, seed| Sampling { temperature, top_p, top_k, seed, ..Sampling::GREEDY };
    let drawn =
        |sampling: Sampling| -> Vec<u32> { (0..10_000).map(|position| pick(&logits, &sampling, position)).collect() };
    let plain = drawn(sampling(1.0, 1.0, 0, 7));
    assert_eq!(plain, drawn(sampling(1.0, 1.0, 0, 7)));
    assert_ne!(plain, drawn(sampling(1.0, 1.0, 0, 8)));
    for greedy in [Sampling::GREEDY, sampling(2.0, 1.0, 1, 7), sampling(2.0, 1e-6, 0, 7), sampling(1e-30, 1.0, 0, 7)] {
        let expected = if greedy.temperature == 1e-30 { vec![8, 9] } else { vec![8] };
        assert!(drawn(greedy.clone()).iter().all(|token| expected.contains(token)), "{greedy:?}");
    }
    let shares = |tokens: &[u32]| {
        tokens.iter().fold(BTreeMap::new(), |mut counts, &token| {
            *counts.entry(token).or_insert(0.0) += 1e-4;
            counts
        })
    };
    let close = |shares: &BTreeMap<u32, f64>, expected: &[(u32, f64)]| {
        assert_eq!(shares.keys().copied().collect::<Vec<_>>(), expected.iter().map(|e| e.0).collect::<Vec<_>>());
        for (token, share) in expected {
            assert!((shares[token] - share).abs() < 0.02, "{shares:?} instead of {expected:?}");
        }
    };
    let weights: Vec<f64> = (1..=9).chain([9]).map(f64::from).collect();
    let all: Vec<(u32, f64)> = (0..).zip(weights.iter().map(|weight| weight / 54.0)).collect();
    close(&shares(&plain), &all);
    let squared: f64 = weights.iter().map(|weight| weight * weight).sum();
    let cold: Vec<(u32, f64)> = (0..).zip(weights.iter().map(|weight| weight * weight / squared)).collect();
    close(&shares(&drawn(sampling(0.5, 1.0, 0, 7))), &cold);
    let third = [(7, 8.0 / 26.0), (8, 9.0 / 26.0), (9, 9.0 / 26.0)];
    close(&shares(&drawn(sampling(1.0, 1.0, 3, 7))), &third);
    close(&shares(&drawn(sampling(1.0, 0.45, 0, 7))), &third);
    // The nucleus is taken of what top_k left: 18 of 26 is more than 0.6.
    close(&shares(&drawn(sampling(1.0, 0.6, 3, 7))), &[(8, 0.5), (9, 0.5)]);
    // 8 of 9 is more than 0.85; squared by the temperature it is less. Then of what top_k and top_p left.
    let least = |min_p, sampling: Sampling| Sampling { min_p, ..sampling };
    close(&shares(&drawn(least(0.85, sampling(1.0, 1.0, 0, 7)))), &third);
    close(&shares(&drawn(least(0.85, sampling(0.5, 1.0, 0, 7)))), &[(8, 0.5), (9, 0.5)]);
    close(&shares(&drawn(least(0.85, sampling(1.0, 0.99, 0, 7)))), &third);
    close(&shares(&drawn(least(0.5, sampling(1.0, 1.0, 3, 7)))), &third);
    close(&shares(&drawn(least(1.0, sampling(1.0, 1.0, 4, 7)))), &[(8, 0.5), (9, 0.5)]);
}

#[test]
fn large_vocabularies_rank_alike_and_log_probabilities_are_right() {
    let logits: Vec<f32> = (0..50_001u32).map(|id| (id.wrapping_mul(2_654_435_769) >> 8) as f32 / 1.0e6).collect();
    let exact: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum::<f64>().ln();
    let distribution = Distribution::of(&logits);
    for token in [0, 17, 50_000] {
        let expected = f64::from(logits[token as usize]) - exact;
        let found = f64::from(distribution.logprob(token));
        assert!((found - expected).abs() < 1e-5, "{found} instead of {expected}");
    }
    let mut ids: Vec<u32> = (0..50_001).collect();
    ids.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
    assert_eq!(distribution.top(20), ids[..20]);
    assert_eq!((distribution.top(0), distribution.logprob(50_001)), (vec![], -9999.0));
    assert_eq!(Distribution::of(&[1.0, 2.0, 2.0, f32::NAN, f32::NEG_INFINITY]).top(9), [1, 2, 0, 3, 4]);
    // A nucleus of nearly everything passes the partial ranking; top_k of everything ranks nothing.
    for position in 0..20 {
        let pick = |top_p, top_k| {
            pick(&logits, &Sampling { temperature: 2.0, top_p, top_k, seed: 1, ..Sampling::GREEDY }, position)
        };
        assert_eq!(pick(0.999_999, 0), pick(0.999_999, 50_000_000));
        assert_eq!(pick(1.0, 0), pick(1.0, 50_001));
    }
}

#[test]
fn a_bias_of_a_hundred_bans_and_chooses() {
    let logits = [1.0, 9.0, 2.0];
    let choose = |logit_bias: Vec<(u32, f32)>| {
        let sampling = Sampling { logit_bias, ..Sampling::GREEDY };
        Sampler::new(sampling, &[], None).pick(&logits).expect("nothing is constrained")
    };
    assert_eq!((greedy(&logits), choose(vec![(1, -100.0)]), choose(vec![(0, 100.0)])), (1, 2, 0));
}

/// Logits as a plain reading of the documentation has them after penalties and bias.
fn adjusted(logits: &[f32], sampling: &Sampling, prompt: &[u32], answer: &[u32]) -> Vec<f32> {
    let mut logits = logits.to_vec();
    for (id, logit) in (0..).zip(&mut logits) {
        let times = answer.iter().filter(|token| **token == id).count() as f32;
        if times > 0.0 || prompt.contains(&id) {
            *logit =
                if *logit > 0.0 { *logit / sampling.repetition_penalty } else { *logit * sampling.repetition_penalty };
        }
        if times > 0.0 {
            *logit -= times * sampling.frequency_penalty + sampling.presence_penalty;
        }
        *logit += sampling.logit_bias.iter().filter(|(token, _)| *token == id).map(|(_, bias)| bias).sum::<f32>();
    }
    logits
}

/// Multiples of a quarter, so that sums and products of a few are exact.
fn quarters(range: std::ops::Range<i32>) -> impl Strategy<Value = f32> {
    range.prop_map(|quarters| quarters as f32 / 4.0)
}

proptest! {
    #[test]
    fn penalties_and_bias_are_what_they_are_documented_as(
        logits in prop::collection::vec(quarters(-40..40), 12),
        prompt in prop::collection::vec(0u32..12, 0..6), answer in prop::collection::vec(0u32..14, 0..9),
        repetition_penalty in prop_oneof![Just(1.0f32), Just(2.0), Just(0.5)],
        presence_penalty in quarters(-8..9), frequency_penalty in quarters(-8..9),
        logit_bias in prop::collection::btree_map(0u32..14, quarters(-400..401), 0..3),
        temperature in prop_oneof![Just(0.0f32), Just(1.0)], seed in 0u64..1000,
    ) {
        let logit_bias = logit_bias.into_iter().collect();
        let sampling = Sampling {
            temperature, repetition_penalty, presence_penalty, frequency_penalty, logit_bias, seed, ..Sampling::GREEDY
        };
        let mut sampler = Sampler::new(sampling.clone(), &prompt, None);
        for (index, &token) in answer.iter().enumerate() {
            let expected = adjusted(&logits, &sampling, &prompt, &answer[..index]);
            let position = (prompt.len() + index) as u64;
            prop_assert_eq!(sampler.pick(&logits).expect("nothing is constrained"), pick(&expected, &sampling, position));
            sampler.accept(token).expect("nothing is constrained");
        }
    }

    #[test]
    fn any_logits_yield_a_token(
        logits in prop::collection::vec(prop_oneof![any::<f32>(), Just(f32::NAN), Just(f32::INFINITY), -5f32..5.0], 0..40),
        temperature in prop_oneof![any::<f32>(), 0f32..2.0], top_p in any::<f32>(), top_k in 0u32..50,
        min_p in any::<f32>(), penalty in any::<f32>(), seed in any::<u64>(),
    ) {
        let sampling = Sampling {
            temperature, top_p, top_k, min_p, seed, repetition_penalty: penalty, presence_penalty: penalty,
            logit_bias: vec![(3, penalty)], ..Sampling::GREEDY
        };
        let token = pick(&logits, &sampling, seed);
        prop_assert!(token < logits.len().max(1) as u32);
        let logprob = Distribution::of(&logits).logprob(token);
        prop_assert!((-9999.0..=0.0).contains(&logprob), "{}", logprob);
        let mut sampler = Sampler::new(sampling, &[1, 2], None);
        prop_assert!(sampler.pick(&logits).expect("nothing is constrained") < logits.len().max(1) as u32);
    }
}

#[test]
fn logits_that_are_not_finite_choose_nothing() {
    let constraint = Some(Constraint::Regex("yes|no".into()));
    let ways = [
        Sampling::GREEDY,
        Sampling { temperature: 1.0, ..Sampling::GREEDY },
        Sampling { temperature: 1.0, top_k: 3, top_p: 0.5, min_p: 0.1, ..Sampling::GREEDY },
        Sampling { presence_penalty: 1.0, logit_bias: vec![(7, -100.0)], ..Sampling::GREEDY },
        Sampling { logprobs: Some(3), ..Sampling::GREEDY },
        Sampling { constraint, ..Sampling::GREEDY },
    ];
    let generator = Generator::new(BYTES.clone());
    let calm: Vec<f32> = (0..BYTES.spec().vocabulary).map(|id| (id % 7) as f32).collect();
    for sampling in ways {
        for spoilt in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in [0, 7, calm.len() - 1] {
                let mut generation = generator.start(&job(sampling.clone()), 0).unwrap();
                let mut logits = calm.clone();
                logits[place] = spoilt;
                let error = generation.next(&logits).unwrap_err();
                assert!(error.may_pass_elsewhere(), "{error}");
                assert_eq!(error.failure().code, Code::NonFinite);
                assert!(error.to_string().contains("token 0 of the answer, found 1 of 257"), "{error}");
                // Elsewhere it goes on.
                generation.next(&calm).unwrap();
            }
        }
    }
}

/// The answer's text, and the texts of the tokens whose log-probabilities it keeps, after each token and in the end.
fn with_stop(stop: &str, answer: &str) -> (String, Vec<u32>, Vec<String>) {
    let job = Job { stop: vec![stop.to_owned()], ..job(Sampling { logprobs: Some(0), ..Sampling::GREEDY }) };
    let mut generation = Generator::new(BYTES.clone()).start(&job, 0).unwrap();
    let (mut text, mut settled, mut logprobs) = (String::new(), Vec::new(), Vec::new());
    for byte in answer.bytes() {
        let mut logits = vec![0.0; BYTES.spec().vocabulary];
        logits[usize::from(byte)] = 9.0;
        let emitted = generation.next(&logits).unwrap();
        text.push_str(&emitted.text);
        settled.push(emitted.settled);
        logprobs.extend(emitted.logprobs.clone());
        if emitted.finish.is_some() {
            emitted.settled().keep(&mut logprobs);
            break;
        }
    }
    (text, settled, logprobs.into_iter().map(|logprob| logprob.chosen.token).collect())
}

#[test]
fn log_probabilities_are_those_of_the_text() {
    let tokens = |text: &str| text.chars().map(String::from).collect::<Vec<_>>();
    // What may begin the stop text waits until it is known.
    let (text, settled, kept) = with_stop("def", "ab de def");
    assert_eq!((text.as_str(), kept), ("ab de ", tokens("ab de ")));
    assert_eq!(settled, [1, 2, 3, 3, 3, 6, 6, 6, 6]);
    assert_eq!(with_stop("a", "abc"), (String::new(), vec![0], Vec::new()));
    // A character of two tokens is final with its second.
    let (text, settled, kept) = with_stop("x", "\u{e9}ax");
    assert_eq!((text.as_str(), kept.len(), settled), ("\u{e9}a", 3, vec![0, 2, 3, 3]));
}
