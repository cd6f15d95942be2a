//! What all processes of a pipeline agree on: kept in the broker, taken over by those that come later, changed by two commands.

use std::{path::Path, process::Stdio, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
    time::timeout,
};

use crate::support::{BATON, Ground, PATIENCE, provisioned};

const DAY: Duration = Duration::from_secs(86_400);

/// A command that is told the ground's broker, and what else it is given.
fn bare(ground: &Ground, words: &[&str], settings: &[&str]) -> Command {
    let mut command = Command::new(BATON);
    command.args(words).args(["--nats", ground.server.url()]).env("BATON_CONTEXT", "").kill_on_drop(true);
    for setting in settings {
        command.args(["--set", setting]);
    }
    command.stdin(Stdio::null());
    command
}

/// Exit code, and what was said to the user.
async fn ended(mut command: Command) -> (Option<i32>, String) {
    let output = timeout(PATIENCE, command.output()).await.expect("it did not end").unwrap();
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

/// Starts what serves, and waits until it is ready.
async fn serving(mut command: Command) -> tokio::process::Child {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = timeout(PATIENCE, lines.next_line()).await.expect("it was not ready in time").unwrap();
    assert!(line.is_some_and(|line| line.starts_with("ready")), "it ended");
    child
}

#[tokio::test]
async fn workers_that_are_told_the_broker_only_take_part_and_others_are_refused() {
    let ground = Ground::sim(&["results.keep=30d", "limits.backlog_messages=5000", "lanes=one,two"]).await;
    let bus = ground.bus().await;
    let _ingest = ground.worker("ingest", "ingest-1").await;
    let standing = bus.standing_retention().await.unwrap().unwrap();
    assert_eq!((standing.results, standing.backlog), (30 * DAY, Some(5000)));

    let _prefill = serving(bare(&ground, &["worker", "prefill"], &[])).await;
    let _decode = serving(bare(&ground, &["worker", "decode"], &["stages.decode.slots=3"])).await;
    let _gateway = serving(bare(&ground, &["gateway", "--listen", "127.0.0.1:0"], &[])).await;
    assert_eq!(bus.standing_retention().await.unwrap().unwrap(), standing);
    let outcomes = ground.submit_all(&[json!({ "id": "a", "prompt": "hello", "max_tokens": 5 })]).await;
    assert_eq!((outcomes[0].tokens.len(), outcomes[0].timings.recomputed_tokens), (5, 0));

    let other = format!("store.url=file://{}/other", ground.directory.path().display());
    let (code, said) = ended(bare(&ground, &["worker", "decode"], &["results.keep=7d", &other])).await;
    assert_eq!(code, Some(1));
    for part in ["results.keep", "30days", "7days", "store.url", "/other", "baton provision"] {
        assert!(said.contains(part), "{part} is missing: {said}");
    }
    // A folder of the same name on another machine is another store.
    std::fs::remove_dir_all(ground.store().join("pipelines")).unwrap();
    let (code, said) = ended(bare(&ground, &["worker", "prefill"], &[])).await;
    assert!(code == Some(1) && said.contains("no mark of the pipeline"), "{said}");
    let (code, said) = ended(bare(&ground, &["doctor"], &[])).await;
    assert!(code == Some(1) && said.contains("FAIL  store"), "{said}");
}

#[tokio::test]
async fn a_store_that_nobody_named_is_asked_for() {
    let ground = Ground::new(&[]).await;
    let sim = "models.sim.source=sim";
    let _ingest = serving(bare(&ground, &["worker", "ingest"], &[sim])).await;
    let (code, said) = ended(bare(&ground, &["worker", "prefill"], &[sim])).await;
    assert!(code == Some(1) && said.contains("--store"), "{said}");
    // The first that names one names it for all.
    let url = format!("store.url=file://{}", ground.store().display());
    let _prefill = serving(bare(&ground, &["worker", "prefill"], &[&url])).await;
    let _decode = serving(bare(&ground, &["worker", "decode"], &[])).await;
}

#[tokio::test]
async fn provision_changes_what_stands_and_tells_what() {
    let ground = Ground::sim(&[]).await;
    let (code, said) = ended(ground.command(&["provision"])).await;
    assert!(code == Some(0) && said.contains("settings: created"), "{said}");
    let change = ["results.keep=3d", "limits.tenant_backlog=9"];
    let (code, said) = ended(bare(&ground, &["provision", "--check"], &change)).await;
    assert!(code == Some(1) && said.contains("results.keep: from \"7days\" to \"3days\""), "{said}");
    let standing = || async { ground.bus().await.standing_retention().await.unwrap().unwrap() };
    assert_eq!(standing().await.results, 7 * DAY, "--check changed something");

    let (code, said) = ended(bare(&ground, &["provision", "--json"], &change)).await;
    let report: Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
    assert_eq!((code, report["settings"].as_array().unwrap().len()), (Some(0), 2), "{said}");
    assert_eq!((standing().await.results, standing().await.backlog_of_tenant), (3 * DAY, Some(9)));
    let (code, said) = ended(bare(&ground, &["provision", "--check"], &change)).await;
    assert!(code == Some(0) && said.contains("as wanted"), "{said}");
    // What one server can't do is said, and nothing is noted as done.
    let (code, said) = ended(bare(&ground, &["provision"], &["broker.replicas=3"])).await;
    assert!(code == Some(1) && said.contains("replicas"), "{said}");
    let (code, said) = ended(bare(&ground, &["provision", "--check"], &["broker.replicas=1"])).await;
    assert!(code == Some(0), "{said}");
}

/// All of its lines are JSON, where that is asked for; the last is for the user.
#[tokio::test]
async fn up_ends_and_says_why_when_a_process_can_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("a home");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("gateway.listen={}", taken.local_addr().unwrap());
    let mut up = Command::new(BATON);
    let bin = provisioned().0.parent().map(Path::to_path_buf).unwrap();
    let search = std::env::join_paths(
        std::iter::once(bin).chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
    );
    up.args(["up", "--set", "models.sim.source=sim", "--set", &listen, "--set", "root=fails"]);
    up.env("BATON_CONTEXT", "").env("BATON_HOME", &home).env("PATH", search.unwrap());
    up.env("BATON__TELEMETRY__LOG_FORMAT", "json").stdin(Stdio::null()).kill_on_drop(true);
    let (code, said) = ended(up).await;
    assert_eq!(code, Some(1), "{said}");
    let (words, logs): (Vec<_>, Vec<_>) = said.lines().partition(|line| !line.starts_with('{'));
    assert!(
        words.iter().any(|line| line.starts_with("error: ") && line.contains("gateway-1") && line.contains("listen"))
    );
    assert!(!said.contains("the pipeline runs"), "{said}");
    for line in &logs {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
    assert!(logs.iter().any(|line| line.contains("the worker is ready")), "{said}");
}
