//! Prefill: reads a prompt into KV chunks, puts them into the object store, and hands the job to decode with the answer's
//! first token.
//!
//! Its output is named by its content, so doing a job twice stores it once. It must never hand a job on before every piece
//! of its KV cache is stored.
#![forbid(unsafe_code)]

mod batch;
mod engine;
mod schedule;

use std::{collections::BTreeMap, sync::Arc};

use baton_bus::{
    Bus, pull,
    stage::{self, Handler, Next, Retry, StageError, Work},
};
use baton_contract::{
    Name,
    envelope::{self, DecodeTask, Piece, PrefillTask},
    outcome::{Code, Failure, Timings},
};
use baton_engine::{
    generation::{self, Generator},
    model::Model,
};
use baton_storage::{
    key::{self, ChunkId, Root},
    kv::{KvStore, Stored},
};
use tokio::{
    task::{JoinError, JoinSet, spawn_blocking},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span};

use crate::engine::{Computed, Engine, Failed};

/// What was put, and how many tokens it was.
type PutResult = Result<(Stored, usize), baton_storage::kv::Error>;

/// A prompt's pieces are on their way to the store while so many passes' tokens more are computed: a slow store slows
/// prefill down, and no more pieces than that are in memory.
const PASSES_AHEAD: usize = 2;

#[derive(Clone, Debug)]
pub struct Options {
    /// The slots' prompts are computed together, as far as their KV caches fit the model's memory.
    pub pull: pull::Options,
    /// Tokens in a KV chunk; all workers of a pipeline must agree.
    pub chunk_tokens: usize,
    /// Tokens computed at a time, of all prompts together.
    pub batch_tokens: usize,
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
    #[error("cannot start the thread of model {model}: {source}")]
    Thread { model: Name, source: std::io::Error },
}

/// Runs until `shutdown`, then drains.
pub async fn run(bus: Bus, options: Options, served: Vec<Served>, shutdown: CancellationToken) -> Result<(), Error> {
    let ended = CancellationToken::new();
    let Options { batch_tokens, chunk_tokens, .. } = options;
    let computing = engine::Options { batch_tokens, ahead: PASSES_AHEAD * batch_tokens.max(chunk_tokens) };
    let mut models = BTreeMap::new();
    for Served { name, model, generator, store } in served {
        let fingerprint = model.spec().fingerprint;
        let engine = Engine::start(model, computing, ended.clone())
            .map_err(|source| Error::Thread { model: name.clone(), source })?;
        models.insert(name, Arc::new(Pool { engine, generator, store, fingerprint }));
    }
    let prefill = Prefill { bus: bus.clone(), models, chunk_tokens };
    Ok(stage::run(&bus, options.pull, options.worker, prefill, ended, shutdown).await?)
}

struct Prefill {
    bus: Bus,
    models: BTreeMap<Name, Arc<Pool>>,
    chunk_tokens: usize,
}

struct Pool {
    engine: Engine,
    generator: Generator,
    store: KvStore,
    fingerprint: [u8; 32],
}

impl Handler<PrefillTask> for Prefill {
    async fn handle(&self, work: Work<PrefillTask>) -> Result<Next, StageError> {
        let Work { task: PrefillTask { job, mut timings }, claim, queue_ms } = work;
        let Some(pool) = self.models.get(&job.model) else {
            return Err(StageError::new(Retry::Elsewhere, Code::Internal, format!("no model {} here", job.model)));
        };
        let (generator, started) = (pool.generator.clone(), job.clone());
        // A grammar takes some time to compile.
        let generation = spawn_blocking(move || generator.start(&started)).await.map_err(StageError::passing)?;
        let generation = generation.map_err(refused)?;
        // The salt keeps tenants apart: the same prompt of two tenants is two sets of chunks.
        let root = Root::new(&pool.fingerprint, job.tenant.as_str().as_bytes());
        let pieces = key::plan(&root, &job.prompt, self.chunk_tokens, job.id.as_str());
        let ranges = pieces.iter().map(|piece| piece.range.clone()).collect();
        let submitted = Instant::now();
        let mut ticket = pool.engine.prefill(job.prompt.clone(), ranges, generation);

        let mut puts: JoinSet<PutResult> = JoinSet::new();
        let mut ids = pieces.iter().map(|piece| piece.id);
        let mut started = None;
        let first = loop {
            let event = tokio::select! {
                Some(put) = puts.join_next() => {
                    ticket.stored(note(&mut timings, put)?);
                    continue;
                }
                event = ticket.next() => event,
            };
            match event {
                Some(Computed::Started) => started = Some(Instant::now()),
                Some(Computed::Piece(block)) => {
                    let id: ChunkId = ids.next().ok_or_else(|| StageError::passing("more KV pieces than planned"))?;
                    let (store, tokens) = (pool.store.clone(), block.tokens);
                    let span = info_span!("kv.put", tokens);
                    puts.spawn(async move { Ok((store.put(&id, block).await?, tokens)) }.instrument(span));
                }
                Some(Computed::FirstToken(first)) => break first,
                Some(Computed::Refused(error)) => return Err(refused(error)),
                Some(Computed::Failed(failed)) => {
                    let message = match failed {
                        Failed::TooLong(_) => failed.to_string(),
                        Failed::Model(error) => format!("prefill failed: {error}"),
                    };
                    return Err(StageError::new(Retry::Elsewhere, Code::Internal, message));
                }
                // The try counts for the prompts that the engine was at, and for no other.
                None if started.is_some() => {
                    let message = "the engine's thread ended while it computed the prompt";
                    return Err(StageError::new(Retry::Elsewhere, Code::Internal, message));
                }
                None => return Err(StageError::passing("the engine's thread ended")),
            }
        };
        let done = Instant::now();
        while let Some(put) = puts.join_next().await {
            note(&mut timings, put)?;
        }
        // Waiting for pages, or for a part of the passes, is part of the queue.
        let started = started.unwrap_or(done);
        timings.prefill_ms = done.duration_since(started).as_secs_f64() * 1e3;
        timings.kv_put_ms = done.elapsed().as_secs_f64() * 1e3;
        timings.prefill_queue_ms = queue_ms + started.duration_since(submitted).as_secs_f64() * 1e3;
        timings.prefill_attempt = claim.attempt as u32;
        timings.prefill_worker = claim.worker;
        tracing::info!(
            prompt_tokens = job.prompt.len(),
            prefill_ms = timings.prefill_ms,
            stored_bytes = timings.kv_stored_bytes,
            "the prompt was prefilled"
        );

        let pieces = pieces.iter().map(|piece| Piece { id: piece.id.0, tokens: piece.range.len() as u32 }).collect();
        let subject = self.bus.layout().decode(&job.model, &job.lane);
        let task = DecodeTask { job, timings, first_token: first.token, first_logprobs: first.logprobs, pieces };
        let payload = envelope::encode(&task)
            .map_err(|error| StageError::new(Retry::Never, Code::Internal, error.to_string()))?;
        Ok(Next::Forward { subject, payload })
    }
}

/// The request's fault: no other worker would do better.
fn refused(error: generation::Error) -> StageError {
    let Failure { code, message } = error.failure();
    StageError::new(Retry::Never, code, message)
}

/// Notes what a finished put stored, and returns how many tokens that were.
fn note(timings: &mut Timings, put: Result<PutResult, JoinError>) -> Result<usize, StageError> {
    let (stored, tokens) = put.map_err(StageError::passing)?.map_err(StageError::passing)?;
    timings.kv_raw_bytes += stored.raw_bytes;
    timings.kv_stored_bytes += stored.stored_bytes;
    Ok(tokens)
}
