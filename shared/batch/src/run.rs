//! Runs a batch: a window of open jobs moves over the lines of the source.

use std::{collections::HashMap, time::Duration};

use baton_bus::{
    Bus,
    clients::{follower::Results, waits::Waits},
    connection::pressure,
    stage::jobs::Jobs,
};
use baton_contract::{
    JobId, Name, causes, envelope,
    outcome::{Outcome, Refusal, Status},
};
use baton_openai::ApiError;
use futures::{StreamExt, TryStreamExt, future::BoxFuture, stream, stream::FuturesUnordered};
use tokio::{
    sync::mpsc,
    time::{Instant, Interval, MissedTickBehavior, interval},
};
use tracing::{Instrument, info_span};

use crate::{
    error::Error,
    figures::Figures,
    input::{self, Asked, Line, Tag},
    output::{self, Answered, Need, Sink, Writer},
};

/// Look-ups and submissions that are under way at a time.
const CALLS: usize = 128;
/// How often progress is shown.
const SHOW_EVERY: Duration = Duration::from_millis(200);
/// How often results of open jobs are looked up, in case one was not heard of.
const LOOK_EVERY: Duration = Duration::from_secs(30);
const LOOK_UPS: usize = 32;

/// How a batch is run.
pub struct Options {
    /// The pipeline.
    pub bus: Bus,
    /// Whose jobs they are.
    pub tenant: Name,
    /// Jobs that may be open at a time.
    pub concurrency: usize,
    /// Whether jobs that failed in an earlier run are tried again, under new ids.
    pub retry_failed: bool,
    /// Whether answers are written in the order of their lines.
    pub in_order: bool,
    /// Why the broker may refuse requests, if this machine knows better than it.
    pub shortage: Shortage,
}

/// What is wrong with this machine, if anything is.
pub type Shortage = std::sync::Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// Is shown how a batch is doing.
pub trait Watch {
    /// The figures of now; called often.
    fn show(&mut self, figures: &Figures);
    /// Something worth a line of text.
    fn say(&mut self, text: &str);
}

/// A job whose result is awaited.
struct Open {
    number: u64,
    tag: Tag,
    digest: String,
    since: Instant,
}

/// A call to the broker that is under way.
type Call = BoxFuture<'static, Result<Called, Error>>;

/// What a call to the broker came to.
enum Called {
    /// The job has ended before.
    Found {
        number: u64,
        tag: Tag,
        digest: String,
        outcome: Box<Outcome>,
    },
    /// Nothing is known of it: it is to be sent under this id.
    Missing {
        number: u64,
        tag: Tag,
        asked: Box<Asked>,
        id: JobId,
    },
    Sent,
}

/// What calls need.
#[derive(Clone)]
struct Calls {
    bus: Bus,
    jobs: Jobs,
    tenant: Name,
    retry: bool,
}

impl Calls {
    /// Looks for the result of a line's job, from an earlier run. Where failed jobs are tried again, for the first attempt
    /// that has not failed.
    async fn look(self, number: u64, tag: Tag, asked: Asked) -> Result<Called, Error> {
        for attempt in 1.. {
            let id = input::attempt_id(&tag.id, attempt).ok_or(Error::Attempts)?;
            let Some(outcome) = self.jobs.result(&self.tenant, &id).await? else {
                return Ok(Called::Missing { number, tag, asked: Box::new(asked), id });
            };
            if outcome.status == Status::Completed || !self.retry || !asked.repeatable {
                let (_, digest) = asked.body(&id)?;
                return Ok(Called::Found { number, tag, digest, outcome: Box::new(outcome) });
            }
        }
        Err(Error::Attempts)
    }

    async fn send(
        self,
        lane: Name,
        id: JobId,
        body: Vec<u8>,
        told: impl FnMut(&baton_bus::Error),
    ) -> Result<Called, Error> {
        let span = info_span!("submit", job = %id, tenant = %self.tenant);
        let submit = || self.bus.submit(&self.tenant, &lane, body.clone());
        pressure::patiently(submit, told).instrument(span).await?;
        Ok(Called::Sent)
    }
}

/// A run over the lines of a batch: the jobs that are open, and what became of the others.
pub struct Batch {
    calls: Calls,
    results: Results,
    /// Jobs that may be open.
    size: usize,
    answered: Answered,
    open: HashMap<JobId, Open>,
    /// Lines whose results are looked for, by their first attempts, and whether one passed by meanwhile.
    looking: HashMap<JobId, bool>,
    writer: Writer,
    figures: Figures,
    /// Whether it was said that the queue is full.
    told: bool,
    waits: Waits,
    shortage: Shortage,
}

impl Batch {
    /// Begins to listen, before anything is sent, so that no result is missed. Of the lines that are `answered` none is run;
    /// the other answers go to the sink.
    ///
    /// # Errors
    ///
    /// If the broker can't be reached.
    pub async fn new(options: Options, sink: Box<dyn Sink>, answered: Answered) -> Result<Self, Error> {
        let Options { bus, tenant, concurrency, retry_failed, in_order, shortage } = options;
        let results = bus.results(&tenant).await?;
        let jobs = bus.jobs().await?;
        let figures =
            Figures { answered_before: answered.before, failed_before: answered.failed_before, ..Figures::default() };
        Ok(Self {
            waits: Waits::new(jobs.clone(), tenant.clone()),
            calls: Calls { bus, jobs, tenant, retry: retry_failed },
            results,
            size: concurrency,
            answered,
            open: HashMap::new(),
            looking: HashMap::new(),
            writer: Writer::new(sink, in_order),
            figures,
            told: false,
            shortage,
        })
    }

    /// What has been done so far.
    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    /// Jobs that are open.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Runs until every line has its answer. May be given up at any time; another run goes on.
    ///
    /// # Errors
    ///
    /// If the source, the sink or the broker fails. What is wrong with a line is its answer.
    pub async fn run(
        &mut self,
        mut lines: mpsc::Receiver<Result<Line, Error>>,
        watch: &mut dyn Watch,
    ) -> Result<(), Error> {
        let mut calls: FuturesUnordered<Call> = FuturesUnordered::new();
        // Sends whose refusals are to be told.
        let (refused, mut refusals) = mpsc::channel::<String>(1);
        let mut reading = true;
        let (mut shows, mut looks) = (ticks(SHOW_EVERY), ticks(LOOK_EVERY));
        while reading || !self.looking.is_empty() || !self.open.is_empty() {
            tokio::select! {
                Some(called) = calls.next() => calls.extend(self.called(called?, &refused)?),
                line = lines.recv(), if reading && self.has_room(calls.len()) => match line.transpose()? {
                    None => reading = false,
                    Some(line) => calls.extend(self.take(line)?),
                },
                outcome = self.results.next() => self.heard(&outcome?)?,
                Some(reason) = refusals.recv(), if !self.told => {
                    self.told = true;
                    watch.say(&format!("waiting: {reason}"));
                }
                () = self.waits.silence(), if !self.open.is_empty() => {
                    if let Some(news) = self.oldest_wait().await {
                        watch.say(&news);
                    }
                }
                _ = shows.tick() => watch.show(&self.figures),
                _ = looks.tick() => self.look_again().await?,
            }
        }
        Ok(())
    }

    /// Whether another line may be begun.
    fn has_room(&self, calls: usize) -> bool {
        self.open.len() + self.looking.len() + self.writer.held() < self.size && calls < CALLS
    }

    /// What follows from a call to the broker: another call, if any.
    fn called(&mut self, called: Called, refused: &mpsc::Sender<String>) -> Result<Option<Call>, Error> {
        match called {
            Called::Found { number, tag, digest, outcome } => {
                self.looking.remove(&tag.id);
                self.ended(Open { number, tag, digest, since: Instant::now() }, &outcome, true)?;
                Ok(None)
            }
            Called::Missing { number, tag, asked, id } => {
                // The job of an earlier run that ended just then is not sent again: nothing more would be heard of it.
                if self.looking.remove(&tag.id) == Some(true) {
                    return Ok(Some(self.look(number, tag, *asked)));
                }
                self.send(number, tag, *asked, id, refused)
            }
            Called::Sent => {
                self.figures.sent += 1;
                Ok(None)
            }
        }
    }

    /// Begins to send a line's job, unless it is too large.
    fn send(
        &mut self,
        number: u64,
        tag: Tag,
        asked: Asked,
        id: JobId,
        refused: &mpsc::Sender<String>,
    ) -> Result<Option<Call>, Error> {
        let (body, digest) = asked.body(&id)?;
        if body.len() > envelope::MAX_BYTES {
            let message = format!("the request has {} bytes, more than {}", body.len(), envelope::MAX_BYTES);
            self.refuse(number, &tag, &ApiError::invalid(message))?;
            return Ok(None);
        }
        self.open.insert(id.clone(), Open { number, tag, digest, since: Instant::now() });
        let (refused, shortage) = (refused.clone(), self.shortage.clone());
        // That one is told is enough.
        let told = move |error: &baton_bus::Error| {
            drop(refused.try_send(shortage().unwrap_or_else(|| causes(error))));
        };
        Ok(Some(Box::pin(self.calls.clone().send(asked.lane, id, body, told))))
    }

    /// A result that passes by, perhaps of another's job.
    fn heard(&mut self, outcome: &Outcome) -> Result<(), Error> {
        self.waits.heard();
        match self.open.remove(&outcome.id) {
            Some(open) => self.ended(open, outcome, false),
            None => {
                self.passed_by(&outcome.id);
                Ok(())
            }
        }
    }

    /// Begins to look whether a line's job has ended.
    fn look(&mut self, number: u64, tag: Tag, asked: Asked) -> Call {
        self.looking.insert(tag.id.clone(), false);
        Box::pin(self.calls.clone().look(number, tag, asked))
    }

    /// A result was heard of whose line may still be looked for.
    fn passed_by(&mut self, id: &JobId) {
        let first = JobId::new(input::first_of(id.as_str())).ok();
        for id in [Some(id), first.as_ref()].into_iter().flatten() {
            if let Some(passed) = self.looking.get_mut(id) {
                *passed = true;
            }
        }
    }

    /// Begins a line that was read, if it is to be run.
    fn take(&mut self, Line { number, tag, asked }: Line) -> Result<Option<Call>, Error> {
        self.figures.lines += 1;
        let named = || tag.custom_id.as_deref().unwrap_or(tag.id.as_str());
        let error = match self.answered.need(&tag) {
            Need::Nothing => {
                self.figures.skipped += 1;
                return Ok(None);
            }
            Need::Run => {
                self.writer.begin(number);
                return match asked {
                    Ok(asked) => Ok(Some(self.look(number, tag, asked))),
                    Err(error) => self.refuse(number, &tag, &error).map(|()| None),
                };
            }
            Need::Twice => format!("the name {:?} was another line's already", named()),
            Need::Changed => format!(
                "OUT has the answer to another request under the name {:?}; remove it there, or take another OUT",
                named()
            ),
        };
        // Its own name has an answer.
        let tag = tag.spare(number);
        if self.answered.need(&tag) == Need::Run {
            self.writer.begin(number);
            self.refuse(number, &tag, &ApiError::field("custom_id", format!("custom_id: {error}")))?;
        } else {
            self.figures.skipped += 1;
        }
        Ok(None)
    }

    /// Writes that a line has no answer.
    fn refuse(&mut self, number: u64, tag: &Tag, error: &ApiError) -> Result<(), Error> {
        self.figures.failed += 1;
        self.writer.put(number, output::refusal(tag, number, error)?).map_err(Error::Write)
    }

    /// Writes how a job ended.
    fn ended(&mut self, open: Open, outcome: &Outcome, stored: bool) -> Result<(), Error> {
        let Open { number, tag, digest, .. } = open;
        if outcome.request_digest != digest {
            let refusal = Refusal::conflict(outcome.tenant.clone(), outcome.id.clone(), digest);
            return self.refuse(number, &tag, &ApiError::from(&refusal.error));
        }
        let (line, failed) = output::answer(&tag, outcome)?;
        self.figures.count(outcome, stored);
        if failed {
            self.figures.failed += 1;
        } else {
            self.figures.completed += 1;
        }
        self.writer.put(number, line).map_err(Error::Write)
    }

    /// What the job waits for that has been open for longest, if that is news.
    async fn oldest_wait(&mut self) -> Option<String> {
        let oldest = self.open.iter().min_by_key(|(_, open)| open.since).map(|(id, _)| id.clone());
        self.waits.look(&oldest?).await
    }

    /// Looks up the results of jobs that have been open for long.
    async fn look_again(&mut self) -> Result<(), Error> {
        let old = self.open.iter().filter(|(_, open)| open.since.elapsed() >= LOOK_EVERY).map(|(id, _)| id.clone());
        let old: Vec<JobId> = old.collect();
        let calls = &self.calls;
        let found = stream::iter(old).map(|id| async move { calls.jobs.result(&calls.tenant, &id).await });
        let found: Vec<Option<Outcome>> = found.buffer_unordered(LOOK_UPS).try_collect().await?;
        for outcome in found.into_iter().flatten() {
            if let Some(open) = self.open.remove(&outcome.id) {
                self.ended(open, &outcome, false)?;
            }
        }
        Ok(())
    }
}

fn ticks(every: Duration) -> Interval {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
