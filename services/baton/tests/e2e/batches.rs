//! Files, batches and webhooks, through OpenAI's own client.

mod remote;

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
};

use baton_contract::{batch::Batch, outcome::Status};
use tokio::{
    process::Command,
    sync::OnceCell,
    time::{Duration, sleep, timeout},
};

use crate::{
    dead::destroy,
    http::get,
    support::{Ground, PATIENCE, Worker, job_id, name},
};

const CLIENT: &str = include_str!("batches/client.py");
const CROWD: &str = include_str!("batches/crowd.py");
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Python's packages, brought once.
async fn packages() -> PathBuf {
    static BROUGHT: OnceCell<()> = OnceCell::const_new();
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("batches-python");
    let bring = async {
        let install = Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", "--upgrade"])
            .args(["openai==3.54.0", "standardwebhooks==1.1.0", "--target"])
            .arg(&place)
            .output()
            .await
            .unwrap();
        assert!(install.status.success(), "{}", String::from_utf8_lossy(&install.stderr));
    };
    BROUGHT.get_or_init(|| bring).await;
    place
}

/// Runs a Python program to its end; returns what it prints.
async fn python(ground: &Ground, program: &str, arguments: &[&str]) -> String {
    let script = ground.directory.path().join("client.py");
    std::fs::write(&script, program).unwrap();
    let mut command = Command::new("python3");
    command.arg(&script).args(arguments).env("PYTHONPATH", packages().await).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(PATIENCE, command.output()).await.expect("too slow").unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A gateway and where it is; killed when dropped.
struct Gateway {
    process: Worker,
    url: String,
}

impl Gateway {
    async fn start(ground: &Ground, settings: &[&str]) -> Self {
        let (process, url) = ground.gateway(settings).await;
        Self { process, url }
    }

    /// As a crash does.
    async fn kill(self) {
        self.process.kill().await;
    }

    /// The most memory that it has had, in KiB.
    fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

/// Waits until a batch is as it should be.
async fn watch(ground: &Ground, id: &str, until: impl Fn(&Batch) -> bool) -> Batch {
    let batches = ground.bus().await.batches(1).await.unwrap();
    let watched = async {
        loop {
            let batch = batches.get(&name("default"), &job_id(id)).await.unwrap().unwrap().value;
            if until(&batch) {
                return batch;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, watched).await.expect("the batch did not get there in time")
}

#[tokio::test]
async fn openais_client_uploads_runs_reads_and_is_refused_and_a_webhook_tells_the_end() {
    let ground = Ground::sim(&[]).await;
    let _workers = ground.workers().await;
    let keys = ground.directory.path().join("keys.toml");
    let mut made = Vec::new();
    for tenant in ["acme", "other"] {
        let mut command = Command::new(crate::support::BATON);
        command.args(["gateway", "key", tenant, "--tenant", tenant, "--file"]).arg(&keys);
        let output = command.output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        made.push(String::from_utf8(output.stdout).unwrap().trim().to_owned());
    }
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let webhook =
        format!("\n[[webhooks]]\ntenant = \"acme\"\nurl = \"http://localhost:{port}/hook\"\nsecret = \"{SECRET}\"\n");
    std::fs::write(&keys, std::fs::read_to_string(&keys).unwrap() + &webhook).unwrap();
    let keys_file = format!("gateway.keys_file={}", keys.display());
    let settings = [keys_file.as_str(), "gateway.webhook_allow=127.0.0.1/32,::1/128"];
    // One without the file drives the batches, and leaves the webhook to the one that has it.
    let _without = Gateway::start(&ground, &["gateway.batches=4"]).await;
    let settings = [&settings[..], &["gateway.batches=0"]].concat();
    let gateway = Gateway::start(&ground, &settings).await;
    let said = python(&ground, CLIENT, &[&gateway.url, &made[0], &made[1], &port, SECRET]).await;
    assert_eq!(said, "done");
    // A gateway with a key sends it, and counts it.
    let metrics = get(&gateway.url, "/metrics").await.text();
    assert!(metrics.contains("baton_gateway_webhook_calls_total{outcome=\"sent\"}"), "{metrics}");
}

#[tokio::test]
async fn a_gateway_that_is_killed_in_a_large_batch_changes_nothing_and_size_costs_no_memory() {
    let ground = Ground::sim(&["gateway.ack_wait=2s", "stages.prefill.slots=64", "stages.decode.slots=64"]).await;
    let _workers = ground.workers().await;
    let memory = async |count: u64| {
        let gateway = Gateway::start(&ground, &[]).await;
        let count = count.to_string();
        let id = python(&ground, CROWD, &[&gateway.url, "begin", &count, "24h"]).await;
        watch(&ground, &id, |batch| batch.status.is_final()).await;
        let memory = gateway.memory();
        python(&ground, CROWD, &[&gateway.url, "check", &count, &id]).await;
        memory
    };
    let few = memory(100).await;

    let first = Gateway::start(&ground, &[]).await;
    let id = python(&ground, CROWD, &[&first.url, "begin", "10000", "24h"]).await;
    let before = watch(&ground, &id, |batch| batch.counts.completed >= 2_000).await;
    assert!(!before.status.is_final(), "it was to be killed in the middle: {before:?}");
    first.kill().await;
    let second = Gateway::start(&ground, &[]).await;
    let mut last = before.counts.completed;
    let batches = ground.bus().await.batches(1).await.unwrap();
    let ended = async {
        loop {
            let batch = batches.get(&name("default"), &job_id(&id)).await.unwrap().unwrap().value;
            assert!(batch.counts.completed >= last, "{last} were completed, now {:?}", batch.counts);
            last = batch.counts.completed;
            if batch.status.is_final() {
                return batch;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    let batch = timeout(PATIENCE, ended).await.expect("the batch did not end in time");
    assert_ne!(batch.run, before.run, "another gateway went on");
    let many = second.memory();
    let said = python(&ground, CROWD, &[&second.url, "check", "10000", &id]).await;
    assert_eq!(said, "9900 100");
    println!("memory: {few} KiB for 100, {many} KiB for 10,000");
    assert!(many as f64 <= 1.2 * few as f64, "a batch of 100 took {few} KiB, one of 10,000 {many} KiB");
}

#[tokio::test]
async fn a_batch_that_expires_or_is_cancelled_keeps_what_was_done_and_answers_every_line() {
    let settings = ["models.sim.sim.decode_s_per_step=0.02", "stages.decode.slots=4"];
    let ground = Ground::sim(&settings).await;
    let gateway = Gateway::start(&ground, &[]).await;
    // Nobody works yet, so that nothing is done when the window ends; the bad lines are found all the same.
    let late = python(&ground, CROWD, &[&gateway.url, "begin", "10", "1s"]).await;
    let batch = watch(&ground, &late, |batch| batch.status.is_final()).await;
    assert_eq!(batch.status.as_str(), "expired");
    assert_eq!(python(&ground, CROWD, &[&gateway.url, "check", "10", &late]).await, "0 10");

    let _workers = ground.workers().await;
    let id = python(&ground, CROWD, &[&gateway.url, "begin", "3000", "24h"]).await;
    watch(&ground, &id, |batch| batch.counts.completed >= 20).await;
    let batches = ground.bus().await.batches(1).await.unwrap();
    let (tenant, key) = (name("default"), job_id(&id));
    let cancelled = batches.change(&tenant, &key, |batch| batch.cancelled(1)).await.unwrap().unwrap();
    assert_eq!(cancelled.status.as_str(), "cancelling");
    let batch = watch(&ground, &id, |batch| batch.status.is_final()).await;
    assert_eq!(batch.status.as_str(), "cancelled");
    let said = python(&ground, CROWD, &[&gateway.url, "check", "3000", &id]).await;
    let (done, left) = said.split_once(' ').unwrap();
    assert!(done.parse::<u64>().unwrap() >= 20 && left.parse::<u64>().unwrap() > 1_000, "{said}");
}

#[tokio::test]
async fn a_batch_whose_errand_is_lost_gets_it_again_and_goes_on_where_it_was() {
    let settings = ["gateway.ack_wait=1s", "models.sim.sim.decode_s_per_step=0.01", "stages.decode.slots=8"];
    let ground = Ground::sim(&settings).await;
    let [_ingest, _prefill, decode] = ground.workers().await;
    let gateway = Gateway::start(&ground, &[]).await;
    let id = python(&ground, CROWD, &[&gateway.url, "begin", "400", "24h"]).await;
    let first = watch(&ground, &id, |batch| batch.counts.completed >= 20).await;
    // Nobody answers meanwhile, so that it does not end before.
    decode.drain().await;
    // Whoever drives it dies together with the errand, so that nothing is left but what is known about the batch; then the
    // whole stream goes under a gateway that waits for errands.
    gateway.kill().await;
    destroy(&ground, "PURGE.baton_batchwork").await;
    let gateway = Gateway::start(&ground, &[]).await;
    let second = watch(&ground, &id, |batch| batch.run != first.run).await;
    destroy(&ground, "DELETE.baton_batchwork").await;
    let third = watch(&ground, &id, |batch| batch.run != second.run).await;
    assert!(third.counts.completed >= 20 && !third.status.is_final(), "it was to be lost in the middle: {third:?}");
    let _decode = ground.worker("decode", "decode-2").await;
    let batch = watch(&ground, &id, |batch| batch.status.is_final()).await;
    assert_eq!(batch.status.as_str(), "completed");
    assert_eq!(python(&ground, CROWD, &[&gateway.url, "check", "400", &id]).await, "396 4");
}

#[tokio::test]
async fn a_batch_whose_answers_are_too_long_fails_and_keeps_what_fits() {
    let ground = Ground::sim(&["gateway.max_output=1MiB", "stages.decode.slots=64"]).await;
    let _workers = ground.workers().await;
    let gateway = Gateway::start(&ground, &[]).await;
    let id = python(&ground, CROWD, &[&gateway.url, "begin", "5000", "24h"]).await;
    let batch = watch(&ground, &id, |batch| batch.status.is_final()).await;
    let codes: Vec<&str> = batch.problems.iter().map(|problem| problem.code.as_str()).collect();
    assert_eq!((batch.status.as_str(), codes), ("failed", vec!["output_too_large"]));
    let said = python(&ground, CROWD, &[&gateway.url, "check", "5000", &id]).await;
    let (kept, _) = said.split_once(' ').unwrap();
    assert!((1_000..4_900).contains(&kept.parse::<u64>().unwrap()), "{said}");
    // What was asked for and is wanted no more does not run on.
    let open = async {
        while ground.bus().await.reconcile(true).await.unwrap().open > 0 {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, open).await.expect("its jobs run on");
    let jobs = ground.bus().await.jobs().await.unwrap();
    let mut cancelled = 0;
    for line in 1..=5000 {
        let outcome = jobs.result(&name("default"), &job_id(&format!("{id}-{line}"))).await.unwrap();
        cancelled += usize::from(outcome.is_some_and(|outcome| outcome.status == Status::Cancelled));
    }
    assert!(cancelled > 0, "what was under way was not cancelled");
}
