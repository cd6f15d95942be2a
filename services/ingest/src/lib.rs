//! Ingest: turns public requests into admitted jobs. It validates, renders the chat template, tokenizes, and passes the job
//! to prefill, or, where the pipeline says so, one with a short prompt to decode; a bad request gets its one failed result
//! here, and one whose id belongs to another request is told so. Its workers answer users' calls, too.
//!
//! It must never load weights, and never let one request's fault touch another.
#![forbid(unsafe_code)]

mod held;

use std::{collections::BTreeMap, sync::Arc};

use baton_bus::{
    Bus,
    clients::request::{Address, Request},
    connection::{clock::Clock, pressure, trace},
    repair::{
        dead::{self, Burial},
        letter_id::LetterId,
    },
    stage::{
        self,
        admission::Admitted,
        cancel,
        delivery::{Delivery, Settle},
        jobs::{Jobs, Stored},
        pull::{self, Receiver},
    },
    tenants::{self, Gate},
};
use baton_contract::{
    JobId, Name, causes,
    envelope::{self, DecodeTask, PrefillTask, Task},
    job::Job,
    outcome::{Code, Failure, Outcome, Refusal, Status, Timings, request_digest},
    record::Source,
    request::{self, Checked, Input},
    subject::Stage,
    upstream::{Ask, Engine},
};
use baton_model::{generation::Generator, prompt};
use bytes::Bytes;
use tokio::{task::spawn_blocking, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span};

use self::held::Held;

/// Tokens that several answers to one prompt may have together: an id takes up to 7 bytes of the result, its text about
/// as many, and the first answer stands in it twice.
const MAX_ANSWER_TOKENS: u64 = 128 << 10;

/// Requests of at most so many bytes, and without a grammar, are read in well under a millisecond.
const QUICK_BYTES: usize = 2 << 10;

/// The models that requests may name.
#[derive(Clone)]
pub struct Models {
    /// Those that Baton computes itself.
    pub generators: BTreeMap<Name, Generator>,
    /// Those that foreign engines serve.
    pub upstreams: BTreeMap<Name, Upstream>,
    /// Used by requests that name none.
    pub default: Name,
}

/// A model that a foreign engine serves, as far as ingest has to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upstream {
    pub engine: Engine,
    /// Whether other instances prefill than decode, so that its jobs go through prefill.
    pub apart: bool,
}

/// A request as it goes to the next stage.
#[derive(Clone, Debug, PartialEq)]
pub struct Read {
    pub job: Job,
    /// What a foreign engine is asked, if one answers.
    pub ask: Option<Ask>,
    /// Whether that engine's prefill is apart from its decode.
    apart: bool,
}

#[derive(Clone, Debug)]
pub struct Options {
    pub pull: pull::Options,
    /// A job whose answers have at most so many prompt tokens together, the prompt counted once for each, goes straight to
    /// decode, which prefills it. 0 sends all to prefill.
    pub decode_prefills: usize,
    /// How tenants share the pipeline; the same for all ingest workers.
    pub waiting: tenants::Options,
}

/// Runs until `shutdown`, then drains.
pub async fn run(
    bus: Bus,
    options: Options,
    models: Models,
    shutdown: CancellationToken,
) -> Result<(), baton_bus::Error> {
    let Options { pull, decode_prefills, waiting } = options;
    let gate = bus.gate(waiting);
    let ingest = Ingest {
        jobs: bus.jobs().await?,
        clock: bus.clock(),
        bus: bus.clone(),
        gate: gate.clone(),
        held: Held::default(),
        models,
        max_deliver: pull.max_deliver,
        decode_prefills,
    };
    let calls = bus.calls().await?;
    let taking = calls.serve_until(pull::run(&bus, &pull, Arc::new(ingest), shutdown.clone()));
    let releaser = gate.releaser().await?;
    // Also when nothing is taken any more for another reason.
    let stop = shutdown.child_token();
    let taking = async {
        let taken = taking.await;
        stop.cancel();
        taken
    };
    tokio::join!(taking, releaser.run(stop.clone())).0
}

struct Ingest {
    bus: Bus,
    clock: Clock,
    jobs: Jobs,
    gate: Gate,
    held: Held,
    models: Models,
    max_deliver: u64,
    decode_prefills: usize,
}

/// One request, with what is known of it before it is read.
pub struct Arrival {
    pub id: JobId,
    pub tenant: Name,
    pub lane: Name,
    /// See [`request_digest`].
    pub digest: String,
    pub timings: Timings,
}

impl Arrival {
    /// The result of a request that could not become a job.
    pub fn refused(self, failure: Failure) -> Outcome {
        let Self { id, tenant, lane, digest, timings } = self;
        Outcome { timings, ..Outcome::bare(id, tenant, lane, digest, failure) }
    }
}

impl Receiver for Ingest {
    async fn receive(&self, delivery: &Delivery) -> Settle {
        let body = delivery.payload();
        let request = Request {
            subject: delivery.subject(),
            headers: delivery.headers(),
            body,
            published_ms: delivery.published_ms,
            sequence: delivery.sequence,
        };
        let Some(Address { tenant, lane, id }) = request.address(self.bus.layout()) else {
            tracing::warn!(
                subject = delivery.subject(),
                "a request was dropped: its subject must be <root>.req.<tenant>.<lane>, names of a-z, 0-9, _ and -"
            );
            return Settle::Term;
        };
        let timings = Timings {
            accepted_at_ms: delivery.published_ms,
            ingest_queue_ms: self.clock.about_since(delivery.published_ms).await.as_secs_f64() * 1e3,
            ..Timings::default()
        };
        let span = info_span!("ingest", job = %id, %tenant, attempt = delivery.attempt);
        trace::continue_from(&span, delivery.headers());
        let hold = || Settle::Nak(Some(self.held.hold(&tenant, &lane, Instant::now())));
        let behind = delivery.attempt == 1 && self.held.has(&tenant, &lane, Instant::now());
        if behind || self.gate.is_full(&tenant, &lane) {
            return hold();
        }
        let digest = request_digest(body);
        let arrival = Arrival { id, tenant: tenant.clone(), lane: lane.clone(), digest, timings };
        async {
            match self.admit(arrival, delivery).await {
                Ok(()) => Settle::Ack,
                Err(error @ baton_bus::Error::TryLater { .. }) if self.gate.bounds_tenants() => {
                    tracing::info!(error = %causes(&error), "the request waits until its tenant may have more jobs waiting");
                    hold()
                }
                Err(error) => {
                    tracing::warn!(error = %causes(&error), "the request was not admitted and is tried again");
                    Settle::Nak(Some(stage::pause(delivery.attempt)))
                }
            }
        }
        .instrument(span)
        .await
    }
}

impl Ingest {
    async fn admit(&self, mut arrival: Arrival, delivery: &Delivery) -> Result<(), baton_bus::Error> {
        let started = Instant::now();
        let source = Source { sequence: delivery.sequence, stored_ms: delivery.published_ms };
        let record = match self.jobs.admit(&arrival.tenant, &arrival.id, &arrival.digest, source).await? {
            Admitted::Take(record) => record,
            Admitted::Settled => return Ok(()),
            Admitted::Conflict => {
                tracing::info!("a request was refused: its id belongs to an earlier, different request");
                let Arrival { tenant, id, digest, .. } = arrival;
                return self.bus.refuse(&Refusal::conflict(tenant, id, digest)).await;
            }
        };
        // Where it takes the place of an earlier copy that was lost, the job was accepted then.
        arrival.timings.accepted_at_ms = record.record.accepted_at_ms;
        let (tenant, id) = (arrival.tenant.clone(), arrival.id.clone());
        let passed_on = self.pass_on(arrival, delivery, &record, started).await;
        if passed_on.is_err() {
            // The broker's fault, not the request's; if this fails too, the try counts.
            let _ = self.jobs.give_back_request(&tenant, &id, source).await;
        }
        passed_on
    }

    /// Hands an admitted request to the next stage, or refuses it.
    async fn pass_on(
        &self,
        mut arrival: Arrival,
        delivery: &Delivery,
        stored: &Stored,
        started: Instant,
    ) -> Result<(), baton_bus::Error> {
        if stored.record.cancelled {
            return self.refuse(arrival, cancel::cancelled()).await;
        }
        let tries = u64::from(stored.record.tries);
        if tries > self.max_deliver {
            let message = format!("ingest was tried {} times, and no worker finished it", self.max_deliver);
            tracing::warn!(attempts = self.max_deliver, "a request used up its tries and fails");
            let failure = Failure::new(Code::AttemptsExhausted, message);
            self.bury(&arrival, delivery, &failure, self.max_deliver).await?;
            return self.refuse(arrival, failure).await;
        }
        match read(&self.models, &arrival, delivery.payload()).await {
            Ok(Read { job, ask, apart }) => {
                arrival.timings.ingest_ms = started.elapsed().as_secs_f64() * 1e3;
                let timings = arrival.timings.clone();
                let (prompt_tokens, samples) = (job.prompt.len(), job.samples as usize);
                let straight = if ask.is_some() { !apart } else { prompt_tokens * samples <= self.decode_prefills };
                tracing::info!(prompt_tokens, model = %job.model, straight, "the job was admitted");
                self.bus.counters().prompt(prompt_tokens, 0);
                if straight {
                    let task =
                        DecodeTask { job, timings, first: Vec::new(), pieces: Vec::new(), fingerprint: None, ask };
                    self.forward(arrival, Stage::Decode, &task, stored).await
                } else {
                    self.forward(arrival, Stage::Prefill, &PrefillTask { job, timings, ask }, stored).await
                }
            }
            Err(failure) => {
                self.bury(&arrival, delivery, &failure, tries).await?;
                self.refuse(arrival, failure).await
            }
        }
    }

    /// Keeps a request as a dead letter that fails through no fault of its own.
    async fn bury(
        &self,
        arrival: &Arrival,
        delivery: &Delivery,
        cause: &Failure,
        attempts: u64,
    ) -> Result<(), baton_bus::Error> {
        if !dead::is_ours(cause) {
            return Ok(());
        }
        let id = LetterId::Job { stage: Stage::Ingest, tenant: arrival.tenant.clone(), job: arrival.id.clone() };
        self.bus.letters().bury(&id, Burial { delivery, cause, attempts, worker: None }).await
    }

    async fn forward<T: Task>(
        &self,
        arrival: Arrival,
        stage: Stage,
        task: &T,
        stored: &Stored,
    ) -> Result<(), baton_bus::Error> {
        match envelope::encode(task) {
            Ok(payload) => {
                let payload = Bytes::from(payload);
                let mut headers = trace::headers_of(&tracing::Span::current());
                stored.carry(&mut headers);
                let by = stored.record.request.unwrap_or(Source::KEPT);
                let begin = || self.gate.begin(stage, task.job(), by, headers.clone(), payload.clone());
                let begun = if self.gate.bounds_tenants() {
                    // What there is no room for may be one tenant's, and must not take a slot from the others.
                    begin().await
                } else {
                    // Others wait for this one's slot as long as there is no room for it.
                    let waits = |error: &baton_bus::Error| tracing::info!(error = %causes(error), "the job waits to be passed on");
                    pressure::patiently(begin, waits).await
                };
                if let Err(error @ baton_bus::Error::TooLarge { .. }) = &begun {
                    let failure = Failure::new(Code::PromptTooLong, stage::too_long(error));
                    return self.refuse(arrival, failure).await;
                }
                begun?;
                self.bus.counters().job(false);
                Ok(())
            }
            Err(error) => self.refuse(arrival, Failure::new(Code::PromptTooLong, causes(&error))).await,
        }
    }

    async fn refuse(&self, arrival: Arrival, failure: Failure) -> Result<(), baton_bus::Error> {
        tracing::info!(code = ?failure.code, message = failure.message, "the request was refused");
        let outcome = arrival.refused(failure);
        self.jobs.finish(&outcome, trace::headers_of(&tracing::Span::current())).await?;
        self.bus.counters().job(outcome.status == Status::Failed);
        Ok(())
    }
}

/// Reads a request into a job that fits its model.
pub async fn read(models: &Models, arrival: &Arrival, body: &[u8]) -> Result<Read, Failure> {
    let request = request::read(body)?;
    let upstream = Name::new(request.model.as_deref().unwrap_or(models.default.as_str())).ok();
    let upstream = upstream.and_then(|name| models.upstreams.get(&name).copied());
    let ask = upstream.map(|upstream| Ask::of(&request, upstream.engine)).transpose();
    // Without it the engine's own limit holds.
    let most_tokens = request.most_tokens().unwrap_or(u32::MAX);
    let checked = request.check(&arrival.lane, arrival.timings.accepted_at_ms)?;
    let model = checked.model.clone().unwrap_or_else(|| models.default.clone());
    let apart = upstream.is_some_and(|upstream| upstream.apart);
    if let Some(ask) = ask? {
        let job = Job { max_tokens: most_tokens, ..job(arrival, model, checked).0 };
        return Ok(Read { job, ask: Some(ask), apart });
    }
    let Some(generator) = models.generators.get(&model).cloned() else {
        let known = models.generators.keys().chain(models.upstreams.keys());
        let known: Vec<&str> = known.map(Name::as_str).collect();
        let message = format!("model: the pipeline has no model {model}; it has {}", known.join(", "));
        return Err(Failure::new(Code::UnknownModel, message));
    };
    if let Some(field) = &checked.engine_field {
        let message = format!("engine.{field}: model {model} is Baton's own, which has no further fields");
        return Err(Failure::new(Code::UnknownField, message));
    }
    let (mut job, input) = job(arrival, model, checked);
    let accepted_at_ms = arrival.timings.accepted_at_ms;
    let quick = body.len() <= QUICK_BYTES && job.sampling.constraint.is_none();
    let fit = move || {
        prompt::fit(&generator, &mut job, input, accepted_at_ms)?;
        check_size(&job)?;
        Ok(Read { job, ask: None, apart: false })
    };
    // Templates, tokenizers and grammars take their time, for which other requests must not wait. Handing a short request
    // over to another thread takes longer than reading it.
    if quick {
        return fit();
    }
    spawn_blocking(fit)
        .await
        .map_err(|error| Failure::new(Code::Internal, format!("reading the request failed: {}", causes(&error))))?
}

/// The job that a request becomes, without its prompt, and what that is made of.
fn job(arrival: &Arrival, model: Name, checked: Checked) -> (Job, Input) {
    let job = Job {
        sampling: checked.sampling(&arrival.id),
        id: arrival.id.clone(),
        tenant: arrival.tenant.clone(),
        lane: arrival.lane.clone(),
        model,
        prompt: Vec::new(),
        max_tokens: checked.max_tokens,
        samples: checked.n,
        stop: checked.stop,
        deadline_ms: checked.deadline_ms,
        metadata: checked.metadata,
        request_digest: arrival.digest.clone(),
    };
    (job, checked.input)
}

/// Refuses jobs whose result might not be one message of the broker's. One answer is bounded by the model's context.
fn check_size(job: &Job) -> Result<(), Failure> {
    let found = u64::from(job.max_tokens) * u64::from(job.samples);
    if job.samples > 1 && found > MAX_ANSWER_TOKENS {
        let message = format!(
            "n: expected at most {MAX_ANSWER_TOKENS} tokens in all answers together, found {found}; lower it or max_tokens"
        );
        return Err(Failure::new(Code::InvalidValue, message));
    }
    Ok(())
}
