//! Whether an admitted job may go on at once. A look at the queues serves many jobs: between two looks, what was passed on
//! since counts too, so that in quiet times no job waits for a look.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use baton_contract::{Name, causes, job::Job, record::Source, subject::Stage};
use bytes::Bytes;
use tokio::time::Instant;

use crate::{
    Bus, Error, HeaderMap,
    tenants::{
        model_lane::ModelLane,
        reading::{Lengths, Reading},
        releaser::Releaser,
        share::Options,
    },
};

/// While jobs flow, the queues are looked at so often.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Where the last look and what was passed on since say that the queues are full, a new one may come so soon. If it says the
/// same, jobs wait, and the next look has time again.
const LOOK_AGAIN: Duration = Duration::from_millis(3);

/// Passes admitted jobs on, or lets them wait. Cheap to clone.
#[derive(Clone)]
pub struct Gate(Arc<Inner>);

struct Inner {
    bus: Bus,
    options: Options,
    state: Mutex<State>,
    /// One look at a time.
    looking: tokio::sync::Mutex<()>,
    /// Whether a look is under way that nobody waits for.
    looks_ahead: AtomicBool,
}

#[derive(Default)]
struct State {
    reading: Reading,
    /// When the last look began.
    at: Option<Instant>,
    /// What was done since.
    since: HashMap<ModelLane, Since>,
}

#[derive(Clone, Copy, Default)]
struct Since {
    passed: u64,
    /// Of tenants that wait for room only.
    waiting: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Pass,
    /// The queues seem to be full.
    Full,
    /// Others wait.
    Contended,
}

impl Bus {
    /// Opens the gate of a pipeline that is shared so.
    pub fn gate(&self, options: Options) -> Gate {
        Gate(Arc::new(Inner {
            bus: self.clone(),
            options,
            state: Mutex::default(),
            looking: tokio::sync::Mutex::default(),
            looks_ahead: AtomicBool::default(),
        }))
    }
}

impl Gate {
    /// Takes a job that was admitted `by` a request to its first stage, or to where it waits for that; keeps a copy of its message, as
    /// [`Bus::begin`] does. `headers` carry its trace and record.
    pub async fn begin(
        &self,
        stage: Stage,
        job: &Job,
        by: Source,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<(), Error> {
        let Inner { bus, options, .. } = &*self.0;
        let line = ModelLane::of(job);
        // Only who moves what waits knows how many of these run.
        let limited = options.share(&job.tenant).max_running.is_some();
        if !limited && self.may_pass(&line).await {
            let subject = bus.place(stage, &line, &job.tenant);
            match bus.begin(subject, job, by, headers.clone(), payload.clone()).await {
                // There may be room where jobs wait.
                Err(Error::TryLater { .. }) => {}
                begun => return begun,
            }
        }
        if !limited {
            self.state().since.entry(line).or_default().waiting += 1;
        }
        bus.begin_waiting(stage, job, by, headers, payload).await
    }

    /// Whether a tenant has as many jobs waiting in a lane as it may, of some model. It was so a moment ago, or will be.
    pub fn is_full(&self, tenant: &Name, lane: &Name) -> bool {
        let Some(most) = self.0.options.tenant_backlog else { return false };
        let state = self.state();
        let full = state.reading.lines.iter().any(|(line, lengths)| {
            line.lane == *lane && lengths.waiting.get(tenant).is_some_and(|waiting| *waiting >= most)
        });
        let old = state.at.is_none_or(|at| at.elapsed() >= LOOK_EVERY);
        drop(state);
        if full && old {
            self.look_ahead();
        }
        full
    }

    /// Whether the pipeline bounds how many jobs of a tenant wait.
    pub fn bounds_tenants(&self) -> bool {
        self.0.options.tenant_backlog.is_some()
    }

    /// What moves waiting jobs to the stages' queues, if no other worker does.
    pub async fn releaser(&self) -> Result<Releaser, Error> {
        Releaser::new(&self.0.bus, self.0.options.clone()).await
    }

    /// Whether a job may go on at once; if so, it counts as passed.
    async fn may_pass(&self, line: &ModelLane) -> bool {
        let asked = Instant::now();
        let (verdict, age) = {
            let mut state = self.state();
            (state.verdict(line, &self.0.options), state.at.map(|at| at.elapsed()))
        };
        let bearable = match verdict {
            Verdict::Pass => {
                if age.is_none_or(|age| age >= LOOK_EVERY) {
                    self.look_ahead();
                }
                return true;
            }
            Verdict::Full => LOOK_AGAIN,
            Verdict::Contended => LOOK_EVERY,
        };
        if age.is_some_and(|age| age < bearable) {
            return false;
        }
        self.look(asked).await;
        self.state().verdict(line, &self.0.options) == Verdict::Pass
    }

    /// Looks at the queues without anybody waiting for it.
    fn look_ahead(&self) {
        if !self.0.looks_ahead.swap(true, Ordering::AcqRel) {
            let (gate, asked) = (self.clone(), Instant::now());
            tokio::spawn(async move {
                gate.look(asked).await;
                gate.0.looks_ahead.store(false, Ordering::Release);
            });
        }
    }

    /// Looks at the queues, unless somebody has since it was `asked` for.
    async fn look(&self, asked: Instant) {
        let _one = self.0.looking.lock().await;
        let before = {
            let state = self.state();
            if state.at.is_some_and(|at| at >= asked) {
                return;
            }
            state.since.clone()
        };
        let at = Instant::now();
        let read = self.0.bus.reading().await;
        let mut state = self.state();
        // Also after a failure: it must not be repeated for every job.
        state.at = Some(at);
        match read {
            Ok(reading) => {
                state.reading = reading;
                // What was done while the broker answered may not be in the answer.
                state.since.retain(|line, since| {
                    let counted = before.get(line).copied().unwrap_or_default();
                    since.passed -= counted.passed.min(since.passed);
                    since.waiting -= counted.waiting.min(since.waiting);
                    since.passed > 0 || since.waiting > 0
                });
            }
            Err(error) => {
                tracing::warn!(error = %causes(&error), "the queues were not looked at; what was known before counts")
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn verdict(&mut self, line: &ModelLane, options: &Options) -> Verdict {
        let lengths = self.reading.lines.get(line);
        let since = self.since.get(line).copied().unwrap_or_default();
        // Who waits because it may run no more is in nobody's way.
        let open = |tenant: &Name| options.share(tenant).max_running.is_none();
        if since.waiting > 0 || lengths.is_some_and(|lengths| lengths.waiting.keys().any(open)) {
            return Verdict::Contended;
        }
        let room = lengths.map_or_else(|| Lengths::default().room(), |lengths| lengths.room());
        if since.passed >= room {
            return Verdict::Full;
        }
        self.since.entry(line.clone()).or_default().passed += 1;
        Verdict::Pass
    }
}
