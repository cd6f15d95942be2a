//! Our engine and llama.cpp's on the same machine in the same minutes.
//!
//! Both run as child processes, in turn, several rounds, so that whatever else the machine does hits both; what counts is
//! the median of the rounds. The same work is asked of both: prompts of the same lengths, sequences with the same history,
//! random tokens, no sampling.
//!
//! What must never happen here: two engines running at the same time.

mod output;
mod report;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use serde::Serialize;
use tokio::process::Command;

use output::Ours;
pub use report::{Comparison, Figure, Peer, Report};

/// What to compare, and where the programs are.
#[derive(clap::Args, Clone, Debug, Serialize)]
pub struct Options {
    /// llama.cpp's llama-bench
    #[arg(long, value_name = "PATH")]
    pub llama_bench: PathBuf,
    /// llama.cpp's llama-batched-bench
    #[arg(long, value_name = "PATH")]
    pub llama_batched_bench: PathBuf,
    /// The program `baton`; without it the one beside this program
    #[arg(long, value_name = "PATH")]
    pub baton: Option<PathBuf>,
    /// The model for our engine, as `baton bench engine --model` takes it
    #[arg(long, short)]
    pub model: String,
    /// The models for llama.cpp, GGUF files; each measure is compared with the one that is best at it
    #[arg(long = "peer-model", value_name = "FILE", value_delimiter = ',', required = true)]
    pub peer_models: Vec<PathBuf>,
    /// CPU threads of each engine
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    pub threads: u32,
    /// How our engine computes: fast or exact
    #[arg(long, value_name = "MODE", default_value = "fast")]
    pub compute: String,
    /// How often each engine has its turn
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// How often an engine takes each measure in its turn
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeat: u32,
    /// Lengths of the prompts
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_value = "512,4096",
        value_parser = clap::value_parser!(u32).range(1..))]
    pub prefill: Vec<u32>,
    /// Numbers of sequences that generate together
    #[arg(long, value_name = "SEQUENCES", value_delimiter = ',', default_value = "1,32",
        value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub batch: Vec<u32>,
    /// Tokens that each of them generates
    #[arg(long, value_name = "TOKENS", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub generate: u32,
    /// Tokens of each of them before the first generated one
    #[arg(long, value_name = "TOKENS", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    pub context: u32,
}

/// What is measured; the figure is tokens a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "measure", rename_all = "lowercase")]
pub enum Measure {
    /// A prompt of so many tokens.
    Prefill { tokens: u32 },
    /// So many sequences that generate together.
    Decode { sequences: u32 },
}

/// An engine's figures in one turn: tokens a second.
type Speeds = BTreeMap<Measure, f64>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot run {program}; check its path")]
    Start { program: String, source: std::io::Error },
    #[error("{program} ended with {status}: {message}")]
    Failed { program: String, status: ExitStatus, message: String },
    #[error("{program} printed something else than its figures as JSON; is it the right program and version?")]
    Output { program: String, source: serde_json::Error },
    #[error("{program} printed no figure for {missing}; is it the right program and version?")]
    Missing { program: String, missing: String },
}

/// A turn that is about to begin.
pub struct Turn<'a> {
    /// Turns that have ended, and those that there will be.
    pub ended: u32,
    pub total: u32,
    pub round: u32,
    /// Whose it is.
    pub engine: &'a str,
}

/// Lets the engines run in turn and compares them.
pub async fn run(options: &Options, mut progress: impl FnMut(Turn<'_>)) -> Result<Report, Error> {
    let baton = options.baton.clone().unwrap_or_else(crate::pipeline::baton_beside_this_program);
    let mut ours = Vec::new();
    let mut peers: Vec<(String, Vec<Speeds>)> = Vec::new();
    for model in &options.peer_models {
        let name = model.file_name().map_or_else(|| model.display().to_string(), |name| name.display().to_string());
        peers.push((name, Vec::new()));
    }
    let total = options.rounds * (1 + peers.len() as u32);
    let mut ended = 0;
    for round in 1..=options.rounds {
        let mut next = |engine: &str| {
            progress(Turn { ended, total, round, engine });
            ended += 1;
        };
        next("baton");
        ours.push(our_turn(options, &baton).await?);
        for ((name, turns), model) in peers.iter_mut().zip(&options.peer_models) {
            next(name);
            turns.push(peer_turn(options, model).await?);
        }
    }
    report::compare(options, &ours, &peers)
}

async fn our_turn(options: &Options, baton: &Path) -> Result<Ours, Error> {
    let arguments = [
        ("--model", options.model.clone()),
        ("--compute", options.compute.clone()),
        ("--threads", options.threads.to_string()),
        ("--prefill", list(&options.prefill)),
        ("--batch", list(&options.batch)),
        ("--generate", options.generate.to_string()),
        ("--context", options.context.to_string()),
        ("--repeat", options.repeat.to_string()),
    ];
    let words = ["bench", "engine", "--json"].map(OsString::from);
    let text = output_of(baton, words.into_iter().chain(flags(arguments))).await?;
    output::ours(&text).map_err(|source| Error::Output { program: baton.display().to_string(), source })
}

/// llama-bench has one sequence, llama-batched-bench several.
async fn peer_turn(options: &Options, model: &Path) -> Result<Speeds, Error> {
    let Options { llama_bench, llama_batched_bench, generate, context, .. } = options;
    let several: Vec<u32> = options.batch.iter().copied().filter(|&sequences| sequences > 1).collect();
    let common = |arguments: &[(&str, String)]| {
        let first = ["-m".into(), model.into(), "-t".into(), options.threads.to_string().into()];
        first.into_iter().chain(flags(arguments.iter().cloned())).collect::<Vec<OsString>>()
    };
    let bench = |arguments: &[(&str, String)]| {
        let mut all = common(arguments);
        all.extend(flags([("-r", options.repeat.to_string()), ("-o", "json".into())]));
        all
    };
    let mut speeds = Speeds::new();
    let unread = |program: &Path| {
        let program = program.display().to_string();
        move |source| Error::Output { program, source }
    };
    let text = output_of(llama_bench, bench(&[("-p", list(&options.prefill)), ("-n", "0".into())])).await?;
    speeds.extend(output::llama_bench(&text).map_err(unread(llama_bench))?);
    if options.batch.contains(&1) {
        // The history is computed before the clock starts, as with ours.
        let arguments = [("-p", "0".into()), ("-n", generate.to_string()), ("-d", context.to_string())];
        let text = output_of(llama_bench, bench(&arguments)).await?;
        speeds.extend(output::llama_bench(&text).map_err(unread(llama_bench))?);
    }
    if let Some(most) = several.iter().max() {
        // The program has no flag for repeating, but takes a number more than once.
        let repeated: Vec<u32> = several.iter().flat_map(|&count| (0..options.repeat).map(move |_| count)).collect();
        let room = u64::from(*most) * (u64::from(*context) + u64::from(*generate));
        let arguments = common(&[
            ("-c", room.to_string()),
            ("-npp", context.to_string()),
            ("-ntg", generate.to_string()),
            ("-npl", list(&repeated)),
            ("--output-format", "jsonl".into()),
        ]);
        let text = output_of(llama_batched_bench, arguments).await?;
        speeds.extend(output::llama_batched_bench(&text).map_err(unread(llama_batched_bench))?);
    }
    Ok(speeds)
}

fn list(numbers: &[u32]) -> String {
    numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

fn flags<'a>(arguments: impl IntoIterator<Item = (&'a str, String)>) -> impl Iterator<Item = OsString> {
    arguments.into_iter().flat_map(|(flag, value)| [OsString::from(flag), OsString::from(value)])
}

/// What a program prints on its standard output until it ends.
async fn output_of(program: &Path, arguments: impl IntoIterator<Item = OsString>) -> Result<String, Error> {
    let name = || program.display().to_string();
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.map_err(|source| Error::Start { program: name(), source })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let last: Vec<&str> = text.lines().rev().filter(|line| !line.trim().is_empty()).take(3).collect();
        let message = last.into_iter().rev().collect::<Vec<_>>().join("; ");
        return Err(Error::Failed { program: name(), status: output.status, message });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
