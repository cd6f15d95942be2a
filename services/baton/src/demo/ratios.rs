//! `baton demo --ratios`: three loads on three splits of six workers, and what the split does to each.

use std::{io::Write as _, path::Path, time::Duration};

use anyhow::Context;
use baton_load::Summary;
use baton_measure::{
    Error,
    ratios::{self, CONCURRENCY, Cell, by_workload, insight},
};
use baton_terminal::table;
use baton_workload::Named;

use crate::{exit, measuring, output::stdout};

/// Runs all of it; the plot goes into the file.
pub async fn run(json: bool, plot: &Path) -> anyhow::Result<()> {
    let (bar, mut steps) = measuring::bar("{bar:30} {pos}/{len} runs, {msg}  {elapsed}");
    bar.enable_steady_tick(Duration::from_millis(200));
    let cells = match ratios::measure(&mut steps).await {
        Err(Error::Stopped) => return Err(exit::Interrupted.into()),
        cells => cells?,
    };
    bar.finish_and_clear();
    std::fs::write(plot, ratios::picture(&cells))
        .with_context(|| format!("cannot write the plot {}", plot.display()))?;
    if json {
        for cell in by_workload(&cells) {
            writeln!(stdout(), "{}", serde_json::to_string(cell)?)?;
        }
        return Ok(());
    }
    writeln!(
        stdout(),
        "six workers, sim engine as an 8B model on a GPU (scaled), {CONCURRENCY} requests under way; times in ms, p50 / p99\n"
    )?;
    write!(stdout(), "{}", table::render(&HEADINGS, &by_workload(&cells).map(row).collect::<Vec<_>>()))?;
    writeln!(stdout())?;
    for workload in Named::ALL {
        let cells: Vec<&Cell> = cells.iter().filter(|cell| cell.workload == workload).collect();
        writeln!(stdout(), "{}", insight(&cells))?;
    }
    writeln!(stdout(), "\nplot: {}", plot.display())?;
    Ok(())
}

const HEADINGS: [&str; 13] = [
    "load",
    "P:D",
    "req/s",
    "tok/s",
    "TTFT",
    "ITL",
    "end to end",
    "queue",
    "prefill",
    "hand-over",
    "decode",
    "P busy",
    "D busy",
];

fn row(cell: &Cell) -> Vec<String> {
    let percent = |share: f64| format!("{:.0} %", share * 100.0);
    let [queue, prefill, hand_over, decode, _] = cell.shares.map(percent);
    let both = |summary: Option<Summary>, digits: usize| {
        summary.map_or("-".into(), |it| format!("{:.digits$} / {:.digits$}", it.p50, it.p99))
    };
    vec![
        cell.workload.to_string(),
        cell.ratio(),
        format!("{:.1}", cell.request_throughput),
        format!("{:.0}", cell.output_throughput),
        both(cell.report.ttft_ms, 0),
        both(cell.report.itl_ms, 1),
        both(cell.report.e2el_ms, 0),
        queue,
        prefill,
        hand_over,
        decode,
        percent(cell.prefill_utilisation),
        percent(cell.decode_utilisation),
    ]
}
