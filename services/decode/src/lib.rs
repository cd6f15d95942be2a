//! Decode: fetches a prompt's KV cache from the object store and generates its answers in a continuous batch, streaming
//! each token as it comes and publishing the one result at the end. Where the pipeline says so, it prefills short prompts,
//! or their short rest, itself.
//!
//! A piece of the cache that is missing or damaged is computed again, never a reason to fail. It must never publish a
//! result for a job that another worker holds.
//!
//! A job's answers pass between two sides. The async side ([`progress`]) talks to the bus and the store; the thread of the
//! model ([`batch`]) computes. `messages` has their words:
//!
//! ```text
//!  async side                                   the model's thread
//!    Engine::answer ──────── Job ────────────▶  the answers wait in the queue
//!                   ◀─────── Wanted ─────────   they are among the next to join
//!    Pool::fetch, then for each piece
//!    Ticket::bring  ──────── Piece ──────────▶  it is kept until there are pages
//!                   ◀─────── Joining ────────   an answer has pages: pieces are imported between two steps
//!                   ◀─────── Joined ─────────   its KV cache is whole, it takes part in every step
//!    publish, note  ◀─────── Token ──────────   once a step and answer
//!                   ◀─────── Left ───────────   pages ran short: it waits again, and begins at Wanted
//!    drop(Ticket)   ──────── Leave ──────────▶  its pages are free
//! ```
//!
//! An answer that needs nothing from the store skips Wanted and Piece. `Stuck` and `Failed` end a job instead of tokens.
#![forbid(unsafe_code)]

mod batch;
mod beginning;
mod engine;
mod generating;
mod journal;
mod kv_import;
mod messages;
mod origin;
mod pool;
mod progress;
pub mod schedule;
mod tails;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use baton_bus::{
    Bus,
    stage::{self, Handler, Next, Retry, StageError, Work, checkpoints::Found, pull},
};
use baton_contract::{
    Name,
    envelope::{DecodeTask, Fingerprint, hex},
    outcome::{Code, Timings},
};
use baton_model::{
    generation::Generator,
    model::Model,
    threads::{ComputeThreads, ThreadsError},
};
use baton_storage::kv::KvStore;
use tokio::{task::spawn_blocking, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    beginning::Begun,
    engine::Engine,
    journal::Journal,
    messages::NewAnswer,
    origin::Origin,
    pool::Pool,
    progress::Progress,
    tails::{Tail, Tails},
};

pub use crate::{
    batch::PREFETCH_JOBS,
    kv_import::{COMPUTE_COST, IMPORT_TOKENS_PER_STEP},
};

#[derive(Clone, Debug)]
pub struct Options {
    /// The slots' answers are generated together, a token each per step, as far as their KV caches fit the model's memory.
    pub pull: pull::Options,
    /// Names this worker in claims and results.
    pub worker: String,
    /// How often the tokens of a running job are stored, for another worker to go on from them: after so long, or after 16
    /// tokens of each answer if these come sooner, but never more than ten times as often.
    pub checkpoint: Duration,
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

/// Runs until `shutdown`, then hands what is running over to other workers.
pub async fn run(bus: Bus, options: Options, served: Vec<Served>, shutdown: CancellationToken) -> Result<(), Error> {
    let ended = CancellationToken::new();
    let mut models = BTreeMap::new();
    let engines = served.len();
    for Served { name, model, generator, store } in served {
        let fingerprint = model.spec().fingerprint;
        let engine = Engine::start(model, ComputeThreads::of_one_in(engines)?, bus.counters().clone(), ended.clone())
            .map_err(|source| Error::Thread { model: name.clone(), source })?;
        models.insert(name, Arc::new(Pool { engine, generator, store, fingerprint }));
    }
    let (checkpoint, shutdown_too, tails) = (options.checkpoint, shutdown.clone(), Tails::start());
    let decode = Decode { bus: bus.clone(), models, checkpoint, shutdown: shutdown_too, tails };
    Ok(stage::run(&bus, options.pull, options.worker, decode, ended, shutdown).await?)
}

struct Decode {
    bus: Bus,
    models: BTreeMap<Name, Arc<Pool>>,
    checkpoint: Duration,
    shutdown: CancellationToken,
    tails: Tails,
}

impl Handler<DecodeTask> for Decode {
    async fn handle(&self, work: Work<DecodeTask>) -> Result<Next, StageError> {
        let Work { task, claim, queue_ms, ledger, stop, ended } = work;
        let DecodeTask { job, timings, first, pieces, fingerprint, ask: _ } = task;
        let Some(pool) = self.models.get(&job.model) else {
            return Err(StageError::new(Retry::Elsewhere, Code::Internal, format!("no model {} here", job.model)));
        };
        let found = if claim.attempt > 1 { ledger.take_over(&job).await? } else { Found::Nothing };
        let checkpoint = match found {
            Found::Nothing => None,
            Found::Checkpoint(checkpoint) => Some(checkpoint),
            Found::Superseded => return Err(journal::lost()),
        };
        let tail = pool.tail(&job, &pieces, &fingerprint.unwrap_or(pool.fingerprint));
        let begun = origin::Begun { first, pieces, fingerprint, checkpoint };
        let (begun, again) = match begun.origin(&pool.fingerprint, claim.attempt) {
            Origin::Ours { begun, again } => (begun, again),
            Origin::Theirs(theirs) => return Err(unlike(&theirs, &pool.fingerprint)),
        };
        if again {
            tracing::warn!("no worker has the model that began the job; it begins again with this one's");
        }
        let origin::Begun { first, pieces, checkpoint, .. } = begun;
        if let Some(id) = tail {
            self.tails.leave(Tail { ended, store: pool.store.clone(), id });
        }
        let prefills = first.is_empty();
        let (generator, begins) = (pool.generator.clone(), job.clone());
        let earlier = checkpoint.as_ref().map(|checkpoint| checkpoint.timings.clone());
        // A grammar takes some time to compile, and tokens to be accepted again.
        let takes_time = job.sampling.constraint.is_some() || checkpoint.is_some();
        let begin = move || beginning::begin(&generator, &begins, &first, checkpoint.as_deref());
        let beginning = if takes_time { spawn_blocking(begin).await.map_err(StageError::passing)? } else { begin() };
        let resumed = beginning.as_ref().map_or(0, |beginning| beginning.resumed);
        let timings = Timings {
            decode_attempt: claim.attempt as u32,
            decode_worker: claim.worker.clone(),
            resumed_tokens: resumed as u32,
            ..match earlier {
                Some(earlier) if resumed > 0 => earlier,
                _ => Timings { decode_queue_ms: queue_ms, ..timings },
            }
        };
        let journal = Journal::new(ledger, self.checkpoint);
        // By the broker's clock, for the request was accepted by it and perhaps on another machine.
        let now = self.bus.clock().about_now_ms().await;
        let accepted =
            now.map(|now| (Duration::from_millis(now.saturating_sub(timings.accepted_at_ms)), Instant::now()));
        let mut progress =
            Progress::new(&self.bus, &job, pool.fingerprint, claim, timings, prefills, journal).since(accepted);
        let begun = match beginning {
            Ok(beginning) => beginning.answers,
            Err(error) => return Ok(progress.failed(error.failure())),
        };
        let mut answers = Vec::new();
        for Begun { choice, generation, emitted, told } in begun {
            let generated: Vec<u32> = emitted.iter().map(|emitted| emitted.token).collect();
            let mut ended = false;
            for (place, emitted) in emitted.into_iter().enumerate() {
                ended = if place < told {
                    progress.restore(choice, emitted)
                } else {
                    progress.emit(choice, emitted).await?
                };
            }
            // An answer of one token needs no KV cache at all.
            if !ended {
                answers.push(NewAnswer { choice, generated, generation });
            }
        }
        if answers.is_empty() {
            return Ok(progress.completed());
        }
        let generated = tokio::select! {
            biased;
            failure = stop.called() => return Ok(progress.failed(failure)),
            generated = progress.generate(pool, &pieces, answers, &self.shutdown) => generated?,
        };
        Ok(match generated {
            Ok(()) => progress.completed(),
            Err(failure) => progress.failed(failure),
        })
    }
}

/// Why a job is left to others.
fn unlike(theirs: &Fingerprint, ours: &Fingerprint) -> StageError {
    let short = |fingerprint: &Fingerprint| hex(&fingerprint[..8]);
    let message = format!(
        "the job was begun with another model of this name or another kind of device (fingerprint {}..., this worker's is \
         {}...); give all workers the same model",
        short(theirs),
        short(ours)
    );
    StageError::new(Retry::Unlike, Code::Internal, message)
}
