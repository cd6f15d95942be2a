//! `baton batch run`: every line is answered once, whatever was killed in between.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tokio::{
    process::Child,
    time::{sleep, timeout},
};

use crate::support::{Ground, PATIENCE};

const LINES: usize = 2_000;
/// Each of so many lines is bad.
const BAD: usize = 100;

fn line(number: usize, bad: bool) -> String {
    let name = format!("line-{number}");
    let body = json!({
        "model": "sim", "messages": [{ "role": "user", "content": format!("question {number}") }], "max_tokens": 4,
    });
    let line = json!({ "custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body });
    match (bad, number / BAD % 4) {
        (false, _) => line.to_string(),
        // A field that nobody knows, a model that the pipeline lacks, another url, and a prompt that is too long.
        (true, 0) => line.to_string().replace("max_tokens", "most_tokens"),
        (true, 1) => line.to_string().replace("\"sim\"", "\"gpt-7\""),
        (true, 2) => line.to_string().replace("/v1/chat/completions", "/v1/embeddings"),
        (true, _) => line.to_string().replace("question", &"long ".repeat(3_000)),
    }
}

fn write(path: &Path, bad: bool) {
    let lines: String = (0..LINES).map(|number| line(number, bad && number % BAD == 7) + "\n").collect();
    std::fs::write(path, lines).unwrap();
}

/// A file's lines as JSON, in order.
fn read(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn whole_lines(path: &Path) -> usize {
    std::fs::read(path).unwrap_or_default().iter().filter(|byte| **byte == b'\n').count()
}

async fn until(mut holds: impl AsyncFnMut() -> bool) {
    let held = timeout(PATIENCE, async {
        while !holds().await {
            sleep(Duration::from_millis(10)).await;
        }
    });
    held.await.expect("it did not come about in time");
}

/// Jobs that a stage's workers have passed on or ended since their start.
async fn jobs_done(ground: &Ground, stage: &str) -> u64 {
    let output = ground.baton(&["top", "--once", "--json"]).await;
    let view: Value = serde_json::from_slice(&output.stdout).unwrap();
    let workers = view["workers"].as_array().unwrap().iter();
    workers.filter(|worker| worker["stage"] == stage).map(|worker| worker["jobs_done"].as_u64().unwrap()).sum()
}

struct Batch<'a> {
    ground: &'a Ground,
    input: PathBuf,
}

impl Batch<'_> {
    fn words<'a>(&'a self, output: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
        let files = [self.input.to_str().unwrap(), output.to_str().unwrap()];
        [&["batch", "run", "--json", "--tenant", "acme"][..], &files, more].concat()
    }

    fn start(&self, output: &Path, more: &[&str]) -> Child {
        let mut command = self.ground.command(&self.words(output, more));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Exit code, summary and messages.
    async fn run(&self, output: &Path, more: &[&str]) -> (i32, Value, String) {
        let done = self.ground.baton(&self.words(output, more)).await;
        let messages = String::from_utf8_lossy(&done.stderr).into_owned();
        let summary = serde_json::from_slice(&done.stdout).unwrap_or_else(|error| panic!("{error}: {messages}"));
        (done.status.code().unwrap(), summary, messages)
    }
}

#[tokio::test]
async fn a_batch_that_was_killed_goes_on_and_computes_nothing_twice() {
    let ground = Ground::sim(&["models.sim.sim.decode_s_per_step=0.004"]).await;
    let _workers = ground.workers().await;
    let batch = Batch { ground: &ground, input: ground.directory.path().join("in.jsonl") };
    let output = ground.directory.path().join("out.jsonl");
    write(&batch.input, true);

    let mut first = batch.start(&output, &["--concurrency", "200"]);
    until(async || whole_lines(&output) >= 300).await;
    first.kill().await.unwrap();
    let answered = whole_lines(&output);
    assert!(answered < LINES, "it ended before it was killed");
    // What a kill in the middle of a write leaves.
    let torn = [std::fs::read(&output).unwrap(), b"{\"id\": \"batch-0".to_vec()].concat();
    std::fs::write(&output, torn).unwrap();

    let (code, summary, messages) = batch.run(&output, &[]).await;
    assert_eq!(code, 3, "{messages}");
    assert!(!messages.contains('\u{1b}'), "{messages}");
    let count = |key: &str| summary[key].as_u64().unwrap();
    assert_eq!(count("answered_before") as usize, answered, "{summary}");
    assert_eq!(count("answered_before") + count("completed") + count("failed"), LINES as u64, "{summary}");
    let mut names = BTreeMap::new();
    for line in read(&output) {
        let name = line["custom_id"].as_str().unwrap().to_owned();
        let number: usize = name.strip_prefix("line-").unwrap().parse().unwrap();
        let bad = number % BAD == 7;
        assert_eq!(line["error"].is_null(), !bad, "{line}");
        assert_eq!(line["response"]["status_code"] == 200, !bad, "{line}");
        if !bad {
            assert_eq!(line["response"]["body"]["usage"]["completion_tokens"], 4, "{line}");
        } else if (number / BAD).is_multiple_of(4) {
            assert!(line["error"]["message"].as_str().unwrap().contains("most_tokens"), "{line}");
        }
        assert_eq!(names.insert(name, line), None, "two answers to one line");
    }
    assert_eq!(names.len(), LINES);
    // Bad lines that only ingest can tell fail there.
    let good = (LINES - LINES / BAD) as u64;
    assert_eq!(jobs_done(&ground, "decode").await, good);
    assert_eq!(jobs_done(&ground, "prefill").await, good);

    // In another file and in order: everything is only collected.
    let ordered = ground.directory.path().join("ordered.jsonl");
    let (code, summary, _) = batch.run(&ordered, &["--in-order", "--concurrency", "64"]).await;
    assert_eq!((code, &summary["sent"]), (3, &json!(0)), "{summary}");
    assert_eq!(summary["collected"].as_u64().unwrap(), good + (LINES / BAD / 2) as u64, "{summary}");
    let expected: Vec<Value> = (0..LINES).map(|number| json!(format!("line-{number}"))).collect();
    let found: Vec<Value> = read(&ordered).iter().map(|line| line["custom_id"].clone()).collect();
    assert_eq!(found, expected);
    for line in read(&ordered) {
        assert_eq!(names[line["custom_id"].as_str().unwrap()], line, "the same answer");
    }

    // With its bad lines put right, only those run.
    write(&batch.input, false);
    let (code, summary, messages) = batch.run(&ordered, &["--retry-failed"]).await;
    assert_eq!((code, &summary["completed"]), (0, &json!(LINES / BAD)), "{summary} {messages}");
    assert_eq!((read(&ordered).len(), whole_lines(&ordered)), (LINES, LINES));
    assert_eq!(jobs_done(&ground, "decode").await, LINES as u64);
}

#[tokio::test]
async fn own_requests_doubles_and_edited_lines_are_told_apart() {
    let ground = Ground::sim(&[]).await;
    let _workers = ground.workers().await;
    let batch = Batch { ground: &ground, input: ground.directory.path().join("in.jsonl") };
    let output = ground.directory.path().join("out.jsonl");
    let own = json!({ "id": "own", "prompt": "a", "max_tokens": 3 }).to_string();
    let (first, second) = (line(1, false), line(2, false));
    let input = [own.as_str(), "", &first, &second, &first, "no json", "{\"prompt\": \"b\", \"max_tokens\": 2}"];
    std::fs::write(&batch.input, input.join("\n")).unwrap();
    let (code, summary, messages) = batch.run(&output, &["--in-order"]).await;
    assert_eq!(code, 3, "{messages}");
    assert_eq!((&summary["completed"], &summary["failed"]), (&json!(4), &json!(2)), "{summary}");
    let lines = read(&output);
    assert_eq!(lines.len(), 6);
    assert_eq!((&lines[0]["id"], &lines[0]["status"]), (&json!("own"), &json!("completed")), "{}", lines[0]);
    for (line, part) in [(&lines[3], "another line's already"), (&lines[4], "no JSON")] {
        assert_eq!(line["custom_id"], Value::Null, "{line}");
        assert!(line["error"]["message"].as_str().unwrap().contains(part), "{line}");
    }
    // Run again: nothing is left to do. Edited: told, not answered with the old answer.
    let (code, summary, _) = batch.run(&output, &[]).await;
    assert_eq!((code, &summary["sent"], read(&output).len()), (3, &json!(0), 6), "{summary}");
    std::fs::write(&batch.input, first.replace("question", "another")).unwrap();
    let (code, summary, _) = batch.run(&output, &[]).await;
    assert_eq!((code, &summary["failed"]), (3, &json!(1)), "{summary}");
    assert!(read(&output)[6]["error"]["message"].as_str().unwrap().contains("another request"), "{summary}");
    // Another salt makes other jobs.
    let salted = ground.directory.path().join("salted.jsonl");
    let (code, summary, _) = batch.run(&salted, &["--salt", "2"]).await;
    assert_eq!((code, &summary["sent"], &summary["collected"]), (0, &json!(1), &json!(0)), "{summary}");
}

#[tokio::test]
async fn a_batch_that_is_interrupted_says_how_to_go_on() {
    let ground = Ground::sim(&[]).await;
    let bus = ground.bus().await;
    // Streams, and nobody who decodes: nothing ends.
    let _ingest = ground.worker("ingest", "ingest-1").await;
    let batch = Batch { ground: &ground, input: ground.directory.path().join("in.jsonl") };
    let output = ground.directory.path().join("out.jsonl");
    let lines: String = (0..50).map(|number| line(number, false) + "\n").collect();
    std::fs::write(&batch.input, lines).unwrap();
    let running = batch.start(&output, &[]);
    until(async || bus.queues().await.unwrap().iter().map(|queue| queue.waiting).sum::<u64>() >= 50).await;
    kill(Pid::from_raw(running.id().unwrap() as i32), Signal::SIGINT).unwrap();
    let ended = timeout(PATIENCE, running.wait_with_output()).await.expect("it did not end").unwrap();
    let messages = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(130), "{messages}");
    assert!(messages.contains("run the same command again"), "{messages}");
    // They kept running: the next run only collects them.
    let _prefill = ground.worker("prefill", "prefill-1").await;
    let _decode = ground.worker("decode", "decode-1").await;
    let (code, summary, messages) = batch.run(&output, &[]).await;
    assert_eq!((code, &summary["completed"]), (0, &json!(50)), "{summary} {messages}");
    assert_eq!(jobs_done(&ground, "decode").await, 50);
}
