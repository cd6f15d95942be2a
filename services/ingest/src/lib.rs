//! Ingest: turns public requests into admitted jobs. It validates, renders the chat template, tokenizes, and passes the job
//! to prefill; a bad request gets its one failed result here.
//!
//! It must never load weights, and never let one request's fault touch another.
#![forbid(unsafe_code)]

use std::{collections::BTreeMap, sync::Arc};

use baton_bus::{
    Bus,
    jobs::Jobs,
    pull::{self, Delivery, Receiver, Settle},
    stage, trace, unix_ms,
};
use baton_contract::{
    JobId, Name,
    envelope::{self, PrefillTask},
    job::Job,
    outcome::{Code, Failure, Outcome, Timings, Usage, request_digest},
    record::{Admission, Record},
    request::{self, Input},
    subject::Stage,
};
use baton_engine::{chat, generation::Generator, source::Vocabulary, tokenizer};
use tokio::{task::spawn_blocking, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span};

/// A publisher may name the job in this header; needed only where the body might be unreadable.
const ID_HEADER: &str = "Baton-Job-Id";

/// The models that requests may name.
#[derive(Clone)]
pub struct Models {
    pub generators: BTreeMap<Name, Generator>,
    /// Used by requests that name none.
    pub default: Name,
}

/// Runs until `shutdown`, then drains.
pub async fn run(
    bus: Bus,
    options: pull::Options,
    models: Models,
    shutdown: CancellationToken,
) -> Result<(), baton_bus::Error> {
    let max_deliver = options.max_deliver;
    let ingest = Ingest { jobs: bus.jobs().await?, bus: bus.clone(), models, max_deliver };
    pull::run(&bus, &options, Arc::new(ingest), shutdown).await
}

struct Ingest {
    bus: Bus,
    jobs: Jobs,
    models: Models,
    max_deliver: u64,
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
        Outcome {
            id: self.id,
            tenant: self.tenant,
            lane: self.lane,
            model: None,
            status: failure.status(),
            finish_reason: None,
            error: Some(failure),
            text: String::new(),
            tokens: Vec::new(),
            logprobs: None,
            usage: Usage::default(),
            metadata: BTreeMap::new(),
            timings: self.timings,
            request_digest: self.digest,
        }
    }
}

impl Receiver for Ingest {
    async fn receive(&self, delivery: &Delivery) -> Settle {
        let Some((tenant, lane)) = self.bus.layout().parse_request(delivery.subject()) else {
            tracing::warn!(
                subject = delivery.subject(),
                "a request was dropped: its subject must be <root>.req.<tenant>.<lane>, names of a-z, 0-9, _ and -"
            );
            return Settle::Term;
        };
        let body = delivery.payload();
        let header = delivery.headers().and_then(|headers| headers.get(ID_HEADER));
        let named = request::id_hint(body).or_else(|| JobId::new(header?.as_str()).ok());
        let stream = self.bus.layout().stage_stream(Stage::Ingest);
        let id = named.unwrap_or_else(|| JobId::for_message(delivery.published_ms, &stream, delivery.sequence));
        let timings = Timings {
            accepted_at_ms: delivery.published_ms,
            ingest_queue_ms: unix_ms().saturating_sub(delivery.published_ms) as f64,
            ..Timings::default()
        };
        let span = info_span!("ingest", job = %id, %tenant, attempt = delivery.attempt);
        trace::continue_from(&span, delivery.headers());
        let arrival = Arrival { id, tenant, lane, digest: request_digest(body), timings };
        async {
            match self.admit(arrival, body).await {
                Ok(()) => Settle::Ack,
                Err(error) => {
                    tracing::warn!(%error, "the request was not admitted and is tried again");
                    Settle::Nak(Some(stage::pause(delivery.attempt)))
                }
            }
        }
        .instrument(span)
        .await
    }
}

impl Ingest {
    async fn admit(&self, arrival: Arrival, body: &[u8]) -> Result<(), baton_bus::Error> {
        let started = Instant::now();
        let record = Record::accepted(arrival.digest.clone(), arrival.timings.accepted_at_ms);
        let record = match self.jobs.admit(&arrival.tenant, &arrival.id, record).await? {
            Admission::Take(record) => record,
            Admission::Settled => return Ok(()),
            Admission::Conflict => {
                tracing::warn!("a request was dropped: its id belongs to an earlier, different request");
                return Ok(());
            }
        };
        let (tenant, id) = (arrival.tenant.clone(), arrival.id.clone());
        let passed_on = self.pass_on(arrival, body, record.tries, started).await;
        if passed_on.is_err() {
            // The broker's fault, not the request's; if this fails too, the try counts.
            let _ = self.jobs.give_back(&tenant, &id, None).await;
        }
        passed_on
    }

    /// Hands an admitted request to prefill, or refuses it.
    async fn pass_on(
        &self,
        mut arrival: Arrival,
        body: &[u8],
        tries: u32,
        started: Instant,
    ) -> Result<(), baton_bus::Error> {
        if u64::from(tries) > self.max_deliver {
            let message = format!("ingest was tried {} times, and no worker finished it", self.max_deliver);
            return self.refuse(arrival, Failure::new(Code::AttemptsExhausted, message)).await;
        }
        match read(&self.models, &arrival, body).await {
            Ok(job) => {
                arrival.timings.ingest_ms = started.elapsed().as_secs_f64() * 1e3;
                tracing::info!(prompt_tokens = job.prompt.len(), model = %job.model, "the job was admitted");
                let task = PrefillTask { job, timings: arrival.timings.clone() };
                let job = &task.job;
                match envelope::encode(&task) {
                    Ok(payload) => {
                        let subject = self.bus.layout().prefill(&job.model, &job.lane);
                        self.bus.forward(subject, job, Stage::Ingest, payload).await
                    }
                    Err(error) => self.refuse(arrival, Failure::new(Code::PromptTooLong, error.to_string())).await,
                }
            }
            Err(failure) => self.refuse(arrival, failure).await,
        }
    }

    async fn refuse(&self, arrival: Arrival, failure: Failure) -> Result<(), baton_bus::Error> {
        tracing::info!(code = ?failure.code, message = failure.message, "the request was refused");
        let outcome = arrival.refused(failure);
        self.jobs.finish(&outcome, trace::headers_of(&tracing::Span::current())).await?;
        Ok(())
    }
}

/// Reads a request into a job that fits its model.
pub async fn read(models: &Models, arrival: &Arrival, body: &[u8]) -> Result<Job, Failure> {
    let checked = request::parse(body, &arrival.lane, arrival.timings.accepted_at_ms)?;
    let model = checked.model.clone().unwrap_or_else(|| models.default.clone());
    let Some(generator) = models.generators.get(&model).cloned() else {
        let known: Vec<&str> = models.generators.keys().map(Name::as_str).collect();
        let message = format!("model: the pipeline has no model {model}; it has {}", known.join(", "));
        return Err(Failure::new(Code::UnknownModel, message));
    };
    let mut job = Job {
        sampling: checked.sampling(&arrival.id),
        id: arrival.id.clone(),
        tenant: arrival.tenant.clone(),
        lane: arrival.lane.clone(),
        model,
        prompt: Vec::new(),
        max_tokens: checked.max_tokens,
        stop: checked.stop,
        deadline_ms: checked.deadline_ms,
        metadata: checked.metadata,
        request_digest: arrival.digest.clone(),
    };
    let input = checked.input;
    // Templates, tokenizers and grammars take their time; the other requests must not wait for them.
    let fit = spawn_blocking(move || {
        let vocabulary = generator.vocabulary();
        job.prompt = tokenize(vocabulary, input)?;
        let room = vocabulary.spec().context - job.prompt.len();
        job.max_tokens = job.max_tokens.min(room as u32);
        // Whether its answer can begin at all.
        generator.start(&job).map_err(|error| error.failure())?;
        Ok(job)
    });
    fit.await.map_err(|error| Failure::new(Code::Internal, format!("reading the request failed: {error}")))?
}

/// The prompt's token ids: at least one, fewer than the context.
fn tokenize(vocabulary: &Vocabulary, input: Input) -> Result<Vec<u32>, Failure> {
    let spec = vocabulary.spec();
    let too_long = |found: String| {
        Failure::new(
            Code::PromptTooLong,
            format!("expected a prompt of fewer than {} tokens, the model's context; found {found}", spec.context),
        )
    };
    let prompt = match input {
        Input::Tokens(tokens) => {
            if let Some(token) = tokens.iter().find(|token| **token as usize >= spec.vocabulary) {
                let message = format!("prompt: token id {token} is outside the vocabulary of {}", spec.vocabulary);
                return Err(Failure::new(Code::InvalidValue, message));
            }
            tokens
        }
        Input::Text(text) => vocabulary.encode(&text, false).map_err(|error| too_long(error.to_string()))?,
        Input::Messages(messages) => vocabulary.encode_chat(&messages).map_err(|error| match error {
            chat::Error::TooLong { .. } | chat::Error::Encode(tokenizer::Error::TooLong { .. }) => {
                too_long(error.to_string())
            }
            error => Failure::new(Code::InvalidTemplateInput, format!("messages: {error}")),
        })?,
    };
    if prompt.is_empty() {
        return Err(Failure::new(Code::EmptyPrompt, "the prompt is empty"));
    }
    if prompt.len() >= spec.context {
        return Err(too_long(prompt.len().to_string()));
    }
    Ok(prompt)
}
