//! `baton bench kv` on the real model and real text; `baton bench bus` on real processes.

use std::path::Path;

use serde_json::Value;
use tokio::{process::Command, time::timeout};

use crate::support::{self, BATON, PATIENCE};

#[tokio::test]
async fn the_kv_bench_tells_what_each_codec_saves_and_costs() {
    support::provisioned();
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let text = text.to_str().unwrap();
    let bench = |words: &[&str]| {
        let mut bench = Command::new(BATON);
        bench.args(["bench", "kv", "--json", "--text", text]).args(words);
        timeout(PATIENCE, async move { bench.output().await.unwrap() })
    };
    // A whole chunk and one that is not.
    let output = bench(&["--prompt", "300", "--next", "16", "--repeat", "2"]).await.expect("too slow");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    let reports: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(reports.iter().map(|it| &it["codec"]).collect::<Vec<_>>(), ["raw", "lossless", "near", "balanced"]);
    for (index, report) in reports.iter().enumerate() {
        let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{report}"));
        assert_eq!((&report["prompt_tokens"], &report["positions"]), (&300.into(), &16.into()), "{report}");
        assert_eq!(report["raw_bytes"], 300 * 30 * 2 * 192 * 2, "{report}");
        for speed in ["encode", "decode"].map(|key| &report[key]) {
            assert!(0.0 < number(&speed["min_mb_s"]) && number(&speed["min_mb_s"]) <= number(&speed["mb_s"]));
            assert!(number(&speed["mb_s"]) <= number(&speed["max_mb_s"]), "{report}");
        }
        let [mean_kl, max_kl, same_top] = ["mean_kl", "max_kl", "same_top"].map(|key| number(&report[key]));
        let [perplexity, exact] = ["perplexity", "exact_perplexity"].map(|key| number(&report[key]));
        assert!(1.0 < exact && exact < 1000.0, "{report}");
        let [ratio, k, v] = ["ratio", "k_ratio", "v_ratio"].map(|key| number(&report[key]));
        // K and V have as many values, so both together have the harmonic mean; but tokens that a codec keeps as they are
        // for the sake of both count for each.
        let together = ratio * (1.0 / k + 1.0 / v) / 2.0;
        if index < 2 {
            // Every bit comes back, so nothing changes.
            assert_eq!((mean_kl, max_kl, same_top, perplexity), (0.0, 0.0, 1.0, exact), "{report}");
            assert!((together - 1.0).abs() < 0.005, "{report}");
        } else {
            assert!(0.0 < mean_kl && mean_kl < max_kl && max_kl < 0.5, "{report}");
            assert!((together - 1.0).abs() < 0.05, "{report}");
        }
        let least = [0.99, 1.3, 2.5, 3.0][index];
        assert!(least < ratio && (index > 0 || ratio <= 1.0), "{report}");
    }

    let refused = bench(&["--prompt", "100", "--next", "8000"]).await.expect("too slow");
    assert!(!refused.status.success());
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(message.contains("must have 8101 tokens"), "{message}");
}

#[tokio::test]
async fn the_bus_bench_counts_jobs_time_and_processes_and_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let server = support::provisioned().0.parent().unwrap();
    let path = format!("{}:{}", server.display(), std::env::var("PATH").unwrap());
    let bench = |words: &[&str]| {
        let mut bench = Command::new(BATON);
        bench.env("BATON_HOME", home.path()).env("PATH", &path).kill_on_drop(true);
        bench.args(["bench", "bus", "--jobs", "50", "--concurrency", "8", "--tokens", "4", "--json"]).args(words);
        timeout(PATIENCE, async move { bench.output().await.unwrap() })
    };
    for (words, blobs, sync) in [(&["--sync", "always"][..], true, "always"), (&["--no-blobs"], false, "default")] {
        let output = bench(words).await.expect("too slow");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{report}"));
        assert_eq!((&report["jobs"], &report["concurrency"], &report["tokens"]), (&50.into(), &8.into(), &4.into()));
        assert_eq!((&report["blobs"], &report["sync"]), (&blobs.into(), &sync.into()), "{report}");
        assert_eq!(report["recomputed_tokens"], 0, "{report}");
        // The KV cache of 64 tokens of SmolLM2, packed to about two thirds; or nothing at all.
        let raw = 64.0 * 30.0 * 2.0 * 192.0 * 2.0;
        let stored = number(&report["kv_bytes_per_job"]) / raw;
        assert!(if blobs { (0.5..1.0).contains(&stored) } else { stored == 0.0 }, "{report}");
        // Eight jobs are under way at a time: 50 of them take 50 / 8 latencies, more or less.
        let [jobs_s, p50, p99] = ["jobs_s", "p50_ms", "p99_ms"].map(|key| number(&report[key]));
        assert!(0.0 < p50 && p50 <= p99 && jobs_s * p50 / 1e3 < 16.0, "{report}");
        let processes = report["processes"].as_array().unwrap();
        let names: Vec<&str> = processes.iter().map(|process| process["process"].as_str().unwrap()).collect();
        assert_eq!(names, ["nats-server", "ingest-1", "prefill-1", "decode-1", "client"], "{report}");
        for process in processes {
            assert!(1.0 < number(&process["rss_mib"]) && 0.0 <= number(&process["cpu_ms_per_job"]), "{report}");
        }
        let cpu: f64 = processes.iter().map(|process| number(&process["cpu_ms_per_job"])).sum();
        assert!(0.0 < cpu && (cpu - number(&report["cpu_ms_per_job"])).abs() < 1e-6, "{report}");
        assert_eq!(std::fs::read_dir(home.path().join("bench")).unwrap().count(), 0, "it left something");
    }

    let refused = bench(&["--no-blobs", "--prompt", "50"]).await.expect("too slow");
    assert!(!refused.status.success());
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(message.contains("multiples of 16, found 50"), "{message}");
}
