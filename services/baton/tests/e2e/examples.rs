//! The programs in `examples/`, as they stand there, against a running pipeline.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::{process::Command, time::timeout};

use crate::{
    python, sdks,
    support::{Ground, PATIENCE},
};

fn example(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(file)
}

#[tokio::test]
async fn nats_py_watches_a_job_and_cancels_it() {
    let ground = Ground::sim(&["models.sim.sim.decode_s_per_step=0.02"]).await;
    let _workers = ground.workers().await;
    let printed = python::run(&ground, &std::fs::read_to_string(example("nats_job.py")).unwrap()).await;
    assert!(printed.contains("'answer': 'cancelling'") && printed.contains("\ncancelled "), "{printed}");
}

#[tokio::test]
async fn openais_sdk_answers_streams_and_drives_a_file() {
    let ground = Ground::sim(&[]).await;
    let _workers = ground.workers().await;
    let (_gateway, url) = ground.gateway(&[]).await;
    let client = Command::new("python3")
        .arg(example("openai_sdk.py"))
        .env("PYTHONPATH", sdks::python_sdk())
        .envs([("OPENAI_BASE_URL", format!("{url}/v1")), ("OPENAI_API_KEY", "none".into())])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(PATIENCE, client).await.expect("too slow").unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert!(stdout.contains("completed") && stdout.contains("line-2"), "{stdout}");
}
