//! Jobs while what answers them is killed.

use std::{collections::HashSet, sync::Arc, time::Duration};

use baton_contract::{
    JobId, Name,
    outcome::Status,
    request::{ChatMessage, Request},
};
use baton_load::{
    Report, Target,
    target::{Api, Server, http},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    Error, Ground, MODEL, Row, Step, job_id,
    server::Engine,
    stack::{Shape, Stack},
};
use crate::chaos::{client::Client, witness::Witness};

/// How long an engine is away.
const AWAY: Duration = Duration::from_secs(10);
/// How long the broker is.
const BROKER_AWAY: Duration = Duration::from_secs(3);
const ROUND: Duration = Duration::from_millis(100);
/// In that time something ends, or nothing ever will.
const PATIENCE: Duration = Duration::from_secs(1_200);

/// Jobs that were submitted over the bus.
pub(super) struct Jobs {
    pub(super) ids: Vec<JobId>,
    pub(super) witness: Witness,
    since: Instant,
    ended: usize,
}

/// What became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) completed: usize,
    pub(super) failed: usize,
    pub(super) lost: usize,
    pub(super) twice: usize,
}

impl Jobs {
    /// Submits a request for each of `texts`, at once.
    pub(super) async fn submit(stack: &Stack, step: Step, texts: &[String], max_tokens: u32) -> Result<Self, Error> {
        let tenant = Name::default_tenant();
        let ids: Vec<JobId> = (0..texts.len()).map(|number| job_id(step, number)).collect::<Result<_, _>>()?;
        let witness = Witness::start(&stack.bus, &tenant, ids.iter().cloned().collect::<HashSet<_>>()).await?;
        let client = Client {
            bus: stack.bus.clone(),
            http: http().build().map_err(Error::Http)?,
            gateways: Vec::new(),
            tenant,
            lanes: [Name::new("interactive")?, Name::new("batch")?],
        };
        let client = Arc::new(client);
        let mut sending = tokio::task::JoinSet::new();
        for (id, text) in ids.iter().zip(texts) {
            let request = request(Some(id), text, max_tokens);
            let body = serde_json::to_vec(&request).unwrap_or_default();
            let client = client.clone();
            sending.spawn(async move { client.submit(body, false).await });
        }
        sending.join_all().await;
        Ok(Self { ids, witness, since: Instant::now(), ended: 0 })
    }

    /// How many have ended.
    pub(super) fn ended(&mut self) -> usize {
        let ended = self.witness.ended();
        if ended > self.ended {
            (self.ended, self.since) = (ended, Instant::now());
        }
        ended
    }

    /// Whether all have ended, or none does any more.
    pub(super) fn over(&mut self) -> bool {
        self.ended() >= self.ids.len() || self.since.elapsed() > PATIENCE
    }

    /// Results that did not pass by are read from where they are kept.
    pub(super) async fn count(&self, stack: &Stack) -> Result<Count, Error> {
        let jobs = stack.bus.jobs().await?;
        let mut count = Count::default();
        for id in &self.ids {
            let seen = self.witness.observed().results.get(id).map(|all| (all.len(), all[0].status));
            let kept = jobs.result(&Name::default_tenant(), id).await?.map(|outcome| (1, outcome.status));
            match seen.or(kept) {
                None => count.lost += 1,
                Some((times, status)) => {
                    count.twice += usize::from(times > 1);
                    let slot = if status == Status::Completed { &mut count.completed } else { &mut count.failed };
                    *slot += 1;
                }
            }
        }
        Ok(count)
    }
}

/// A greedy request.
pub(super) fn request(id: Option<&JobId>, text: &str, max_tokens: u32) -> Request {
    Request {
        id: id.map(ToString::to_string),
        model: Some(MODEL.to_owned()),
        messages: Some(vec![ChatMessage::text("user", text)]),
        max_tokens: Some(max_tokens),
        temperature: Some(0.0),
        ..Request::default()
    }
}

/// Different texts of about so many tokens.
pub(super) fn texts(count: usize, tokens: u32) -> Vec<String> {
    const WORDS: [&str; 8] = ["sea", "wind", "ship", "harbour", "light", "storm", "sail", "rope"];
    let text = |number: usize| {
        let words = (0..tokens.saturating_sub(35) as usize).map(|place| WORDS[(place + number * (place / 8 + 1)) % 8]);
        format!("Story {number}: {}. Go on.", words.collect::<Vec<_>>().join(" "))
    };
    (0..count).map(text).collect()
}

/// First Baton's jobs, then a client's of its own.
pub(super) async fn run(ground: &Ground<'_>, engine: &mut Engine) -> Result<Vec<Row>, Error> {
    let options = ground.options;
    let all = options.jobs as usize;
    let shape = Shape { engine: &*engine, prefill: None, decoders: 2, max_running: "auto".into() };
    let mut stack = ground.stack(shape).await?;
    let mut jobs = Jobs::submit(&stack, Step::Kills, &texts(all, options.prompt_tokens), options.output_tokens).await?;
    let (mut engine_at, mut broker_at): (Option<Instant>, Option<Instant>) = (None, None);
    let mut next = 0;
    while !jobs.over() {
        // A broker that is away is no reason to start workers again.
        if broker_at.is_none() {
            stack.tend().await?;
        }
        if engine_at.take_if(|at| *at <= Instant::now()).is_some() {
            engine.launch()?;
        }
        if broker_at.take_if(|at| *at <= Instant::now()).is_some() {
            stack.start_broker().await?;
        }
        let ended = jobs.ended();
        match next {
            0 if ended >= all / 6 => {
                engine.kill().await;
                (engine_at, next) = (Some(Instant::now() + AWAY), 1);
            }
            1 if ended >= all / 2 => {
                stack.kill_decoder().await;
                next = 2;
            }
            2 if ended >= all * 3 / 4 => {
                stack.kill_broker().await;
                (broker_at, next) = (Some(Instant::now() + BROKER_AWAY), 3);
            }
            _ => {}
        }
        sleep(ROUND).await;
    }
    let count = jobs.count(&stack).await?;
    stack.stop().await;
    let what = format!(
        "{all} jobs; the engine killed and started 10 s later, then a decode worker killed, then the broker ({next} of 3 done)"
    );
    let found =
        format!("{} completed, {} failed, {} lost, {} twice", count.completed, count.failed, count.lost, count.twice);
    let holds = next == 3 && count == Count { completed: all, ..Count::default() };
    let direct = straight(ground, engine).await?;
    Ok(vec![
        Row::judged(what, found, "0 lost, 0 twice", holds),
        Row::beside(
            format!(
                "the same {all} requests straight at the engine, {} at a time, which is killed and started 10 s later",
                options.clients
            ),
            format!("{} completed, {} lost", direct.completed, direct.failed + direct.lost),
        ),
    ])
}

/// Clients straight at the engine while it is killed once.
async fn straight(ground: &Ground<'_>, engine: &mut Engine) -> Result<Report, Error> {
    let options = ground.options;
    let all = options.jobs as usize;
    let mut load = baton_load::Options::closed_loop(options.clients as usize, Duration::ZERO)?;
    (load.jobs, load.duration_s, load.timeout_s) = (Some(all), None, 600.0);
    load.prompt_tokens = baton_workload::Lengths::Fixed(options.prompt_tokens);
    load.output_tokens = baton_workload::Lengths::Fixed(options.output_tokens);
    load.model = Some(MODEL.into());
    let target = Target::OpenAi(Server::new(engine.url(), Api::Chat));
    let told = watch::Sender::new(0);
    let mut ended = told.subscribe();
    let killing = async {
        if ended.wait_for(|ended| *ended >= all / 6).await.is_ok() {
            engine.kill().await;
            sleep(AWAY).await;
        }
        engine.start().await
    };
    let running = async {
        let measured = baton_load::run(&target, &load, |progress| {
            told.send_replace(progress.ended);
        });
        measured.await.map_err(Error::from)
    };
    let (measured, started) = tokio::join!(running, killing);
    started?;
    Ok(measured?.report)
}
