//! Two targets under the same load, in turn: what else the machine does hits both, and what is judged are differences
//! between runs that followed each other.
//!
//! What must never happen here: both targets under load at the same time.

mod report;
mod spec;

use std::path::PathBuf;

use baton_contract::Name;
use baton_load::{Measured, Options, Progress, Target};
use serde::Serialize;

pub use report::{Comparison, Difference};
pub use spec::Spec;

use crate::pipeline::{self, Started};

/// What to compare.
#[derive(clap::Args, Clone, Debug)]
pub struct CompareOptions {
    /// The first target: bus:URL?root=ROOT&model=M, openai:URL?api=chat|completions&model=M, or a pipeline file to start
    #[arg(value_name = "A")]
    pub first: Spec,
    /// The second target
    #[arg(value_name = "B")]
    pub second: Spec,
    /// How often each target has its turn; who begins changes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// The program `baton` for pipeline files; without it the one beside this program
    #[arg(long, value_name = "PATH")]
    pub baton: Option<PathBuf>,
    /// Set any key of both started pipelines, for example models.m.source=sim; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    #[command(flatten)]
    pub load: Options,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("target {side} failed")]
    Pipeline { side: Side, source: pipeline::Error },
    #[error("target {side} failed")]
    Run { side: Side, source: baton_load::Error },
}

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Side {
    A,
    B,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::A => "A",
            Self::B => "B",
        })
    }
}

/// Lets both have their turns; `progress` hears of the round, of who has its turn, and how far that is.
pub async fn run(options: &CompareOptions, mut progress: impl FnMut(u32, Side, Progress)) -> Result<Comparison, Error> {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        let order = if round % 2 == 1 { [Side::A, Side::B] } else { [Side::B, Side::A] };
        for side in order {
            let measured = turn(options, round, side, |told| progress(round, side, told)).await?;
            match side {
                Side::A => first.push(measured),
                Side::B => second.push(measured),
            }
        }
    }
    Ok(Comparison::new(options, &first, &second))
}

async fn turn(
    options: &CompareOptions,
    round: u32,
    side: Side,
    progress: impl FnMut(Progress),
) -> Result<Measured, Error> {
    let pipeline = |source| Error::Pipeline { side, source };
    let spec = match side {
        Side::A => &options.first,
        Side::B => &options.second,
    };
    // The same load for both in a round, another in the next: no round meets the KV of an earlier one.
    let seed = options.load.seed.wrapping_add(u64::from(round - 1));
    let mut load = Options { seed, ..options.load.clone() };
    let mut started = None;
    let target = match spec {
        Spec::Bus { url, root, model } => {
            load.model = model.clone().or(load.model);
            Target::from(pipeline::connect(url.clone(), root, None).await.map_err(pipeline)?)
        }
        Spec::OpenAi { server, model } => {
            load.model = model.clone().or(load.model);
            Target::OpenAi(server.clone())
        }
        Spec::Pipeline(file) => {
            let root = format!("compare-{}-{}", side.to_string().to_lowercase(), std::process::id());
            let root = Name::new(&root).map_err(|error| Error::Run { side, source: error.into() })?;
            let baton = options.baton.clone().unwrap_or_else(pipeline::baton_beside_this_program);
            let begun = Started::start(&baton, file, root, &options.set).await.map_err(pipeline)?;
            let bus = begun.bus.clone();
            started = Some(begun);
            Target::from(bus)
        }
    };
    let measured = baton_load::run(&target, &load, progress).await.map_err(|source| Error::Run { side, source });
    if let Some(started) = started {
        started.stop().await;
    }
    measured
}
