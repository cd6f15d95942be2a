//! `baton top`: how the pipeline is doing, as a screen, as lines, or as JSON.

mod plain;
mod screen;
mod view;

use std::{
    collections::VecDeque,
    io::{self, IsTerminal, Write},
    sync::Arc,
};

use anyhow::bail;
use baton_bus::stats::Watch;
use baton_contract::stats::{Snapshot, Worker};

use self::view::View;
use crate::{
    context::{self, PipelineArguments},
    output::stdout,
};

/// Looks that rates are made of: those of some seconds, so that figures can be read.
const LOOKS: usize = 5;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton top
  baton top --context prod
  baton top --once
  baton top --json | jq -c '[.at_ms, .stages[2].completion_tokens_per_s]'

On a terminal it is a screen: q ends it, the arrow keys move through the workers. Elsewhere it prints a line a second. Of each \
stage it shows what waits and what workers hold, by model and lane; workers, and how many of their slots are busy; jobs and \
tokens a second; the share of prompt tokens that was not computed but found in the store; KV cache put to and got from the \
store. Rates are those of the last seconds.

With --json each line is an object: at_ms, stages (stage, workers, slots, busy, waiting, held, queues, jobs_per_s, \
failed_per_s, prompt_tokens_per_s, cached_share, completion_tokens_per_s, kv_put_bytes_per_s, kv_get_bytes_per_s, computing) \
workers (what each says of itself, and its rates) and planner (desired, present, reason, changes, changing, last) if one runs.")]
pub struct Arguments {
    #[command(flatten)]
    pipeline: PipelineArguments,
    /// Print one look, after the seconds that rates need, and end
    #[arg(long)]
    once: bool,
    /// Print one JSON object a second, or with --once one only
    #[arg(long)]
    json: bool,
}

/// The last looks at a pipeline.
struct Looks {
    watch: Watch,
    looks: VecDeque<Arc<Snapshot>>,
}

impl Looks {
    /// The next look, with the rates since some looks before.
    async fn next(&mut self) -> View {
        let now = self.watch.next().await;
        if self.looks.len() == LOOKS {
            self.looks.pop_front();
        }
        self.looks.push_back(now.clone());
        View::of(&earliest(&self.looks, &now), &now)
    }
}

/// The first of the looks at each worker: one that was heard of later than others has rates since then.
fn earliest(looks: &VecDeque<Arc<Snapshot>>, now: &Snapshot) -> Snapshot {
    let first = |worker: &Worker| {
        let mut words = looks.iter().flat_map(|look| &look.workers);
        words.find(|before| worker.follows(before)).cloned()
    };
    Snapshot { at_ms: now.at_ms, workers: now.workers.iter().filter_map(first).collect(), ..Snapshot::default() }
}

/// Shows the pipeline until it is asked to stop.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let (plan, bus) = arguments.pipeline.join("baton-top").await?;
    let mut looks = Looks { watch: bus.watch_stats().await?, looks: VecDeque::new() };
    if arguments.once {
        // The first looks hear of workers, and the last has rates of two seconds.
        for _ in 0..3 {
            looks.next().await;
        }
        let view = looks.next().await;
        let text = if arguments.json { line(&view)? } else { plain::page(&view) };
        return Ok(stdout().write_all(text.as_bytes())?);
    }
    if !arguments.json && io::stdout().is_terminal() {
        let title = format!("{} at {}", plan.root, plan.broker.url);
        return screen::run(looks, &title).await;
    }
    let shown = async {
        // Workers are heard of within the first second; until then there seem to be none.
        looks.next().await;
        loop {
            let view = looks.next().await;
            let text = if arguments.json { line(&view)? } else { plain::line(&view) };
            let mut out = stdout();
            out.write_all(text.as_bytes())?;
            out.flush()?;
        }
    };
    tokio::select! {
        shown = shown => shown,
        asked = context::asked_to_stop() => {
            asked?;
            bail!(crate::exit::Interrupted)
        }
    }
}

fn line(view: &View) -> serde_json::Result<String> {
    Ok(serde_json::to_string(view)? + "\n")
}
