//! One run: undisturbed answers, faults under load, settling, evidence.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use baton_bus::Bus;
use baton_contract::{JobId, Name, causes, outcome::Status};
use baton_load::target::http;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, interval, sleep_until},
};

use super::{
    Error, Options, Progress,
    audit::Audit,
    client::{Client, Sent},
    crew::Crew,
    disaster::layout,
    inflict::Pipeline,
    kind::{Card, Kind, Kinds},
    processes::Program,
    proxy::Proxy,
    report::{Faults, Report},
    schedule,
    witness::{Ended, Witness},
    workload::Workload,
};

/// In the undisturbed run something ends within that long, or nothing ever will.
const UNDISTURBED_PAUSE: Duration = Duration::from_secs(120);
pub(super) const TICK: Duration = Duration::from_millis(200);
/// How often results are looked up that have not passed by.
const LOOK_UP_EVERY: Duration = Duration::from_secs(3);

/// A pipeline that runs, and all that will happen to it.
pub struct Run<'a> {
    pub(super) options: &'a Options,
    pub(super) seed: u64,
    pub(super) program: Program,
    pub(super) pipeline: Arc<Pipeline>,
    /// Their URLs.
    pub(super) gateways: Vec<String>,
    pub(super) kinds: Kinds,
    pub(super) faults: Vec<schedule::Planned>,
    pub(super) workload: Arc<Workload>,
}

/// What the disturbed part of a run came to.
struct Disturbed {
    sent: Sent,
    /// Faults that found what they were meant for.
    done: BTreeMap<Card, usize>,
    /// Requests that were sent again because the broker had lost them.
    repeated: u64,
    /// Those that were sent again because the answer did not come.
    insisted: u64,
    lasted: Duration,
}

impl Run<'_> {
    async fn connect(&self, link: &Proxy) -> Result<Bus, Error> {
        let options = baton_bus::Options {
            url: format!("nats://{}", link.address()),
            credentials: None,
            name: "baton-chaos".into(),
            layout: layout()?,
        };
        Ok(Bus::connect(options).await?)
    }

    fn client(&self, bus: Bus, tenant: Name) -> Result<Client, Error> {
        let http = http().build().map_err(Error::Http)?;
        let lanes = [Name::new("interactive")?, Name::new("batch")?];
        Ok(Client { bus, http, gateways: self.gateways.clone(), tenant, lanes })
    }

    /// Does all that was drawn, and audits it.
    pub async fn complete(self, progress: &mut impl FnMut(Progress)) -> Result<Report, Error> {
        let (watching, total) = (self.connect(&self.pipeline.watcher).await?, self.workload.jobs.len());
        let mut shown =
            Progress { phase: "undisturbed", ended: 0, total, faults: 0, faults_planned: self.faults.len() };
        progress(shown);
        let expected = self.undisturbed(&watching).await?;

        // Whose requests over HTTP are where nobody needs a key.
        let tenant = Name::default_tenant();
        let jobs = self.workload.jobs.iter().map(|job| job.id.clone()).collect();
        let witness = Arc::new(Witness::start(&watching, &tenant, jobs).await?);
        let mut looking_after = JoinSet::new();
        looking_after.spawn(self.pipeline.clone().look_after());
        let disturbed = self.disturb(&witness, &tenant, |ended, faults| {
            (shown.phase, shown.ended, shown.faults) = ("disturbed", ended, faults);
            progress(shown);
        });
        let disturbed = disturbed.await?;
        if let Some(ended) = looking_after.try_join_next() {
            ended??;
        }
        looking_after.shutdown().await;
        self.pipeline.calm().await?;

        let submitted = disturbed.sent.submitted.iter().filter(|submitted| **submitted).count();
        let (started, limit) = (Instant::now(), Duration::from_secs_f64(self.options.settle));
        let mut look_up = started + LOOK_UP_EVERY;
        while !witness.until_ended(submitted, TICK).await && started.elapsed() < limit {
            if Instant::now() > look_up {
                // Fails while a stream is gone: then again at the next time, or in the evidence.
                let _ = witness.look_up().await;
                look_up = Instant::now() + LOOK_UP_EVERY;
            }
            (shown.phase, shown.ended) = ("settling", witness.ended());
            progress(shown);
        }
        let settled = started.elapsed();
        (shown.phase, shown.ended) = ("audit", witness.ended());
        progress(shown);
        let evidence = self.evidence(&watching, &tenant, &witness, disturbed.sent.submitted.clone()).await?;
        let (crashes, stored_chunks, evidence) = self.end(evidence).await?;
        for (job, what) in &disturbed.sent.wrong {
            witness.observed().clashes.push((self.workload.jobs[*job].id.clone(), what.clone()));
        }
        let audit = Audit::of(&self.workload, &expected, &witness.observed(), &evidence);
        Ok(Report {
            seed: self.seed,
            options: self.options.clone(),
            disturbed_s: disturbed.lasted.as_secs_f64(),
            settled_s: settled.as_secs_f64(),
            faults: self.tally(&disturbed, &witness),
            left_out: self.kinds.left_out.clone(),
            sent_again: disturbed.sent.again,
            repeated: disturbed.repeated,
            insisted: disturbed.insisted,
            resent: disturbed.sent.resent,
            cancellations: disturbed.sent.cancellations,
            crashes,
            stored_chunks,
            audit,
            kept: None,
        })
    }

    fn tally(&self, disturbed: &Disturbed, witness: &Witness) -> Vec<Faults> {
        let mut planned: BTreeMap<Card, usize> = BTreeMap::new();
        self.faults.iter().for_each(|fault| *planned.entry(fault.card).or_default() += 1);
        let row = |(card, planned): (Card, usize)| {
            let done = disturbed.done.get(&card).copied().unwrap_or_default();
            Faults { fault: card.to_string(), planned, done }
        };
        let mut rows: Vec<_> = planned.into_iter().map(row).collect();
        if self.kinds.has(Kind::Copies) {
            let planned = self.workload.jobs.iter().map(|job| job.again.len()).sum();
            rows.push(Faults { fault: Card::of(Kind::Copies).to_string(), planned, done: disturbed.sent.again });
        }
        if self.kinds.has(Kind::LargeResults) {
            let observed = witness.observed();
            let large: Vec<_> = self.workload.jobs.iter().filter(|job| self.workload.is_large(job)).collect();
            let done = large.iter().filter(|job| observed.results.contains_key(&job.id)).count();
            rows.push(Faults { fault: Card::of(Kind::LargeResults).to_string(), planned: large.len(), done });
        }
        rows
    }

    /// The answers to each distinct request, of another tenant, so that no KV cache is there already when it counts.
    async fn undisturbed(&self, watching: &Bus) -> Result<Vec<Vec<Vec<u32>>>, Error> {
        let client = self.client(self.connect(&self.pipeline.submitter).await?, Name::new("undisturbed")?)?;
        let ids = (0..self.workload.distinct()).map(|request| JobId::new(&format!("undisturbed-{request}")));
        let ids = ids.collect::<Result<Vec<_>, _>>()?;
        let witness = Witness::start(watching, &client.tenant, ids.iter().cloned().collect::<HashSet<_>>()).await?;
        let failed = |request, problem| Error::Undisturbed { request, problem };
        for (request, id) in ids.iter().enumerate() {
            let body = self.workload.body(request, id).map_err(|error| failed(request, causes(&error)))?;
            client.submit(body, false).await;
        }
        while witness.ended() < ids.len() {
            if !witness.until_ended(witness.ended() + 1, UNDISTURBED_PAUSE).await {
                break;
            }
        }
        let observed = witness.observed();
        let answers = ids.iter().enumerate().map(|(request, id)| match observed.results.get(id).map(Vec::as_slice) {
            Some([Ended { status: Status::Completed, answers, .. }]) => Ok(answers.clone()),
            other => Err(failed(request, format!("expected one completed result, found {other:?}"))),
        });
        answers.collect()
    }

    /// Submits and disturbs until both are over.
    async fn disturb(
        &self,
        witness: &Arc<Witness>,
        tenant: &Name,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Disturbed, Error> {
        let client = self.client(self.connect(&self.pipeline.submitter).await?, tenant.clone())?;
        let start = Instant::now();
        let crew = Crew {
            client: client.clone(),
            witness: witness.clone(),
            workload: self.workload.clone(),
            start,
            insists: self.kinds.has(Kind::Copies),
            repeated: Arc::new(AtomicU64::new(0)),
            insisted: Arc::new(AtomicU64::new(0)),
        };
        let (told, _sent) = watch::channel(0);
        let playing = client.play(self.workload.clone(), start, told);
        tokio::pin!(playing);
        let mut faults = JoinSet::new();
        for schedule::Planned { at, card, fault } in self.faults.iter().copied() {
            let (pipeline, crew) = (self.pipeline.clone(), crew.clone());
            faults.spawn(async move {
                sleep_until(start + at).await;
                Ok::<_, Error>((card, pipeline.inflict(fault, &crew).await?))
            });
        }
        let (mut done, mut over, mut sent) = (BTreeMap::new(), 0, None);
        let mut ticks = interval(TICK);
        while sent.is_none() || !faults.is_empty() {
            tokio::select! {
                all = &mut playing, if sent.is_none() => sent = Some(all),
                Some(ended) = faults.join_next() => {
                    let (card, hit) = ended??;
                    *done.entry(card).or_default() += usize::from(hit);
                    over += 1;
                }
                _ = ticks.tick() => progress(crew.witness.ended(), over),
            }
        }
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (repeated, insisted) = (count(&crew.repeated), count(&crew.insisted));
        Ok(Disturbed { sent: sent.unwrap_or_default(), done, repeated, insisted, lasted: start.elapsed() })
    }
}
