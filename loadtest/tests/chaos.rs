//! A short chaos run: a real broker and real workers under every kind of fault, and nothing is lost, duplicated or changed.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

const LOADTEST: &str = env!("CARGO_BIN_EXE_loadtest");
const JOBS: u64 = 300;
/// Another would do as well; this one makes failures comparable.
const SEED: &str = "5";

/// The program `baton` beside `loadtest`, where the workspace's build puts both; built if only this crate was.
fn baton() -> PathBuf {
    let baton = Path::new(LOADTEST).with_file_name("baton");
    if !baton.exists() {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo).args(["build", "-p", "baton"]).current_dir(env!("CARGO_MANIFEST_DIR")).status();
        assert!(built.unwrap().success(), "baton was not built");
    }
    baton
}

#[test]
fn nothing_is_lost_duplicated_or_changed() {
    let mut command = Command::new(LOADTEST);
    command.args(["chaos", "--seed", SEED, "--jobs", &JOBS.to_string(), "--minutes", "0.6", "--json", "--baton"]);
    let output = command.arg(baton()).stderr(Stdio::inherit()).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report as JSON");
    let audit = &report["audit"];
    assert!(output.status.success(), "seed {SEED}: {}, {:#}", report["kept"], audit["violations"]);

    let count = |key: &str| audit[key].as_u64().unwrap_or_else(|| panic!("no count of {key}: {report}"));
    assert_eq!(count("submitted"), JOBS);
    assert_eq!(count("completed") + count("cancelled"), JOBS);
    for none in ["failed", "exhausted", "expired", "lost", "duplicated", "changed"] {
        assert_eq!(count(none), 0, "{none}");
    }
    // The run must have been what it claims: every kind of fault hit something, and answers were there to compare.
    let faults = report["faults"].as_array().unwrap();
    assert_eq!(faults.len(), 19, "{faults:?}");
    assert!(faults.iter().all(|fault| fault["done"].as_u64() > Some(0)), "{faults:?}");
    assert!(count("compared") >= count("completed") && count("deltas") > count("completed"), "{audit}");
    assert!(report["stored_chunks"].as_u64() > Some(0) && report["sent_again"].as_u64() > Some(0), "{report}");
}
