//! Answers in this one process, without broker or store: the reference for the pipeline.

use std::{borrow::Cow, collections::BTreeMap, io, sync::Arc};

use baton_contract::{
    JobId, Name,
    envelope::hex,
    job::{Answer, Job},
    outcome::{Outcome, Timings, request_digest},
};
use baton_model::{
    generation::{self, Generation, Generator},
    model::{Model, SequenceId, Step},
    vocabulary::Vocabulary,
};
use tokio::task::spawn_blocking;

use crate::Error;

/// Tokens of a prompt that are computed at a time.
const PASS: usize = 256;

/// A model that answers requests one after another.
pub struct Alone {
    name: Name,
    models: baton_ingest::Models,
    generator: Generator,
    model: Box<dyn Model>,
}

impl Alone {
    /// Answers with a model, which is called `local`.
    pub fn new(vocabulary: Vocabulary, model: Box<dyn Model>) -> Result<Self, Error> {
        let (name, generator) = (Name::new("local")?, Generator::new(Arc::new(vocabulary)));
        let generators = BTreeMap::from([(name.clone(), generator.clone())]);
        let models = baton_ingest::Models { generators, upstreams: BTreeMap::new(), default: name.clone() };
        Ok(Self { name, models, generator, model })
    }

    /// Answers a request, or refuses it as ingest would. `show` gets the text of the first answer as it comes.
    pub async fn answer(
        mut self,
        id: JobId,
        body: &[u8],
        mut show: impl FnMut(&str) -> io::Result<()> + Send + 'static,
    ) -> Result<(Self, Outcome), Error> {
        let arrival = baton_ingest::Arrival {
            id,
            tenant: self.name.clone(),
            lane: self.name.clone(),
            digest: request_digest(body),
            timings: Timings { accepted_at_ms: baton_bus::unix_ms(), ..Timings::default() },
        };
        let job = match baton_ingest::read(&self.models, &arrival, body).await {
            Ok(read) => read.job,
            Err(failure) => return Ok((self, arrival.refused(failure))),
        };
        let answered = spawn_blocking(move || {
            let outcome = answer(self.model.as_mut(), &self.generator, &job, &mut show)?;
            Ok((self, outcome))
        });
        answered.await?
    }
}

/// Answers one job, token by token; `show` gets the text of the first answer as it comes.
fn answer(
    model: &mut dyn Model,
    generator: &Generator,
    job: &Job,
    show: &mut dyn FnMut(&str) -> io::Result<()>,
) -> Result<Outcome, Error> {
    let prompt = &job.prompt;
    let sequence = model.open();
    let generations = generator.start_all(job)?;
    let mut logits = Vec::new();
    for (index, tokens) in prompt.chunks(PASS).enumerate() {
        let last = usize::from((index + 1) * PASS >= prompt.len());
        logits = model.forward(&[Step { sequence, tokens, logits: last }])?.remove(0);
    }
    // All answers begin where the prompt ends.
    let kv = if job.samples > 1 { Some(model.export(sequence, 0..prompt.len())?) } else { None };
    let mut answers = Vec::new();
    let mut failure = None;
    for (choice, generation) in generations.into_iter().enumerate() {
        let mut answer = Answer::default();
        let own = match &kv {
            Some(kv) if choice > 0 => {
                let own = model.open();
                model.import(own, prompt, kv)?;
                own
            }
            _ => sequence,
        };
        if failure.is_none() {
            let mut hide = |_: &str| Ok(());
            let show = if choice == 0 { &mut *show } else { &mut hide };
            failure = go_on(model, own, &logits, generation, &mut answer, show)?.err();
        }
        model.close(own);
        answers.push(answer);
    }
    let model_fingerprint = Some(hex(&model.spec().fingerprint));
    let outcome = match failure {
        None => job.completed(answers, Timings::default()),
        Some(error) => job.failed(error.failure(), answers, Timings::default()),
    };
    Ok(Outcome { model_fingerprint, ..outcome })
}

/// Generates one answer after a prompt that ended with `logits`.
fn go_on(
    model: &mut dyn Model,
    sequence: SequenceId,
    logits: &[f32],
    mut generation: Generation,
    answer: &mut Answer,
    show: &mut dyn FnMut(&str) -> io::Result<()>,
) -> Result<Result<(), generation::Error>, Error> {
    let mut logits = Cow::Borrowed(logits);
    loop {
        let emitted = match generation.next(&logits) {
            Ok(emitted) => emitted,
            Err(error) => return Ok(Err(error)),
        };
        show(&emitted.text)?;
        answer.tokens.push(emitted.token);
        answer.text.push_str(&emitted.text);
        let settled = emitted.settled();
        answer.logprobs.extend(emitted.logprobs);
        answer.finish_reason = emitted.finish;
        if emitted.finish.is_some() {
            settled.keep(&mut answer.logprobs);
            return Ok(Ok(()));
        }
        logits = Cow::Owned(model.forward(&[Step { sequence, tokens: &[emitted.token], logits: 1 }])?.remove(0));
    }
}
