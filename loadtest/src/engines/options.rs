//! What to do with which engine.

use std::{fmt, path::PathBuf};

use serde::Serialize;

use super::Error;

/// An engine that runs on any machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// vLLM on the CPU
    Vllm,
    /// llama.cpp's server
    #[value(name = "llama.cpp")]
    #[serde(rename = "llama.cpp")]
    LlamaCpp,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vllm => "vllm",
            Self::LlamaCpp => "llama.cpp",
        })
    }
}

/// Something to find out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// A closed loop through Baton's gateway and straight at the engine, in turn
    Throughput,
    /// What Baton adds to the first token's latency while nothing else is asked
    Ttft,
    /// Fixed numbers of requests at the engine beside `max_running = "auto"`
    Limits,
    /// Engine, worker and broker are killed while jobs run; and the engine under clients of its own
    Kills,
    /// A file of requests of which the engine refuses some
    Batch,
    /// Prefill and decode on two engines, each killed once (vLLM only)
    Apart,
}

impl Step {
    const ALL: [Self; 6] = [Self::Throughput, Self::Ttft, Self::Limits, Self::Kills, Self::Batch, Self::Apart];
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Throughput => "throughput",
            Self::Ttft => "ttft",
            Self::Limits => "limits",
            Self::Kills => "kills",
            Self::Batch => "batch",
            Self::Apart => "apart",
        })
    }
}

/// What to find out about which engine, and how thoroughly.
#[derive(clap::Args, Clone, Debug, Serialize)]
pub struct Options {
    /// The engine
    #[arg(value_enum)]
    pub engine: Kind,
    /// What to find out; everything without it
    #[arg(value_enum, value_name = "STEP")]
    pub steps: Vec<Step>,
    /// Where the engine is installed and its model lies, for this run and later ones (vLLM: 4 GB)
    #[arg(long, value_name = "DIRECTORY", default_value_os_t = std::env::temp_dir().join("baton-engines"))]
    #[serde(skip)]
    pub folder: PathBuf,
    /// The program `baton`; without it the one beside this program
    #[arg(long, value_name = "PATH")]
    #[serde(skip)]
    pub baton: Option<PathBuf>,
    /// CPU cores that the engine is bound to, as `taskset -c` takes them; all by default
    #[arg(long, value_name = "CORES")]
    pub engine_cores: Option<String>,
    /// Set any key of the pipeline, for example stages.decode.slots=8; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Requests that the engine runs at once; it lets others wait
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub slots: u32,
    /// Clients that ask all the time
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub clients: u32,
    /// How often the two that are compared have their turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Seconds of a turn
    #[arg(long, value_name = "S", default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub seconds: u32,
    /// Jobs under kills, and a third of them with prefill and decode apart
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u32).range(12..=100_000))]
    pub jobs: u32,
    /// Lines of the batch; the engine refuses one of a hundred
    #[arg(long, value_name = "N", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(100..=50_000))]
    pub lines: u32,
    /// Tokens of a prompt, about
    #[arg(long, value_name = "TOKENS", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=400))]
    pub prompt_tokens: u32,
    /// Tokens of an answer
    #[arg(long, value_name = "TOKENS", default_value_t = 48, value_parser = clap::value_parser!(u32).range(1..=400))]
    pub output_tokens: u32,
}

impl Options {
    /// The steps to do, in the order in which they were named.
    pub(super) fn chosen(&self) -> Result<Vec<Step>, Error> {
        if self.steps.is_empty() {
            let apart = self.engine == Kind::Vllm;
            return Ok(Step::ALL.into_iter().filter(|step| apart || *step != Step::Apart).collect());
        }
        if self.engine != Kind::Vllm && self.steps.contains(&Step::Apart) {
            return Err(Error::Step { step: Step::Apart, engine: self.engine });
        }
        Ok(self.steps.clone())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn chosen(words: &str) -> Result<Vec<Step>, Error> {
        Line::parse_from(words.split(' ')).options.chosen()
    }

    #[test]
    fn an_engine_does_what_is_named_or_all_that_it_can() {
        assert_eq!(chosen("engines vllm").unwrap(), Step::ALL);
        assert_eq!(chosen("engines llama.cpp").unwrap(), Step::ALL[..5]);
        assert_eq!(chosen("engines llama.cpp kills ttft").unwrap(), [Step::Kills, Step::Ttft]);
        assert!(
            chosen("engines llama.cpp apart").unwrap_err().to_string().starts_with("apart is no step of llama.cpp")
        );
    }
}
