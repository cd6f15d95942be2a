//! `baton plan`: what each split of the workers into prefill and decode would do with a workload, without running anything.

mod load;
mod show;

use std::{
    fs,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use anyhow::{Context, ensure};
use baton_contract::Name;
use baton_load::Recipe;
use baton_planner::{
    pipeline,
    profile::Profile,
    search::{self, Goal, Prices, Search, Split},
    simulate::{self, Flow, Slo},
};
use baton_topology::{Model, Plan};
use baton_worker::memory;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::spawn_blocking;

use self::load::{LoadArguments, flow};
use crate::context::PipelineArguments;

/// Splits that are simulated at most.
const MOST_SPLITS: usize = 400;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton plan --pipeline sim.toml --workload mixed                     which split does most
  baton plan --profile pipelines/profiles/h100-llama-8b.toml --workers 8 --workload prompts --request-rate 20 --ttft-p99 2s
  baton plan --profile mine.toml --trace conversation.jsonl --time-scale 0.5 --itl-p99 100ms --plot splits.svg
  baton plan --profile mine.toml --workers 2 --cores 2 --set stages.prefill.threads=1 --set stages.decode.threads=1 --workload mixed
  baton plan --profile mine.toml --workload long --prefill-workers 1..4 --decode-workers 1..12 --ttft-p99 1s --json

A profile says what the model costs on the device: `baton calibrate` measures one. A pipeline of the sim engine needs none.

With a rate, a concurrency or a trace, the recommended split is the cheapest that meets the bounds; with bounds alone the one that \
meets them at the highest rate; else the one with the highest throughput. The pipeline's slots, chunk_tokens, batch_tokens, \
prefill_tokens and max_bytes count; a profile's slots, batch_tokens and kv_tokens win over them. Lanes and tenants, several \
models in one worker, crashes and the workers' caches of chunks are not simulated.

Of a model that foreign engines serve, pools of 1 to --workers instances are compared, written 0:1, 0:2 and so on, since each \
instance prefills and decodes: its slots are the requests that it answers at a time. Where some only prefill, they are the prefill workers.")]
pub struct Arguments {
    #[command(flatten)]
    pipeline: PipelineArguments,
    /// What the model costs on the workers' devices
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// The same of the prefill workers, where their device is another
    #[arg(long, value_name = "FILE")]
    prefill_profile: Option<PathBuf>,
    /// The same of the decode workers
    #[arg(long, value_name = "FILE")]
    decode_profile: Option<PathBuf>,
    /// A model of the pipeline; without it the pipeline's default
    #[arg(long, short, value_name = "M")]
    model: Option<Name>,
    #[command(flatten)]
    load: LoadArguments,
    /// 99 of 100 first tokens come within this
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    ttft_p99: Option<Duration>,
    /// 99 of 100 tokens come within this after the one before
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    itl_p99: Option<Duration>,
    /// Workers of both roles together: all their splits are compared; without it as many as the pipeline has
    #[arg(long, value_name = "N", conflicts_with_all = ["prefill_workers", "decode_workers"],
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=256))]
    workers: Option<usize>,
    /// Numbers of prefill workers to compare, with every number of decode workers: 3, or 1..8
    #[arg(long, value_name = "RANGE", requires = "decode_workers")]
    prefill_workers: Option<Range>,
    /// Numbers of decode workers to compare
    #[arg(long, value_name = "RANGE", requires = "prefill_workers")]
    decode_workers: Option<Range>,
    /// What an hour of a prefill worker costs
    #[arg(long, value_name = "PRICE", default_value_t = 1.0)]
    prefill_price: f64,
    /// What an hour of a decode worker costs
    #[arg(long, value_name = "PRICE", default_value_t = 1.0)]
    decode_price: f64,
    /// All workers, the broker and the client share one machine of so many cores, as in an embedded pipeline: what the profile's
    /// `[host]` says they do beside computing then holds the engines up, as far as these fill the cores; without it each worker has
    /// cores enough
    #[arg(long, value_name = "CORES", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1024))]
    cores: Option<usize>,
    /// Let a planner change the workers' roles in the simulation, from each split on
    #[arg(long)]
    planner: bool,
    /// Draw throughput and latencies of the splits into an SVG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Some numbers of workers.
#[derive(Clone, Debug)]
struct Range(RangeInclusive<usize>);

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once("..").unwrap_or((text, text));
        let number = |word: &str| word.trim_start_matches('=').parse().ok().filter(|number| (1..=256).contains(number));
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self(first..=last)),
            _ => Err(format!("expected a number of workers from 1 to 256 or a range such as 1..8, found {text:?}")),
        }
    }
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    spawn_blocking(move || plan(&arguments)).await?
}

fn plan(arguments: &Arguments) -> anyhow::Result<()> {
    let plan = arguments.pipeline.plan()?;
    let load = arguments.load.recipe()?;
    let splits = splits(arguments, &plan)?;
    ensure!(
        splits.len() <= MOST_SPLITS,
        "expected at most {MOST_SPLITS} splits, found {}; narrow the ranges",
        splits.len()
    );
    let options = options(arguments, &plan, &load)?;
    if let Some(cores) = arguments.cores {
        options.fit_cores(&splits, cores)?;
    }
    let goal = match (&options.slo, options.flow, load.has_times()) {
        (_, Flow::Concurrency(_), _) => Goal::ClosedLoop,
        (_, _, true) => Goal::Given,
        (Slo { ttft_s: None, itl_s: None }, ..) => Goal::Saturated,
        _ => Goal::HighestRate,
    };
    ensure!(
        !(arguments.planner && goal == Goal::HighestRate),
        "--planner needs a load: give --request-rate, --concurrency or --trace, or leave out the bounds"
    );
    let prices = Prices { prefill: arguments.prefill_price, decode: arguments.decode_price };
    let search = Search { options: &options, goal, prices, requests: |rate| load.requests(rate) };
    let bar = progress(splits.len() * search.simulations_per_split());
    let candidates = search.run(&splits, || bar.inc(1))?;
    bar.finish_and_clear();
    let recommendation = search::recommend(&candidates, goal).context("there is no split to recommend")?;
    if let Some(path) = &arguments.plot {
        fs::write(path, show::plot(&candidates, &load.describe()))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let shown = show::Shown { goal, workload: load.describe(), options: &options, candidates, recommendation };
    if arguments.json {
        shown.json()?;
    } else {
        shown.print()?;
    }
    Ok(())
}

fn splits(arguments: &Arguments, plan: &Plan) -> anyhow::Result<Vec<Split>> {
    if let (Some(prefill), Some(decode)) = (&arguments.prefill_workers, &arguments.decode_workers) {
        let all = prefill.0.clone().flat_map(|prefill| decode.0.clone().map(move |decode| Split { prefill, decode }));
        return Ok(all.collect());
    }
    let (stages, (_, model)) = (&plan.stages, model(arguments, plan)?);
    let found = match model {
        Model::Upstream(upstream) => upstream.prefill_urls.len() + upstream.urls.len(),
        _ => stages.prefill.compute.stage.replicas + stages.decode.compute.stage.replicas,
    };
    let workers = arguments.workers.unwrap_or(found);
    let splits = pipeline::splits(model, workers);
    ensure!(
        !splits.is_empty(),
        "expected at least 2 workers to split, found {workers} in the pipeline; say how many with --workers"
    );
    Ok(splits)
}

/// What is simulated, but for the numbers of workers.
fn options(arguments: &Arguments, plan: &Plan, load: &Recipe) -> anyhow::Result<simulate::Options> {
    let (name, model) = model(arguments, plan)?;
    let profile = |own: &Option<PathBuf>| {
        let named = own.as_ref().or(arguments.profile.as_ref()).map(|path| read_profile(path)).transpose()?;
        anyhow::Ok(pipeline::profile(name, model, named)?)
    };
    let profiles = (profile(&arguments.prefill_profile)?, profile(&arguments.decode_profile)?);
    let options = simulate::Options {
        block_tokens: load.block_tokens(),
        flow: flow(load),
        slo: Slo {
            ttft_s: arguments.ttft_p99.map(|time| time.as_secs_f64()),
            itl_s: arguments.itl_p99.map(|time| time.as_secs_f64()),
        },
        planner: arguments.planner.then(pipeline::at_will),
        ..pipeline::simulated(plan, profiles, memory::for_kv_caches, arguments.cores)?
    };
    Ok(match model {
        Model::Upstream(upstream) => options.of_foreign(upstream),
        _ => options,
    })
}

/// The model that is planned for.
fn model<'a>(arguments: &'a Arguments, plan: &'a Plan) -> anyhow::Result<(&'a Name, &'a Model)> {
    let name = arguments.model.as_ref().unwrap_or(&plan.default_model);
    let model = plan.models.get(name).with_context(|| {
        let names: Vec<String> = plan.models.keys().map(ToString::to_string).collect();
        format!("the pipeline has no model {name}: expected one of {}", names.join(", "))
    })?;
    Ok((name, model))
}

fn read_profile(path: &Path) -> anyhow::Result<Profile> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read the profile {}", path.display()))?;
    Profile::read(&text).with_context(|| format!("in {}", path.display()))
}

fn progress(simulations: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} simulations  {elapsed}, {eta} left");
    ProgressBar::new(simulations as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
