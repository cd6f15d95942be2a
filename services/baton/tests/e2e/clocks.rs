//! Processes whose clocks are hours wrong: nothing expires before its time, and no timing mixes two clocks.

use std::{path::PathBuf, sync::OnceLock};

use baton_contract::outcome::Status;
use serde_json::json;
use tokio::{
    process::Command,
    time::{Duration, sleep, timeout},
};

use crate::{
    http::{call, get, post},
    support::{Ground, PATIENCE, job_id, name, result, serving},
};

/// `faketime`; Debian's is installed where there is none.
fn faketime() -> &'static PathBuf {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    let find = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|folder| folder.join("faketime")).find(|file| file.is_file())
    };
    FOUND.get_or_init(|| {
        find().unwrap_or_else(|| {
            for arguments in [&["update", "-q"][..], &["install", "-q", "-y", "--no-install-recommends", "faketime"]] {
                let mut install = std::process::Command::new("apt-get");
                let output = install.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").output();
                let output = output.expect("no faketime here, and no apt-get to bring it: install faketime");
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            }
            find().expect("apt-get installed no faketime")
        })
    })
}

/// The same command by a clock that is wrong by so much; steady clocks go on as they do. The library is loaded without the
/// program `faketime`, whose child would outlive it.
fn shifted(command: &Command, by: &str) -> Command {
    static LIBRARY: OnceLock<String> = OnceLock::new();
    let library = LIBRARY.get_or_init(|| {
        let told = std::process::Command::new(faketime()).args(["-f", "+0s", "env"]).output().unwrap().stdout;
        let told = String::from_utf8(told).unwrap();
        told.lines().find_map(|line| line.strip_prefix("LD_PRELOAD=")).expect("faketime names its library").to_owned()
    });
    let plain = command.as_std();
    let mut shifted = Command::new(plain.get_program());
    shifted.args(plain.get_args()).envs(plain.get_envs().filter_map(|(key, value)| Some((key, value?))));
    shifted.env("LD_PRELOAD", library).env("FAKETIME", by).env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    shifted.env("FAKETIME_DISABLE_SHM", "1").kill_on_drop(true);
    shifted
}

#[tokio::test]
async fn nothing_goes_by_the_clock_of_a_process() {
    let ground = Ground::sim(&["models.sim.sim.decode_s_per_step=0.01"]).await;
    let mut workers = Vec::new();
    for (stage, by) in [("ingest", "-3h"), ("prefill", "+2h"), ("decode", "+5h")] {
        let command = ground.command(&["worker", stage, "--name", &format!("{stage}-1")]);
        workers.push(serving(shifted(&command, by)).await.0);
    }
    let gateway = ground.command(&["gateway", "--listen", "127.0.0.1:0", "--name", "gateway-1"]);
    let (_gateway, told) = serving(shifted(&gateway, "-25h")).await;
    let url = told.strip_prefix("ready ").unwrap().to_owned();

    let bus = ground.bus().await;
    let mut follower = bus.follow(&name("default")).await.unwrap();
    let request = json!({ "id": "timed", "prompt": "hello", "max_tokens": 10, "deadline": 60 });
    bus.submit(&name("default"), &name("batch"), request.to_string().into_bytes()).await.unwrap();
    let outcome = result(&mut follower, &job_id("timed")).await;
    assert_eq!(outcome.status, Status::Completed, "{:?}", outcome.error);
    let timings = &outcome.timings;
    for (what, ms) in [
        ("ingest_queue_ms", timings.ingest_queue_ms),
        ("prefill_queue_ms", timings.prefill_queue_ms),
        ("decode_queue_ms", timings.decode_queue_ms),
        ("first_token_ms", timings.first_token_ms),
        ("total_ms", timings.total_ms),
    ] {
        assert!((0.0..PATIENCE.as_secs_f64() * 1e3).contains(&ms), "{what}: {ms}");
    }
    assert!(timings.total_ms >= timings.first_token_ms && timings.total_ms >= 50.0, "{timings:?}");

    let body = json!({ "prompt": "x", "max_tokens": 2 });
    let line = json!({ "custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body });
    let field =
        |name: &str, text: &str| format!("--b\r\ncontent-disposition: form-data; name={name}\r\n\r\n{text}\r\n");
    let form = field("\"purpose\"", "batch") + &field("\"file\"; filename=\"in\"", &line.to_string()) + "--b--\r\n";
    let kind = [("content-type", "multipart/form-data; boundary=b")];
    let file = call(&url, "POST", "/v1/files", &kind, form.as_bytes()).await.json();
    let order = json!({ "input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h" });
    let batch = post(&url, "/v1/batches", "", &order).await.json();
    let created = batch["created_at"].as_u64().unwrap_or_else(|| panic!("{batch}"));
    assert!(created.abs_diff(baton_bus::unix_ms() / 1_000) < 60, "{batch}");
    let path = format!("/v1/batches/{}", batch["id"].as_str().unwrap());
    let ended = async {
        loop {
            let batch = get(&url, &path).await.json();
            if batch["status"] == "completed" || batch["status"] == "expired" {
                return batch;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    let batch = timeout(PATIENCE, ended).await.expect("the batch did not end");
    assert_eq!((&batch["status"], &batch["request_counts"]["completed"]), (&json!("completed"), &json!(1)), "{batch}");
}
