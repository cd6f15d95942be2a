//! Every pipeline file that ships runs as `baton up` runs it, with the sim engine in place of its models.

use std::{path::Path, process::Stdio, time::Duration};

use baton_contract::outcome::Status;
use baton_loadtest::pipeline::Started;
use baton_topology::{Model, Plan};
use serde_json::json;
use tokio::process::Command;

use crate::{
    engine::{Act, Engine},
    support::{BATON, PATIENCE, job_id, name, provisioned, result},
};

/// Tokens of an answer.
const TOKENS: usize = 6;

/// Settings that take weights and devices away from a pipeline and leave everything else. Foreign engines' models are served by one of the tests' own.
fn simulated(file: &Path, [prefill, decode]: [&Engine; 2]) -> (Plan, Vec<String>) {
    let text = std::fs::read_to_string(file).unwrap();
    let plan = Plan::load(Some(&text), [], &[]).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let models = plan.models.iter().flat_map(|(model, planned)| {
        let key = format!("models.{model}");
        match planned {
            Model::Upstream(upstream) => {
                let urls = [("urls", decode, true), ("prefill_urls", prefill, !upstream.prefill_urls.is_empty())];
                let urls = urls.into_iter().filter(|(.., there)| *there);
                urls.map(|(name, engine, _)| format!("{key}.{name}={}", engine.url)).collect()
            }
            _ => vec![format!("{key}.source=sim"), format!("{key}.sim.layers=2"), format!("{key}.sim.kv_width=16")],
        }
    });
    let stages = ["prefill", "decode"]
        .into_iter()
        .flat_map(|stage| [format!("stages.{stage}.device=flex"), format!("stages.{stage}.kv_memory=64MiB")]);
    let settings: Vec<String> = models.chain(stages).collect();
    Plan::load(Some(&text), [], &settings).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    (plan, settings)
}

#[tokio::test]
async fn each_shipped_pipeline_runs_and_serves_all_its_models() {
    provisioned();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pipelines");
    let files = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "toml")).collect();
    files.sort();
    assert!(files.len() >= 11, "{files:?}");
    for file in files {
        let (prefill, decode, _) = Engine::pair([Act::Says(TOKENS)]).await;
        let (plan, settings) = simulated(&file, [&prefill, &decode]);
        let stem = file.file_stem().unwrap().to_str().unwrap();
        let root = name(&format!("shipped-{stem}-{}", std::process::id()));
        let started = Started::start(Path::new(BATON), &file, root, &settings).await.unwrap();
        let tenant = name("acme");
        let mut follower = started.bus.follow(&tenant).await.unwrap();
        let mut jobs = Vec::new();
        for model in plan.models.keys() {
            let id = job_id(&format!("to-{model}"));
            let request =
                json!({ "id": id.as_str(), "model": model.as_str(), "prompt": "hello there", "max_tokens": TOKENS });
            started.bus.submit(&tenant, &plan.lanes[0], request.to_string().into_bytes()).await.unwrap();
            jobs.push((model, id));
        }
        for (model, id) in jobs {
            let outcome = result(&mut follower, &id).await;
            assert_eq!((outcome.status, outcome.model.as_ref()), (Status::Completed, Some(model)), "{stem}");
            assert_eq!(outcome.usage.completion_tokens as usize, TOKENS, "{stem}");
        }
        started.stop().await;
    }
}

/// Two pipeline files in turn, started and stopped by the load client itself.
#[tokio::test]
async fn two_pipelines_are_compared_in_one_run() {
    provisioned();
    let directory = tempfile::tempdir().unwrap();
    let pipeline = |file: &str, step: &str| {
        let path = directory.path().join(file);
        let text = format!(
            "[models.m]\nsource = \"sim\"\nsim = {{ layers = 2, kv_width = 16, decode_s_per_step = {step} }}\n\
             [stages.prefill]\nkv_memory = \"64MiB\"\n[stages.decode]\nkv_memory = \"64MiB\"\n"
        );
        std::fs::write(&path, text).unwrap();
        path
    };
    let (slow, fast) = (pipeline("slow.toml", "0.02"), pipeline("fast.toml", "0.002"));
    let html = directory.path().join("compare.html");
    // The program is beside this one, once it has been built: it belongs to another crate.
    let loadtest = Path::new(BATON).with_file_name("loadtest");
    if !loadtest.exists() {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo).args(["build", "-p", "baton-loadtest"]).status().await.unwrap();
        assert!(built.success(), "loadtest was not built");
    }
    let mut command = Command::new(loadtest);
    command.arg("compare").arg(&slow).arg(&fast).args(["--rounds", "2", "--concurrency", "4", "--num-prompts", "12"]);
    command.args(["--prompt-tokens", "20", "--output-tokens", "20", "--json", "--baton", BATON, "--html"]).arg(&html);
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(PATIENCE, output).await.expect("too slow").unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for rounds in ["rounds_a", "rounds_b"] {
        let completed: Vec<_> = report[rounds].as_array().unwrap().iter().map(|round| &round["completed"]).collect();
        assert_eq!(completed, [12, 12], "{rounds}");
    }
    let itl = report["differences"].as_array().unwrap().iter().find(|it| it["figure"] == "itl p50").unwrap();
    let (a, b) = (itl["a"].as_f64().unwrap(), itl["b"].as_f64().unwrap());
    assert!(a > Duration::from_millis(18).as_secs_f64() * 1e3 && b < a / 2.0, "{itl}");
    let page = std::fs::read_to_string(html).unwrap();
    assert!(page.contains("<svg") && !page.contains("://"), "the page asks for something");
}

/// What `baton demo --ratios` shows, as a program reads it. (The figures are the machine's own; that there are some is not.)
#[tokio::test]
async fn three_loads_are_shown_on_three_splits() {
    provisioned();
    let directory = tempfile::tempdir().unwrap();
    let plot = directory.path().join("ratios.svg");
    let mut command = Command::new(BATON);
    command.args(["demo", "--ratios", "--json", "--plot"]).arg(&plot).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("too slow").unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let cells: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let found: Vec<_> =
        cells.iter().map(|cell| (cell["workload"].as_str().unwrap(), &cell["prefill_workers"])).collect();
    let all = ["long", "mixed", "prompts"].map(|load| [2, 3, 4].map(|prefill| (load, prefill))).concat();
    assert_eq!(found.len(), all.len());
    assert!(found.iter().zip(&all).all(|(found, all)| found.0 == all.0 && *found.1 == all.1), "{found:?}");
    for cell in &cells {
        assert!(cell["output_throughput"].as_f64() > Some(0.0) && cell["report"]["lost"] == 0, "{cell}");
        let shares: f64 = cell["shares"].as_array().unwrap().iter().map(|share| share.as_f64().unwrap()).sum();
        assert!((0.9..1.1).contains(&shares), "{cell}");
    }
    let svg = std::fs::read_to_string(plot).unwrap();
    assert!(svg.starts_with("<svg ") && svg.contains("prompts") && svg.contains("4:2"), "{svg}");
}
