//! The live page in a headless Chromium, driven by `page.py`: a real pipeline behind it, jobs running meanwhile.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::OnceLock,
};

use baton_bus::Bus;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    process::Command,
    time::{Duration, interval, timeout},
};

use crate::support::{self, Ground, PATIENCE, job_id, name};

/// Chromium; Debian's is installed where there is none.
fn chromium() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        find().unwrap_or_else(|| {
            for arguments in [&["update", "-q"][..], &["install", "-q", "-y", "--no-install-recommends", "chromium"]] {
                let mut install = std::process::Command::new("apt-get");
                let output = install.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").output();
                let output = output.expect("no Chromium here, and no apt-get to bring it: install chromium");
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            }
            find().expect("apt-get installed no chromium")
        })
    })
}

fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    std::env::split_paths(&path).flat_map(|folder| names.map(|name| folder.join(name))).find(|file| file.is_file())
}

/// The packages of `page.py`. Playwright here only drives the browser that is there; axe-core comes with its package.
fn packages() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let mut install = std::process::Command::new("python3");
        install.args(["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]);
        install.args(["playwright==1.65.2", "axe-playwright-python==0.1.8", "--target"]).arg(folder.path());
        let output = install.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        folder
    });
    folder.path()
}

/// What `page.py` found.
async fn visit(arguments: &[&str]) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/page.py");
    let mut python = Command::new("python3");
    python.arg(script).arg(chromium()).args(arguments).env("PYTHONPATH", packages());
    let output = timeout(PATIENCE, python.stdin(Stdio::null()).kill_on_drop(true).output()).await;
    let output = output.expect("the visit took too long").unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Submits jobs until it is dropped.
async fn keep_busy(bus: Bus) {
    let beginning = "Everything that the answers have in common stands first. ".repeat(8);
    let mut ticks = interval(Duration::from_millis(250));
    for number in 0.. {
        ticks.tick().await;
        let prompt = format!("{beginning}{number}");
        let request = json!({ "id": format!("job-{number}"), "prompt": prompt, "max_tokens": 40 });
        bus.submit(&name("default"), &name("batch"), request.to_string().into_bytes()).await.unwrap();
    }
}

/// Judges a waterfall: its parts, as numbers and as drawn, are the total.
fn assert_sums(waterfall: &Value, total_ms: f64) {
    let parts = waterfall["parts"].as_array().unwrap();
    let sum = |key: &str| parts.iter().map(|part| part[key].as_f64().unwrap()).sum::<f64>();
    assert_eq!(waterfall["total"].as_f64(), Some(total_ms));
    assert!((sum("ms") - total_ms).abs() < 0.01, "{waterfall:#}");
    assert!((sum("share") - 100.0).abs() < 0.1, "{waterfall:#}");
    for label in ["Prefill", "Decode", "Decode queue"] {
        assert!(parts.iter().any(|part| part["label"] == label), "{label} is missing: {waterfall:#}");
    }
}

/// The sum of a colour's parts.
fn brightness(colour: &Value) -> u32 {
    let parts = colour.as_str().unwrap().trim_start_matches("rgb(").trim_end_matches(')').split(", ");
    parts.map(|part| part.parse::<u32>().unwrap()).sum()
}

#[tokio::test]
async fn people_see_the_pipeline_work_and_send_a_prompt_by_keyboard() {
    let ground = Ground::sim(&[
        "store.chunk_tokens=64",
        "models.sim.sim.prefill_s_per_token=0.0005",
        "models.sim.sim.decode_s_per_step=0.01",
        "stages.decode.slots=4",
    ])
    .await;
    let _workers = ground.workers().await;
    let (_gateway, url) = ground.gateway(&[]).await;
    let picture = ground.directory.path().join("page.png");
    let arguments = ["use", &url, picture.to_str().unwrap()];
    let found = tokio::select! {
        found = visit(&arguments) => found,
        () = keep_busy(ground.bus().await) => unreachable!("it never ends"),
    };
    assert_eq!(found["complaints"], json!([]), "the console");
    assert_eq!(found["outside"], json!([]), "requests to others");
    assert_eq!(found["serious"], json!([]), "axe-core");
    let policy = found["policy"].as_str().unwrap();
    for part in ["default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'"] {
        assert!(policy.contains(part) && !policy.contains("unsafe"), "{policy}");
    }
    assert_eq!(found["stages"].as_array().unwrap().len(), 3, "{found:#}");
    assert!(found["workers"].to_string().contains("decode-1: "), "{}", found["workers"]);

    assert_eq!(found["outline"], "solid", "the focus must be seen");
    let steps: Vec<&str> = found["steps"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(steps, ["Accepted", "Ingest", "Prefill", "Hand-over", "Decode", "Answer"]);
    let result = &found["job"]["result"];
    assert_eq!((&result["status"], &result["usage"]["completion_tokens"]), (&json!("completed"), &json!(24)));
    let words = |text: &Value| text.as_str().unwrap().split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(&found["answer"]), words(&result["text"]));
    assert_eq!(found["focus_after"], "send", "the focus stays where it was");
    let total_ms = result["timings"]["total_ms"].as_f64().unwrap();
    assert_sums(&found["waterfall"], total_ms);
    assert_eq!(found["expanded"], "true");
    assert_sums(&found["listed"], total_ms);

    let [light, dark] = [0, 1].map(|place| brightness(&found["ground"][place]));
    assert!(light > 700 && dark < 120, "light {light}, dark {dark}");
    assert!(found["narrow"][0].as_u64() <= found["narrow"][1].as_u64(), "wider than its window: {}", found["narrow"]);
    assert!(std::fs::metadata(picture).unwrap().len() > 20_000);
}

#[tokio::test]
async fn with_keys_the_page_asks_for_one_and_shows_its_tenants_jobs_only() {
    let ground = Ground::sim(&[]).await;
    let _workers = ground.workers().await;
    let bus = ground.bus().await;
    for tenant in ["acme", "other"] {
        let id = format!("{tenant}-job");
        let mut follower = bus.follow(&name(tenant)).await.unwrap();
        let request = json!({ "id": id, "prompt": "hello", "max_tokens": 3 });
        bus.submit(&name(tenant), &name("batch"), request.to_string().into_bytes()).await.unwrap();
        support::result(&mut follower, &job_id(&id)).await;
    }
    let file = ground.directory.path().join("keys.toml");
    let key = ["gateway", "key", "visitor", "--tenant", "acme", "--file", file.to_str().unwrap()];
    let made = ground.baton(&key).await;
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let key = String::from_utf8(made.stdout).unwrap();
    let (_gateway, url) = ground.gateway(&[&format!("gateway.keys_file={}", file.display())]).await;
    let found = visit(&["keys", &url, key.trim(), "other-job"]).await;
    assert_eq!((&found["focus"], &found["before"]), (&json!("key"), &json!("")));
    assert_eq!(found["jobs"], json!(["acme-job"]));
    assert_eq!(found["kept"], json!([1, 0, ""]), "in this tab's storage, and nowhere else");
    assert_eq!(found["outside"], json!([]));
    assert_eq!(found["bare"], json!([401, 401, 401]), "without a key");
    assert_eq!(found["others"], json!([{ "record": null, "result": null }, 404]), "another tenant's job");
}
