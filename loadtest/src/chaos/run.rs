//! One run: undisturbed answers, faults under load, settling, evidence.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use baton_bus::Bus;
use baton_contract::{
    JobId, Name, causes,
    envelope::DecodeTask,
    outcome::Status,
    subject::{Layout, Stage},
};
use tokio::{
    sync::{Mutex, watch},
    task::JoinSet,
    time::{Instant, interval, sleep, sleep_until},
};

use super::{
    ACK_WAIT, Error, Options, Progress,
    audit::{Audit, Evidence},
    client::{Client, Sent},
    inflict::{Pipeline, Place},
    processes::{Broker, Program, Worker},
    proxy::Proxy,
    report::{Faults, Report},
    schedule::{self, Kind},
    store::Directory,
    witness::{Ended, Witness},
    workload::Workload,
};

/// In the undisturbed run something ends within that long, or nothing ever will.
const UNDISTURBED_PAUSE: Duration = Duration::from_secs(120);
/// How long queues may take to empty after the last result.
const EMPTY_WITHIN: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(200);

/// A pipeline that runs, and all that will happen to it.
pub struct Run<'a> {
    options: &'a Options,
    seed: u64,
    program: Program,
    pipeline: Arc<Pipeline>,
    faults: Vec<schedule::Planned>,
    workload: Arc<Workload>,
}

/// What the disturbed part of a run came to.
struct Disturbed {
    sent: Sent,
    /// By kind: faults that found what they were meant for.
    done: BTreeMap<Kind, usize>,
    lasted: Duration,
}

impl<'a> Run<'a> {
    /// Draws everything, and starts broker and workers below `place`.
    pub async fn prepare(options: &'a Options, seed: u64, place: &Path) -> Result<Self, Error> {
        let lasts = Duration::from_secs_f64(options.minutes * 60.0);
        let mean = Duration::from_secs_f64(options.fault_every);
        let workers = options.workers as usize;
        let workload =
            Workload::draw(seed, options.jobs as usize, options.distinct() as usize, lasts, options.max_tokens)?;

        let logs = place.join("logs");
        std::fs::create_dir(&logs).map_err(|source| Error::Directory { path: logs.clone(), source })?;
        let baton = options.baton.clone().unwrap_or_else(beside_this_program);
        let (mut settings, mut environment) = (options.settings(), Vec::new());
        let (mut store, mut store_link) = (None, None);
        match &options.store {
            Some(url) => {
                settings.push(format!("store.url={url}"));
                store_link = endpoint_proxy(&mut environment).await?;
            }
            None => {
                let unusable = |source| Error::Directory { path: place.to_owned(), source };
                let directory = Directory::create(place).map_err(unusable)?;
                settings.push(format!("store.url=file://{}", directory.root().display()));
                store = Some(Mutex::new(directory));
            }
        }
        let program = Program::new(baton, settings, environment, logs);
        let nats_server = match &options.nats_server {
            Some(path) => path.clone(),
            None => brought_nats_server(&program).await?,
        };
        let mut places = Vec::new();
        for stage in Stage::ALL {
            let mut of_stage = Vec::new();
            for number in 0..workers {
                let link = Proxy::start().await.map_err(Error::Proxy)?;
                let worker = Worker::new(program.clone(), stage, number, format!("nats://{}", link.address()));
                of_stage.push(Place { worker: Mutex::new(worker), link });
            }
            places.push(of_stage);
        }
        let pipeline = Pipeline {
            places,
            broker: Mutex::new(Broker::new(&program, nats_server, place.join("nats"))),
            submitter: Proxy::start().await.map_err(Error::Proxy)?,
            watcher: Proxy::start().await.map_err(Error::Proxy)?,
            store,
            store_link,
        };
        pipeline.start_broker(&mut *pipeline.broker.lock().await).await?;
        if options.store.is_some() {
            // A store that refuses everything would look like one that is disturbed.
            program.baton(&["doctor"], &format!("nats://{}", pipeline.watcher.address())).await?;
        }
        pipeline.start_workers().await?;
        let faults = schedule::draw(seed, lasts, mean, workers, ACK_WAIT, options.store.is_none());
        Ok(Self { options, seed, program, pipeline: Arc::new(pipeline), faults, workload: Arc::new(workload) })
    }

    async fn connect(&self, link: &Proxy) -> Result<Bus, Error> {
        let options = baton_bus::Options {
            url: format!("nats://{}", link.address()),
            credentials: None,
            name: "baton-chaos".into(),
            layout: Layout::new(Name::new("baton")?),
        };
        Ok(Bus::connect(options).await?)
    }

    fn client(&self, bus: Bus, tenant: &str) -> Result<Client, Error> {
        Ok(Client { bus, tenant: Name::new(tenant)?, lanes: [Name::new("interactive")?, Name::new("batch")?] })
    }

    /// Does all that was drawn, and audits it.
    pub async fn complete(self, progress: &mut impl FnMut(Progress)) -> Result<Report, Error> {
        let (watching, total) = (self.connect(&self.pipeline.watcher).await?, self.workload.jobs.len());
        let mut shown =
            Progress { phase: "undisturbed", ended: 0, total, faults: 0, faults_planned: self.faults.len() };
        progress(shown);
        let expected = self.undisturbed(&watching).await?;

        let tenant = Name::new("chaos")?;
        let jobs = self.workload.jobs.iter().map(|job| job.id.clone()).collect();
        let mut witness = Witness::start(&watching, &tenant, jobs).await?;
        let mut looking_after = JoinSet::new();
        looking_after.spawn(self.pipeline.clone().look_after());
        let disturbed = self.disturb(&witness, |ended, faults| {
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
        while !witness.until_ended(submitted, TICK).await && started.elapsed() < limit {
            (shown.phase, shown.ended) = ("settling", witness.ended());
            progress(shown);
        }
        let settled = started.elapsed();
        (shown.phase, shown.ended) = ("audit", witness.ended());
        progress(shown);
        let evidence = self.evidence(&watching, &tenant, &witness, disturbed.sent.submitted.clone()).await?;
        let (crashes, stored_chunks, evidence) = self.end(evidence).await?;
        let audit = Audit::of(&self.workload, &expected, &witness.observed(), &evidence);
        Ok(Report {
            seed: self.seed,
            options: self.options.clone(),
            disturbed_s: disturbed.lasted.as_secs_f64(),
            settled_s: settled.as_secs_f64(),
            faults: self.tally(&disturbed.done),
            sent_again: disturbed.sent.again,
            resent: disturbed.sent.resent,
            cancellations: disturbed.sent.cancellations,
            crashes,
            stored_chunks,
            audit,
            kept: None,
        })
    }

    fn tally(&self, done: &BTreeMap<Kind, usize>) -> Vec<Faults> {
        let mut planned: BTreeMap<Kind, usize> = BTreeMap::new();
        self.faults.iter().for_each(|fault| *planned.entry(fault.kind).or_default() += 1);
        let row = |(kind, planned): (Kind, usize)| {
            let done = done.get(&kind).copied().unwrap_or_default();
            Faults { fault: kind.to_string(), planned, done }
        };
        planned.into_iter().map(row).collect()
    }

    /// The answers to each distinct request, of another tenant, so that no KV cache is there already when it counts.
    async fn undisturbed(&self, watching: &Bus) -> Result<Vec<Vec<Vec<u32>>>, Error> {
        let client = self.client(self.connect(&self.pipeline.submitter).await?, "undisturbed")?;
        let ids = (0..self.workload.distinct()).map(|request| JobId::new(&format!("undisturbed-{request}")));
        let ids = ids.collect::<Result<Vec<_>, _>>()?;
        let mut witness = Witness::start(watching, &client.tenant, ids.iter().cloned().collect::<HashSet<_>>()).await?;
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
    async fn disturb(&self, witness: &Witness, mut progress: impl FnMut(usize, usize)) -> Result<Disturbed, Error> {
        let client = self.client(self.connect(&self.pipeline.submitter).await?, "chaos")?;
        let start = Instant::now();
        let (told, _sent) = watch::channel(0);
        let playing = client.play(self.workload.clone(), start, told);
        tokio::pin!(playing);
        let mut faults = JoinSet::new();
        for schedule::Planned { at, kind, fault } in self.faults.iter().copied() {
            let pipeline = self.pipeline.clone();
            faults.spawn(async move {
                sleep_until(start + at).await;
                Ok::<_, Error>((kind, pipeline.inflict(fault).await?))
            });
        }
        let (mut done, mut over, mut sent) = (BTreeMap::new(), 0, None);
        let mut ticks = interval(TICK);
        while sent.is_none() || !faults.is_empty() {
            tokio::select! {
                all = &mut playing, if sent.is_none() => sent = Some(all),
                Some(ended) = faults.join_next() => {
                    let (kind, hit) = ended??;
                    *done.entry(kind).or_default() += usize::from(hit);
                    over += 1;
                }
                _ = ticks.tick() => progress(witness.ended(), over),
            }
        }
        Ok(Disturbed { sent: sent.unwrap_or_default(), done, lasted: start.elapsed() })
    }

    /// What broker and records say when nothing moves any more.
    async fn evidence(
        &self,
        bus: &Bus,
        tenant: &Name,
        witness: &Witness,
        submitted: Vec<bool>,
    ) -> Result<Evidence, Error> {
        let mut evidence = Evidence { submitted, ..Evidence::default() };
        let deadline = Instant::now() + EMPTY_WITHIN;
        loop {
            for stage in Stage::ALL {
                // Only counted: what the messages say does not matter.
                evidence.waiting.insert(stage.to_string(), bus.waiting::<DecodeTask>(stage).await?.count);
            }
            evidence.waiting.insert("waiting".into(), bus.waiting_for_turns().await?);
            if evidence.waiting.values().all(|count| *count == 0) || Instant::now() > deadline {
                break;
            }
            sleep(TICK).await;
        }
        let jobs = bus.jobs().await?;
        for job in &self.workload.jobs {
            evidence.states.push(jobs.get(tenant, &job.id).await?.map(|stored| stored.record.state));
            let seen = witness.observed().results.contains_key(&job.id);
            // The stream is what counts, should the witness have overlooked something.
            if !seen && let Some(outcome) = jobs.result(tenant, &job.id).await? {
                witness.observed().result(&outcome);
            }
        }
        let letters = bus.dead_letters().await?;
        evidence.dead_letters = letters.iter().map(|letter| format!("{}: {}", letter.id, letter.cause)).collect();
        Ok(evidence)
    }

    /// Ends all processes and looks at what they left: how often workers had ended by themselves, how many chunks there
    /// were, and the evidence.
    async fn end(&self, mut evidence: Evidence) -> Result<(u64, u64, Evidence), Error> {
        let crashes = self.pipeline.stop_workers().await?;
        let broker = format!("nats://{}", self.pipeline.watcher.address());
        let collect = ["kv", "gc", "--grace", "0s", "--max-age", "0s", "--json"];
        let output = self.program.baton(&collect, &broker).await?;
        let collected: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let stored_chunks = collected["stored"]["chunks"].as_u64().unwrap_or_default();
        evidence.orphans = match &self.pipeline.store {
            Some(store) => {
                let files = store.lock().await.files().map_err(Error::Store)?;
                files.iter().map(|path| path.display().to_string()).collect()
            }
            None => {
                let output = self.program.baton(&["kv", "ls", "--json"], &broker).await?;
                String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
            }
        };
        self.pipeline.broker.lock().await.stop().await?;
        evidence.processes = self.program.remaining();
        evidence.panics = self.program.panics();
        Ok((crashes, stored_chunks, evidence))
    }
}

/// If the store's endpoint can be put behind a proxy, does so.
async fn endpoint_proxy(environment: &mut Vec<(String, String)>) -> Result<Option<Proxy>, Error> {
    const ENDPOINT: &str = "AWS_ENDPOINT_URL";
    let Some(host) = std::env::var(ENDPOINT).ok().and_then(|url| url.strip_prefix("http://").map(str::to_owned)) else {
        return Ok(None);
    };
    let proxy = Proxy::start().await.map_err(Error::Proxy)?;
    proxy.lead_to(host.trim_end_matches('/').to_owned());
    environment.push((ENDPOINT.to_owned(), format!("http://{}", proxy.address())));
    Ok(Some(proxy))
}

async fn brought_nats_server(program: &Program) -> Result<PathBuf, Error> {
    let output = program.bare(&["setup", "--json"]).await?;
    let paths: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let path = paths["nats_server"].as_str().map(PathBuf::from);
    path.ok_or_else(|| Error::Command { command: "setup --json".into(), problem: "it names no nats_server".into() })
}

fn beside_this_program() -> PathBuf {
    let beside = std::env::current_exe().ok().map(|own| own.with_file_name("baton"));
    beside.filter(|path| path.exists()).unwrap_or_else(|| "baton".into())
}
