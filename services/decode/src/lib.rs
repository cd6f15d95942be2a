//! Decode: fetches a prompt's KV cache from the object store and generates its answers in a continuous batch, streaming
//! each token as it comes and publishing the one result at the end. Where the pipeline says so, it prefills short prompts,
//! or their short rest, itself. Jobs of foreign engines' models are answered by these ([`foreign`]), and by Baton's own in their stead
//! where these wait for long (`overflow`).
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
//!                   ◀─────── Wanted ─────────   they are among the next to join; where few jobs wait, nobody waits for this
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
pub mod foreign;
mod generating;
mod journal;
mod kv_import;
mod messages;
mod origin;
mod overflow;
mod pool;
mod progress;
pub mod schedule;
mod tails;
mod telling;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use baton_bus::{
    Bus,
    stage::{self, Handler, Next, Retry, StageError, Work, pull},
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
use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::{
    beginning::Begun,
    engine::Engine,
    journal::Journal,
    messages::NewAnswer,
    origin::Origin,
    overflow::Overflow,
    pool::Pool,
    progress::Progress,
    tails::{Tail, Tails},
    telling::Telling,
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

/// A foreign engine's model whose jobs a served one answers, too, when they wait for long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// The engine's.
    pub model: Name,
    /// The served one.
    pub own: Name,
    /// How long a job waits for the engine.
    pub after: Duration,
}

/// Runs until `shutdown`, then hands what is running over to other workers.
pub async fn run(
    bus: Bus,
    options: Options,
    served: Vec<Served>,
    fallbacks: Vec<Fallback>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let ended = CancellationToken::new();
    let mut models = BTreeMap::new();
    let engines = served.len();
    for Served { name, model, generator, store } in served {
        let fingerprint = model.spec().fingerprint;
        let engine = Engine::start(model, ComputeThreads::of_one_in(engines)?, bus.counters().clone(), ended.clone())
            .map_err(|source| Error::Thread { model: name.clone(), source })?;
        models.insert(name, Arc::new(Pool { engine, generator, store, fingerprint }));
    }
    let Options { pull, worker, checkpoint } = options;
    let stands_in = fallbacks.iter().map(|fallback| (fallback.model.clone(), fallback.own.clone())).collect();
    let (tails, own_jobs) = (Tails::start(), Arc::default());
    let decode =
        Decode { bus: bus.clone(), models, stands_in, checkpoint, shutdown: shutdown.clone(), tails, own_jobs };
    let decode = Arc::new(decode);
    if fallbacks.is_empty() {
        return Ok(stage::run(&bus, pull, worker, decode, ended, shutdown).await?);
    }
    let (watch, stop) = (bus.watch_stats().await?, shutdown.child_token());
    let mut overflows = FuturesUnordered::new();
    for Fallback { model, own: _, after } in fallbacks {
        let overflow = Overflow {
            bus: bus.clone(),
            watch: watch.clone(),
            model: model.clone(),
            pull: pull.clone(),
            after,
            own_jobs: decode.own_jobs.clone(),
            room: tokio::sync::watch::Sender::new(0),
        };
        let pull = pull::Options { models: vec![model], room: Some(overflow.room.subscribe()), ..pull.clone() };
        let (bus, decode, worker) = (bus.clone(), decode.clone(), worker.clone());
        let (broken, stop) = (ended.clone(), stop.clone());
        overflows.push(async move {
            tokio::select! {
                ended = stage::run(&bus, pull, worker, decode, broken, stop) => ended,
                never = overflow.watch() => match never {},
            }
        });
    }
    let own = async {
        let ended = stage::run(&bus, pull, worker, decode, ended, shutdown).await;
        stop.cancel();
        ended
    };
    let overflows = async {
        let mut result = Ok(());
        while let Some(ended) = overflows.next().await {
            result = result.and(ended);
        }
        result
    };
    let (own, overflows) = tokio::join!(own, overflows);
    Ok(own.and(overflows)?)
}

struct Decode {
    bus: Bus,
    models: BTreeMap<Name, Arc<Pool>>,
    /// Which of them answers for a foreign engine's.
    stands_in: BTreeMap<Name, Name>,
    checkpoint: Duration,
    shutdown: CancellationToken,
    tails: Tails,
    /// Jobs in hand of the models' own queues.
    own_jobs: Arc<AtomicUsize>,
}

/// A job in hand of a model's own queue.
struct OwnJob(Arc<AtomicUsize>);

impl OwnJob {
    fn count(jobs: &Arc<AtomicUsize>) -> Self {
        jobs.fetch_add(1, Relaxed);
        Self(jobs.clone())
    }
}

impl Drop for OwnJob {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Handler<DecodeTask> for Decode {
    async fn handle(&self, work: Work<DecodeTask>) -> Result<Next, StageError> {
        let Work { task, claim, queue_ms, ledger, stop, ended } = work;
        let DecodeTask { mut job, timings, first, pieces, fingerprint, ask } = task;
        let own = if ask.is_some() { self.stands_in.get(&job.model) } else { Some(&job.model) }.cloned();
        let Some(pool) = own.as_ref().and_then(|own| self.models.get(own)) else {
            return Err(StageError::new(Retry::Elsewhere, Code::Internal, format!("no model {} here", job.model)));
        };
        let _counted = ask.is_none().then(|| OwnJob::count(&self.own_jobs));
        let stands_in = ask.is_some();
        if let Some(ask) = ask {
            job = match overflow::fit(&pool.generator, job.clone(), &ask, timings.accepted_at_ms).await {
                Ok(fitted) => fitted,
                Err(error) => {
                    // It may have to end all the same.
                    let failure = stop.called().now_or_never().ok_or(error)?;
                    return foreign::end(&self.bus, &job, timings, claim, ledger, failure).await;
                }
            };
        }
        let attempt = claim.attempt;
        let checkpoint = journal::left(&ledger, &job, attempt).await?;
        let tail = pool.tail(&job, &pieces, &fingerprint.unwrap_or(pool.fingerprint));
        let begun = origin::Begun { first, pieces, fingerprint, checkpoint };
        // The engine that began it was waited for.
        let tries = if stands_in { u64::MAX } else { attempt };
        let (begun, again) = match begun.origin(&pool.fingerprint, tries) {
            Origin::Ours { begun, again } => (begun, again),
            Origin::Theirs(theirs) => return Err(unlike(&theirs, &pool.fingerprint)),
        };
        if stands_in {
            self.bus.counters().fallback();
            tracing::info!(model = %job.model, "the job waited for its engine for long; a model of Baton's answers it");
        }
        if again && !stands_in {
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
        let telling = Telling::new(&self.bus, &job, pool.fingerprint, claim, timings, journal).await;
        let mut progress = Progress::new(telling, prefills);
        if stands_in && attempt > 1 && resumed == 0 {
            // The engine may have begun to answer.
            progress.begin_again().await?;
        }
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
