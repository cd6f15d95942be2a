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
use baton_topology::{Model, Plan};
use tokio::task::spawn_blocking;

use crate::{local::EngineArguments, measuring, output::stdout};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton calibrate -o profile.toml                                    the default model on this CPU, about a minute
  baton calibrate --threads 1 --beside 1 -o profile.toml             of workers with a thread each, two on this machine
  baton calibrate --model hf:owner/name --device cuda --kv-memory 8GiB -o profile.toml
  baton calibrate --pipeline sim.toml --model sim -o profile.toml    a pipeline's model: of a sim its times are taken as they are

Nothing else should run on the machine but what --beside starts: workers share its caches and its memory's bandwidth. The \
engine computes passes and steps of many sizes, each of which is measured --repeat times; the coefficients of the cost model come from the medians by least squares, and what they are off by is shown. The store is a \
directory of its own unless one is named; chunks that are put into a named one are left to its collection. The bus is measured by a \
pipeline of its own, whose engine takes no time.")]
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

async fn subject(arguments: &Arguments) -> anyhow::Result<Subject> {
    let Some(path) = &arguments.pipeline else {
        let source = arguments.engine.source().await?;
        let name = arguments.engine.model.clone();
        return Ok(Subject { name, source, codec: baton_storage::codec::Codec::Lossless, chunk_tokens: 256 });
    };
    let text = fs::read_to_string(path).with_context(|| format!("cannot read the pipeline {}", path.display()))?;
    let plan = Plan::load(Some(&text), [], &[])?;
    let name = match arguments.engine.model.as_str() {
        "default" => plan.default_model.clone(),
        name => Name::new(name)?,
    };
    let model: Model = plan.models.get(&name).with_context(|| format!("the pipeline has no model {name}"))?.clone();
    use_threads(arguments.engine.threads)?;
    let source = spawn_blocking(move || baton_assembly::models::source(&model)).await??;
    let codec = baton_assembly::store::codec(&plan);
    Ok(Subject { name: name.to_string(), source, codec, chunk_tokens: plan.store.chunk_tokens })
}

fn print(profile: &Profile) -> io::Result<()> {
    let mut out = stdout();
    let Profile { name, kv, prefill, decode, transfer, store, bus, host, fit } = profile;
    let micro = |seconds: f64| format!("{:.3} us", seconds * 1e6);
    let milli = |seconds: f64| format!("{:.3} ms", seconds * 1e3);
    let nano = |seconds: f64| format!("{:.4} ns", seconds * 1e9);
    let mut rows = vec![
        ("prefill pass", milli(prefill.s_per_pass)),
        ("prefill, each prompt", milli(prefill.s_per_prompt)),
        ("prefill, each token", micro(prefill.s_per_token)),
        ("prefill, each token and one before it", nano(prefill.s_per_token_context)),
        ("decode step", milli(decode.s_per_step)),
        ("decode, each sequence", milli(decode.s_per_sequence)),
        ("decode, each token of context", nano(decode.s_per_context_token)),
        ("KV of a token, raw", table::bytes(kv.raw_bytes_per_token as u64)),
        ("KV of a token, stored", table::bytes(kv.stored_bytes_per_token as u64)),
        ("KV out of the engine, each token", micro(transfer.export_s_per_token)),
        ("KV into the engine, each token", micro(transfer.import_s_per_token)),
        ("chunk put", milli(store.put_s)),
        ("chunk put, each byte", nano(store.put_s_per_byte)),
        ("chunk got", milli(store.get_s)),
        ("chunk got, each byte", nano(store.get_s_per_byte)),
        ("message", milli(bus.hop_s)),
    ];
    if let Some(host) = host {
        rows.extend([
            ("processor time beside, each job", milli(host.cpu_s_per_job)),
            ("the same, each step of decode", milli(host.cpu_s_per_step)),
            ("the same, each token of an answer", micro(host.cpu_s_per_token)),
            ("the same, each byte put", nano(host.put_cpu_s_per_byte)),
            ("the same, each byte got", nano(host.get_cpu_s_per_byte)),
        ]);
    }
    let rows: Vec<Vec<String>> = rows.into_iter().map(|(what, value)| vec![what.to_owned(), value]).collect();
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
