//! `baton top`: how the pipeline is doing, as a screen, as lines, or as JSON.

mod plain;
mod screen;

use std::{
    collections::VecDeque,
    io::{self, IsTerminal, Write},
    sync::Arc,
};

use anyhow::bail;
use baton_bus::duty::stats::Watch;
use baton_contract::stats::{Snapshot, Worker, view::View};

use crate::{context::PipelineArguments, output::stdout};

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
        asked = baton_assembly::signals::asked_to_stop() => {
            asked?;
            bail!(crate::exit::Interrupted)
        }
    }
}

fn line(view: &View) -> serde_json::Result<String> {
    Ok(serde_json::to_string(view)? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(at_ms: u64, workers: &[(&str, u64)]) -> Snapshot {
        let worker = |(name, tokens): &(&str, u64)| {
            let said = serde_json::json!({
                "worker": name, "stage": "decode", "roles": ["decode"], "models": [], "started_ms": 1, "at_ms": at_ms,
                "draining": false, "slots": 1, "busy": 1, "completion_tokens": tokens, "compute_ms": 0, "engine_batch": 0,
            });
            serde_json::from_value(said).unwrap()
        };
        Snapshot { at_ms, workers: workers.iter().map(worker).collect(), ..Snapshot::default() }
    }

    #[test]
    fn a_worker_that_the_first_look_did_not_hear_of_has_rates_since_the_second() {
        let now = look(4_000, &[("a", 500), ("b", 90)]);
        let looks = [look(1_000, &[]), look(2_000, &[("a", 100)]), look(3_000, &[("a", 300), ("b", 40)]), now.clone()];
        let looks: VecDeque<_> = looks.into_iter().map(Arc::new).collect();
        let view = View::of(&earliest(&looks, &now), &now);
        let rates: Vec<_> = view.workers.iter().map(|worker| worker.rates.completion_tokens_per_s).collect();
        assert_eq!(rates, [200.0, 50.0]);
        assert_eq!(view.stages[2].rates.completion_tokens_per_s, 250.0);
    }
}
