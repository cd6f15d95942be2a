//! Short chaos runs: real brokers and real workers under every kind of fault, and nothing is lost, duplicated or changed.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

const LOADTEST: &str = env!("CARGO_BIN_EXE_loadtest");
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

/// Runs it, and holds what must hold of every run.
fn disturbed(jobs: u64, arguments: &[&str]) -> Value {
    let mut command = Command::new(LOADTEST);
    command.args(["chaos", "--seed", SEED, "--jobs", &jobs.to_string(), "--json", "--baton"]).arg(baton());
    let output = command.args(arguments).stderr(Stdio::inherit()).output().unwrap();
    println!("seed {SEED}: {arguments:?}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report as JSON");
    let audit = &report["audit"];
    assert!(output.status.success(), "seed {SEED}: {}, {:#}", report["kept"], audit["violations"]);
    assert_eq!(audit["submitted"], jobs);
    assert_eq!(count(audit, "completed") + count(audit, "cancelled"), jobs);
    for none in ["failed", "exhausted", "expired", "lost", "duplicated", "changed"] {
        assert_eq!(count(audit, none), 0, "{none}");
    }
    // The run must have been what it claims: every kind of fault hit something, and answers were there to compare.
    let faults = report["faults"].as_array().unwrap();
    assert!(faults.iter().all(|fault| fault["done"].as_u64() > Some(0)), "{faults:?}");
    assert!(count(audit, "compared") >= count(audit, "completed"), "{audit}");
    report
}

fn count(audit: &Value, key: &str) -> u64 {
    audit[key].as_u64().unwrap_or_else(|| panic!("no count of {key}: {audit}"))
}

#[test]
fn nothing_is_lost_duplicated_or_changed() {
    let report = disturbed(300, &["--minutes", "0.75", "--fault-every", "1.1"]);
    let names = |key: &str, name: &str| {
        let all = report[key].as_array().unwrap().iter();
        all.map(|one| one[name].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let left_out = names("left_out", "fault");
    assert!(left_out.iter().all(|kind| ["clock", "freeze-leader", "freeze-follower"].contains(&kind.as_str())));
    let faults = names("faults", "fault");
    // Killed, stopped and drained are the workers of three stages, and gateways; a cluster is another test's.
    assert_eq!(faults.len() + left_out.len(), 26 + 3 * 3, "{faults:?}");
    assert!(count(&report["audit"], "deltas") > count(&report["audit"], "completed"), "{report}");
    for some in ["stored_chunks", "sent_again", "repeated"] {
        assert!(report[some].as_u64() > Some(0), "{some}: {report}");
    }
}

#[test]
fn a_cluster_loses_nothing_while_nodes_are_frozen() {
    let only = "freeze-leader,freeze-follower,copies";
    disturbed(120, &["--cluster", "--only", only, "--minutes", "0.5", "--fault-every", "6"]);
}
