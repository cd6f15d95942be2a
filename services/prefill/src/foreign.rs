//! Prompts that an instance of a foreign engine prefills for the one that decodes: what it tells of the KV cache goes on to
//! decode with the job. The cache itself goes from one instance to the other, as the engine does that.

use std::sync::{Mutex, MutexGuard, PoisonError};

use baton_bus::{
    Bus,
    connection::trace,
    stage::{self, Handler, Next, Retry, StageError, Work, pull},
};
use baton_contract::{
    causes,
    envelope::{self, DecodeTask, PrefillTask},
    job::Job,
    outcome::{Code, Timings},
    upstream::{Ask, Handover},
};
use baton_upstream::{Call, Ended, Fault, Upstream};
use tokio::time::{Duration, Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::Error;

/// How long a job waits for a place at an instance before it goes back to its queue, and its record says why.
const PATIENCE: Duration = Duration::from_secs(10);
/// After so many deliveries a job goes on to decode although no instance could prefill its prompt, which is computed there then.
const TRIES: u64 = 3;
/// After no instance has prefilled anything for so long, jobs go on at once,
const GONE: Duration = Duration::from_secs(10);
/// but for one now and then, which finds out whether an instance is back.
const LOOK: Duration = Duration::from_secs(2);

/// Serves one model until `shutdown`, then drains.
pub async fn run(
    bus: Bus,
    pull: pull::Options,
    worker: String,
    upstream: Upstream,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let foreign = Foreign { bus: bus.clone(), upstream, outage: Mutex::default() };
    Ok(stage::run(&bus, pull, worker, foreign, CancellationToken::new(), shutdown).await?)
}

struct Foreign {
    bus: Bus,
    upstream: Upstream,
    outage: Mutex<Outage>,
}

/// Since when nothing could be prefilled.
#[derive(Debug, Default)]
struct Outage {
    since: Option<Instant>,
    /// When a job has found that out last.
    seen: Option<Instant>,
}

impl Outage {
    fn is_long(&self, now: Instant) -> bool {
        self.since.is_some_and(|since| now.duration_since(since) >= GONE)
    }

    /// Whether a job goes on to decode without having asked.
    fn passes_on(&self, now: Instant) -> bool {
        self.is_long(now) && self.seen.is_some_and(|seen| now.duration_since(seen) < LOOK)
    }

    /// Notes what came of asking, at its end.
    fn note(&mut self, is_there: bool, now: Instant) {
        if is_there {
            *self = Self::default();
        } else {
            self.since.get_or_insert(now);
            self.seen = Some(now);
        }
    }
}

impl Handler<PrefillTask> for Foreign {
    async fn handle(&self, work: Work<PrefillTask>) -> Result<Next, StageError> {
        let stop = work.stop.clone();
        tokio::select! {
            biased;
            failure = stop.called() => Err(StageError::ended(failure)),
            next = self.prefill(work) => next,
        }
    }
}

impl Foreign {
    async fn prefill(&self, work: Work<PrefillTask>) -> Result<Next, StageError> {
        let Work { task: PrefillTask { job, mut timings, ask }, claim, queue_ms, .. } = work;
        let Some(mut ask) = ask else {
            let message = format!("the job is none for a foreign engine, which model {} is now", job.model);
            return Err(StageError::new(Retry::Elsewhere, Code::Internal, message));
        };
        let began = Instant::now();
        timings.prefill_queue_ms = queue_ms;
        timings.prefill_attempt = claim.attempt as u32;
        timings.prefill_worker = claim.worker;
        let asked = if self.outage().passes_on(began) { None } else { Some(self.ask(&job, &ask).await) };
        if let Some(asked) = &asked {
            // Who is refused has found somebody.
            let is_gone = asked.as_ref().is_err_and(|fault| fault.retry == baton_upstream::Retry::Later(None));
            self.outage().note(!is_gone, Instant::now());
        }
        let is_long = self.outage().is_long(Instant::now());
        match asked {
            // Of what nobody can tell how old it is, nobody may make use.
            Some(Ok(params)) => {
                ask.handover = self.bus.clock().now_ms().await.ok().map(|at_ms| Handover { params, at_ms })
            }
            Some(Err(fault)) if fault.retry == baton_upstream::Retry::Never => {
                return Err(StageError::ended(fault.failure()));
            }
            Some(Err(fault)) if claim.attempt < TRIES && !is_long => {
                return Err(match fault.retry {
                    baton_upstream::Retry::Later(pause) => StageError::put_off(fault.failure(), pause),
                    _ => StageError { retry: Retry::Elsewhere, failure: fault.failure() },
                });
            }
            Some(Err(fault)) => {
                tracing::warn!(error = fault.message, "no instance prefilled the prompt, which is left to decode");
            }
            None => tracing::info!("the prompt is left to decode, for no instance that prefills is there"),
        }
        timings.prefill_ms = began.elapsed().as_secs_f64() * 1e3;
        tracing::info!(
            handed_over = ask.handover.is_some(),
            prefill_ms = timings.prefill_ms,
            "a foreign engine prefilled the prompt"
        );
        self.forward(job, timings, ask)
    }

    fn outage(&self) -> MutexGuard<'_, Outage> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self, job: &Job, ask: &Ask) -> Result<String, Fault> {
        let place = timeout(PATIENCE, self.upstream.place_prefill(ask.affinity(&job.tenant))).await;
        let place = place.map_err(|_| Fault::later("no instance that prefills takes requests now"))?;
        let trace = trace::pairs_of(&tracing::Span::current());
        let told = place.instance().prefill(Call { ask, resume: None, trace: &trace }).await;
        place.end(match &told {
            Ok(_) => Ended::Answered,
            Err(fault) => Ended::from(fault),
        });
        told
    }

    fn forward(&self, job: Job, timings: Timings, ask: Ask) -> Result<Next, StageError> {
        let subject = self.bus.layout().decode(&job.model, &job.lane, &job.tenant);
        let (first, pieces) = (Vec::new(), Vec::new());
        let task = DecodeTask { job, timings, first, pieces, fingerprint: None, ask: Some(ask) };
        let payload = envelope::encode(&task).map_err(|error| {
            let code = if matches!(error, envelope::Error::TooLarge(_)) { Code::PromptTooLong } else { Code::Internal };
            StageError::new(Retry::Never, code, causes(&error))
        })?;
        Ok(Next::Forward { subject, payload: payload.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn jobs_pass_a_long_outage_by_and_one_now_and_then_looks() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut outage = Outage::default();
        assert!(!outage.passes_on(at(0)));
        outage.note(false, at(0));
        outage.note(false, at(9));
        assert!(!outage.passes_on(at(9)), "it may be short");
        outage.note(false, at(10));
        assert!(outage.is_long(at(10)) && outage.passes_on(at(11)));
        assert!(!outage.passes_on(at(12)), "one looks");
        outage.note(false, at(13));
        assert!(outage.passes_on(at(14)));
        outage.note(true, at(15));
        assert!(!outage.is_long(at(15)) && !outage.passes_on(at(15)));
    }
}
