//! What the programs print.

use std::collections::BTreeMap;

use baton_load::statistics::median;
use serde::Deserialize;

use super::{Measure, Speeds};

/// What we read of `baton bench engine --json`.
#[derive(Debug, Deserialize, PartialEq)]
pub(super) struct Ours {
    pub load_s: f64,
    pub rss_mib: Option<f64>,
    pub file_mib: Option<f64>,
    prefill: Vec<Prefill>,
    decode: Vec<Decode>,
}

#[derive(Debug, Deserialize, PartialEq)]
struct Prefill {
    tokens: u32,
    tok_s: f64,
}

#[derive(Debug, Deserialize, PartialEq)]
struct Decode {
    batch: u32,
    tok_s: f64,
}

impl Ours {
    pub fn speeds(&self) -> Speeds {
        let prefill = self.prefill.iter().map(|it| (Measure::Prefill { tokens: it.tokens }, it.tok_s));
        prefill.chain(self.decode.iter().map(|it| (Measure::Decode { sequences: it.batch }, it.tok_s))).collect()
    }
}

pub(super) fn ours(text: &str) -> Result<Ours, serde_json::Error> {
    serde_json::from_str(text)
}

/// A test of `llama-bench -o json`: a prompt, or generating with one sequence.
#[derive(Deserialize)]
struct BenchTest {
    n_prompt: u32,
    n_gen: u32,
    /// Tokens a second of each repetition.
    samples_ts: Vec<f64>,
}

pub(super) fn llama_bench(text: &str) -> Result<Speeds, serde_json::Error> {
    let tests: Vec<BenchTest> = serde_json::from_str(text)?;
    let speed = |test: BenchTest| {
        let measure = match (test.n_prompt, test.n_gen) {
            (tokens, 0) => Measure::Prefill { tokens },
            (0, _) => Measure::Decode { sequences: 1 },
            // A prompt and generating in one figure, which nobody asked for.
            _ => return None,
        };
        Some((measure, median(&test.samples_ts)?))
    };
    Ok(tests.into_iter().filter_map(speed).collect())
}

/// A line of `llama-batched-bench --output-format jsonl`.
#[derive(Deserialize)]
struct BatchedLine {
    /// Sequences.
    pl: u32,
    /// Generated tokens a second, of all sequences.
    speed_tg: f64,
}

pub(super) fn llama_batched_bench(text: &str) -> Result<Speeds, serde_json::Error> {
    let mut runs: BTreeMap<Measure, Vec<f64>> = BTreeMap::new();
    // Empty lines and the library's own messages may stand between.
    for line in text.lines().filter(|line| line.starts_with('{')) {
        let line: BatchedLine = serde_json::from_str(line)?;
        runs.entry(Measure::Decode { sequences: line.pl }).or_default().push(line.speed_tg);
    }
    Ok(runs.into_iter().filter_map(|(measure, runs)| Some((measure, median(&runs)?))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama_bench_prints_an_object_a_test() {
        let text = r#"[
  {
    "build_commit": "unknown",
    "model_type": "llama 256M Q4_0",
    "n_threads": 2,
    "type_k": "f16",
    "repack": true,
    "n_prompt": 512,
    "n_gen": 0,
    "n_depth": 0,
    "avg_ts": 503.517400,
    "stddev_ts": 4.180317,
    "samples_ns": [ 126364008, 127856425, 190000000 ],
    "samples_ts": [ 506.473, 500.561, 390.2 ]
  },
  {
    "n_prompt": 0,
    "n_gen": 64,
    "n_depth": 256,
    "samples_ts": [ 77.2147, 67.572 ]
  },
  {
    "n_prompt": 64,
    "n_gen": 64,
    "n_depth": 0,
    "samples_ts": [ 1.0 ]
  }
]
"#;
        let expected =
            [(Measure::Prefill { tokens: 512 }, 500.561), (Measure::Decode { sequences: 1 }, (77.2147 + 67.572) / 2.0)];
        assert_eq!(llama_bench(text).unwrap(), Speeds::from(expected));
        assert!(llama_bench("[\n").is_err(), "what it prints when it cannot load the model");
        assert!(llama_bench(r#"[{"n_prompt": 1}]"#).is_err());
    }

    #[test]
    fn llama_batched_bench_prints_a_line_a_run() {
        let text = r#"
{"n_kv_max": 16384, "n_batch": 2048, "is_pp_shared": 0, "n_threads": 2, "pp": 256, "tg": 64, "pl": 8, "n_kv": 2560, "t_pp": 0.040536, "speed_pp": 394.710876, "t_tg": 0.049734, "speed_tg": 180.427879, "t": 0.090270, "speed": 221.557556}
{"pp": 256, "tg": 64, "pl": 32, "t_pp": 0.060804, "speed_pp": 526.281189, "t_tg": 0.113373, "speed_tg": 370.5, "t": 0.174177, "speed": 229.651459}
llama_perf_context_print: load time = 1.0 ms
{"pp": 256, "tg": 64, "pl": 32, "speed_tg": 380.5}
{"pp": 256, "tg": 64, "pl": 32, "speed_tg": 20.0}

"#;
        let decode = |sequences, speed| (Measure::Decode { sequences }, speed);
        assert_eq!(llama_batched_bench(text).unwrap(), Speeds::from([decode(8, 180.427879), decode(32, 370.5)]));
        assert!(llama_batched_bench("{\"pp\": 256}").is_err());
        assert!(llama_batched_bench("\n").unwrap().is_empty());
    }
}
