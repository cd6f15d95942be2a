//! A pipeline's figures as plain text: a line, or a page of tables.

use std::time::{Duration, UNIX_EPOCH};

use baton_contract::stats::{
    Upstream,
    view::{Rates, StageView, View},
};
use indicatif::HumanCount;

use crate::table;

/// The moment of a look, as in RFC 3339.
pub fn time(view: &View) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(view.at_ms)).to_string()
}

/// A figure a second, with one decimal place where it is small.
pub fn rate(value: f64) -> String {
    if value < 10.0 && value > 0.0 { format!("{value:.1}") } else { HumanCount(value.round() as u64).to_string() }
}

/// All stages in a line.
pub fn line(view: &View) -> String {
    let stage = |stage: &StageView| {
        let (pulse, unit) = stage.pulse();
        format!(
            "{}: {} waiting, {} held, {}/{} slots of {} workers, {} {unit}",
            stage.stage,
            stage.waiting,
            stage.held,
            stage.busy,
            stage.slots,
            stage.workers,
            rate(pulse)
        )
    };
    format!("{}  {}\n", time(view), view.stages.iter().map(stage).collect::<Vec<_>>().join("  "))
}

/// The headings of rates.
pub const RATES: [&str; 6] = ["jobs/s", "prompt/s", "reused", "output/s", "KV put/s", "KV get/s"];

/// The cells of rates.
pub fn cells(rates: &Rates) -> [String; 6] {
    [
        rate(rates.jobs_per_s),
        rate(rates.prompt_tokens_per_s),
        format!("{:.0} %", 100.0 * rates.cached_share),
        rate(rates.completion_tokens_per_s),
        table::bytes(rates.kv_put_bytes_per_s as u64),
        table::bytes(rates.kv_get_bytes_per_s as u64),
    ]
}

/// The headings of foreign engines.
pub const ENGINES: [&str; 9] =
    ["model", "engine", "state", "running", "inside", "answered", "put off", "failed", "KV moved"];

/// The cells of an instance of a foreign engine: what runs of what may, what waits inside it, and what came of requests.
pub fn engine_cells(engine: &Upstream) -> [String; 9] {
    let moved = match (engine.transfers, engine.transfer_fallbacks) {
        (0, 0) => "-".to_owned(),
        (transfers, 0) => transfers.to_string(),
        (transfers, fallbacks) => format!("{transfers}, {fallbacks} not"),
    };
    [
        engine.model.clone(),
        engine.url.clone(),
        if engine.up { "up" } else { "down" }.to_owned(),
        format!("{}/{}", engine.running, engine.limit),
        engine.waiting.map_or("-".to_owned(), |waiting| format!("{waiting} wait")),
        engine.answered.to_string(),
        engine.put_off.to_string(),
        engine.failed.to_string(),
        moved,
    ]
}

/// Why an instance of a foreign engine takes nothing, for each that does not.
pub fn faults(view: &View) -> Vec<String> {
    let engines = view.workers.iter().flat_map(|view| &view.worker.upstreams);
    let faults = engines.filter_map(|engine| {
        let fault = engine.fault.as_ref().filter(|_| !engine.up)?;
        Some(format!("{} is down: {fault}", engine.url))
    });
    let mut faults: Vec<_> = faults.collect();
    faults.sort();
    faults.dedup();
    faults
}

/// Stages, queues, workers and foreign engines, a table each.
pub fn page(view: &View) -> String {
    let stages = view.stages.iter().map(|stage| {
        let slots = format!("{}/{}", stage.busy, stage.slots);
        let counts = [stage.waiting.to_string(), stage.held.to_string(), stage.workers.to_string(), slots];
        [vec![stage.stage.to_string()], counts.into(), cells(&stage.rates).into()].concat()
    });
    let queues = view.stages.iter().flat_map(|stage| &stage.queues).map(|queue| {
        let model = queue.model.as_ref().map_or("-".to_owned(), ToString::to_string);
        vec![
            queue.stage.to_string(),
            model,
            queue.lane.to_string(),
            queue.waiting.to_string(),
            queue.delivered.to_string(),
        ]
    });
    let workers = view.workers.iter().map(|view| {
        let worker = &view.worker;
        let counts = [state(worker.draining, worker.busy).to_owned(), format!("{}/{}", worker.busy, worker.room())];
        [vec![worker.worker.clone()], counts.into(), cells(&view.rates).into()].concat()
    });
    let engines = view.workers.iter().flat_map(|view| {
        let worker = &view.worker.worker;
        view.worker.upstreams.iter().map(move |engine| [vec![worker.clone()], engine_cells(engine).into()].concat())
    });
    let engines: Vec<_> = engines.collect();
    let headings = |first: &[&'static str]| [first, &RATES].concat();
    let mut tables = vec![
        table::render(&headings(&["stage", "waiting", "held", "workers", "slots"]), &stages.collect::<Vec<_>>()),
        table::render(&["queue", "model", "lane", "waiting", "held"], &queues.collect::<Vec<_>>()),
        table::render(&headings(&["worker", "state", "slots"]), &workers.collect::<Vec<_>>()),
    ];
    if !engines.is_empty() {
        tables.push(table::render(&[&["worker"][..], &ENGINES].concat(), &engines));
    }
    let planner = planner(view).map_or(String::new(), |thinks| format!("\n{thinks}\n"));
    let faults: String = faults(view).iter().map(|fault| format!("\n{fault}\n")).collect();
    format!("{}\n\n{}{faults}{planner}", time(view), tables.join("\n"))
}

/// What the planner thinks, in a line.
pub fn planner(view: &View) -> Option<String> {
    let planning = view.planner.as_ref()?;
    let wants: Vec<_> = planning.desired.iter().map(|(stage, count)| format!("{count} {stage}")).collect();
    let changing = match &planning.changing {
        Some(change) => format!(", {} becomes {}", change.worker, change.to),
        None => String::new(),
    };
    Some(format!("planner: wants {}{changing}; {} changes; {}", wants.join(" and "), planning.changes, planning.reason))
}

/// What a worker is doing, in a word.
pub fn state(draining: bool, busy: u64) -> &'static str {
    match (draining, busy) {
        (true, _) => "drains",
        (false, 0) => "idle",
        (false, _) => "works",
    }
}
