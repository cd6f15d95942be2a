//! Prefill: reads a prompt into KV chunks, puts them into the object store, and hands the job to decode with the answer's
//! first token.
//!
//! What is stored of a prompt's beginning is not computed again, nor what another prompt or worker is computing just now.
//! Its output is named by its content, so doing a job twice stores it once. It must never hand a job on before every piece
//! of its KV cache is stored.
#![forbid(unsafe_code)]

mod batch;
mod computing;
mod engine;
pub mod foreign;
mod inflight;
mod messages;
mod reuse;
pub mod schedule;

use std::{collections::BTreeMap, sync::Arc};

use baton_bus::{
    Bus,
    stage::{self, Handler, Next, Retry, StageError, Work, pull},
};
use baton_contract::{
    Name, causes,
    envelope::{self, DecodeTask, Fingerprint, FirstToken, Piece, PrefillTask},
    job::Job,
    outcome::{Code, Timings},
};
use baton_model::{
    generation::{Emitted, Generator},
    model::Model,
    threads::{ComputeThreads, ThreadsError},
};
use baton_storage::{key, kv::KvStore};
use tokio::{task::spawn_blocking, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    computing::{Computing, refused, reusable},
    engine::Engine,
    inflight::Inflight,
    reuse::{Prefix, Reuse, Source},
};

pub use crate::batch::IMPORT_TOKENS_PER_PASS;

/// A prompt's pieces are on their way to the store while so many passes' tokens more are computed: a slow store slows
/// prefill down, and no more pieces than that are in memory.
pub const PASSES_AHEAD: usize = 2;

#[derive(Clone, Debug)]
pub struct Options {
    /// The slots' prompts are computed together, as far as their KV caches fit the model's memory.
    pub pull: pull::Options,
    /// Tokens in a KV chunk; all workers of a pipeline must agree.
    pub chunk_tokens: usize,
    /// Tokens computed at a time, of all prompts together.
    pub batch_tokens: usize,
    /// Where all of a prompt but at most so many tokens, counted once for each of the job's answers, is stored already, the
    /// rest is left to decode. 0 leaves it nothing.
    pub decode_prefills: usize,
    /// Names this worker in claims and results.
    pub worker: String,
}

/// A model this worker serves.
pub struct Served {
    pub name: Name,
    pub model: Box<dyn Model>,
    pub generator: Generator,
    pub store: KvStore,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Bus(#[from] baton_bus::Error),
    #[error(transparent)]
    Threads(#[from] ThreadsError),
    #[error("cannot start the thread of model {model}")]
    Thread { model: Name, source: std::io::Error },
}

/// Runs until `shutdown`, then drains.
pub async fn run(bus: Bus, options: Options, served: Vec<Served>, shutdown: CancellationToken) -> Result<(), Error> {
    let ended = CancellationToken::new();
    let Options { batch_tokens, chunk_tokens, decode_prefills, .. } = options;
    let computing = messages::Options { batch_tokens, ahead: PASSES_AHEAD * batch_tokens.max(chunk_tokens) };
    // A worker that died holds others up no longer with a prefix than with its own jobs.
    let prefixes = bus.prefixes(options.pull.ack_wait).await;
    let prefixes = prefixes
        .inspect_err(
            |error| tracing::warn!(error = %causes(error), "workers can't tell each other which prefixes they compute"),
        )
        .ok();
    let mut models = BTreeMap::new();
    let engines = served.len();
    for Served { name, model, generator, store } in served {
        let fingerprint = model.spec().fingerprint;
        let engine =
            Engine::start(model, ComputeThreads::of_one_in(engines)?, computing, bus.counters().clone(), ended.clone())
                .map_err(|source| Error::Thread { model: name.clone(), source })?;
        let reuse = Reuse { store, inflight: Inflight::default(), prefixes: prefixes.clone() };
        models.insert(name, Arc::new(Pool { engine, generator, reuse, fingerprint }));
    }
    let prefill = Prefill { bus: bus.clone(), models, chunk_tokens, decode_prefills };
    Ok(stage::run(&bus, options.pull, options.worker, prefill, ended, shutdown).await?)
}

struct Prefill {
    bus: Bus,
    models: BTreeMap<Name, Arc<Pool>>,
    chunk_tokens: usize,
    decode_prefills: usize,
}

struct Pool {
    engine: Engine,
    generator: Generator,
    reuse: Reuse,
    fingerprint: Fingerprint,
}

impl Handler<PrefillTask> for Prefill {
    async fn handle(&self, work: Work<PrefillTask>) -> Result<Next, StageError> {
        let stop = work.stop.clone();
        tokio::select! {
            biased;
            failure = stop.called() => Err(StageError::ended(failure)),
            next = self.prefill(work) => next,
        }
    }
}

impl Prefill {
    async fn prefill(&self, work: Work<PrefillTask>) -> Result<Next, StageError> {
        let Work { task: PrefillTask { job, mut timings, ask: _ }, claim, queue_ms, .. } = work;
        let Some(pool) = self.models.get(&job.model) else {
            return Err(StageError::new(Retry::Elsewhere, Code::Internal, format!("no model {} here", job.model)));
        };
        let generations = if job.sampling.constraint.is_none() {
            pool.generator.start_all(&job)
        } else {
            let (generator, started) = (pool.generator.clone(), job.clone());
            // A grammar takes some time to compile.
            spawn_blocking(move || generator.start_all(&started)).await.map_err(StageError::passing)?
        };
        let generations = generations.map_err(refused)?;
        // The salt keeps tenants apart: the same prompt of two tenants is two sets of chunks.
        let root = pool.reuse.store.root(&pool.fingerprint, job.tenant.as_str().as_bytes());
        let pieces = key::plan(&root, &job.prompt, self.chunk_tokens, job.id.as_str());
        let submitted = Instant::now();
        let prefix = pool.reuse.find(&pieces, claim.attempt > 1).await.map_err(StageError::passing)?;
        timings.prefill_queue_ms = queue_ms;
        timings.prefill_attempt = claim.attempt as u32;
        timings.prefill_worker = claim.worker;
        if let Some(stored) = self.enough_for_decode(&pieces, &prefix, job.samples as usize) {
            let cached_tokens = reusable(&pieces, stored);
            self.bus.counters().prompt(cached_tokens, cached_tokens);
            timings.cached_tokens = cached_tokens as u32;
            timings.prefix_get_ms = prefix.looking.as_secs_f64() * 1e3;
            timings.prefill_queue_ms += submitted.elapsed().saturating_sub(prefix.looking).as_secs_f64() * 1e3;
            tracing::info!(
                prompt_tokens = job.prompt.len(),
                cached_tokens,
                "the rest of the prompt was left to decode"
            );
            return self.hand_over(job, timings, Vec::new(), &pieces[..stored], pool.fingerprint);
        }
        let reused = reusable(&pieces, prefix.sources.len());
        let ranges = pieces.iter().map(|piece| piece.range.clone()).collect();
        let ticket = pool.engine.prefill(job.prompt.clone(), ranges, reused, generations);
        let computing = Computing::new(&pool.reuse.store, &pieces, prefix, ticket, &mut timings, submitted)
            .counted(self.bus.counters());
        let first = computing.finish().await?;
        tracing::info!(
            prompt_tokens = job.prompt.len(),
            cached_tokens = timings.cached_tokens,
            prefix_get_ms = timings.prefix_get_ms,
            prefill_ms = timings.prefill_ms,
            stored_bytes = timings.kv_stored_bytes,
            "the prompt was prefilled"
        );

        let first = first.into_iter().map(|Emitted { token, logprobs, .. }| FirstToken { token, logprobs }).collect();
        self.hand_over(job, timings, first, &pieces, pool.fingerprint)
    }

    /// How many of the first pieces are stored, if what follows them is short enough for decode to compute.
    fn enough_for_decode(&self, pieces: &[key::Piece], prefix: &Prefix, samples: usize) -> Option<usize> {
        let stored = prefix.sources.iter().take_while(|source| matches!(source, Source::Stored)).count();
        // Decode wants the logits of the prompt's last token, so that one is not brought.
        let stored = stored.min(pieces.len().saturating_sub(1));
        let (brought, all) = (pieces[..stored].last()?.range.end, pieces.last()?.range.end);
        ((all - brought) * samples <= self.decode_prefills).then_some(stored)
    }

    fn hand_over(
        &self,
        job: Job,
        timings: Timings,
        first: Vec<FirstToken>,
        pieces: &[key::Piece],
        fingerprint: Fingerprint,
    ) -> Result<Next, StageError> {
        let pieces = pieces.iter().map(|piece| Piece { id: piece.id.0, tokens: piece.range.len() as u32 }).collect();
        let subject = self.bus.layout().decode(&job.model, &job.lane, &job.tenant);
        let task = DecodeTask { job, timings, first, pieces, fingerprint: Some(fingerprint), ask: None };
        let payload = envelope::encode(&task).map_err(|error| {
            let code = if matches!(error, envelope::Error::TooLarge(_)) { Code::PromptTooLong } else { Code::Internal };
            StageError::new(Retry::Never, code, causes(&error))
        })?;
        Ok(Next::Forward { subject, payload: payload.into() })
    }
}
