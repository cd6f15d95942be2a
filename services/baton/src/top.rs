//! `baton top`: how the pipeline is doing, as a screen, as lines, or as JSON.

use std::io::{self, IsTerminal, Write};

use anyhow::bail;
use baton_assembly::signals::asked_to_stop;
use baton_bus::duty::stats::Watch;
use baton_contract::stats::{seen::Seen, view::View};
use baton_terminal::{figures, screen};

use crate::{context::PipelineArguments, output::stdout};

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
workers (what each says of itself, its foreign engines under upstreams, and its rates) and planner \
(desired, present, reason, changes, changing, last) if one runs.")]
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

/// What is heard of a pipeline, look by look.
struct Looks {
    watch: Watch,
    seen: Seen,
}

impl Looks {
    /// The next look, with the rates since some looks before.
    async fn next(&mut self) -> View {
        self.seen.see(self.watch.next().await)
    }
}

/// Shows the pipeline until it is asked to stop.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let (plan, bus) = arguments.pipeline.join("baton-top").await?;
    let mut looks = Looks { watch: bus.watch_stats().await?, seen: Seen::default() };
    if arguments.once {
        // The first looks hear of workers, and the last has rates of two seconds.
        for _ in 0..3 {
            looks.next().await;
        }
        let view = looks.next().await;
        let text = if arguments.json { line(&view)? } else { figures::page(&view) };
        return Ok(stdout().write_all(text.as_bytes())?);
    }
    if !arguments.json && io::stdout().is_terminal() {
        let title = format!("{} at {}", plan.root, plan.broker.url);
        return tokio::select! {
            shown = screen::run(async || looks.next().await, &title, baton_bus::unix_ms) => Ok(shown?),
            asked = asked_to_stop() => Ok(asked?),
        };
    }
    let shown = async {
        // Workers are heard of within the first second; until then there seem to be none.
        looks.next().await;
        loop {
            let view = looks.next().await;
            let text = if arguments.json { line(&view)? } else { figures::line(&view) };
            let mut out = stdout();
            out.write_all(text.as_bytes())?;
            out.flush()?;
        }
    };
    tokio::select! {
        shown = shown => shown,
        asked = asked_to_stop() => {
            asked?;
            bail!(crate::exit::Interrupted)
        }
    }
}

fn line(view: &View) -> serde_json::Result<String> {
    Ok(serde_json::to_string(view)? + "\n")
}
