//! `baton calibrate` and `baton plan`: a profile is measured, and splits of workers are compared with it.

use std::{path::Path, process::Stdio};

use baton_loadtest::{pipeline::Workers, splits};
use baton_workload::Named;
use serde_json::{Value, json};
use tokio::{process::Command, time::timeout};

use crate::support::{BATON, PATIENCE, provisioned};

const PIPELINE: &str = "[models.slow]\nsource = \"sim\"\n\n[models.slow.sim]\nlayers = 2\nkv_width = 64\n\
    prefill_s_per_token = 0.0005\ndecode_s_per_step = 0.02\n\n\
    [stages.prefill]\nreplicas = 3\nkv_memory = \"1GiB\"\n\n[stages.decode]\nreplicas = 3\nkv_memory = \"1GiB\"\n";

async fn run(arguments: &[&str]) -> String {
    let mut command = Command::new(BATON);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(PATIENCE, command.output()).await.expect("the command did not end").unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "baton {arguments:?}: {complaint}");
    String::from_utf8(output.stdout).unwrap()
}

async fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&run(arguments).await).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test]
async fn a_calibrated_model_is_planned_with() {
    provisioned();
    let directory = tempfile::tempdir().unwrap();
    let (pipeline, profile) = (directory.path().join("sim.toml"), directory.path().join("profile.toml"));
    std::fs::write(&pipeline, PIPELINE).unwrap();
    let (pipeline, profile) = (text(&pipeline), text(&profile));
    let measured = json(&["calibrate", "--pipeline", pipeline, "--model", "slow", "--json", "-o", profile]).await;
    // The sim engine's times are exact, and what it takes besides is little on top.
    let seconds = |key: &str| measured.pointer(key).unwrap().as_f64().unwrap();
    assert!((0.0005..0.0008).contains(&seconds("/prefill/s_per_token")), "{measured}");
    assert!((0.02..0.03).contains(&seconds("/decode/s_per_step")), "{measured}");
    assert!(seconds("/bus/hop_s") > 1e-5 && seconds("/kv/raw_bytes_per_token") == 512.0, "{measured}");
    assert!(seconds("/store/put_s") + seconds("/store/put_s_per_byte") > 0.0, "{measured}");
    let host = |key: &str| seconds(&format!("/host/{key}"));
    assert!(
        ["cpu_s_per_job", "put_cpu_s_per_byte", "get_cpu_s_per_byte"].iter().all(|key| host(key) > 0.0),
        "{measured}"
    );
    assert!(host("cpu_s_per_step") + host("cpu_s_per_token") > 0.0, "{measured}");

    let plot = directory.path().join("splits.svg");
    let plan = ["plan", "--pipeline", pipeline, "--profile", profile, "--num-prompts", "400", "--plot", text(&plot)];
    let saturated = json(&[&plan[..], &["--workload", "prompts", "--json"]].concat()).await;
    let splits = saturated["splits"].as_array().unwrap();
    assert_eq!((splits.len(), &saturated["goal"]), (5, &json!("saturated")));
    let throughput = |split: &Value| split["request_throughput"].as_f64().unwrap();
    let best = splits.iter().max_by(|a, b| throughput(a).total_cmp(&throughput(b))).unwrap();
    assert!(throughput(best) > 1.0 && best["split"]["prefill"].as_u64().unwrap() >= 4, "{saturated}");
    assert!(saturated["recommendation"]["split"]["prefill"].as_u64().unwrap() >= 4, "{saturated}");
    assert!(std::fs::read_to_string(&plot).unwrap().starts_with("<svg"));

    // Two engines on two cores, or on more: what else is done takes time from them, or none.
    let set = ["--set", "stages.prefill.threads=1", "--set", "stages.decode.threads=1", "--workers", "2", "--json"];
    let throughput = async |cores: &str| {
        let planned = json(&[&plan[..], &set, &["--workload", "mixed", "--cores", cores]].concat()).await;
        planned["splits"][0]["output_throughput"].as_f64().unwrap()
    };
    assert!(throughput("2").await < throughput("3").await);
    let refused = Command::new(BATON).args(plan).args(["--workload", "mixed", "--cores", "5"]).output().await.unwrap();
    let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(complaint.contains("compute on 30 cores, and --cores is 5: compare fewer workers"), "{complaint}");

    let slo = ["--workload", "long", "--request-rate", "2", "--ttft-p99", "2s", "--itl-p99", "100ms"];
    let shown = run(&[&plan[..], &slo].concat()).await;
    assert!(
        shown.contains("1:5")
            && (shown.contains("meet the SLO: TTFT p99") || shown.contains("meets the SLO: TTFT p99")),
        "{shown}"
    );
}

#[tokio::test]
async fn a_split_is_measured_and_the_same_requests_are_predicted() {
    provisioned();
    let workers = Workers { pipeline: None, baton: Some(BATON.into()), set: Vec::new(), count: 2 };
    let options = splits::Options {
        workers,
        profile: None,
        cores: None,
        workloads: vec![Named::Long],
        length_scale: 0.05,
        concurrency: 4,
        duration_s: 2.0,
        seed: 7,
    };
    let report = splits::run(&options, |_| {}).await.unwrap();
    assert!(report.holds(), "{report:?}");
    let split = report.loads[0].splits[0];
    assert_eq!((split.prefill, split.decode, split.lost), (1, 1, 0));
    assert!(split.requests > 12 && split.measured.output_throughput > 0.0, "{split:?}");
    let pipeline = concat!(env!("CARGO_MANIFEST_DIR"), "/../../loadtest/splits.toml");
    let requests = split.requests.to_string();
    let plan = ["plan", "--json", "--pipeline", pipeline, "--workers", "2", "--num-prompts", &requests];
    let load = ["--workload", "long", "--length-scale", "0.05", "--concurrency", "4", "--seed", "70001"];
    let planned = json(&[plan, load].concat()).await;
    let expected = planned["splits"][0]["output_throughput"].as_f64().unwrap();
    assert_eq!(
        (planned["splits"][0]["completed"].to_string(), split.predicted.output_throughput),
        (requests, expected)
    );
}

#[tokio::test]
async fn a_model_is_measured_beside_other_engines() {
    provisioned();
    let few = ["--threads", "1", "--repeat", "1", "--kv-memory", "80MiB"];
    let measured = json(&[&["calibrate", "--beside", "1", "--json"], &few[..]].concat()).await;
    assert_eq!(measured["name"], "default on flex, beside 1");
    for key in ["/prefill/s_per_token", "/decode/s_per_step", "/host/cpu_s_per_job", "/host/put_cpu_s_per_byte"] {
        // None of them takes a tenth of a second, be the machine ever so busy.
        let seconds = measured.pointer(key).unwrap().as_f64().unwrap();
        assert!(seconds > 0.0 && seconds < 0.1, "{key}: {measured}");
    }
}

#[tokio::test]
async fn a_trace_is_planned_with_a_profile_of_published_figures() {
    let directory = tempfile::tempdir().unwrap();
    let trace = directory.path().join("trace.jsonl");
    // Ten conversations of four turns, each longer than the one before and beginning with it.
    let line = |turn: u64, conversation: u64| {
        let blocks: Vec<u64> = (0..4 * (turn + 1)).map(|block| conversation * 1000 + block).collect();
        let request = json!({
            "timestamp": turn * 20_000 + conversation * 1000, "input_length": 512 * blocks.len(), "output_length": 50,
            "hash_ids": blocks,
        });
        request.to_string() + "\n"
    };
    let lines: String = (0..4).flat_map(|turn| (0..10).map(move |conversation| line(turn, conversation))).collect();
    std::fs::write(&trace, lines).unwrap();
    let profile = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pipelines/profiles/h100-llama-8b.toml");
    let arguments =
        ["plan", "--workers", "4", "--trace", text(&trace), "--profile", text(&profile), "--ttft-p99", "5s"];
    let planned = json(&[&arguments[..], &["--json"]].concat()).await;
    for split in planned["splits"].as_array().unwrap() {
        assert_eq!((&split["completed"], &split["failed"]), (&json!(40), &json!(0)));
        // Of 4, 8, 12 and 16 blocks all but four are the earlier turn's.
        assert_eq!(split["reused"].as_f64().unwrap(), 24.0 / 40.0);
    }
    let refused = Command::new(BATON).args(["plan", "--workload", "mixed"]).output().await.unwrap();
    let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && complaint.contains("needs a profile: measure one with `baton calibrate`"),
        "{complaint}"
    );
}
