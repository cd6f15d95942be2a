//! Runs a batch: a window of open jobs moves over the lines of the input.

use std::{
    collections::HashMap,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use baton_assembly::{room, signals, telemetry};
use baton_bus::{Bus, clients::follower::Results, connection::pressure, stage::jobs::Jobs};
use baton_contract::{
    JobId, Name, causes, envelope,
    outcome::{Outcome, Refusal, Status},
};
use baton_gateway::openai::ApiError;
use futures::{StreamExt, TryStreamExt, future::BoxFuture, stream, stream::FuturesUnordered};
use tokio::{
    sync::mpsc,
    task::spawn_blocking,
    time::{Instant, MissedTickBehavior, interval},
};
use tracing::{Instrument, info_span};

use super::{
    RunArguments,
    figures::Figures,
    input::{self, Asked, Line, Settings, Tag},
    output::{self, Answered, Need, Output, Writer},
    progress::{self, Progress},
    reading,
};
use crate::{
    exit::{Exit, Usage},
    output::{note, stdout},
    submit::join,
    waits::Waits,
};

/// Look-ups and submissions that are under way at a time.
const CALLS: usize = 128;
/// How often progress is shown.
const SHOW_EVERY: Duration = Duration::from_millis(200);
/// How often results of open jobs are looked up, in case one was not heard of.
const LOOK_EVERY: Duration = Duration::from_secs(30);
const LOOK_UPS: usize = 32;

pub async fn run(arguments: RunArguments) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let stdin = arguments.input == Path::new("-");
    if !stdin && same_file(&arguments.input, &arguments.output) {
        bail!(Usage("IN and OUT are the same file: choose another for the answers".into()));
    }
    let (plan, bus) = arguments.pipeline.join("baton-batch").await?;
    let tenant = arguments.tenant.of(&arguments.pipeline)?;
    let lane = arguments.lane.clone().or_else(|| plan.lanes.last().cloned()).context("the pipeline has no lanes")?;
    ensure!(plan.lanes.contains(&lane), "the pipeline has no lane {lane}; it has {}", join(&plan.lanes));
    if let Some(model) = &arguments.model {
        let models = plan.models.keys();
        ensure!(plan.models.contains_key(model), "the pipeline has no model {model}; it has {}", join(models));
    }
    let settings =
        Settings { salt: arguments.salt.clone(), model: arguments.model.clone(), lane, lanes: plan.lanes.clone() };
    let total = if stdin { None } else { Some(reading::count(&arguments.input).await?) };
    let lines = reading::read(&arguments.input, settings)?;
    let (path, again) = (arguments.output.clone(), arguments.retry_failed);
    let (output, answered) = spawn_blocking(move || Output::open(&path, again)).await??;

    let telemetry = telemetry::start_quiet(&plan.telemetry, "baton-batch", "batch")?;
    // Before anything is sent, so that no result is missed.
    let results = bus.results(&tenant).await?;
    let (jobs, connection) = (bus.jobs().await?, bus.clone());
    let figures =
        Figures { answered_before: answered.before, failed_before: answered.failed_before, ..Figures::default() };
    let mut window = Window {
        waits: Waits::new(jobs.clone(), tenant.clone()),
        calls: Calls { bus, jobs, tenant, retry: arguments.retry_failed },
        size: arguments.concurrency as usize,
        answered,
        open: HashMap::new(),
        looking: HashMap::new(),
        writer: Writer::new(output, arguments.in_order),
        figures,
        progress: Progress::new(arguments.quiet, total),
        told: false,
        place: room::of_store(&plan),
    };
    let interrupted = tokio::select! {
        ran = window.run(lines, results) => ran.map(|()| false),
        asked = signals::asked_to_stop() => asked.map(|()| true).map_err(anyhow::Error::from),
        died = connection.died() => Err(died.into()),
    };
    window.progress.end();
    telemetry.shutdown_within(telemetry::LAST_SPANS).await;
    let hint = "run the same command again to go on; jobs that were sent keep running";
    let interrupted = interrupted.context(hint)?;
    let figures = &window.figures;
    let took = started.elapsed();
    if arguments.json {
        let mut object = serde_json::to_value(figures)?;
        object["seconds"] = took.as_secs_f64().into();
        object["interrupted"] = interrupted.into();
        if window.writer.is_stdout() {
            note!("{object}");
        } else {
            writeln!(stdout(), "{object}")?;
        }
    } else if !arguments.quiet {
        note!("{}", progress::summary(figures, took));
    }
    if interrupted {
        note!("stopped with {} jobs open: {hint}", window.open.len());
        return Ok(Exit::Interrupted.into());
    }
    Ok(Exit::of_jobs(figures.failed + figures.failed_before == 0))
}

fn same_file(input: &Path, output: &Path) -> bool {
    matches!((input.canonicalize(), output.canonicalize()), (Ok(input), Ok(output)) if input == output)
}

/// A job whose result is awaited.
struct Open {
    number: u64,
    tag: Tag,
    digest: String,
    since: Instant,
}

/// A call to the broker that is under way.
type Call = BoxFuture<'static, anyhow::Result<Called>>;

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
    async fn look(self, number: u64, tag: Tag, asked: Asked) -> anyhow::Result<Called> {
        for attempt in 1.. {
            let id = input::attempt_id(&tag.id, attempt).context("too many attempts at a line; take another --salt")?;
            let Some(outcome) = self.jobs.result(&self.tenant, &id).await? else {
                return Ok(Called::Missing { number, tag, asked: Box::new(asked), id });
            };
            if outcome.status == Status::Completed || !self.retry || !asked.repeatable {
                let (_, digest) = asked.body(&id)?;
                return Ok(Called::Found { number, tag, digest, outcome: Box::new(outcome) });
            }
        }
        bail!("no attempt is left")
    }

    async fn send(
        self,
        lane: Name,
        id: JobId,
        body: Vec<u8>,
        told: impl FnMut(&baton_bus::Error),
    ) -> anyhow::Result<Called> {
        let span = info_span!("submit", job = %id, tenant = %self.tenant);
        let submit = || self.bus.submit(&self.tenant, &lane, body.clone());
        pressure::patiently(submit, told).instrument(span).await?;
        Ok(Called::Sent)
    }
}

/// The jobs that are open, and what became of the others.
struct Window {
    calls: Calls,
    /// Jobs that may be open.
    size: usize,
    answered: Answered,
    open: HashMap<JobId, Open>,
    /// Lines whose results are looked for, by their first attempts, and whether one passed by meanwhile.
    looking: HashMap<JobId, bool>,
    writer: Writer,
    figures: Figures,
    progress: Progress,
    /// Whether it was said that the queue is full.
    told: bool,
    waits: Waits,
    /// Where a store on this machine lies, whose disk may be the broker's, too.
    place: Option<PathBuf>,
}

impl Window {
    /// Until every line has its answer.
    async fn run(
        &mut self,
        mut lines: mpsc::Receiver<anyhow::Result<Line>>,
        mut results: Results,
    ) -> anyhow::Result<()> {
        let mut calls: FuturesUnordered<Call> = FuturesUnordered::new();
        // Sends whose refusals are to be told.
        let (refused, mut refusals) = mpsc::channel::<String>(1);
        let mut reading = true;
        let ticks = |every| {
            let mut ticks = interval(every);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        };
        let (mut shows, mut looks) = (ticks(SHOW_EVERY), ticks(LOOK_EVERY));
        while reading || !self.looking.is_empty() || !self.open.is_empty() {
            let room = self.open.len() + self.looking.len() + self.writer.held() < self.size && calls.len() < CALLS;
            tokio::select! {
                Some(called) = calls.next() => match called? {
                    Called::Found { number, tag, digest, outcome } => {
                        self.looking.remove(&tag.id);
                        self.ended(Open { number, tag, digest, since: Instant::now() }, &outcome, true)?;
                    }
                    Called::Missing { number, tag, asked, id } => {
                        // The job of an earlier run that ended just then is not sent again: nothing more would be heard of it.
                        if self.looking.remove(&tag.id) == Some(true) {
                            calls.push(self.look(number, tag, *asked));
                            continue;
                        }
                        let (body, digest) = asked.body(&id)?;
                        if body.len() > envelope::MAX_BYTES {
                            let message = format!("the request has {} bytes, more than {}", body.len(), envelope::MAX_BYTES);
                            self.refuse(number, &tag, &ApiError::invalid(message))?;
                            continue;
                        }
                        self.open.insert(id.clone(), Open { number, tag, digest, since: Instant::now() });
                        let refused = refused.clone();
                        // That one is told is enough.
                        let place = self.place.clone();
                        let told = move |error: &baton_bus::Error| {
                            drop(refused.try_send(room::shortage(&place).unwrap_or_else(|| causes(error))));
                        };
                        calls.push(Box::pin(self.calls.clone().send(asked.lane, id, body, told)));
                    }
                    Called::Sent => self.figures.sent += 1,
                },
                line = lines.recv(), if reading && room => match line.transpose()? {
                    None => reading = false,
                    Some(line) => {
                        if let Some((tag, asked)) = self.take(&line.tag, line.number, line.asked)? {
                            calls.push(self.look(line.number, tag, asked));
                        }
                    }
                },
                outcome = results.next() => {
                    let outcome = outcome?;
                    self.waits.heard();
                    if let Some(open) = self.open.remove(&outcome.id) {
                        self.ended(open, &outcome, false)?;
                    } else {
                        self.passed_by(&outcome.id);
                    }
                }
                Some(reason) = refusals.recv(), if !self.told => {
                    self.told = true;
                    self.progress.say(&format!("waiting: {reason}"));
                }
                () = self.waits.silence(), if !self.open.is_empty() => self.tell_wait().await,
                _ = shows.tick() => self.progress.show(&self.figures),
                _ = looks.tick() => self.look_again().await?,
            }
        }
        Ok(())
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

    /// A line that was read; returns it if it is to be run.
    fn take(&mut self, tag: &Tag, number: u64, asked: Result<Asked, ApiError>) -> anyhow::Result<Option<(Tag, Asked)>> {
        self.figures.lines += 1;
        let named = || tag.custom_id.as_deref().unwrap_or(tag.id.as_str()).to_owned();
        let error = match self.answered.need(tag) {
            Need::Nothing => {
                self.figures.skipped += 1;
                return Ok(None);
            }
            Need::Run => match asked {
                Ok(asked) => {
                    self.writer.begin(number);
                    return Ok(Some((tag.clone(), asked)));
                }
                Err(error) => {
                    self.writer.begin(number);
                    return self.refuse(number, tag, &error).map(|()| None);
                }
            },
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
    fn refuse(&mut self, number: u64, tag: &Tag, error: &ApiError) -> anyhow::Result<()> {
        self.figures.failed += 1;
        self.writer.put(number, output::refusal(tag, number, error)?).context("cannot write the answers")
    }

    /// Writes how a job ended.
    fn ended(&mut self, open: Open, outcome: &Outcome, stored: bool) -> anyhow::Result<()> {
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
        self.writer.put(number, line).context("cannot write the answers")
    }

    /// Tells what the job waits for that has been open for longest.
    async fn tell_wait(&mut self) {
        let oldest = self.open.iter().min_by_key(|(_, open)| open.since).map(|(id, _)| id.clone());
        if let Some(job) = oldest
            && let Some(news) = self.waits.look(&job).await
        {
            self.progress.say(&news);
        }
    }

    /// Looks up the results of jobs that have been open for long.
    async fn look_again(&mut self) -> anyhow::Result<()> {
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
