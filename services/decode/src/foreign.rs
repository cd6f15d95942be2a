//! Jobs that a foreign engine answers: each is asked of one of the engine's instances, and what comes of it is told, stored and
//! published as the answers of Baton's own models are.
//!
//! ```text
//!  handle ──▶ Upstream::place     a place at an instance, waited for
//!         ──▶ Instance::ask       goes on from the checkpoint where the engine can; else the answer begins again, and its live
//!                                 readers are told by a marker
//!         ◀── Reply::next         each piece is one delta; 16 of them, or some time, are a checkpoint
//! ```
//!
//! An engine that is gone or busy never fails a job: it goes back to its queue, with the reason in its record.

mod answering;

use std::{
    pin::{Pin, pin},
    time::Duration,
};

use baton_bus::{
    Bus,
    connection::trace,
    stage::{self, Handler, Next, Retry, StageError, Work, checkpoints::Ledger},
};
use baton_contract::{
    envelope::{DecodeTask, Fingerprint},
    job::Job,
    outcome::{Code, Failure, Timings},
    record::Claim,
    upstream::{Ask, Engine, Handover, fingerprint},
};
use baton_upstream::{Call, Ended, Event, Fault, Place, Reply, Upstream};
use futures::FutureExt;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use self::answering::Answering;
use crate::{
    Error, Options,
    journal::{self, Journal},
    origin::{Begun, Origin},
    telling::{Telling, leaves},
    unlike,
};

/// How long a job waits for a place at an instance before it goes back to its queue, and its record says why.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many times as long it waits while instances are up: they only have as many requests as they take.
const PATIENT_TIMES: u32 = 6;
/// How long an instance keeps a prompt's KV cache for another at least: vLLM does so for 30 s.
const KEPT: Duration = Duration::from_secs(20);

/// Serves one model until `shutdown`, then hands what is running over to other workers.
pub async fn run(bus: Bus, options: Options, upstream: Upstream, shutdown: CancellationToken) -> Result<(), Error> {
    let Options { pull, worker, checkpoint } = options;
    let fingerprint = fingerprint(upstream.options().engine, &upstream.options().model);
    let foreign = Foreign { bus: bus.clone(), upstream, fingerprint, checkpoint, shutdown: shutdown.clone() };
    Ok(stage::run(&bus, pull, worker, foreign, CancellationToken::new(), shutdown).await?)
}

struct Foreign {
    bus: Bus,
    upstream: Upstream,
    fingerprint: Fingerprint,
    checkpoint: Duration,
    shutdown: CancellationToken,
}

/// A prompt's KV cache that another instance keeps, until then.
struct Fetch {
    handover: Handover,
    until: Instant,
}

impl Fetch {
    /// Of a job's first try only: another one may have fetched it already.
    async fn of(bus: &Bus, handover: Option<Handover>, attempt: u64) -> Option<Self> {
        let handover = handover.filter(|_| attempt == 1)?;
        let age = bus.clock().now_ms().await.ok()?.saturating_sub(handover.at_ms);
        let left = KEPT.checked_sub(Duration::from_millis(age))?;
        Some(Self { handover, until: Instant::now() + left })
    }

    fn in_time(self) -> Option<Handover> {
        (Instant::now() < self.until).then_some(self.handover)
    }
}

/// Why an answer did not come to its end.
enum Broken {
    Fault(Fault),
    Stage(StageError),
}

impl From<Fault> for Broken {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<StageError> for Broken {
    fn from(error: StageError) -> Self {
        Self::Stage(error)
    }
}

/// Comes to its end when the worker leaves its jobs to others.
type Leaves<'a> = Pin<&'a mut (dyn Future<Output = ()> + Send + 'a)>;

impl Handler<DecodeTask> for Foreign {
    async fn handle(&self, work: Work<DecodeTask>) -> Result<Next, StageError> {
        let Work { task, claim, queue_ms, ledger, stop, ended: _ } = work;
        let DecodeTask { job, mut timings, ask, .. } = task;
        let Some(mut ask) = ask else {
            let message = format!("the job is none for a foreign engine, which model {} is now", job.model);
            return Err(StageError::new(Retry::Elsewhere, Code::Internal, message));
        };
        if let Some(failure) = stop.called().now_or_never() {
            return end(&self.bus, &job, timings, claim, ledger, failure).await;
        }
        let attempt = claim.attempt;
        let checkpoint = journal::left(&ledger, &job, attempt).await?;
        let begun = Begun { first: Vec::new(), pieces: Vec::new(), fingerprint: None, checkpoint };
        let checkpoint = match begun.origin(&self.fingerprint, attempt) {
            Origin::Ours { begun, .. } => begun.checkpoint,
            Origin::Theirs(theirs) => return Err(unlike(&theirs, &self.fingerprint)),
        };
        timings.decode_queue_ms = queue_ms;
        timings.decode_attempt = attempt as u32;
        timings.decode_worker = claim.worker.clone();
        let fetch = Fetch::of(&self.bus, ask.handover.take(), attempt).await;
        let journal = Journal::new(ledger, self.checkpoint);
        let telling = Telling::new(&self.bus, &job, self.fingerprint, claim, timings, journal).await;
        let mut answering = Answering::new(telling);
        if let Some(checkpoint) = checkpoint {
            answering.restore(*checkpoint);
        }
        if answering.open() == 0 {
            return Ok(answering.completed());
        }
        let answered = tokio::select! {
            biased;
            failure = stop.called() => return Ok(answering.failed(failure)),
            answered = self.answer(&mut answering, ask, fetch, attempt > 1) => answered,
        };
        match answered {
            Ok(()) => Ok(answering.completed()),
            Err(Broken::Stage(error)) => Err(error),
            Err(Broken::Fault(fault)) => {
                if fault.retry == baton_upstream::Retry::Never {
                    return Ok(answering.failed(fault.failure()));
                }
                // Whoever tries it next goes on from here.
                Err(match answering.close().await {
                    Some(lost) => lost,
                    None => put_off(&fault),
                })
            }
        }
    }
}

/// Ends a job of a foreign engine without asking the engine: with what there is of its answers, whoever gave them.
pub(crate) async fn end(
    bus: &Bus,
    job: &Job,
    timings: Timings,
    claim: Claim,
    ledger: Ledger,
    failure: Failure,
) -> Result<Next, StageError> {
    let checkpoint = journal::left(&ledger, job, claim.attempt).await?;
    let fingerprint = checkpoint.as_ref().and_then(|checkpoint| checkpoint.fingerprint).unwrap_or_default();
    let timings = Timings { decode_attempt: claim.attempt as u32, decode_worker: claim.worker.clone(), ..timings };
    let journal = Journal::new(ledger, PATIENCE);
    let mut answering = Answering::new(Telling::new(bus, job, fingerprint, claim, timings, journal).await);
    if let Some(checkpoint) = checkpoint {
        answering.restore(*checkpoint);
    }
    Ok(answering.failed(failure))
}

impl Foreign {
    /// Asks instances until one has answered to the end. Readers may have been `told` something by another try.
    async fn answer(
        &self,
        answering: &mut Answering<'_>,
        mut ask: Ask,
        mut fetch: Option<Fetch>,
        mut told: bool,
    ) -> Result<(), Broken> {
        let mut leaves = pin!(leaves(&self.shutdown));
        let affinity = ask.affinity(answering.tenant());
        let upstream = &self.upstream;
        let mut resumes = true;
        loop {
            let mut beside = None;
            if self.meets() {
                let (place, is_up) = (upstream.place_prefill(affinity), || upstream.is_prefill_up());
                beside = Some(self.place(answering, place, is_up, leaves.as_mut()).await?);
            }
            let (place, is_up) = (upstream.place(affinity), || upstream.is_up());
            let mut place = self.place(answering, place, is_up, leaves.as_mut()).await?;
            ask.handover = fetch.take().and_then(Fetch::in_time);
            if self.is_prefilled_apart() && ask.handover.is_none() && !answering.recomputes() {
                place.transferred(false);
                answering.note_recomputed();
            }
            let resume = answering.resume().filter(|resume| resumes && place.instance().resumes(&ask, resume));
            if told {
                answering.will_mark(resume.is_some());
            }
            let trace = trace::pairs_of(&tracing::Span::current());
            let call = Call { ask: &ask, resume: resume.as_ref(), trace: &trace };
            let asked = tokio::select! {
                () = leaves.as_mut() => return Err(answering.hand_over().await.into()),
                asked = ask_at(&place, beside.as_ref(), call) => asked,
            };
            let followed = match asked {
                Ok(reply) => {
                    let comes = ask.handover.is_some() || beside.is_some();
                    self.follow(answering, &mut place, reply, leaves.as_mut(), comes).await
                }
                Err(fault) => Err(fault.into()),
            };
            let fault = match followed {
                Ok(()) => {
                    if let Some(beside) = beside {
                        beside.end(Ended::Answered);
                    }
                    place.end(Ended::Answered);
                    return Ok(());
                }
                Err(Broken::Fault(fault)) => fault,
                Err(broken) => return Err(broken),
            };
            let builds = ask.handover.is_some() || resume.is_some();
            // Of two that were asked, either may be to blame.
            for place in beside.take().into_iter().chain([place]) {
                place.end(Ended::from(&fault));
            }
            if fault.retry != baton_upstream::Retry::Recompute || !builds {
                return Err(fault.into());
            }
            tracing::info!(fault = fault.message, "the answer begins again without what it was to build on");
            resumes = false;
            told |= answering.has_told();
        }
    }

    /// Whether other instances prefill, before these are asked (vLLM).
    fn is_prefilled_apart(&self) -> bool {
        let options = self.upstream.options();
        options.engine == Engine::Vllm && !options.prefill_urls.is_empty()
    }

    /// Whether each request is put to two instances at once, of which one prefills (SGLang).
    fn meets(&self) -> bool {
        let options = self.upstream.options();
        options.engine == Engine::Sglang && !options.prefill_urls.is_empty()
    }

    /// Waits for a place, but not for ever: the job's record is to say what it waits for.
    async fn place(
        &self,
        answering: &mut Answering<'_>,
        place: impl Future<Output = Place>,
        is_up: impl Fn() -> bool,
        leaves: Leaves<'_>,
    ) -> Result<Place, Broken> {
        let patient = async {
            let mut place = pin!(place);
            for _ in 0..PATIENT_TIMES {
                if let Ok(place) = timeout(PATIENCE, place.as_mut()).await {
                    return Some(place);
                }
                if !is_up() {
                    break;
                }
            }
            None
        };
        let place = tokio::select! {
            biased;
            place = patient => place,
            () = leaves => return Err(answering.hand_over().await.into()),
        };
        place.ok_or_else(|| Fault::later(no_place(&self.upstream)).into())
    }

    /// Takes an answer as it comes.
    async fn follow(
        &self,
        answering: &mut Answering<'_>,
        place: &mut Place,
        mut reply: Reply,
        mut leaves: Leaves<'_>,
        mut handed_over: bool,
    ) -> Result<(), Broken> {
        answering.began();
        loop {
            answering.write_if_due();
            let event = tokio::select! {
                () = leaves.as_mut() => return Err(answering.hand_over().await.into()),
                written = answering.written() => {
                    written?;
                    continue;
                }
                event = reply.next() => event?,
            };
            match event {
                Some(Event::Piece(piece)) => {
                    place.first_token();
                    if std::mem::take(&mut handed_over) {
                        place.transferred(true);
                    }
                    answering.take(piece).await?;
                }
                Some(Event::Prompt(prompt)) => answering.prompt(prompt),
                Some(Event::Usage(usage)) => answering.usage(usage),
                None => break,
            }
        }
        Ok(())
    }
}

async fn ask_at(place: &Place, beside: Option<&Place>, call: Call<'_>) -> Result<Reply, Fault> {
    match beside {
        Some(prefill) => place.instance().ask_both(prefill.instance(), call).await,
        None => place.instance().ask(call).await,
    }
}

/// What becomes of a job after a fault that may pass.
fn put_off(fault: &Fault) -> StageError {
    match fault.retry {
        baton_upstream::Retry::Later(pause) => StageError::put_off(fault.failure(), pause),
        _ => StageError { retry: Retry::Elsewhere, failure: fault.failure() },
    }
}

/// Why no instance has room.
fn no_place(upstream: &Upstream) -> String {
    let told = upstream.stats();
    let down = told.iter().filter(|instance| !instance.up);
    let down: Vec<_> = down
        .map(|instance| format!("{}: {}", instance.url, instance.fault.as_deref().unwrap_or("it does not answer")))
        .collect();
    let name = &upstream.options().name;
    match down.len() {
        0 => format!("all instances of {name} have as many requests as they take"),
        _ => format!("no instance of {name} takes requests now; {}", down.join("; ")),
    }
}
