//! Instances that do the same, with what is known of each: room is found, and given back.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use baton_contract::stats;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};

use crate::{
    Ended, Instance,
    limit::Limit,
    replicas::{self, Standing},
};

/// Instances that share the requests of a model.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) instances: Vec<Instance>,
    replicas: Mutex<Vec<Replica>>,
    /// Somebody who waits for a place may find one.
    changed: Notify,
    slots: watch::Sender<usize>,
    /// Whether anybody has wanted a place.
    wanted: AtomicBool,
    began: Instant,
}

/// What is known of an instance.
#[derive(Debug)]
pub(super) struct Replica {
    pub(super) limit: Limit,
    key: u64,
    /// Requests that wait in the engine, if it tells.
    pub(super) waiting: Option<usize>,
    /// Why it was not well, at the last check.
    pub(super) fault: Option<String>,
    counts: Counts,
    /// Whether the log says that it is up.
    said_up: bool,
}

#[derive(Debug, Default)]
struct Counts {
    answered: u64,
    put_off: u64,
    failed: u64,
    transfers: u64,
    fallbacks: u64,
}

/// A request's place.
#[derive(Debug)]
pub(super) struct Held {
    side: Arc<Side>,
    index: usize,
    id: u64,
    begun: bool,
    ended: Ended,
}

impl Side {
    pub(super) fn new(instances: Vec<Instance>, fixed: Option<usize>) -> Self {
        let key = |instance: &Instance| {
            // Equal in all workers, so that they prefer the same.
            instance.url().bytes().fold(0, |key, byte| replicas::mixed(key ^ u64::from(byte)))
        };
        let replica = |instance| {
            let key = key(instance);
            let limit = Limit::new(fixed, key);
            Replica { limit, key, waiting: None, fault: None, counts: Counts::default(), said_up: true }
        };
        let replicas: Vec<_> = instances.iter().map(replica).collect();
        let slots = watch::Sender::new(slots(&replicas, Duration::ZERO));
        Self {
            instances,
            replicas: Mutex::new(replicas),
            changed: Notify::new(),
            slots,
            wanted: AtomicBool::new(false),
            began: Instant::now(),
        }
    }

    pub(super) fn slots(&self) -> watch::Receiver<usize> {
        self.want();
        self.slots.subscribe()
    }

    /// Whether anybody has wanted a place, or slots.
    pub(super) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    fn want(&self) {
        self.wanted.store(true, Ordering::Relaxed);
    }

    /// Whether an instance is up, as far as is known.
    pub(super) fn is_up(&self) -> bool {
        self.lock().iter().any(|replica| replica.limit.is_up())
    }

    /// Waits for a place.
    pub(super) async fn place(side: &Arc<Self>, affinity: u64) -> Held {
        side.want();
        loop {
            let mut changed = std::pin::pin!(side.changed.notified());
            changed.as_mut().enable();
            let opens = match side.try_place(affinity) {
                Ok((index, id)) => {
                    return Held { side: side.clone(), index, id, begun: false, ended: Ended::Left };
                }
                Err(opens) => opens,
            };
            tokio::select! {
                () = changed => {}
                () = sleep_until(side.began + opens.unwrap_or_default()), if opens.is_some() => {}
            }
        }
    }

    /// A place, or when there is one through nothing but time.
    fn try_place(&self, affinity: u64) -> Result<(usize, u64), Option<Duration>> {
        self.with(|replicas, now| {
            let standing = |replica: &Replica| Standing {
                up: replica.limit.is_up(),
                open: replica.limit.is_open(now),
                running: replica.limit.running(),
                limit: replica.limit.limit(),
                key: replica.key,
            };
            let standings: Vec<_> = replicas.iter().map(standing).collect();
            match replicas::choose(&standings, affinity) {
                Some(index) => Ok((index, replicas[index].limit.start(now))),
                None => Err(replicas.iter().filter_map(|replica| replica.limit.opens_at()).min()),
            }
        })
    }

    /// Looks at all instances or changes what is known of them, and tells what came of it.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut [Replica], Duration) -> T) -> T {
        let mut replicas = self.lock();
        let now = self.began.elapsed();
        let done = work(&mut replicas, now);
        let present = slots(&replicas, now);
        for (instance, replica) in self.instances.iter().zip(replicas.iter_mut()) {
            replica.say(instance);
        }
        drop(replicas);
        self.slots.send_if_modified(|slots| std::mem::replace(slots, present) != present);
        done
    }

    /// The same where somebody who waits may find a place then.
    pub(super) fn change<T>(&self, work: impl FnOnce(&mut [Replica], Duration) -> T) -> T {
        let done = self.with(work);
        self.changed.notify_waiters();
        done
    }

    pub(super) fn stats(&self, model: &str) -> Vec<stats::Upstream> {
        if !self.is_wanted() {
            return Vec::new();
        }
        let replicas = self.lock();
        let told = self.instances.iter().zip(replicas.iter()).map(|(instance, replica)| stats::Upstream {
            model: model.to_owned(),
            url: instance.url().to_owned(),
            up: replica.limit.is_up(),
            fault: replica.fault().map(str::to_owned),
            limit: replica.limit.limit() as u64,
            running: replica.limit.running() as u64,
            waiting: replica.waiting.map(|waiting| waiting as u64),
            answered: replica.counts.answered,
            put_off: replica.counts.put_off,
            failed: replica.counts.failed,
            transfers: replica.counts.transfers,
            transfer_fallbacks: replica.counts.fallbacks,
        });
        told.collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Replica>> {
        self.replicas.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Jobs worth having: as many as those that answer have room for, or one, to find out who does.
fn slots(replicas: &[Replica], now: Duration) -> usize {
    let up = replicas.iter().filter(|replica| replica.limit.is_up());
    up.map(|replica| replica.limit.room(now)).sum::<usize>().max(1)
}

impl Replica {
    /// Why it is not up, if it is not.
    fn fault(&self) -> Option<&str> {
        (!self.limit.is_up())
            .then(|| self.fault.as_deref().unwrap_or("requests to it fail, though it says that it is well"))
    }

    fn say(&mut self, instance: &Instance) {
        let (up, url) = (self.limit.is_up(), instance.url());
        match self.fault() {
            Some(error) if self.said_up => tracing::warn!(url, error, "an engine went away"),
            None if !self.said_up => tracing::info!(url, "an engine is back"),
            _ => {}
        }
        self.said_up = up;
    }
}

impl Held {
    pub(super) fn instance(&self) -> &Instance {
        &self.side.instances[self.index]
    }

    pub(super) fn first_token(&mut self) {
        if !std::mem::replace(&mut self.begun, true) {
            // With it an outage may end.
            self.side.change(|replicas, now| replicas[self.index].limit.first_token(self.id, now));
        }
    }

    pub(super) fn transferred(&mut self, came: bool) {
        self.side.with(|replicas, _| {
            let counts = &mut replicas[self.index].counts;
            *(if came { &mut counts.transfers } else { &mut counts.fallbacks }) += 1;
        });
    }

    pub(super) fn end(mut self, ended: Ended) {
        self.ended = ended;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.side.change(|replicas, now| {
            let replica = &mut replicas[self.index];
            match self.ended {
                Ended::Answered => replica.counts.answered += 1,
                Ended::PutOff(_) => replica.counts.put_off += 1,
                Ended::Refused | Ended::Failed | Ended::Gone => replica.counts.failed += 1,
                Ended::Left => {}
            }
            replica.limit.end(self.id, self.ended, now);
        });
    }
}
