//! `baton calibrate`: measures what a model, the store and the bus cost on this machine, as a profile for `baton plan`.

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
};

use anyhow::{Context, ensure};
use baton_contract::{Name, size};
use baton_measure::calibrate::{self, Neighbours, Options};
use baton_model::{
    model::{self, Compute},
    source::Source,
    threads::{ComputeThreads, use_threads},
};
use baton_planner::profile::Profile;
use baton_terminal::table;
use baton_topology::{Model, Plan, Upstream};
use tokio::task::spawn_blocking;

use crate::{local::EngineArguments, measuring, output::stdout};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton calibrate -o profile.toml                                    the default model on this CPU, about a minute
  baton calibrate --threads 1 --beside 1 -o profile.toml             of workers with a thread each, two on this machine
  baton calibrate --model hf:owner/name --device cuda --kv-memory 8GiB -o profile.toml
  baton calibrate --pipeline sim.toml --model sim -o profile.toml    a pipeline's model: of a sim its times are taken as they are
  baton calibrate --pipeline vllm.toml --model llama -o profile.toml a foreign engine, which nobody else may ask meanwhile

Nothing else should run on the machine but what --beside starts: workers share its caches and its memory's bandwidth. The \
engine computes passes and steps of many sizes, each of which is measured --repeat times; the coefficients of the cost model come from the medians by least squares, and what they are off by is shown. The store is a \
directory of its own unless one is named; chunks that are put into a named one are left to its collection. The bus is measured by a \
pipeline of its own, whose engine takes no time.

Of a foreign engine the first instance is asked, and times are taken from the outside: first tokens of prompts of many lengths, and \
steps of more and more answers at a time, up to max_running or as long as that brings more. Only --repeat counts there. What such an \
engine keeps to itself is not in the profile: its KV memory is never full, and KV caches on their way cost nothing.")]
pub struct Arguments {
    #[command(flatten)]
    engine: EngineArguments,
    /// A pipeline whose model --model names, by its name there; codec and chunk_tokens are the pipeline's too
    #[arg(long, short, value_name = "FILE")]
    pipeline: Option<PathBuf>,
    /// How to compute: fast (on quantized weights and activations) or exact (in f32 on de-quantized weights)
    #[arg(long, value_name = "MODE", default_value = "fast")]
    compute: Compute,
    /// Memory for the KV caches that are measured with; sizes that don't fit it are left out
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = bytes)]
    kv_memory: u64,
    /// URL of the object store to measure
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// How often every size is measured
    #[arg(long, value_name = "TIMES", default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..=100))]
    repeat: u16,
    /// So many other engines compute meanwhile, each with as many threads, as workers that share this machine do: they decode while
    /// prefill is measured and the other way round, and beside messages and chunks one more computes
    #[arg(long, value_name = "ENGINES", default_value_t = 0, conflicts_with = "pipeline", value_parser = clap::value_parser!(u16).range(..=64))]
    beside: u16,
    /// Be one of those engines: what to do comes on standard input
    #[arg(long, hide = true)]
    keep_company: bool,
    /// Write the profile here; without it to standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print the profile as one JSON object instead of what was found, for people
    #[arg(long)]
    json: bool,
}

fn bytes(text: &str) -> Result<u64, String> {
    let size = size::parse(text, size::BINARY.into_iter().chain(size::DECIMAL)).map(|(count, (_, unit))| count * unit);
    size.filter(|size| *size > 0).ok_or_else(|| format!("expected a size such as 512MiB or 8GiB, found {text:?}"))
}

/// What is measured.
struct Subject {
    name: String,
    source: Source,
    codec: baton_storage::codec::Codec,
    chunk_tokens: usize,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    ensure!(
        arguments.beside == 0 || arguments.engine.threads > 0,
        "engines on all cores would wait for each other: with --beside say how many each has, as in --threads 1"
    );
    if let Some((name, upstream)) = foreign(&arguments)? {
        let (bar, steps) = measuring::bar("{bar:30} {pos}/{len}  {msg}  {elapsed}");
        let upstream = baton_assembly::upstreams::open(&name, &upstream)?;
        let options = calibrate::foreign::Options { name: name.to_string(), upstream, repeat: arguments.repeat.into() };
        let profile = calibrate::foreign::run(options, steps).await?;
        bar.finish_and_clear();
        return write(&arguments, &profile);
    }
    let Subject { name, source, codec, chunk_tokens } = subject(&arguments).await?;
    ensure!(
        arguments.beside == 0 || !matches!(source, Source::Sim(_)),
        "the sim engine takes no cores of others; leave out --beside"
    );
    if arguments.keep_company {
        return spawn_blocking(move || keep_company(&arguments, &source)).await?;
    }
    let (bar, steps) = measuring::bar("{bar:30} {pos}/{len}  {msg}  {elapsed}");
    let options = Options {
        name,
        source,
        engine: arguments.engine.engine(),
        compute: arguments.compute,
        kv_memory: arguments.kv_memory,
        codec,
        chunk_tokens,
        store: arguments.store.clone(),
        repeat: arguments.repeat.into(),
        neighbours: arguments.neighbours(),
    };
    let profile = calibrate::run(options, steps).await?;
    bar.finish_and_clear();
    write(&arguments, &profile)
}

/// Computes beside another `baton calibrate` until that has measured.
fn keep_company(arguments: &Arguments, source: &Source) -> anyhow::Result<()> {
    let options =
        model::Options { compute: arguments.compute, kv_bytes: arguments.kv_memory, ..model::Options::default() };
    let mut model = arguments.engine.engine().load(source, options)?;
    Ok(ComputeThreads::of_one_in(1)?.run(move || calibrate::keep_company(model.as_mut()))?)
}

impl Arguments {
    /// The other engines, and the command line of each.
    fn neighbours(&self) -> Neighbours {
        let EngineArguments { model, device, threads } = &self.engine;
        let compute = match self.compute {
            Compute::Exact => "exact",
            Compute::Fast => "fast",
        };
        let threads = threads.to_string();
        let arguments = ["calibrate", "--keep-company", "--model", model, "--device", device];
        let arguments = arguments.into_iter().chain(["--compute", compute, "--threads", &threads]);
        Neighbours { count: self.beside, arguments: arguments.map(Into::into).collect() }
    }
}

/// Writes the profile where it is wanted.
fn write(arguments: &Arguments, profile: &Profile) -> anyhow::Result<()> {
    let text = toml::to_string(profile).context("cannot write the profile")?;
    // What is written can be read.
    Profile::read(&text)?;
    match &arguments.output {
        Some(path) => fs::write(path, &text).with_context(|| format!("cannot write {}", path.display()))?,
        None if !arguments.json => write!(stdout(), "{text}")?,
        None => {}
    }
    if arguments.json {
        writeln!(stdout(), "{}", serde_json::to_string(profile)?)?;
    } else if arguments.output.is_some() {
        print(profile)?;
    }
    Ok(())
}

/// The model that is named, and its pipeline, if there is one.
fn named(arguments: &Arguments) -> anyhow::Result<Option<(Name, Model, Plan)>> {
    let Some(path) = &arguments.pipeline else { return Ok(None) };
    let text = fs::read_to_string(path).with_context(|| format!("cannot read the pipeline {}", path.display()))?;
    let plan = Plan::load(Some(&text), [], &[])?;
    let name = match arguments.engine.model.as_str() {
        "default" => plan.default_model.clone(),
        name => Name::new(name)?,
    };
    let model = plan.models.get(&name).with_context(|| format!("the pipeline has no model {name}"))?.clone();
    Ok(Some((name, model, plan)))
}

/// The model that is named, if a foreign engine serves it.
fn foreign(arguments: &Arguments) -> anyhow::Result<Option<(Name, Upstream)>> {
    Ok(match named(arguments)? {
        Some((name, Model::Upstream(upstream), _)) => {
            ensure!(arguments.store.is_none(), "a foreign engine stores no KV caches; leave out --store");
            Some((name, upstream))
        }
        _ => None,
    })
}

async fn subject(arguments: &Arguments) -> anyhow::Result<Subject> {
    let Some((name, model, plan)) = named(arguments)? else {
        let source = arguments.engine.source().await?;
        let name = arguments.engine.model.clone();
        return Ok(Subject { name, source, codec: baton_storage::codec::Codec::Lossless, chunk_tokens: 256 });
    };
    use_threads(arguments.engine.threads)?;
    let source = spawn_blocking(move || baton_assembly::models::source(&model)).await??;
    let codec = baton_assembly::store::codec(&plan);
    Ok(Subject { name: name.to_string(), source, codec, chunk_tokens: plan.store.chunk_tokens })
}

fn print(profile: &Profile) -> io::Result<()> {
    let mut out = stdout();
    let Profile { name, fit, .. } = profile;
    let rows: Vec<Vec<String>> =
        profile.costs().into_iter().map(|(what, value)| vec![what.to_owned(), value]).collect();
    writeln!(out, "{name}\n")?;
    write!(out, "{}", table::render(&["what", "takes"], &rows))?;
    if let Some(fit) = fit {
        let percent = |share: f64| format!("{:.1} %", share * 100.0);
        writeln!(out)?;
        let mut error = |what: &str, mean, max| {
            writeln!(out, "{what:<8} off by {} on average, at most {}", percent(mean), percent(max))
        };
        error("prefill", fit.prefill_mean_error, fit.prefill_max_error)?;
        error("decode", fit.decode_mean_error, fit.decode_max_error)?;
        error("store", fit.store_mean_error, fit.store_max_error)?;
    }
    Ok(())
}
