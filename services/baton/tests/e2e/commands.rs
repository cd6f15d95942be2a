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
        command.args(words).args(["--set", &root]).kill_on_drop(true);
        if words == ["up"] {
            command.args(["--set", "models.sim.source=sim", "--set", "default_model=sim", "--set", "lanes=slow,fast"]);
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

    // kill -9 leaves no time to clean up: the kernel tells the children.
    assert!(processes_of(home.to_str().unwrap()).len() >= 4, "nats-server and three workers");
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
