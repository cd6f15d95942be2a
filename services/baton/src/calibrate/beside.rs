//! Other engines that compute while something is measured, as workers do that share a machine.

use std::{env, process::Stdio};

use anyhow::{Context, ensure};
use baton_engine::model::Compute;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::process::{Child, Command};

use crate::local::EngineArguments;

/// Tokens of the prompts of those that prefill, and of the few that the others begin with.
const PROMPTS: (usize, usize) = (512, 16);
/// Answers of those that decode: how many, tokens before them, and tokens that are generated.
const ANSWERS: (usize, usize, usize) = (8, 256, 256);

/// What the engines beside do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Do {
    Prefill,
    Decode,
}

/// Processes that compute until this is dropped: for each engine one that prefills and one that decodes, so that one of them
/// can stand still.
pub(super) struct Beside {
    prefilling: Vec<Child>,
    decoding: Vec<Child>,
}

impl Beside {
    /// Of so many engines like `engine`, which compute for longer than `repeat` measurements of every size take.
    pub(super) fn start(
        engines: u16,
        engine: &EngineArguments,
        compute: Compute,
        repeat: usize,
    ) -> anyhow::Result<Self> {
        let all = |what| (0..engines).map(|_| start(what, engine, compute, repeat)).collect::<anyhow::Result<_>>();
        Ok(Self { prefilling: all(Do::Prefill)?, decoding: all(Do::Decode)? })
    }

    pub(super) fn neighbours(&self) -> Neighbours {
        let pids = |engines: &[Child]| engines.iter().filter_map(Child::id).collect();
        Neighbours { prefilling: pids(&self.prefilling), decoding: pids(&self.decoding) }
    }

    /// Fails if one of them did not last.
    pub(super) fn end(mut self) -> anyhow::Result<()> {
        for engine in self.prefilling.iter_mut().chain(&mut self.decoding) {
            let ended = engine.try_wait()?;
            ensure!(
                ended.is_none(),
                "an engine that was to compute meanwhile ended too soon; try `baton bench engine` with as many threads"
            );
        }
        Ok(())
    }
}

/// The engines' processes, by what they do.
#[derive(Clone, Debug)]
pub(super) struct Neighbours {
    prefilling: Vec<u32>,
    decoding: Vec<u32>,
}

impl Neighbours {
    /// Every engine does this.
    pub(super) fn only(&self, what: Do) -> anyhow::Result<()> {
        let (go, stop) = match what {
            Do::Prefill => (&self.prefilling, &self.decoding),
            Do::Decode => (&self.decoding, &self.prefilling),
        };
        signal(stop, Signal::SIGSTOP)?;
        signal(go, Signal::SIGCONT)
    }

    /// Every engine decodes, and one more prefills: the worker's own, which computes while messages and chunks are on their way.
    pub(super) fn with_own(&self) -> anyhow::Result<()> {
        self.only(Do::Decode)?;
        signal(self.prefilling.get(..1).unwrap_or_default(), Signal::SIGCONT)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = u32> {
        self.prefilling.iter().chain(&self.decoding).copied()
    }
}

fn signal(engines: &[u32], signal: Signal) -> anyhow::Result<()> {
    for engine in engines.iter().filter_map(|id| i32::try_from(*id).ok()) {
        kill(Pid::from_raw(engine), signal).context("an engine that was to compute meanwhile is gone")?;
    }
    Ok(())
}

fn start(what: Do, engine: &EngineArguments, compute: Compute, repeat: usize) -> anyhow::Result<Child> {
    let EngineArguments { model, device, threads } = engine;
    let compute = match compute {
        Compute::Exact => "exact",
        Compute::Fast => "fast",
    };
    let (long, short) = PROMPTS;
    let (batch, context, generate) = ANSWERS;
    // A round of all sizes takes as long as some ten of these prompts, or less than one of these batches of answers.
    let (prefill, batch, repeat) = match what {
        Do::Prefill => (long, 1, 200 + 20 * repeat),
        Do::Decode => (short, batch, 20 + 2 * repeat),
    };
    let program = env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(program);
    command.args(["bench", "engine", "--model", model, "--device", device, "--compute", compute]);
    for (option, value) in [
        ("--threads", *threads),
        ("--prefill", prefill),
        ("--batch", batch),
        ("--context", context),
        ("--generate", generate),
        ("--repeat", repeat),
    ] {
        command.arg(option).arg(value.to_string());
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    command.spawn().context("cannot start another engine")
}
