//! When a model of Baton's answers jobs of a foreign engine in its stead: when they have waited for long, for the engine is gone or
//! has more than it can do, and this worker has room that its own jobs leave.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use baton_bus::{
    Bus,
    duty::stats::Watch,
    stage::{Retry, StageError, pull},
};
use baton_contract::{Name, causes, job::Job, outcome::Code, stats::Snapshot, subject::Stage, upstream::Ask};
use baton_model::{generation::Generator, prompt};
use tokio::{sync::watch, task::spawn_blocking, time::Instant};

/// How long a job stays away that only its engine can answer.
const ONLY_THERE: Duration = Duration::from_secs(5);

/// Looks every second whether jobs of an engine's model are to be answered here.
pub(crate) struct Overflow {
    pub(crate) bus: Bus,
    pub(crate) watch: Watch,
    /// The engine's.
    pub(crate) model: Name,
    /// How this worker takes its own jobs.
    pub(crate) pull: pull::Options,
    pub(crate) after: Duration,
    /// Of those, how many it has in hand.
    pub(crate) own_jobs: Arc<AtomicUsize>,
    /// How many of the engine's it may have.
    pub(crate) room: watch::Sender<usize>,
}

impl Overflow {
    pub(crate) async fn watch(mut self) -> Infallible {
        let mut patience = Patience::new(self.after);
        loop {
            let snapshot = self.watch.next().await;
            let longest = self.bus.longest_wait(Stage::Decode, &self.model, &self.pull.lanes).await;
            let longest = longest.unwrap_or_else(|error| {
                tracing::debug!(error = %causes(&error), "how long jobs wait can't be told");
                Duration::ZERO
            });
            let is_over = patience.is_over(Seen::of(&self.model, &snapshot, longest), Instant::now());
            let room = if is_over { self.free(&snapshot) } else { 0 };
            let before = self.room.send_replace(room);
            if (before == 0) != (room == 0) {
                tracing::info!(
                    model = %self.model,
                    room,
                    "{}",
                    match room {
                        0 => "jobs of a foreign engine are left to it",
                        _ => "jobs of a foreign engine have waited for long, and are answered here, too",
                    }
                );
            }
        }
    }

    /// Jobs that this worker can take besides its own: none while of these any wait.
    fn free(&self, snapshot: &Snapshot) -> usize {
        let own = |model: &Option<Name>| model.as_ref().is_some_and(|model| self.pull.models.contains(model));
        let mut queues = snapshot.queues.iter().filter(|queue| queue.stage == Stage::Decode && own(&queue.model));
        if queues.any(|queue| queue.waiting > 0) {
            return 0;
        }
        self.pull.slots.saturating_sub(self.own_jobs.load(Relaxed))
    }
}

/// What one look shows of an engine and its jobs.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// For how long the job has waited that waits for longest.
    longest: Duration,
    /// Whether there are any, with those that were given back to wait for something.
    any: bool,
    /// Whether a worker says that an instance takes requests.
    up: bool,
}

impl Seen {
    fn of(model: &Name, snapshot: &Snapshot, longest: Duration) -> Self {
        let mut queues = snapshot.queues.iter().filter(|queue| queue.model.as_ref() == Some(model));
        let any = queues.any(|queue| queue.stage == Stage::Decode && queue.waiting + queue.delivered > 0);
        let mut instances = snapshot.workers.iter().flat_map(|worker| &worker.upstreams);
        let up = instances.any(|instance| instance.model == model.as_str() && instance.up);
        Self { longest, any, up }
    }
}

/// How long an engine is waited for.
struct Patience {
    after: Duration,
    /// Since when jobs wait and no instance takes requests.
    down: Option<Instant>,
}

impl Patience {
    fn new(after: Duration) -> Self {
        Self { after, down: None }
    }

    fn is_over(&mut self, seen: Seen, now: Instant) -> bool {
        self.down = if seen.up || !seen.any { None } else { self.down.or(Some(now)) };
        let is_down = self.down.is_some_and(|since| now.duration_since(since) >= self.after);
        seen.longest >= self.after || is_down
    }
}

/// A job as a model of Baton's answers it in the engine's stead.
pub(crate) async fn fit(
    generator: &Generator,
    mut job: Job,
    ask: &Ask,
    accepted_at_ms: u64,
) -> Result<Job, StageError> {
    let only_there = |what: String| {
        let message = format!("only the job's own engine can answer it, for Baton's models have no {what}");
        StageError::new(Retry::After(ONLY_THERE), Code::Internal, message)
    };
    let input = ask.own_input(&job).map_err(only_there)?;
    let generator = generator.clone();
    let fitted = spawn_blocking(move || {
        let model = job.model.clone();
        prompt::fit(&generator, &mut job, input, accepted_at_ms).map(|()| job).map_err(|failure| (model, failure))
    });
    let fitted = fitted.await.map_err(StageError::passing)?;
    // The engine may have a longer context, and another template.
    fitted.map_err(|(model, failure)| {
        let message = format!("the fallback of {model} can't answer the job, which waits for the engine: {failure}");
        StageError::new(Retry::After(ONLY_THERE), Code::Internal, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_engine_is_waited_for_and_preferred_again_once_nothing_waits() {
        let start = Instant::now();
        let at = |second: u64| start + Duration::from_secs(second);
        let seen = |longest: u64, any, up| Seen { longest: Duration::from_secs(longest), any, up };
        let mut patience = Patience::new(Duration::from_secs(5));
        // A burst: jobs wait although the engine works.
        assert!(!patience.is_over(seen(4, true, true), at(0)));
        assert!(patience.is_over(seen(5, true, true), at(1)));
        assert!(!patience.is_over(seen(1, true, true), at(2)));
        // An outage: what was given back waits, too, but is not seen to.
        assert!(!patience.is_over(seen(0, true, false), at(10)));
        assert!(!patience.is_over(seen(0, true, false), at(14)));
        assert!(patience.is_over(seen(0, true, false), at(15)));
        assert!(!patience.is_over(seen(0, true, true), at(16)), "it is back");
        assert!(!patience.is_over(seen(0, true, false), at(17)));
        assert!(!patience.is_over(seen(0, false, false), at(30)), "nobody waits");
        assert!(!patience.is_over(seen(0, true, false), at(31)));
    }
}
