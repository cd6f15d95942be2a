//! Answers to single jobs, for a process that asks many at a time: no consumer is made for one, and nothing is asked of the
//! broker before its request is published.
//!
//! The broker reads a connection in order, so what was subscribed to on the connection before the request was published on it
//! misses nothing of the job. A message on the result's subject is a hint only: it passes by before it is stored, and also where it is refused as a
//! second one. What counts is read from the stream. So that a hint may be lost, the stream is also looked at now and then.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use baton_contract::{
    JobId, Name, causes,
    outcome::{Delta, Outcome, Refusal, request_digest},
};
use tokio::{
    sync::{Notify, mpsc},
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{Bus, Error, connection::Heard, stage::jobs::Jobs};

/// Live tokens that one reader may be behind with, and their bytes. Those beyond it are dropped: the result has them.
const BEHIND: usize = 4_096;
const BEHIND_BYTES: usize = 256 << 10;
/// What a token takes in memory besides the bytes that it came in.
const TOKEN_BYTES: usize = 128;
/// Bytes that all readers of a process may be behind with together, unless it says otherwise.
const ALL_BEHIND_BYTES: usize = 64 << 20;
/// How often the stream of results is looked at without a hint.
const LOOK: Duration = Duration::from_secs(5);
/// The pauses between looks after a hint, until what it hinted at is stored.
const STORED_AFTER_MS: [u64; 8] = [0, 1, 1, 2, 4, 8, 16, 32];

/// Asks for jobs and waits for their answers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Answers {
    jobs: Jobs,
    /// Bytes that all readers are behind with, and may be.
    behind: Arc<AtomicUsize>,
    most_behind: usize,
}

/// A request to be published.
#[derive(Clone, Debug)]
pub struct Ask<'a> {
    /// Whose request it is.
    pub tenant: &'a Name,
    /// The lane that it is submitted to.
    pub lane: &'a Name,
    /// The id that the body names.
    pub job: &'a JobId,
    /// The request as JSON.
    pub body: Vec<u8>,
    /// Whether the tokens are wanted as they come.
    pub live: bool,
    /// Whether the job may have been asked for before: then it may have a result already, or be another request's.
    pub known: bool,
}

/// What is heard of a job.
#[derive(Debug)]
pub enum Event {
    /// A token. Some may be missing, and some may come twice.
    Delta(Delta),
    /// The result, which is the last event.
    Result(Box<Outcome>),
    /// The job of that id is another request's. The last event, too.
    Refused(Box<Refusal>),
}

/// A job that was asked for. Dropping it leaves the job alone.
#[derive(Debug)]
pub struct Answer {
    jobs: Jobs,
    tenant: Name,
    job: JobId,
    digest: String,
    known: bool,
    tokens: Tokens,
    hints: Arc<Hints>,
    /// What was heard, if the stream was not looked at since.
    heard: Option<Hint>,
    _listener: AbortOnDropHandle<()>,
}

/// Why the stream is to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hint {
    /// Something of the job's is there, or is being stored.
    Stored,
    /// Nothing in particular.
    Look,
}

#[derive(Debug, Default)]
struct Hints {
    stored: Notify,
    look: Notify,
}

/// Live tokens that wait for their reader.
#[derive(Debug)]
struct Tokens(mpsc::Receiver<(Delta, Weight)>);

impl Tokens {
    async fn next(&mut self) -> Option<Delta> {
        self.0.recv().await.map(|(delta, _)| delta)
    }
}

/// What a token that waits counts, for its reader and for all readers together.
#[derive(Debug)]
struct Weight {
    bytes: usize,
    counts: [Arc<AtomicUsize>; 2],
}

impl Drop for Weight {
    fn drop(&mut self) {
        for count in &self.counts {
            count.fetch_sub(self.bytes, Relaxed);
        }
    }
}

/// The other end of [`Tokens`].
struct Teller {
    told: mpsc::Sender<(Delta, Weight)>,
    /// What this reader is behind with, and all of them.
    behind: [Arc<AtomicUsize>; 2],
    most: [usize; 2],
}

impl Teller {
    /// Passes a token on if there is room for it. A reader that is too slow finds it in the result.
    fn tell(&self, payload: &[u8]) {
        let bytes = payload.len() + TOKEN_BYTES;
        if self.behind.iter().zip(self.most).any(|(behind, most)| behind.load(Relaxed) + bytes > most) {
            return;
        }
        if let Ok(delta) = serde_json::from_slice(payload) {
            for behind in &self.behind {
                behind.fetch_add(bytes, Relaxed);
            }
            let weight = Weight { bytes, counts: self.behind.clone() };
            // Where it finds no place, its weight goes with it.
            let _ = self.told.try_send((delta, weight));
        }
    }
}

impl Hints {
    async fn next(&self) -> Hint {
        tokio::select! {
            biased;
            () = self.stored.notified() => Hint::Stored,
            () = self.look.notified() => Hint::Look,
        }
    }
}

impl Bus {
    /// Where single jobs are asked for; [`Bus::provision`] must have run once.
    pub async fn answers(&self) -> Result<Answers, Error> {
        Ok(Answers { jobs: self.jobs().await?, behind: Arc::default(), most_behind: ALL_BEHIND_BYTES })
    }
}

impl Answers {
    /// The same, whose readers may be behind with so many bytes together.
    pub fn within(self, most_behind: usize) -> Self {
        Self { most_behind, ..self }
    }

    /// Publishes a request durably, as [`Bus::submit`] does, and begins to wait for its answer.
    pub async fn ask(&self, ask: Ask<'_>) -> Result<Answer, Error> {
        let bus = &self.jobs.bus;
        let Ask { tenant, lane, job, body, live, known } = ask;
        let digest = request_digest(&body);
        let (ears, layout) = (bus.ears.connection().await?, &bus.layout);
        let hear = |subject| bus.ears.listen_on(&ears, subject);
        let tokens = if live { Some(hear(layout.tokens(tenant, job)).await?) } else { None };
        let results = hear(layout.result(tenant, job)).await?;
        let refusals = if known { Some(hear(layout.refusal(tenant, job, &digest)).await?) } else { None };
        let (told, waiting) = mpsc::channel(BEHIND);
        let behind = [Arc::default(), self.behind.clone()];
        let teller = Teller { told, behind, most: [BEHIND_BYTES, self.most_behind] };
        let hints = Arc::new(Hints::default());
        let listener = AbortOnDropHandle::new(tokio::spawn(listen(tokens, results, refusals, teller, hints.clone())));
        bus.submit_on(&ears.jetstream, tenant, lane, body).await?;
        Ok(Answer {
            jobs: self.jobs.clone(),
            tenant: tenant.clone(),
            job: job.clone(),
            digest,
            known,
            tokens: Tokens(waiting),
            hints,
            heard: known.then_some(Hint::Look),
            _listener: listener,
        })
    }
}

/// Passes tokens on as long as there is room for them, and everything else as a hint.
async fn listen(
    mut tokens: Option<Heard>,
    mut results: Heard,
    mut refusals: Option<Heard>,
    teller: Teller,
    hints: Arc<Hints>,
) {
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    look.reset();
    loop {
        tokio::select! {
            // Tokens before the result that follows them.
            biased;
            message = next(&mut tokens) => teller.tell(&message.payload),
            _ = results.next() => hints.stored.notify_one(),
            _ = next(&mut refusals) => hints.stored.notify_one(),
            _ = look.tick() => hints.look.notify_one(),
        }
    }
}

async fn next(heard: &mut Option<Heard>) -> async_nats::Message {
    match heard {
        Some(heard) => heard.next().await,
        None => pending().await,
    }
}

impl Answer {
    /// The job's id.
    pub fn job(&self) -> &JobId {
        &self.job
    }

    /// What is heard next. May be given up and called again without losing anything. A broker that can't be asked for the
    /// result now is asked again later.
    pub async fn next(&mut self) -> Event {
        loop {
            let hint = match self.heard {
                Some(hint) => hint,
                None => tokio::select! {
                    biased;
                    Some(delta) = self.tokens.next() => return Event::Delta(delta),
                    hint = self.hints.next() => hint,
                },
            };
            self.heard = Some(hint);
            let looks = if hint == Hint::Stored { STORED_AFTER_MS.len() } else { 1 };
            for pause in STORED_AFTER_MS.into_iter().take(looks) {
                if pause > 0 {
                    sleep(Duration::from_millis(pause)).await;
                }
                match self.ended().await {
                    Ok(Some(event)) => return event,
                    Ok(None) => {}
                    Err(error) => {
                        tracing::debug!(error = %causes(&error), job = %self.job, "a result could not be looked for")
                    }
                }
            }
            self.heard = None;
        }
    }

    /// Waits for the end, passing over the tokens.
    pub async fn end(&mut self) -> Event {
        loop {
            match self.next().await {
                Event::Delta(_) => {}
                ended => return ended,
            }
        }
    }

    async fn ended(&self) -> Result<Option<Event>, Error> {
        if let Some(outcome) = self.jobs.result(&self.tenant, &self.job).await? {
            if outcome.request_digest == self.digest {
                return Ok(Some(Event::Result(Box::new(outcome))));
            }
            let refusal = Refusal::conflict(self.tenant.clone(), self.job.clone(), self.digest.clone());
            return Ok(Some(Event::Refused(Box::new(refusal))));
        }
        if !self.known {
            return Ok(None);
        }
        let subject = self.jobs.bus.layout.refusal(&self.tenant, &self.job, &self.digest);
        let refusal = self.jobs.of_result_stream(subject, &self.job).await?;
        Ok(refusal.map(|refusal| Event::Refused(Box::new(refusal))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn slow_readers_are_behind_with_a_bounded_part_each_and_together() {
        let all: Arc<AtomicUsize> = Arc::default();
        let payload = serde_json::to_vec(&Delta { token: Some(7), text: "x".repeat(100), ..Delta::default() });
        let payload = payload.unwrap();
        let each = payload.len() + TOKEN_BYTES;
        let reader = || {
            let (told, waiting) = mpsc::channel(BEHIND);
            (Teller { told, behind: [Arc::default(), all.clone()], most: [10 * each, 25 * each] }, Tokens(waiting))
        };
        let mut readers: Vec<_> = (0..3).map(|_| reader()).collect();
        for (teller, _) in &readers {
            (0..100).for_each(|_| teller.tell(&payload));
        }
        let waiting: Vec<usize> = readers.iter().map(|(_, tokens)| tokens.0.len()).collect();
        assert_eq!(waiting, [10, 10, 5]);
        readers[0].1.next().await.unwrap();
        readers[2].0.tell(&payload);
        assert_eq!(readers[2].1.0.len(), 6, "what one has read, another may be behind with");
        readers.clear();
        assert_eq!(all.load(Relaxed), 0, "a reader that left is counted no more");
    }
}
