//! Looking after the instances: what they tell of their queues, and whether those that are idle or gone are well.

use std::time::Duration;

use futures::future::join_all;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::side::Side;
use crate::{Fault, Instance, Retry, metrics};

/// How often an instance is looked at.
const EVERY: Duration = Duration::from_millis(500);
/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often one that is up and tells nothing of its queue is asked whether it is well, while it is idle.
const CHECK: Duration = Duration::from_secs(5);
/// An engine that tells nothing of its queue is asked again after so long: it may have been started anew.
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// How an instance is looked at.
struct Look<'a> {
    side: &'a Side,
    index: usize,
    instance: &'a Instance,
    /// When it is asked for its metrics again, and whether it is well.
    metrics_at: Instant,
    check_at: Instant,
}

impl Side {
    /// Looks at all instances, for ever.
    pub(super) async fn look_after(&self) {
        let now = Instant::now();
        let look = |(index, instance)| Look { side: self, index, instance, metrics_at: now, check_at: now };
        join_all(self.instances.iter().enumerate().map(look).map(Look::keep)).await;
    }
}

impl Look<'_> {
    async fn keep(mut self) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.side.is_wanted() {
                self.once().await;
            }
        }
    }

    async fn once(&mut self) {
        let (up, idle) = self.side.with(|replicas, _| {
            let limit = &replicas[self.index].limit;
            (limit.is_working(), limit.running() == 0)
        });
        let now = Instant::now();
        if !up || (idle && now >= self.check_at) {
            return self.check().await;
        }
        if !metrics::has(self.instance.engine()) || now < self.metrics_at {
            return self.look(None);
        }
        match timeout(PATIENCE, self.instance.metrics()).await {
            Ok(Ok(text)) => match metrics::read(self.instance.engine(), &text) {
                Some(figures) => self.look(Some(figures)),
                None => self.has_none(),
            },
            // Busy: the next look tells more.
            Err(_) => {}
            Ok(Err(fault)) => {
                tracing::debug!(url = self.instance.url(), error = %fault, "an engine told nothing of its queue");
                self.has_none();
                self.check().await;
            }
        }
    }

    fn has_none(&mut self) {
        self.metrics_at = Instant::now() + ASK_AGAIN;
        self.look(None);
    }

    fn look(&self, told: Option<metrics::Figures>) {
        self.side.change(|replicas, now| {
            let replica = &mut replicas[self.index];
            replica.waiting = told.map(|figures| figures.waiting);
            replica.limit.look(told, now);
        });
    }

    /// Asks whether it is well.
    async fn check(&mut self) {
        let silent = || Fault::later(format!("it did not say within {PATIENCE:?} whether it is well"));
        let said = timeout(PATIENCE, self.instance.health()).await.unwrap_or_else(|_| Err(silent()));
        self.check_at = Instant::now() + CHECK;
        self.side.change(|replicas, now| {
            let replica = &mut replicas[self.index];
            // One that has no such page, or wants another key, says nothing of how it is.
            if said.as_ref().err().is_none_or(|fault| matches!(fault.retry, Retry::Later(_))) {
                replica.limit.check(said.is_ok(), now);
            }
            replica.fault = said.err().map(|fault| fault.message);
        });
    }
}
