//! One run over the lines of a batch: asks for each, and writes what comes of it.
//!
//! At any time at most [`WINDOW`] lines are asked for and not written, and of these only their `custom_id` is in memory: an
//! answer is read from the stream of results when its turn to be written comes.

use std::{collections::BTreeMap, future::ready, time::Duration};

use baton_bus::{
    clients::ends::Ends,
    connection::{clock::Clock, pressure},
    stage::cancel,
};
use baton_contract::{
    Name,
    batch::{self, Batch, End, Progress},
    causes,
    outcome::{Outcome, Status},
    request::Deadline,
};
use baton_openai::{ApiError, BatchLine, Endpoint};
use baton_storage::files;
use bytes::Bytes;
use futures::{
    FutureExt, Stream, StreamExt,
    future::BoxFuture,
    stream::{self, FuturesUnordered},
};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::{
    answers::{Answer, Place, Unfinished},
    change,
    input::{self, Lines},
    job_of, lane, line_of,
    output::Output,
};
use crate::{State, refusal::of_bus};

/// Lines that are asked for and not written.
const WINDOW: usize = 1_000;
/// Requests that are being published at a time.
const ASKS: usize = 16;
/// Results that are being read at a time.
const READS: usize = 32;
/// How often the record is written, and looked at for a wish to cancel.
const TICK: Duration = Duration::from_secs(1);
/// After this many ticks the results of the oldest lines are read without a hint.
const LOOK_TICKS: u32 = 10;
/// How long a batch that ends early waits for what its running jobs come to.
const LAST_ANSWERS: Duration = Duration::from_secs(20);

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Bus(#[from] baton_bus::Error),
    #[error(transparent)]
    Files(#[from] files::Error),
    #[error(transparent)]
    Input(#[from] input::Error),
    #[error("another gateway drives the batch now")]
    Superseded,
}

/// A batch in the hands of this gateway.
pub(super) struct Run<'a> {
    pub(super) state: &'a State,
    pub(super) tenant: &'a Name,
    pub(super) batch: &'a Batch,
    /// Names this run.
    pub(super) run: &'a str,
    pub(super) endpoint: Endpoint,
    /// Whether nobody drove the batch before, so that nothing was asked for yet.
    pub(super) first: bool,
}

/// A line that was asked for, or is being.
struct Waiting {
    custom_id: String,
    /// Whether its result is being read.
    read: bool,
}

/// What asking for a line came to.
enum Step {
    /// It is a job.
    Asked,
    /// It had ended before.
    Ended(Box<Outcome>),
    /// It is no request.
    Refused(ApiError),
    /// The batch ends early, and it had not ended.
    Left(Unfinished),
}

type Asking<'a> = BoxFuture<'a, (u64, Result<Step, baton_bus::Error>)>;
type Reading<'a> = BoxFuture<'a, (u64, Result<Option<Outcome>, baton_bus::Error>)>;

/// What a run does at a time.
struct Work<'a> {
    waiting: BTreeMap<u64, Waiting>,
    asking: FuturesUnordered<Asking<'a>>,
    reading: FuturesUnordered<Reading<'a>>,
    cancelling: FuturesUnordered<BoxFuture<'a, (u64, Option<cancel::Answer>)>>,
    progress: Progress,
    /// Why the batch ends early, and when those that still run are given up.
    stop: Option<(Unfinished, Instant)>,
}

impl<'a> Run<'a> {
    /// Goes over all lines. Returns why the batch ended and what was counted.
    pub(super) async fn drive<S>(&'a self, lines: Lines<S>, output: &mut Output) -> Result<(End, Progress), Error>
    where
        S: Stream<Item = Result<Bytes, files::Error>> + Unpin,
    {
        let mut work = Work {
            waiting: BTreeMap::new(),
            asking: FuturesUnordered::new(),
            reading: FuturesUnordered::new(),
            cancelling: FuturesUnordered::new(),
            progress: Progress::default(),
            stop: None,
        };
        let end = match self.go_over(lines, &mut work, output).await {
            Ok(()) => match work.stop {
                None => End::Completed,
                Some((Unfinished::Expired, _)) => End::Expired,
                Some((Unfinished::Cancelled, _)) => End::Cancelled,
            },
            Err(Error::Files(files::Error::TooLarge { max })) => {
                tracing::warn!(
                    batch = self.batch.order.id,
                    max_bytes = max,
                    "a batch's answers are too long for its files"
                );
                self.give_up(&mut work).await;
                End::Overgrown { max_bytes: max }
            }
            Err(error) => return Err(error),
        };
        Ok((end, work.progress))
    }

    async fn go_over<S>(&'a self, mut lines: Lines<S>, work: &mut Work<'a>, output: &mut Output) -> Result<(), Error>
    where
        S: Stream<Item = Result<Bytes, files::Error>> + Unpin,
    {
        // Before anything is looked up or asked for, so that no end is missed.
        let mut ends: Ends = self.state.bus.ends(self.tenant).await?;
        let clock = self.state.bus.clock();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.tick().await;
        // Whether the batch is to end early is known before anything is asked for.
        self.tick(work, &clock).await?;
        let (mut ticks, mut exhausted) = (0u32, false);
        while !(exhausted && work.waiting.is_empty()) {
            let patience = work.stop.map(|(_, until)| until);
            let (told, room) = (work.reading.len() < READS, work.waiting.len() < WINDOW && work.asking.len() < ASKS);
            tokio::select! {
                Some((line, step)) = work.asking.next() => match step? {
                    Step::Asked => {}
                    Step::Ended(outcome) => self.ended(work, line, &outcome, output).await?,
                    Step::Refused(error) => self.write(work, line, output, |place| place.refused(&error)).await?,
                    Step::Left(why) => self.write(work, line, output, |place| place.unfinished(why)).await?,
                },
                Some((line, outcome)) = work.reading.next() => match outcome? {
                    Some(outcome) => self.ended(work, line, &outcome, output).await?,
                    None => {
                        if let Some(waiting) = work.waiting.get_mut(&line) {
                            waiting.read = false;
                        }
                    }
                },
                Some((line, answer)) = work.cancelling.next() => match (answer, work.stop) {
                    (Some(cancel::Answer::Ended { .. }), _) => self.read(work, line),
                    (Some(cancel::Answer::Unknown), Some((why, _))) => {
                        self.write(work, line, output, |place| place.unfinished(why)).await?;
                    }
                    // It ends soon, or its deadline ends it.
                    _ => {}
                },
                job = ends.next(), if told => {
                    if let Some(line) = line_of(&self.batch.order.id, &job?) {
                        self.read(work, line);
                    }
                }
                line = lines.next(), if room && !exhausted => match line? {
                    None => exhausted = true,
                    Some(line) => match line.read(self.endpoint) {
                        Ok(asked) => self.ask(work, line.number, asked),
                        // It held when the file was validated.
                        Err(problem) => return Err(baton_bus::Error::Read {
                            what: format!("line {} of {}", line.number, self.batch.order.input_file_id),
                            message: problem.message,
                        }.into()),
                    },
                },
                _ = tick.tick() => {
                    ticks = ticks.wrapping_add(1);
                    self.tick(work, &clock).await?;
                    if ticks % LOOK_TICKS == 0 {
                        let oldest: Vec<u64> = work.waiting.keys().take(READS).copied().collect();
                        oldest.into_iter().for_each(|line| self.read(work, line));
                    }
                }
                () = sleep_until(patience.unwrap_or_else(Instant::now)), if patience.is_some() => {
                    // What still runs ends without anybody who waits for it.
                    let Some((why, _)) = work.stop else { continue };
                    let given_up: Vec<u64> = work.waiting.keys().copied().collect();
                    for line in given_up {
                        self.write(work, line, output, |place| place.unfinished(why)).await?;
                    }
                    work.stop = Some((why, Instant::now() + LAST_ANSWERS));
                }
            }
        }
        Ok(())
    }

    /// Cancels what was asked for and is not written, for nobody wants it any more. What this does not reach in time ends by
    /// itself.
    async fn give_up(&self, work: &mut Work<'a>) {
        work.asking.clear();
        let lines = stream::iter(work.waiting.keys().copied());
        let cancelled = lines.map(|line| self.cancel(line)).buffer_unordered(ASKS).for_each(|_| ready(()));
        let _ = timeout(LAST_ANSWERS, cancelled).await;
    }

    /// Begins to ask for a line.
    fn ask(&'a self, work: &mut Work<'a>, line: u64, BatchLine { custom_id, body, .. }: BatchLine) {
        work.waiting.insert(line, Waiting { custom_id, read: false });
        let stop = work.stop.map(|(why, _)| why);
        let step = async move {
            let call = baton_openai::read(self.endpoint, body.get().as_bytes(), &self.state.facts.engines);
            let step = match (call, stop) {
                (Err(error), _) => Ok(Step::Refused(error)),
                (Ok(_), Some(why)) => self.leave(line, why).await,
                (Ok(call), None) => self.submit(line, call).await,
            };
            (line, step)
        };
        work.asking.push(step.boxed());
    }

    async fn submit(&self, line: u64, call: baton_openai::Call) -> Result<Step, baton_bus::Error> {
        let (state, lane) = (self.state, lane(self.state));
        let Some(job) = job_of(&self.batch.order.id, line) else { return Ok(Step::Refused(no_job())) };
        let mut request = call.request;
        if call.stream {
            return Ok(Step::Refused(ApiError::field("stream", "stream: a batch's answers are not streamed")));
        }
        if request.lane.as_ref().is_some_and(|own| own != lane.as_str()) {
            let message = format!("service_tier: a batch's requests take the lane {lane}");
            return Ok(Step::Refused(ApiError::field("service_tier", message)));
        }
        if let Some(model) = &call.model
            && !state.facts.models.iter().any(|known| known.as_str() == model)
        {
            return Ok(Step::Refused(ApiError::unknown_model(model)));
        }
        request.id = Some(job.as_str().to_owned());
        request.lane = None;
        let expires = std::time::UNIX_EPOCH + Duration::from_secs(self.batch.expires_at);
        request.deadline = Some(Deadline::At(humantime::format_rfc3339(expires).to_string()));
        let most = state.bus.max_request_bytes();
        let body = match serde_json::to_vec(&request) {
            Ok(body) if body.len() <= most => body,
            Ok(body) => {
                let message = format!("expected a request of at most {most} bytes, found {}", body.len());
                return Ok(Step::Refused(ApiError { status: 413, ..ApiError::invalid(message) }));
            }
            Err(error) => return Ok(Step::Refused(ApiError::invalid(causes(&error)))),
        };
        if !self.first
            && let Some(outcome) = state.jobs.result(self.tenant, &job).await?
        {
            return Ok(Step::Ended(Box::new(outcome)));
        }
        let submit = || state.bus.submit(self.tenant, lane, body.clone());
        let waits = |error: &baton_bus::Error| tracing::debug!(error = %causes(error), %job, "a line of a batch waits for room");
        match pressure::patiently(submit, waits).await {
            Ok(_) => Ok(Step::Asked),
            Err(error @ baton_bus::Error::TooLarge { .. }) => Ok(Step::Refused(of_bus(&error))),
            Err(error) => Err(error),
        }
    }

    /// What a line has come to when its batch ends early.
    async fn leave(&self, line: u64, why: Unfinished) -> Result<Step, baton_bus::Error> {
        let Some(job) = job_of(&self.batch.order.id, line).filter(|_| !self.first) else { return Ok(Step::Left(why)) };
        if let Some(outcome) = self.state.jobs.result(self.tenant, &job).await? {
            return Ok(Step::Ended(Box::new(outcome)));
        }
        // An earlier run may have asked for it.
        if self.state.jobs.get(self.tenant, &job).await?.is_some() {
            self.cancel(line).await;
        }
        Ok(Step::Left(why))
    }

    /// Begins to read a line's result.
    fn read(&'a self, work: &mut Work<'a>, line: u64) {
        let Some(waiting) = work.waiting.get_mut(&line).filter(|waiting| !waiting.read) else { return };
        let Some(job) = job_of(&self.batch.order.id, line) else { return };
        waiting.read = true;
        work.reading.push(async move { (line, self.state.jobs.result(self.tenant, &job).await) }.boxed());
    }

    async fn ended(
        &self,
        work: &mut Work<'a>,
        line: u64,
        outcome: &Outcome,
        output: &mut Output,
    ) -> Result<(), files::Error> {
        let stop = work.stop.map(|(why, _)| why);
        let answer = |place: Place<'_>| match (outcome.status, stop) {
            // However it was stopped, it was the batch that ended.
            (Status::Cancelled | Status::Expired, Some(why)) => place.unfinished(why),
            _ => place.ended(self.endpoint, outcome),
        };
        self.write(work, line, output, answer).await
    }

    /// Writes a line's answer, if that was not done.
    async fn write(
        &self,
        work: &mut Work<'a>,
        line: u64,
        output: &mut Output,
        answer: impl FnOnce(Place<'_>) -> Answer,
    ) -> Result<(), files::Error> {
        let Some(Waiting { custom_id, .. }) = work.waiting.remove(&line) else { return Ok(()) };
        let answer = answer(Place { batch: &self.batch.order.id, line, custom_id: &custom_id });
        output.write(&answer).await?;
        answer.count(&mut work.progress);
        Ok(())
    }

    /// Tells the record how far this run has come, and looks whether the batch is to end early.
    async fn tick(&'a self, work: &mut Work<'a>, clock: &Clock) -> Result<(), Error> {
        let batch = change(self.state, self.tenant, &self.batch.order.id, |batch| {
            batch.progressed(self.run, &work.progress).filter(|next| next != batch)
        });
        let batch = batch.await?.filter(|batch| batch.is_of(self.run)).ok_or(Error::Superseded)?;
        if work.stop.is_some() {
            return Ok(());
        }
        let why = if batch.status == batch::Status::Cancelling {
            Unfinished::Cancelled
        } else if clock.now_ms().await? >= batch.expires_at * 1000 {
            Unfinished::Expired
        } else {
            return Ok(());
        };
        tracing::info!(batch = self.batch.order.id, ?why, waiting = work.waiting.len(), "a batch ends early");
        work.stop = Some((why, Instant::now() + LAST_ANSWERS));
        // What was not published yet may have been all the same.
        work.asking.clear();
        for line in work.waiting.keys().copied() {
            work.cancelling.push(self.cancel(line).boxed());
        }
        Ok(())
    }

    async fn cancel(&self, line: u64) -> (u64, Option<cancel::Answer>) {
        let Some(job) = job_of(&self.batch.order.id, line) else { return (line, None) };
        let answer = self.state.bus.cancel(self.tenant, &job).await.inspect_err(|error| {
            tracing::debug!(error = %causes(error), %job, "a line of a batch that ends early was not cancelled; its deadline ends it");
        });
        (line, answer.ok())
    }
}

fn no_job() -> ApiError {
    ApiError::internal("the line has no job id")
}
