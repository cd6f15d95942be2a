//! Foreign engines behind Baton, on this machine: vLLM on the CPU and llama.cpp's server, brought, started, killed and measured,
//! beside the same clients straight at them.
//!
//! What must never happen here: two measurements at the same time, a process that outlives its run, a job that is in none of
//! completed, failed and lost.

mod apart;
mod bring;
mod kills;
mod lines;
mod options;
mod pace;
mod report;
mod server;
mod stack;

use std::{
    io,
    path::{Path, PathBuf},
};

use baton_contract::JobId;

pub use options::{Kind, Options, Step};
pub use report::{Report, Row};

use crate::chaos::{self, processes::Program};

/// What requests name, at Baton and at the engines.
const MODEL: &str = "smol";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot use the directory {path}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("cannot run {program}; is it installed?")]
    Start { program: String, source: io::Error },
    #[error("{program} ended with {status}: {said}")]
    Failed { program: String, status: std::process::ExitStatus, said: String },
    #[error("{engine} {problem}; its log is {log}")]
    Engine { engine: Kind, problem: String, log: PathBuf },
    #[error("{step} is no step of {engine}; only vllm hands KV caches over")]
    Step { step: Step, engine: Kind },
    #[error("the engine gave no answer to an undisturbed request: {0}")]
    Undisturbed(String),
    #[error("cannot make an HTTP client")]
    Http(#[source] reqwest::Error),
    #[error("the run failed; logs are in {place}")]
    Kept { place: PathBuf, source: Box<Self> },
    #[error(transparent)]
    Pipeline(#[from] chaos::Error),
    #[error(transparent)]
    Bus(#[from] baton_bus::Error),
    #[error(transparent)]
    Load(#[from] baton_load::Error),
    #[error(transparent)]
    Name(#[from] baton_contract::name::Error),
}

/// What every step needs.
struct Ground<'a> {
    options: &'a Options,
    program: Program,
    nats_server: PathBuf,
    home: bring::Home,
    /// For logs, streams and stores.
    place: PathBuf,
}

/// What is heard of a run.
#[derive(Debug)]
pub enum Heard {
    /// What it does now.
    Doing(String),
    /// What it has found. The report has it too, if the run comes to its end.
    Found(Row),
}

/// Does the steps one after the other; `hears` gets each step as it begins, and each finding.
pub async fn run(options: &Options, mut hears: impl FnMut(Heard)) -> Result<Report, Error> {
    let steps = options.chosen()?;
    let place = tempfile::Builder::new().prefix("baton-engines-").tempdir();
    let place = place.map_err(|source| Error::Directory { path: std::env::temp_dir(), source })?;
    let done = all(options, &steps, place.path(), &mut hears).await;
    // What went wrong can be read there.
    done.map_err(|source| Error::Kept { place: place.keep(), source: Box::new(source) })
}

async fn all(options: &Options, steps: &[Step], place: &Path, hears: &mut impl FnMut(Heard)) -> Result<Report, Error> {
    let logs = place.join("logs");
    std::fs::create_dir(&logs).map_err(|source| Error::Directory { path: logs.clone(), source })?;
    let baton = options.baton.clone().unwrap_or_else(crate::pipeline::baton_beside_this_program);
    let program = Program::new(baton, stack::settings(place), Vec::new(), logs);
    let setup = program.bare(&["setup", "--json"]).await?;
    let paths: serde_json::Value = serde_json::from_slice(&setup.stdout).unwrap_or_default();
    let path = |key: &str| PathBuf::from(paths[key].as_str().unwrap_or_default());
    hears(Heard::Doing(format!("bringing {}", options.engine)));
    let home = bring::bring(options, &path("model")).await?;
    let ground = Ground { options, program, nats_server: path("nats_server"), home, place: place.to_owned() };

    let mut rows = Vec::new();
    let mut found = |more: Vec<Row>, hears: &mut dyn FnMut(Heard)| {
        more.iter().cloned().for_each(|row| hears(Heard::Found(row)));
        rows.extend(more);
    };
    let plain = steps.iter().filter(|step| **step != Step::Apart);
    if plain.clone().next().is_some() {
        hears(Heard::Doing(format!("starting {}", options.engine)));
        let mut engine = ground.engine(0, None).await?;
        engine.start().await?;
        for step in plain {
            hears(Heard::Doing(step.to_string()));
            let more = match step {
                Step::Throughput => pace::throughput(&ground, &engine).await?,
                Step::Ttft => pace::first_tokens(&ground, &engine).await?,
                Step::Limits => pace::limits(&ground, &engine).await?,
                Step::Kills => kills::run(&ground, &mut engine).await?,
                Step::Batch => lines::run(&ground, &engine).await?,
                Step::Apart => Vec::new(),
            };
            found(more, hears);
        }
        engine.kill().await;
    }
    if steps.contains(&Step::Apart) {
        hears(Heard::Doing(Step::Apart.to_string()));
        found(apart::run(&ground).await?, hears);
    }
    Ok(Report { options: options.clone(), rows })
}

/// An id for a job of a step that no other run has.
fn job_id(step: Step, number: usize) -> Result<JobId, Error> {
    Ok(JobId::new(&format!("{step}-{number}-{}", uuid::Uuid::now_v7().simple()))?)
}
