//! Prompts that an instance of a foreign engine prefills for the one that decodes: what it tells of the KV cache goes on to
//! decode with the job. The cache itself goes from one instance to the other, as the engine does that.

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
    upstream::Ask,
};
use baton_upstream::{Call, Ended, Fault, Upstream};
use tokio::time::{Duration, Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::Error;

/// How long a job waits for a place at an instance before it goes back to its queue, and its record says why.
const PATIENCE: Duration = Duration::from_secs(10);
/// After so many deliveries a job goes on to decode although no instance could prefill its prompt, which is computed there then.
const TRIES: u64 = 3;

/// Serves one model until `shutdown`, then drains.
pub async fn run(
    bus: Bus,
    pull: pull::Options,
    worker: String,
    upstream: Upstream,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let foreign = Foreign { bus: bus.clone(), upstream };
    Ok(stage::run(&bus, pull, worker, foreign, CancellationToken::new(), shutdown).await?)
}

struct Foreign {
    bus: Bus,
    upstream: Upstream,
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
        match self.ask(&job, &ask).await {
            Ok(handover) => ask.handover = Some(handover),
            Err(fault) if fault.retry == baton_upstream::Retry::Never => {
                return Err(StageError::ended(fault.failure()));
            }
            Err(fault) if claim.attempt >= TRIES => {
                tracing::warn!(error = fault.message, "no instance prefilled the prompt, which is left to decode");
            }
            Err(fault) => {
                return Err(match fault.retry {
                    baton_upstream::Retry::Later(pause) => StageError::put_off(fault.failure(), pause),
                    _ => StageError { retry: Retry::Elsewhere, failure: fault.failure() },
                });
            }
        }
        timings.prefill_ms = began.elapsed().as_secs_f64() * 1e3;
        tracing::info!(
            handed_over = ask.handover.is_some(),
            prefill_ms = timings.prefill_ms,
            "a foreign engine prefilled the prompt"
        );
        self.forward(job, timings, ask)
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
