//! From the figures of all turns to the comparison.

use std::fmt::Write;

use baton_load::{statistics::median, table};
use serde::Serialize;

use super::{Error, Measure, Options, Speeds, output::Ours};

/// Our engine beside llama.cpp's.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub options: Options,
    pub comparisons: Vec<Comparison>,
    /// Speed at the longest prompt, as a share of that at the shortest; only if there are two lengths.
    pub long_prompt_share: Option<f64>,
    /// Seconds that our engine loads, the median of the rounds.
    pub load_s: f64,
    /// Our engine's resident memory without KV cache in MiB, the median of the rounds, and as a multiple of the model
    /// file's size.
    pub rss_mib: Option<f64>,
    pub rss_to_file: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    #[serde(flatten)]
    pub measure: Measure,
    pub ours: Figure,
    /// In the order of the options.
    pub peers: Vec<Peer>,
    /// The model with which llama.cpp is fastest here.
    pub best: String,
    /// Our speed divided by that of the best.
    pub ratio: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Peer {
    pub model: String,
    #[serde(flatten)]
    pub figure: Figure,
}

/// Tokens a second.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// The median of the rounds.
    pub tok_s: f64,
    pub rounds: Vec<f64>,
}

/// Compares what each engine gave in its turns.
pub(super) fn compare(options: &Options, ours: &[Ours], peers: &[(String, Vec<Speeds>)]) -> Result<Report, Error> {
    let mine: Vec<Speeds> = ours.iter().map(Ours::speeds).collect();
    let prefill = options.prefill.iter().map(|&tokens| Measure::Prefill { tokens });
    let measures = prefill.chain(options.batch.iter().map(|&sequences| Measure::Decode { sequences }));
    let mut comparisons = Vec::new();
    for measure in measures {
        let ours = figure(&mine, measure, "baton bench engine")?;
        let mut found = Vec::new();
        for (model, turns) in peers {
            found.push(Peer { model: model.clone(), figure: figure(turns, measure, "llama.cpp")? });
        }
        let missing = || missing(measure, "llama.cpp");
        let best = found.iter().max_by(|a, b| a.figure.tok_s.total_cmp(&b.figure.tok_s)).ok_or_else(missing)?;
        let (best, ratio) = (best.model.clone(), ours.tok_s / best.figure.tok_s);
        comparisons.push(Comparison { measure, ours, peers: found, best, ratio });
    }
    let over_rounds = |value: fn(&Ours) -> Option<f64>| median(&ours.iter().filter_map(value).collect::<Vec<_>>());
    let rss_mib = over_rounds(|ours| ours.rss_mib);
    Ok(Report {
        long_prompt_share: long_prompt_share(&comparisons),
        load_s: over_rounds(|ours| Some(ours.load_s)).unwrap_or_default(),
        rss_mib,
        rss_to_file: rss_mib.zip(over_rounds(|ours| ours.file_mib)).map(|(rss, file)| rss / file),
        options: options.clone(),
        comparisons,
    })
}

fn figure(turns: &[Speeds], measure: Measure, program: &str) -> Result<Figure, Error> {
    let rounds = turns.iter().map(|speeds| speeds.get(&measure).copied().ok_or_else(|| missing(measure, program)));
    let rounds = rounds.collect::<Result<Vec<_>, _>>()?;
    let tok_s = median(&rounds).ok_or_else(|| missing(measure, program))?;
    Ok(Figure { tok_s, rounds })
}

fn missing(measure: Measure, program: &str) -> Error {
    Error::Missing { program: program.to_owned(), missing: name(measure) }
}

fn long_prompt_share(comparisons: &[Comparison]) -> Option<f64> {
    let prompts = comparisons.iter().filter_map(|comparison| match comparison.measure {
        Measure::Prefill { tokens } => Some((tokens, comparison.ours.tok_s)),
        Measure::Decode { .. } => None,
    });
    let prompts: Vec<_> = prompts.collect();
    let shortest = prompts.iter().min_by_key(|(tokens, _)| *tokens)?;
    let longest = prompts.iter().max_by_key(|(tokens, _)| *tokens)?;
    (shortest.0 < longest.0).then(|| longest.1 / shortest.1)
}

fn name(measure: Measure) -> String {
    match measure {
        Measure::Prefill { tokens } => format!("prefill of {tokens} tokens"),
        Measure::Decode { sequences: 1 } => "decode, 1 sequence".to_owned(),
        Measure::Decode { sequences } => format!("decode, {sequences} sequences"),
    }
}

impl Report {
    /// A Markdown table of tokens a second, and under it what concerns our engine alone.
    pub fn markdown(&self) -> String {
        let Options { model, compute, threads, rounds, context, generate, .. } = &self.options;
        let models = self.comparisons.first().map_or(&[][..], |comparison| &comparison.peers);
        let names = models.iter().map(|peer| format!("llama.cpp, {}", peer.model));
        let head = ["tokens/s".to_owned(), "baton".to_owned()].into_iter().chain(names);
        let mut rows = vec![head.chain(["baton / best".to_owned()]).collect::<Vec<_>>()];
        for comparison in &self.comparisons {
            let speeds = std::iter::once(&comparison.ours).chain(comparison.peers.iter().map(|peer| &peer.figure));
            let speeds = speeds.map(|figure| format!("{:.1}", figure.tok_s));
            let ratio = format!("{:.2}", comparison.ratio);
            rows.push([name(comparison.measure)].into_iter().chain(speeds).chain([ratio]).collect());
        }
        let mut text = table::aligned(&rows);
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "\n{model}, {compute}, {threads} threads, median of {rounds} rounds; decode: {generate} tokens after {context}"
        );
        if let Some(share) = self.long_prompt_share {
            let _ = writeln!(text, "speed at the longest prompt, of that at the shortest: {share:.2}");
        }
        let _ = writeln!(text, "loaded in {:.2} s", self.load_s);
        if let Some(rss) = self.rss_mib {
            let of_file = self.rss_to_file.map_or_else(String::new, |ratio| format!(", {ratio:.2} x the file"));
            let _ = writeln!(text, "resident without KV cache: {rss:.0} MiB{of_file}");
        }
        text
    }
}
