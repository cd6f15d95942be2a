//! What a run is like.

use std::{fmt, path::PathBuf, time::Duration};

use clap::ValueEnum;
use serde::Serialize;

use super::kind::{Kind, Surroundings};

/// One run.
#[derive(clap::Args, Clone, Debug, Serialize)]
pub struct Options {
    /// Decides requests, send times and faults; without it one is drawn, and printed
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
    /// Jobs that are submitted while faults happen
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub jobs: u32,
    /// How long faults happen and jobs come; settling takes its time after that
    #[arg(long, value_name = "M", default_value_t = 2.0)]
    pub minutes: f64,
    /// What the workers compute with
    #[arg(long, value_enum, default_value_t = Engine::Sim)]
    pub engine: Engine,
    /// The real engine's model, as pipelines name it
    #[arg(long, value_name = "SOURCE", default_value = "default")]
    pub model: String,
    /// Workers of each stage
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(2..=100))]
    pub workers: u32,
    /// Kinds of faults that happen; without it all that can here
    #[arg(long, value_name = "KIND", value_delimiter = ',', value_enum)]
    pub only: Vec<Kind>,
    /// Kinds of faults that do not happen
    #[arg(long, value_name = "KIND", value_delimiter = ',', value_enum)]
    pub without: Vec<Kind>,
    /// Let the broker be a cluster of three nodes that keep three copies of everything
    #[arg(long)]
    pub cluster: bool,
    /// Seconds between two faults, on average
    #[arg(long, value_name = "S", default_value_t = 1.5)]
    pub fault_every: f64,
    /// Distinct requests that the jobs make; each is answered once undisturbed to compare with. Without it 100, of the real
    /// engine 40
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub distinct: Option<u32>,
    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub max_tokens: u32,
    /// Seconds after the last fault within which every job must have ended
    #[arg(long, value_name = "S", default_value_t = 300.0)]
    pub settle: f64,
    /// An object store to use instead of a directory; one at an AWS_ENDPOINT_URL of http:// gets the fault proxy before it
    #[arg(long, value_name = "URL")]
    pub store: Option<String>,
    /// The program `baton`; without it the one beside this program
    #[arg(long, value_name = "PATH")]
    pub baton: Option<PathBuf>,
    /// The program nats-server; without it the one that `baton setup` brings
    #[arg(long, value_name = "PATH")]
    pub nats_server: Option<PathBuf>,
    /// A directory to leave logs and streams in; without it they stay only if something does not hold
    #[arg(long, value_name = "DIRECTORY")]
    pub keep: Option<PathBuf>,
}

/// What workers compute with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// The simulated one, whose text is a function of the KV cache
    Sim,
    /// A real model
    Real,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sim => "sim",
            Self::Real => "real",
        })
    }
}

impl Options {
    /// Seconds that are no number or too many, by the flag's name.
    pub(super) fn check(&self) -> Result<(), baton_load::Error> {
        let most = Duration::from_secs(7 * 24 * 3600).as_secs_f64();
        for (name, seconds) in
            [("minutes", self.minutes * 60.0), ("fault-every", self.fault_every), ("settle", self.settle)]
        {
            if !(0.001..=most).contains(&seconds) {
                let found = format!("{seconds} s");
                return Err(baton_load::Error::Option { name, expected: "more than 1 ms and at most 7 days", found });
            }
        }
        Ok(())
    }

    pub(super) fn distinct(&self) -> u32 {
        let usual = match self.engine {
            Engine::Sim => 100,
            Engine::Real => 40,
        };
        self.distinct.unwrap_or(usual).min(self.jobs)
    }

    pub(super) fn surroundings(&self, faketime: bool) -> Surroundings {
        let (directory, sim) = (self.store.is_none(), self.engine == Engine::Sim);
        Surroundings { directory, cluster: self.cluster, faketime, sim }
    }

    /// Settings of every process, but for where broker and store are.
    pub(super) fn settings(&self) -> Vec<String> {
        let mut settings = vec!["telemetry.log=info".to_owned()];
        for stage in ["ingest", "prefill", "decode"] {
            settings.push(format!("stages.{stage}.ack_wait={}ms", super::ACK_WAIT.as_millis()));
            // Each fault is a try; none may be the last.
            settings.push(format!("stages.{stage}.max_deliver=50"));
        }
        if self.cluster {
            settings.push("broker.replicas=3".into());
        }
        match self.engine {
            Engine::Sim => settings.extend(
                [
                    "default_model=sim",
                    "models.sim.source=sim",
                    "models.sim.sim.layers=2",
                    "models.sim.sim.kv_width=32",
                    "models.sim.sim.prefill_s_per_token=0.0002",
                    "models.sim.sim.decode_s_per_step=0.01",
                    "store.chunk_tokens=64",
                ]
                .map(str::to_owned),
            ),
            Engine::Real => {
                if self.model != "default" {
                    settings.push(format!("models.real.source={}", self.model));
                    settings.push("default_model=real".into());
                }
                settings.push("store.chunk_tokens=32".into());
                for stage in ["prefill", "decode"] {
                    settings.push(format!("stages.{stage}.threads=1"));
                    settings.push(format!("stages.{stage}.kv_memory=512MiB"));
                }
            }
        }
        settings
    }
}
