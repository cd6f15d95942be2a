//! How fast an engine is behind Baton, beside how fast it is without.

use std::time::Duration;

use baton_load::{
    Measured, Target,
    statistics::confidence,
    target::{Api, Server},
};
use baton_workload::Lengths;
use serde_json::json;

use super::{Error, Ground, MODEL, Row, server::Engine};

/// The bounds that are tried beside `auto`.
const LIMITS: [&str; 6] = ["4", "8", "16", "32", "64", "auto"];
/// Clients where the engine's own bound is looked for: as many as the largest of them.
const MANY: usize = 64;
const TTFT_REQUESTS: usize = 60;

/// A load of no turn before: no engine has its KV cache.
#[derive(Default)]
struct Turns(u64);

impl Turns {
    /// Lets clients ask at a URL; `jobs` requests each if it is given, else for so long.
    async fn run(
        &mut self,
        ground: &Ground<'_>,
        url: &str,
        clients: usize,
        jobs: Option<usize>,
        lasts: Duration,
    ) -> Result<Measured, Error> {
        self.0 += 1;
        let options = ground.options;
        let mut load = baton_load::Options::closed_loop(clients, lasts)?;
        if jobs.is_some() {
            (load.jobs, load.duration_s) = (jobs, None);
        }
        load.warmup = if jobs.is_some() { 4 } else { 0 };
        load.prompt_tokens = Lengths::Fixed(options.prompt_tokens);
        load.output_tokens = Lengths::Fixed(options.output_tokens);
        load.seed = self.0 + 1_000 * u64::from(std::process::id());
        load.vocabulary = 1 << 15;
        load.model = Some(MODEL.into());
        load.timeout_s = 600.0;
        let mut server = Server::new(url.to_owned(), Api::Chat);
        server.extra.insert("ignore_eos".into(), json!(true));
        let measured = baton_load::run(&Target::OpenAi(server), &load, |_| {}).await?;
        if measured.report.completed == 0 {
            return Err(Error::Undisturbed(format!("{:?}", measured.report.failures)));
        }
        Ok(measured)
    }
}

/// Generated tokens a second while the load was as wanted.
fn speed(measured: &Measured) -> f64 {
    let report = &measured.report;
    report.steady.as_ref().map_or(report.output_throughput, |steady| steady.output_throughput)
}

fn mean(samples: &[f64]) -> f64 {
    samples.iter().sum::<f64>() / samples.len() as f64
}

fn told(samples: &[f64], digits: usize) -> String {
    let Some((mean, half)) = confidence(samples) else { return "nothing".into() };
    let half = half.map_or(String::new(), |half| format!(" ± {half:.digits$}"));
    format!("{mean:.digits$}{half}")
}

/// A closed loop through the gateway and straight at the engine, in turn.
pub(super) async fn throughput(ground: &Ground<'_>, engine: &Engine) -> Result<Vec<Row>, Error> {
    let options = ground.options;
    let lasts = Duration::from_secs(options.seconds.into());
    let stack = ground.before(engine, "auto").await?;
    let (mut turns, mut through, mut straight, mut ratios) = (Turns::default(), Vec::new(), Vec::new(), Vec::new());
    // Both come to rest first: caches, connections, the bound that Baton finds.
    for url in [&stack.url, &engine.url()] {
        turns.run(ground, url, options.clients as usize, None, lasts).await?;
    }
    for round in 0..options.rounds {
        let mut speeds = [0.0; 2];
        for turn in 0..2 {
            let side = (round as usize + turn) % 2;
            let url = if side == 0 { stack.url.clone() } else { engine.url() };
            speeds[side] = speed(&turns.run(ground, &url, options.clients as usize, None, lasts).await?);
        }
        through.push(speeds[0]);
        straight.push(speeds[1]);
        ratios.push(speeds[0] / speeds[1]);
    }
    stack.stop().await;
    let what = format!(
        "{} clients in a closed loop, {} rounds of {} s in turn: output tokens a second through Baton, straight at the engine",
        options.clients, options.rounds, options.seconds
    );
    let found = format!("{}, {}: {} x", told(&through, 1), told(&straight, 1), told(&ratios, 3));
    Ok(vec![Row::judged(what, found, "0.97 x", mean(&ratios) >= 0.97)])
}

/// What Baton adds to the first token's latency, one request at a time.
pub(super) async fn first_tokens(ground: &Ground<'_>, engine: &Engine) -> Result<Vec<Row>, Error> {
    let stack = ground.before(engine, "auto").await?;
    let (mut turns, mut through, mut straight, mut added) = (Turns::default(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..ground.options.rounds {
        let mut medians = [0.0; 2];
        for turn in 0..2 {
            let side = (round as usize + turn) % 2;
            let url = if side == 0 { stack.url.clone() } else { engine.url() };
            let measured = turns.run(ground, &url, 1, Some(TTFT_REQUESTS), Duration::ZERO).await?;
            medians[side] = measured.report.ttft_ms.map(|ttft| ttft.p50).unwrap_or_default();
        }
        through.push(medians[0]);
        straight.push(medians[1]);
        added.push(medians[0] - medians[1]);
    }
    stack.stop().await;
    let what = format!(
        "one client, {} rounds of {TTFT_REQUESTS} requests in turn: time to first token (p50) through Baton, straight at the engine",
        ground.options.rounds
    );
    let found = format!("{} ms, {} ms: {} ms more", told(&through, 2), told(&straight, 2), told(&added, 2));
    Ok(vec![Row::judged(what, found, "3 ms more", mean(&added) <= 3.0)])
}

/// Fixed bounds of requests at the engine, beside the one that Baton finds: a pipeline for each, which have their turns again and
/// again, so that a machine that becomes slower does so for all.
pub(super) async fn limits(ground: &Ground<'_>, engine: &Engine) -> Result<Vec<Row>, Error> {
    let options = ground.options;
    let lasts = Duration::from_secs(options.seconds.into());
    let (mut turns, mut stacks) = (Turns::default(), Vec::new());
    for limit in LIMITS {
        let stack = ground.before(engine, limit).await?;
        turns.run(ground, &stack.url, MANY, None, lasts).await?;
        stacks.push(stack);
    }
    let mut speeds = vec![Vec::new(); LIMITS.len()];
    for round in 0..options.rounds {
        let mut order: Vec<usize> = (0..LIMITS.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for number in order {
            speeds[number].push(speed(&turns.run(ground, &stacks[number].url, MANY, None, lasts).await?));
        }
    }
    for stack in stacks {
        stack.stop().await;
    }
    let Some((auto, fixed)) = speeds.split_last() else { return Ok(Vec::new()) };
    let best = fixed.iter().max_by(|one, other| mean(one).total_cmp(&mean(other))).unwrap_or(auto);
    let ratios: Vec<f64> = auto.iter().zip(best).map(|(auto, best)| auto / best).collect();
    let each: Vec<String> =
        LIMITS.iter().zip(&speeds).map(|(limit, speeds)| format!("{limit}: {}", told(speeds, 1))).collect();
    let what = format!(
        "`max_running`, {MANY} clients in a closed loop, {} rounds of {} s each in turn: output tokens a second",
        options.rounds, options.seconds
    );
    let found = format!("{}; auto is {} x the best", each.join(", "), told(&ratios, 3));
    Ok(vec![Row::judged(what, found, "0.95 x", mean(&ratios) >= 0.95)])
}
