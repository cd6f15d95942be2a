//! The commands around the pipeline: demo, up, doctor, verify, and that nothing outlives them.

use std::{path::Path, process::Stdio, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
    time::{sleep, timeout},
};

use crate::support::{self, BATON, Ground, PATIENCE};

/// Ids of processes whose command line names `text`.
fn processes_of(text: &str) -> Vec<u32> {
    let own = std::process::id();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter(|id| *id != own)
        .filter(|id| {
            let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(text)
        })
        .collect()
}

async fn none_left(text: &str) {
    let gone = timeout(Duration::from_secs(60), async {
        while !processes_of(text).is_empty() {
            sleep(Duration::from_millis(50)).await;
        }
    });
    gone.await.unwrap_or_else(|_| panic!("processes of {text} live on: {:?}", processes_of(text)));
}

#[tokio::test]
async fn the_demo_answers_every_prompt_and_leaves_nothing_behind() {
    let (_, model) = support::provisioned();
    let home = model.parent().and_then(Path::parent).unwrap();
    let mut demo = Command::new(BATON);
    demo.args(["demo", "--json"]).kill_on_drop(true).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = demo.spawn().unwrap();
    let directory = home.join("demo").join(child.id().unwrap().to_string());
    let output = timeout(PATIENCE, child.wait_with_output()).await.expect("too slow").unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let outcomes = support::outcomes(&output);
    assert_eq!(outcomes.len(), 5);
    assert!(outcomes.iter().any(|outcome| outcome.usage.prompt_tokens > 1000), "no prompt is long");
    for outcome in &outcomes {
        assert!(!outcome.text.is_empty());
        assert_eq!(outcome.timings.recomputed_tokens, 0);
        assert!(outcome.timings.kv_stored_bytes > 0);
    }
    none_left(directory.to_str().unwrap()).await;
    assert!(!directory.exists());
}

#[tokio::test]
async fn up_serves_submit_and_its_children_die_with_it() {
    let root = format!("up-{}", std::process::id());
    let (_, model) = support::provisioned();
    let home = model.parent().and_then(Path::parent).unwrap().join("pipelines").join(&root);
    let root = format!("root={root}");
    // The other commands learn lanes and models from the running pipeline.
    let command = |words: &[&str]| {
        let mut command = Command::new(BATON);
        command.args(words).args(["--set", &root]).env("BATON_CONTEXT", "").kill_on_drop(true);
        if words == ["up"] {
            command.args(["--set", "models.sim.source=sim", "--set", "default_model=sim", "--set", "lanes=slow,fast"]);
            command.args(["--set", "gateway.listen=127.0.0.1:0"]);
        }
        command
    };
    let mut up = up(command(&["up"])).await;

    let streamed = command(&["submit", "hello", "--id", "hi", "--stream", "--max-tokens", "12"]).output();
    let streamed = timeout(PATIENCE, streamed).await.expect("too slow").unwrap();
    assert!(streamed.status.success(), "{}", String::from_utf8_lossy(&streamed.stderr));
    let fetched = command(&["result", "hi"]).output().await.unwrap();
    assert_eq!(fetched.stdout, streamed.stdout, "the stream shows what the result says");
    let record = command(&["job", "hi", "--json"]).output().await.unwrap();
    let record: Value = serde_json::from_slice(&record.stdout).unwrap();
    assert_eq!(record["state"], "completed");

    let found = timeout(PATIENCE, async {
        loop {
            let running: Value = serde_json::from_slice(&std::fs::read(home.join("running.json")).unwrap()).unwrap();
            match running["gateway_url"].as_str() {
                Some(url) => return url.to_owned(),
                None => sleep(Duration::from_millis(50)).await,
            }
        }
    });
    let url = found.await.expect("the gateway was not announced");
    assert_eq!(crate::http::get(&url, "/readyz").await.text(), "ready\n");

    // kill -9 leaves no time to clean up: the kernel tells the children.
    assert!(processes_of(home.to_str().unwrap()).len() >= 5, "nats-server, three workers and a gateway");
    up.kill().await.unwrap();
    none_left(home.to_str().unwrap()).await;

    // Started again on the same folder, and asked to end: it drains and takes its children along.
    let mut up = self::up(command(&["up"])).await;
    let mut pipe = command(&["submit", "--wait", "--max-tokens", "7", "--json"]);
    let mut pipe = pipe.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    pipe.stdin.take().unwrap().write_all(b"a prompt on standard input").await.unwrap();
    let piped = timeout(PATIENCE, pipe.wait_with_output()).await.expect("too slow").unwrap();
    assert_eq!(support::outcomes(&piped)[0].tokens.len(), 7);
    let pid = nix::unistd::Pid::from_raw(up.id().unwrap() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let status = timeout(PATIENCE, up.wait()).await.expect("baton up did not drain").unwrap();
    assert!(status.success(), "{status}");
    none_left(home.to_str().unwrap()).await;
    std::fs::remove_dir_all(home).unwrap();
}

/// A running `baton up`.
async fn up(mut command: Command) -> Child {
    let mut up = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(up.stderr.take().unwrap()).lines();
    let started = timeout(PATIENCE, async {
        while let Some(line) = log.next_line().await.unwrap() {
            if line.contains("the pipeline runs") {
                return;
            }
        }
        panic!("baton up ended");
    });
    started.await.expect("baton up did not start");
    tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
    up
}

#[tokio::test]
async fn doctor_tells_what_works_and_what_does_not() {
    let ground = Ground::sim(&[]).await;
    let healthy = ground.baton(&["doctor", "--json"]).await;
    let text = String::from_utf8_lossy(&healthy.stdout).into_owned();
    assert!(healthy.status.success(), "{text}");
    assert!(text.contains("JetStream on") && text.contains("create-only"), "{text}");
    // Once there is a pipeline, what it lacks is named.
    assert!(ground.baton(&["provision"]).await.status.success());
    let _ingest = ground.worker("ingest", "ingest-1").await;
    let lacking = ground.baton(&["doctor", "--json"]).await;
    let checks: Vec<Value> =
        String::from_utf8_lossy(&lacking.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let failed: Vec<_> = checks.iter().filter(|check| check["ok"] == false).map(|check| &check["check"]).collect();
    assert_eq!(failed, ["workers of prefill", "workers of decode"], "{checks:?}");
    assert_eq!(lacking.status.code(), Some(1));
    let broken = ground.baton(&["doctor", "--json", "--nats", "nats://127.0.0.1:1"]).await;
    assert!(!broken.status.success());
    let text = String::from_utf8_lossy(&broken.stdout).into_owned();
    assert!(text.contains("cannot connect to the broker"), "{text}");
}

#[tokio::test]
async fn verify_agrees_with_the_reference_engine() {
    support::provisioned();
    for (file, cases) in [("smollm2-chat.jsonl", 12), ("smollm2-raw.jsonl", 5)] {
        let verify =
            Command::new(BATON).args(["verify", "--json", "--reference"]).arg(support::reference(file)).output();
        let output = timeout(PATIENCE, verify).await.expect("too slow").unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["cases"], cases, "{report}");
        assert_eq!(report["template_mismatches"], 0, "{report}");
        assert_eq!(report["tokenizer_mismatches"], 0, "{report}");
        assert_eq!(report["clear_mismatches"], 0, "{report}");
        assert!(report["mean_abs_logprob_error"].as_f64().unwrap() <= 0.01, "{report}");
    }
}

#[tokio::test]
async fn fast_mode_stays_close_to_exact_mode() {
    support::provisioned();
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let mut verify = Command::new(BATON);
    verify.args(["verify", "--compute", "fast", "--json", "--reference"]).arg(support::reference("smollm2-raw.jsonl"));
    let output = timeout(PATIENCE, verify.arg("--text").arg(text).output()).await.expect("too slow").unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    for divergence in [&report, &report["texts"][0]] {
        assert!(divergence["positions"].as_u64().unwrap() > 500, "{report}");
        let number = |key: &str| divergence[key].as_f64().unwrap();
        assert!(number("mean_kl") < 0.004, "{report}");
        assert!(number("mean_kl") > 0.0, "the modes compute the same; was exact loaded twice? {report}");
        assert!(number("max_kl") > number("mean_kl"), "{report}");
        assert!(number("same_top") > 0.95, "{report}");
    }
    assert!(report["mean_abs_logprob_error"].as_f64().unwrap() <= 0.05, "{report}");
}

#[tokio::test]
async fn the_engine_bench_prints_every_figure() {
    let bench = |words: &[&str]| {
        let mut bench = Command::new(BATON);
        bench.args(["bench", "engine", "--model", "sim", "--json"]).args(words);
        timeout(PATIENCE, async move { bench.output().await.unwrap() })
    };
    let words = ["--threads", "1", "--prefill", "600,1000", "--generate", "8", "--batch", "1,3", "--repeat", "2"];
    let output = bench(&words).await.expect("too slow");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let positive = |value: &Value| value.as_f64().is_some_and(|value| value > 0.0);
    for key in ["load_s", "rss_mib", "load_peak_rss_mib", "peak_rss_mib", "prefill_tok_s"] {
        assert!(positive(&report[key]), "{key}: {report}");
    }
    for (key, value) in [("model", "sim"), ("compute", "fast"), ("device", "flex")] {
        assert_eq!(report[key], value, "{report}");
    }
    for (key, value) in [("threads", 1), ("prefill_tokens", 600), ("context_tokens", 256), ("generate_tokens", 8)] {
        assert_eq!(report[key], value, "{report}");
    }
    assert!(report["cpu"]["features"].is_array() && positive(&report["cpu"]["cores"]), "{report}");
    assert_eq!(report["prefill"][0]["tok_s"], report["prefill_tok_s"]);
    assert_eq!(report["prefill"][1]["tokens"], 1000);
    let decode = report["decode"].as_array().unwrap();
    assert_eq!(decode.iter().map(|it| &it["batch"]).collect::<Vec<_>>(), [1, 3]);
    for figures in decode.iter().chain(report["prefill"].as_array().unwrap()) {
        let speed = |key: &str| figures[key].as_f64().unwrap();
        assert!(0.0 < speed("min_tok_s") && speed("min_tok_s") <= speed("tok_s"), "{report}");
        assert!(speed("tok_s") <= speed("max_tok_s"), "{report}");
    }
    let step_ms = decode[1]["step_ms"].as_f64().unwrap();
    assert!((step_ms * decode[1]["tok_s"].as_f64().unwrap() - 3e3).abs() < 1e-6, "{report}");

    let refused = bench(&["--prefill", "9000"]).await.expect("too slow");
    assert!(!refused.status.success());
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(message.contains("--prefill: the model's context is 8192 tokens, found 9000"), "{message}");
}
