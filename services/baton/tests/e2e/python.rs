//! The README's Python client, as it stands there, against a running pipeline.

use std::{path::Path, process::Stdio};

use tokio::{process::Command, time::timeout};

use crate::support::{Ground, PATIENCE};

/// The README's fenced code block that begins with `first`.
fn readme_block(first: &str) -> String {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md")).unwrap();
    let blocks = readme.split("```").skip(1).step_by(2);
    let block = blocks.filter_map(|block| block.strip_prefix("python\n")).find(|block| block.starts_with(first));
    block.unwrap_or_else(|| panic!("the README has no Python block that begins with {first:?}")).to_owned()
}

/// Runs a script that uses nats-py against a ground's broker; what it printed.
pub async fn run(ground: &Ground, text: &str) -> String {
    let packages = ground.directory.path().join("packages");
    let install = Command::new("python3")
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-input",
            "--disable-pip-version-check",
            "nats-py==2.11.0",
            "--target",
        ])
        .arg(&packages)
        .output()
        .await
        .unwrap();
    assert!(install.status.success(), "{}", String::from_utf8_lossy(&install.stderr));
    let script = ground.directory.path().join("client.py");
    std::fs::write(&script, text).unwrap();
    let client = Command::new("python3")
        .arg(&script)
        .env("PYTHONPATH", &packages)
        .env("NATS_URL", ground.server.url())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(PATIENCE, client).await.expect("too slow").unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    stdout.into_owned()
}

#[tokio::test]
async fn the_readmes_nats_py_client_publishes_a_request_and_reads_the_result() {
    let ground = Ground::sim(&[]).await;
    let _workers = ground.workers().await;
    let told = run(&ground, &readme_block("import asyncio, json")).await;
    assert!(told.contains("completed"), "{told}");
}
