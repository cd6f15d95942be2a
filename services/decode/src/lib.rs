//! Decode: fetches a prompt's KV cache from the object store and generates the answer in a continuous batch, streaming
//! each token as it comes and publishing the one result at the end.
//!
//! A piece of the cache that is missing or damaged is computed again, never a reason to fail. It must never publish a
//! result for a job that another worker holds.
#![forbid(unsafe_code)]

mod batch;
mod engine;
mod schedule;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use baton_bus::{
    Bus, pull,
    stage::{self, Handler, Next, Retry, StageError, Work},
    unix_ms,
};
use baton_contract::{
    Name,
    envelope::{DecodeTask, Piece},
    job::{Answer, Job},
    outcome::{Code, Delta, Failure, FinishReason, Timings},
};
use baton_engine::{
    generation::{Emitted, Generator},
    model::Model,
};
use baton_storage::{key::ChunkId, kv::KvStore};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::{
    task::spawn_blocking,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span};

use crate::engine::{Engine, Event, Failed, Held, Ticket};

/// Pieces of one job that are fetched at a time.
const FETCHES: usize = 4;

#[derive(Clone, Debug)]
pub struct Options {
    /// The slots' answers are generated together, a token each per step, as far as their KV caches fit the model's memory.
    pub pull: pull::Options,
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
    let mut models = BTreeMap::new();
    for Served { name, model, generator, store } in served {
        let engine =
            Engine::start(model, ended.clone()).map_err(|source| Error::Thread { model: name.clone(), source })?;
        models.insert(name, Arc::new(Pool { engine, generator, store }));
    }
    let decode = Decode { bus: bus.clone(), models };
    Ok(stage::run(&bus, options.pull, options.worker, decode, ended, shutdown).await?)
}

struct Decode {
    bus: Bus,
    models: BTreeMap<Name, Arc<Pool>>,
}

struct Pool {
    engine: Engine,
    generator: Generator,
    store: KvStore,
}

impl Handler<DecodeTask> for Decode {
    async fn handle(&self, work: Work<DecodeTask>) -> Result<Next, StageError> {
        let Work { task: DecodeTask { job, mut timings, first_token, first_logprobs, pieces }, claim, queue_ms } = work;
        let Some(pool) = self.models.get(&job.model) else {
            return Err(StageError::new(Retry::Elsewhere, Code::Internal, format!("no model {} here", job.model)));
        };
        timings.decode_queue_ms = queue_ms;
        timings.decode_attempt = claim.attempt as u32;
        timings.decode_worker = claim.worker;

        let (generator, begun) = (pool.generator.clone(), job.clone());
        // A grammar takes some time to compile.
        let generation = spawn_blocking(move || generator.start(&begun)).await.map_err(StageError::passing)?;
        let mut progress = Progress { bus: &self.bus, job: &job, timings, answer: Answer::default(), first: None };
        // The first token is known already; an answer of one token needs no KV cache at all.
        let begun = generation.and_then(|mut generation| {
            let first = generation.accept(first_token, first_logprobs)?;
            Ok((generation, first))
        });
        let (generation, first) = match begun {
            Ok(begun) => begun,
            Err(error) => return Ok(progress.failed(error.failure())),
        };
        let finish = first.finish;
        progress.emit(first).await?;
        if let Some(reason) = finish {
            return Ok(progress.completed(reason));
        }
        if pieces.iter().map(|piece| piece.tokens as usize).sum::<usize>() != job.prompt.len() {
            let message = "the KV pieces don't hold as many tokens as the prompt";
            return Err(StageError::new(Retry::Never, Code::Internal, message));
        }
        let left = job.deadline_ms.map(|deadline| Duration::from_millis(deadline.saturating_sub(unix_ms())));
        let ticket = pool.engine.answer(job.prompt.clone(), generation, first_token);
        let generated = progress.generate(pool, ticket, &pieces);
        let Some(generated) = within(left, generated).await else {
            let failure = Failure::new(Code::DeadlineExceeded, "the deadline passed while the answer was generated");
            return Ok(progress.failed(failure));
        };
        Ok(match generated? {
            Ok(reason) => progress.completed(reason),
            Err(failure) => progress.failed(failure),
        })
    }
}

/// The answer as far as it has come, and what was told of it.
struct Progress<'a> {
    bus: &'a Bus,
    job: &'a Job,
    timings: Timings,
    answer: Answer,
    first: Option<u64>,
}

impl Progress<'_> {
    /// Follows the engine until the answer ends or can't go on.
    async fn generate(
        &mut self,
        pool: &Pool,
        mut ticket: Ticket,
        pieces: &[Piece],
    ) -> Result<Result<FinishReason, Failure>, StageError> {
        let submitted = Instant::now();
        let mut generating = None;
        let mut in_batch = false;
        while let Some(event) = ticket.next().await {
            match event {
                Event::Wanted => {
                    in_batch = false;
                    let fetching = Instant::now();
                    let span = info_span!("kv.get", pieces = pieces.len());
                    ticket.bring(pool.fetch(self.job, pieces).instrument(span).await?);
                    self.timings.kv_get_ms += fetching.elapsed().as_secs_f64() * 1e3;
                }
                Event::Joining => {
                    in_batch = true;
                    if generating.is_none() {
                        // Waiting for memory is waiting for a worker, but for what was fetched meanwhile.
                        let waited = submitted.elapsed().as_secs_f64() * 1e3 - self.timings.kv_get_ms;
                        self.timings.decode_queue_ms += waited.max(0.0);
                        generating = Some(Instant::now());
                    }
                }
                Event::Imported { recomputed } => self.timings.recomputed_tokens += recomputed as u32,
                Event::Token(emitted) => {
                    let finish = emitted.finish;
                    self.emit(emitted).await?;
                    if let Some(reason) = finish {
                        let generating = generating.unwrap_or(submitted);
                        self.timings.decode_ms = generating.elapsed().as_secs_f64() * 1e3;
                        return Ok(Ok(reason));
                    }
                }
                Event::Stuck(error) => return Ok(Err(error.failure())),
                Event::Failed(failed) => {
                    let message = match failed {
                        Failed::TooLong(_) => failed.to_string(),
                        Failed::Model(error) => format!("decode failed: {error}"),
                    };
                    return Err(StageError::new(Retry::Elsewhere, Code::Internal, message));
                }
            }
        }
        // Which answer of the batch was to blame can't be told: the try counts for all that were in it.
        if in_batch {
            let message = "the engine's thread ended while it generated the answer";
            return Err(StageError::new(Retry::Elsewhere, Code::Internal, message));
        }
        Err(StageError::passing("the engine's thread ended"))
    }

    async fn emit(&mut self, emitted: Emitted) -> Result<(), StageError> {
        if self.first.is_none() {
            let now = unix_ms();
            self.first = Some(now);
            self.timings.first_token_ms = now.saturating_sub(self.timings.accepted_at_ms) as f64;
        }
        self.answer.tokens.push(emitted.token);
        self.answer.text.push_str(&emitted.text);
        self.answer.logprobs.extend(emitted.logprobs.clone());
        let Emitted { index, token, text, logprobs, .. } = emitted;
        let delta = Delta { index, token, text, logprobs };
        let subject = self.bus.layout().tokens(&self.job.tenant, &self.job.id);
        Ok(self.bus.publish_delta(subject, &delta).await?)
    }

    fn completed(mut self, reason: FinishReason) -> Next {
        self.close();
        Next::Finish(Box::new(self.job.completed(self.answer, reason, self.timings)))
    }

    fn failed(mut self, failure: Failure) -> Next {
        self.close();
        Next::Finish(Box::new(self.job.failed(failure, self.answer, self.timings)))
    }

    fn close(&mut self) {
        self.timings.total_ms = unix_ms().saturating_sub(self.timings.accepted_at_ms) as f64;
    }
}

impl Pool {
    /// Gets the prompt's KV cache, several pieces at a time. What is missing or damaged is left out.
    async fn fetch(&self, job: &Job, pieces: &[Piece]) -> Result<Vec<Held>, StageError> {
        stream::iter(pieces.iter().copied().map(|piece| async move {
            let tokens = piece.tokens as usize;
            match self.store.get(&ChunkId(piece.id), tokens).await {
                Ok(Some(fetched)) => Ok(Held::Block(fetched.block)),
                Ok(None) => {
                    tracing::warn!(piece = %ChunkId(piece.id), tokens, job = %job.id, "a KV piece was missing and is recomputed");
                    Ok(Held::Missing { tokens })
                }
                Err(baton_storage::kv::Error::Damaged { .. }) => Ok(Held::Missing { tokens }),
                Err(error) => Err(StageError::passing(error)),
            }
        }))
        .buffered(FETCHES)
        .try_collect()
        .await
    }
}

/// What `work` comes to, unless it takes longer than `limit`.
async fn within<T>(limit: Option<Duration>, work: impl Future<Output = T>) -> Option<T> {
    match limit {
        Some(limit) => timeout(limit, work).await.ok(),
        None => Some(work.await),
    }
}
