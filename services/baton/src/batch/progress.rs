//! Shows how a batch is doing: a bar on terminals, a plain line every five seconds elsewhere.

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use baton_batch::{Figures, Watch};
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use tokio::time::Instant;

use super::pace::{Pace, Paces};
use baton_terminal::table;

use crate::output::note;

/// How often a plain line is printed.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// Where progress is shown.
pub struct Progress {
    shown: Shown,
    paces: Paces,
    /// Lines that the input has, if that is known.
    total: Option<u64>,
}

enum Shown {
    Bar(ProgressBar),
    Plain { last: Instant },
    Nothing,
}

impl Progress {
    /// On standard error.
    pub fn new(quiet: bool, total: Option<u64>) -> Self {
        let shown = if quiet {
            Shown::Nothing
        } else if io::stderr().is_terminal() {
            let template = match total {
                Some(_) => "{bar:24} {human_pos}/{human_len}  {msg}",
                None => "{spinner} {human_pos}  {msg}",
            };
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
            Shown::Bar(bar.with_style(style))
        } else {
            Shown::Plain { last: Instant::now() }
        };
        Self { shown, paces: Paces::default(), total }
    }

    /// Takes the bar away.
    pub fn end(&self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }
}

impl Watch for Progress {
    fn show(&mut self, figures: &Figures) {
        let now = Instant::now();
        let pace = self.paces.look(figures, now);
        match &mut self.shown {
            Shown::Bar(bar) => {
                bar.set_position(figures.done());
                bar.set_message(message(figures, pace, self.total));
                bar.tick();
            }
            Shown::Plain { last } if now - *last >= PLAIN_EVERY => {
                *last = now;
                let of = self.total.map_or(String::new(), |total| format!(" of {}", HumanCount(total)));
                note!("{}{of} lines  {}", HumanCount(figures.done()), message(figures, pace, self.total));
            }
            _ => {}
        }
    }

    /// Beside the bar.
    fn say(&mut self, text: &str) {
        match &self.shown {
            Shown::Bar(bar) => bar.suspend(|| note!("{text}")),
            Shown::Plain { .. } => note!("{text}"),
            Shown::Nothing => {}
        }
    }
}

fn message(figures: &Figures, pace: Pace, total: Option<u64>) -> String {
    let mut parts = Vec::new();
    let failed = figures.failed + figures.failed_before;
    if failed > 0 {
        parts.push(format!("{} failed", HumanCount(failed)));
    }
    parts.push(format!("prompt {} tok/s", HumanCount(pace.prompt_tokens as u64)));
    parts.push(format!("output {} tok/s", HumanCount(pace.completion_tokens as u64)));
    if figures.kv_saved_bytes > 0 {
        parts.push(format!("{} KV reused", table::bytes(figures.kv_saved_bytes)));
    }
    if let Some(total) = total
        && pace.lines > 0.0
    {
        let seconds = (total.saturating_sub(figures.done()) as f64 / pace.lines).ceil();
        parts.push(format!("{} left", left(Duration::from_secs(seconds as u64))));
    }
    parts.join("  ")
}

/// A duration in its two largest units.
fn left(duration: Duration) -> String {
    let text = humantime::format_duration(duration).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// The last line.
pub fn summary(figures: &Figures, took: Duration) -> String {
    let count = HumanCount;
    let reused = (100 * figures.cached_tokens).checked_div(figures.prompt_tokens).unwrap_or_default();
    format!(
        "{} lines: {} answered before, {} completed ({} had ended already), {} failed; {} prompt tokens ({reused} % reused) \
         and {} output tokens in {}",
        count(figures.lines),
        count(figures.skipped),
        count(figures.completed),
        count(figures.collected),
        count(figures.failed + figures.failed_before),
        count(figures.prompt_tokens),
        count(figures.completion_tokens),
        humantime::format_duration(Duration::from_millis(took.as_millis() as u64)),
    )
}
