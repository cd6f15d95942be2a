use std::sync::Arc;

use baton_contract::{
    Name,
    outcome::{Alternative, FinishReason, Timings, TokenLogprob},
    record::Claim,
    sampling::{Constraint, Sampling},
    subject::Stage,
};
use baton_model::{
    model::{Model, Step},
    sim::{self, Sim},
    source::{Source, vocabulary},
};

use super::*;

fn job(samples: u32, sampling: Sampling) -> Job {
    Job {
        id: "job".parse().unwrap(),
        tenant: Name::new("acme").unwrap(),
        lane: Name::new("batch").unwrap(),
        model: Name::new("sim").unwrap(),
        prompt: "Tell me a story".bytes().map(u32::from).collect(),
        max_tokens: 40,
        samples,
        sampling: Sampling { temperature: 0.9, seed: 5, ..sampling },
        stop: vec!["zzz".into()],
        deadline_ms: None,
        metadata: Default::default(),
        request_digest: "ab".into(),
    }
}

fn generator() -> Generator {
    Generator::new(Arc::new(vocabulary(&Source::Sim(sim::Options::default())).unwrap()))
}

/// Goes on with an answer to its end.
fn go_on(job: &Job, generation: &mut Generation, emitted: &mut Vec<Emitted>) {
    let mut model = Sim::new(sim::Options { layers: 1, kv_width: 2, ..Default::default() }, 1 << 20).unwrap();
    let sequence = model.open();
    let tokens: Vec<u32> = job.prompt.iter().copied().chain(emitted.iter().map(|emitted| emitted.token)).collect();
    let mut logits = model.forward(&[Step { sequence, tokens: &tokens, logits: 1 }]).unwrap().remove(0);
    while emitted.last().is_none_or(|last| last.finish.is_none()) {
        let next = generation.next(&logits).unwrap();
        logits = model.forward(&[Step { sequence, tokens: &[next.token], logits: 1 }]).unwrap().remove(0);
        emitted.push(next);
    }
}

fn whole(job: &Job) -> Vec<Vec<Emitted>> {
    let whole = |mut generation: Generation| {
        let mut emitted = Vec::new();
        go_on(job, &mut generation, &mut emitted);
        emitted
    };
    generator().start_all(job).unwrap().into_iter().map(whole).collect()
}

fn checkpoint(job: &Job, answers: &[&[Emitted]]) -> Checkpoint {
    let claim = Claim { stage: Stage::Decode, sequence: 1, attempt: 1, worker: "a".into() };
    let answers = answers.iter().map(|answer| checkpoint::Beginning {
        tokens: answer.iter().map(|emitted| emitted.token).collect(),
        logprobs: answer.iter().filter_map(|emitted| emitted.logprobs.clone()).collect(),
    });
    Checkpoint { answers: answers.collect(), timings: Timings::default(), ..Checkpoint::empty(claim, job) }
}

fn first(answers: &[Vec<Emitted>]) -> Vec<FirstToken> {
    let first = |answer: &Vec<Emitted>| FirstToken { token: answer[0].token, logprobs: answer[0].logprobs.clone() };
    answers.iter().map(first).collect()
}

/// Everything that a generation carries goes on as if nobody had died: text, penalties, a constraint, log-probabilities.
#[test]
fn answers_that_go_on_from_a_checkpoint_are_what_they_would_have_been() {
    let penalised = Sampling { presence_penalty: 1.0, frequency_penalty: 0.5, logprobs: Some(3), ..Sampling::GREEDY };
    let constraint = Constraint::Regex("([a-c]{2} ){4,60}".into());
    for sampling in [penalised, Sampling { constraint: Some(constraint), ..Sampling::GREEDY }] {
        let job = job(3, sampling);
        let answers = whole(&job);
        assert!(answers.iter().all(|answer| answer.len() > 10), "{answers:?}");
        assert!(answers[0] != answers[1]);
        // The first has ended; without first tokens an answer may not have begun.
        let left = checkpoint(&job, &[&answers[0], &answers[1][..10], &answers[2][..1]]);
        assert!(left.fits(&job));
        let not_begun = checkpoint(&job, &[&answers[0], &answers[1][..10], &[]]);
        let first = first(&answers);
        for (first, left, resumed) in [
            (&first[..], &left, answers[0].len() - 1 + 9),
            (&[], &left, answers[0].len() + 10 + 1),
            (&[], &not_begun, answers[0].len() + 10),
        ] {
            let beginning = begin(&generator(), &job, first, Some(left)).unwrap();
            assert_eq!(beginning.resumed, resumed);
            for (mut begun, answer) in beginning.answers.into_iter().zip(&answers) {
                assert_eq!(begun.told, begun.emitted.len());
                go_on(&job, &mut begun.generation, &mut begun.emitted);
                assert_eq!(&begun.emitted, answer, "{}", begun.choice);
            }
        }
    }
}

#[test]
fn what_does_not_fit_starts_again() {
    let job = job(1, Sampling::GREEDY);
    let answers = whole(&job);
    let answer = &answers[0];
    assert_eq!(answer.last().unwrap().finish, Some(FinishReason::Length));
    let first = first(&answers);
    let other = Emitted { token: answer[0].token ^ 1, ..answer[0].clone() };
    let foreign = Emitted { token: u32::MAX, ..answer[0].clone() };
    let beyond = [&answer[..], &answer[..1]].concat();
    for wrong in [&[other][..], &[answer[0].clone(), foreign], &beyond, &[]] {
        let beginning = begin(&generator(), &job, &first, Some(&checkpoint(&job, &[wrong]))).unwrap();
        let [begun] = &beginning.answers[..] else { panic!("expected one answer") };
        assert_eq!((&begun.emitted[..], begun.told, beginning.resumed), (&answer[..1], 0, 0), "{wrong:?}");
    }
    let told = TokenLogprob {
        chosen: Alternative { token: String::new(), id: 1, logprob: 0.0, bytes: Vec::new() },
        top_logprobs: Vec::new(),
    };
    let message = [FirstToken { token: answer[0].token, logprobs: Some(told) }];
    let fresh = begin(&generator(), &job, &message, None).unwrap();
    assert!(fresh.answers[0].emitted[0].logprobs.is_some(), "the message's own log-probabilities are told");
}
