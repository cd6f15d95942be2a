//! Which crate may use what, how large a file may be and which files may use each other, checked against the manifests and
//! sources themselves.

#[path = "architecture/circles.rs"]
mod circles;
#[path = "architecture/scan.rs"]
mod scan;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

/// External crates that only some of ours may use, in whatever kind of dependency. A `*` stands for any ending.
const OWNED: [(&str, &[&str]); 11] = [
    ("anyhow", &["baton", "baton-loadtest"]),
    ("async-nats", &["baton-bus"]),
    ("bincode*", &["baton-contract", "baton-storage"]),
    ("burn*", &["baton-engine"]),
    ("clap*", &["baton", "baton-load", "baton-loadtest"]),
    ("hf-hub", &["baton-provision"]),
    ("object_store", &["baton-storage"]),
    ("opentelemetry-otlp", &["baton-telemetry"]),
    ("ratatui", &["baton-terminal"]),
    ("zip", &["baton-provision"]),
    ("zstd*", &["baton-storage"]),
];

/// The receiver's side of OTLP, which tests play.
const TESTS_ONLY: [&str; 1] = ["opentelemetry-proto"];

/// Crates that know no I/O, no clock and no environment, and all that they may use.
const PURE: [(&str, &[&str]); 4] = [
    (
        "baton-contract",
        &["bincode", "blake3", "humantime", "serde", "serde_json", "serde_path_to_error", "thiserror", "uuid"],
    ),
    ("baton-openai", &["baton-contract", "serde", "serde_json", "serde_path_to_error", "sha2", "thiserror"]),
    ("baton-topology", &["baton-contract", "humantime", "serde", "serde_json", "strsim", "thiserror", "toml"]),
    ("baton-workload", &["rand", "rand_chacha", "rand_distr", "serde", "serde_json", "thiserror"]),
];

/// What no source of a pure crate names.
const IMPURE: [&str; 8] =
    ["std::env", "std::fs", "std::io", "std::net", "std::process", "std::thread", "Instant", "SystemTime"];

/// Crates that compute nothing: neither Burn nor the engine is built for them, whatever they depend on.
const WITHOUT_BURN: [&str; 8] = [
    "baton-assembly",
    "baton-decode",
    "baton-gateway",
    "baton-ingest",
    "baton-model",
    "baton-planner",
    "baton-prefill",
    "baton-provision",
];

/// May contain unsafe code: kernels and devices of the engine, and the mapping of model files.
const UNSAFE: [&str; 2] = ["baton-engine", "baton-model"];

/// Lines of the longest file.
const LONGEST: usize = 450;
/// Lines of the command line, without tests.
const THIN: usize = 5_000;

struct Member {
    name: String,
    /// Relative to the workspace, such as `shared/bus`.
    folder: PathBuf,
    /// Names of dependencies with their kind: `normal`, `dev` or `build`.
    dependencies: Vec<(String, String)>,
    manifest: toml::Table,
    /// The crate's roots, `src/lib.rs` or `src/main.rs`, by path.
    roots: Vec<PathBuf>,
}

fn workspace() -> (PathBuf, Vec<Member>) {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let root = PathBuf::from(text(&metadata["workspace_root"]));
    let members = metadata["packages"].as_array().unwrap().iter().map(|package| member(&root, package)).collect();
    (root, members)
}

fn member(root: &Path, package: &Value) -> Member {
    let manifest = PathBuf::from(text(&package["manifest_path"]));
    let dependencies = package["dependencies"].as_array().unwrap().iter().map(|dependency| {
        (text(&dependency["name"]).into(), dependency["kind"].as_str().unwrap_or("normal").to_owned())
    });
    let targets = package["targets"].as_array().unwrap().iter();
    let roots = targets.filter(|target| matches!(text(&target["kind"][0]), "lib" | "bin"));
    Member {
        name: text(&package["name"]).into(),
        folder: manifest.parent().unwrap().strip_prefix(root).unwrap().into(),
        dependencies: dependencies.collect(),
        manifest: fs::read_to_string(&manifest).unwrap().parse().unwrap(),
        roots: roots.map(|target| text(&target["src_path"]).into()).collect(),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

#[test]
fn each_technology_has_its_only_user() {
    let (_, members) = workspace();
    let mut used = BTreeSet::new();
    for member in &members {
        for (dependency, kind) in &member.dependencies {
            for (pattern, owners) in OWNED {
                if pattern.strip_suffix('*').map_or(dependency == pattern, |start| dependency.starts_with(start)) {
                    used.insert(pattern);
                    assert!(owners.contains(&&*member.name), "{} uses {dependency}, only {owners:?} may", member.name);
                }
            }
            if TESTS_ONLY.contains(&&**dependency) {
                assert_eq!(kind, "dev", "{} uses {dependency} outside its tests", member.name);
            }
        }
    }
    // A rule about a crate that nobody uses holds whatever we do.
    assert_eq!(used.len(), OWNED.len(), "only these of the crates with an owner are used: {used:?}");
}

#[test]
fn only_who_computes_builds_burn() {
    let (_, members) = workspace();
    for name in WITHOUT_BURN {
        let (mut reached, mut open) = (BTreeSet::new(), vec![name]);
        while let Some(next) = open.pop() {
            // Others than members are left at that: none of those brings Burn, which has one user.
            let Some(member) = members.iter().find(|member| member.name == next) else { continue };
            for (dependency, _) in member.dependencies.iter().filter(|(_, kind)| kind != "dev") {
                assert!(!dependency.starts_with("burn"), "{name} builds {dependency}, which {next} uses");
                assert_ne!(dependency, "baton-engine", "{name} builds the engine, which {next} uses");
                if reached.insert(&**dependency) {
                    open.push(dependency);
                }
            }
        }
        assert!(reached.contains("baton-contract"), "{name} is not in the workspace: {reached:?}");
    }
}

#[test]
fn pure_crates_stay_pure() {
    let (root, members) = workspace();
    for (name, allowed) in PURE {
        let member = members.iter().find(|member| member.name == name).unwrap();
        for (dependency, kind) in &member.dependencies {
            assert!(
                kind == "dev" || allowed.contains(&&**dependency),
                "{name} uses {dependency}, only {allowed:?} are pure"
            );
        }
        for path in sources(&root.join(&member.folder).join("src")) {
            let source = fs::read_to_string(&path).unwrap();
            for impure in IMPURE {
                let code = source.lines().filter(|line| !line.trim_start().starts_with("//"));
                assert!(!code.into_iter().any(|line| line.contains(impure)), "{} names {impure}", path.display());
            }
        }
    }
}

#[test]
fn one_place_judges_whether_a_change_was_beaten() {
    let (root, _) = workspace();
    let judges = |path: &PathBuf| {
        let source = fs::read_to_string(path).unwrap();
        ["WrongLastRevision", "WrongLastSequence", "CreateErrorKind::AlreadyExists"]
            .iter()
            .any(|kind| source.contains(kind))
    };
    let found: Vec<PathBuf> = sources(&root.join("shared/bus/src")).into_iter().filter(judges).collect();
    // The client library takes two of the broker's three answers for faults.
    assert_eq!(found, [root.join("shared/bus/src/connection/conflict.rs")]);
}

#[test]
fn stages_share_nothing_but_the_bus_and_the_store() {
    let (_, members) = workspace();
    let services: Vec<&str> =
        members.iter().filter(|member| member.folder.starts_with("services")).map(|member| &*member.name).collect();
    assert!(services.len() >= 4, "{services:?}");
    // Its simulation calls the stages' own schedulers, which are pure, instead of having their rules a second time.
    let simulates = |member: &str, dependency: &str| {
        member == "baton-planner" && ["baton-prefill", "baton-decode"].contains(&dependency)
    };
    // It runs the stages, one at a time.
    let runs = |member: &str, dependency: &str| {
        member == "baton-worker" && ["baton-ingest", "baton-prefill", "baton-decode"].contains(&dependency)
    };
    // What it measures becomes a profile, which is the planner's to say.
    let profiles = |member: &str, dependency: &str| member == "baton-measure" && dependency == "baton-planner";
    for member in members.iter().filter(|member| member.name != "baton") {
        for (dependency, _) in &member.dependencies {
            let (member, dependency) = (&*member.name, &**dependency);
            if simulates(member, dependency) || runs(member, dependency) || profiles(member, dependency) {
                continue;
            }
            assert!(!services.contains(&dependency), "{member} uses the service {dependency}");
        }
    }
}

#[test]
fn nothing_shipped_depends_on_the_load_tester() {
    let (_, members) = workspace();
    for Member { name, dependencies, .. } in &members {
        for (_, kind) in dependencies.iter().filter(|(dependency, _)| dependency == "baton-loadtest") {
            assert!(name == "baton" && kind == "dev", "{name} uses the load tester outside its end-to-end tests");
        }
    }
}

#[test]
fn members_follow_the_workspace() {
    let (_, members) = workspace();
    for Member { name, folder, manifest, roots, .. } in &members {
        let directory = folder.file_name().unwrap().to_str().unwrap();
        assert!(name == directory || *name == format!("baton-{directory}"), "{name} is in {}", folder.display());

        let inherits = |table: &toml::Table, key: &str| {
            table.get(key).and_then(|value| value.get("workspace")).and_then(toml::Value::as_bool) == Some(true)
        };
        let package = manifest["package"].as_table().unwrap();
        for key in ["version", "edition", "rust-version", "license", "publish"] {
            assert!(inherits(package, key), "{name}: package.{key} is not the workspace's");
        }
        let described = package.get("description").and_then(toml::Value::as_str).is_some_and(|text| !text.is_empty());
        assert!(described, "{name}: package.description does not say what it is");
        let lints = manifest.get("lints").and_then(|lints| lints.get("workspace"));
        assert_eq!(lints.and_then(toml::Value::as_bool), Some(true), "{name}: lints are not the workspace's");
        for table in dependency_tables(manifest) {
            for dependency in table.keys() {
                assert!(
                    inherits(table, dependency),
                    "{name}: the version of {dependency} is not in the root Cargo.toml"
                );
            }
        }

        for root in roots.iter().filter(|_| !UNSAFE.contains(&&**name)) {
            let source = fs::read_to_string(root).unwrap();
            assert!(source.contains("#![forbid(unsafe_code)]"), "{} does not forbid unsafe code", root.display());
        }
    }
}

#[test]
fn what_is_shared_is_documented() {
    let (_, members) = workspace();
    for member in members.iter().filter(|member| member.folder.starts_with("shared")) {
        for root in &member.roots {
            let source = fs::read_to_string(root).unwrap();
            let lints = "#![warn(missing_docs, unreachable_pub)]";
            assert!(source.contains(lints), "{} lacks {lints}", root.display());
        }
    }
}

/// No library runs doc-tests, each of which would be a build of its own.
#[test]
fn documentation_holds_no_code_that_nobody_runs() {
    let (root, members) = workspace();
    for path in members.iter().flat_map(|member| sources(&root.join(&member.folder).join("src"))) {
        let source = fs::read_to_string(&path).unwrap();
        let lines = source.lines().map(str::trim_start);
        let text = lines.filter_map(|line| line.strip_prefix("//!").or_else(|| line.strip_prefix("///")));
        let fences = text.map(str::trim).filter(|text| text.starts_with("```"));
        // Every second ends what the one before began.
        for fence in fences.step_by(2) {
            assert_eq!(fence, "```text", "{}: an example is a test, for nobody runs it here", path.display());
        }
    }
}

/// An error whose text holds its source says it twice where the chain is printed, and the shorthands print the error alone.
#[test]
fn a_cause_is_printed_by_the_chain_alone() {
    let (root, members) = workspace();
    let mut attributes = 0;
    for path in members.iter().flat_map(|member| sources(&root.join(&member.folder).join("src"))) {
        let source = fs::read_to_string(&path).unwrap();
        let code = source.split("#[cfg(test)]").next().unwrap();
        for shorthand in ["{error:#}", "(%error", " %error,"] {
            assert!(!code.contains(shorthand), "{}: {shorthand}; print an error with `causes`", path.display());
        }
        for (start, _) in code.match_indices("#[error(") {
            attributes += 1;
            let (text, rest) = code[start..].split_once(")]\n").unwrap();
            let item = rest.lines().find(|line| !line.trim_start().starts_with("//")).unwrap();
            let numbered = text.contains("{0") && (item.contains("#[from]") || item.contains("#[source]"));
            let named = ["{source}", "{source:", "source."].iter().any(|name| text.contains(name));
            assert!(!named && !numbered, "{}: {text}: its source is no part of an error's text", path.display());
        }
    }
    assert!(attributes > 100, "{attributes}");
}

#[test]
fn files_use_each_other_in_no_circle() {
    let (_, members) = workspace();
    let mut seen = 0;
    let mut found = String::new();
    for (member, root) in members.iter().flat_map(|member| member.roots.iter().map(move |root| (member, root))) {
        let arrows = circles::arrows(root);
        seen += arrows.len();
        for circle in circles::circles(&arrows) {
            found += &format!("\n{}:", member.name);
            circle.iter().for_each(|arrow| found += &format!("\n    {arrow}"));
        }
    }
    assert!(found.is_empty(), "circles; what both sides use belongs in a file below them, or above:{found}");
    assert!(seen > 300, "only {seen} uses were found");
}

/// All that a crate uses, directly and through others, by dependencies of these kinds.
fn reached<'a>(members: &'a [Member], from: &'a str, kinds: &[&str]) -> BTreeSet<&'a str> {
    let uses: BTreeMap<&str, &Member> = members.iter().map(|member| (&*member.name, member)).collect();
    let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(user) = open.pop() {
        let used = uses.get(user).into_iter().flat_map(|member| &member.dependencies);
        let used = used.filter(|(_, kind)| kinds.contains(&&**kind)).map(|(name, _)| &**name);
        open.extend(used.filter(|name| seen.insert(*name)));
    }
    seen
}

#[test]
fn crates_use_each_other_in_no_circle_and_tests_count() {
    let (_, members) = workspace();
    for Member { name, .. } in &members {
        let reached = reached(&members, name, &["normal", "dev", "build"]);
        assert!(!reached.contains(&**name), "{name} uses a crate that uses it");
    }
}

#[test]
fn ingest_loads_no_weights() {
    let (_, members) = workspace();
    let reached = reached(&members, "baton-ingest", &["normal", "build"]);
    assert!(reached.contains("baton-bus") && !reached.contains("baton-engine"), "{reached:?}");
}

/// A command's file holds arguments, printing and an exit code; what else it does lies in a crate.
#[test]
fn the_command_line_is_thin() {
    let (root, _) = workspace();
    let source = |path: PathBuf| fs::read_to_string(path).unwrap();
    let lines = |text: String| text.split("#[cfg(test)]").next().map_or(0, |code| code.lines().count());
    let lines: usize = sources(&root.join("services/baton/src")).into_iter().map(source).map(lines).sum();
    assert!((1_000..=THIN).contains(&lines), "services/baton/src has {lines} lines without tests, {THIN} may be");
}

#[test]
fn a_file_reads_in_one_sitting() {
    let (root, members) = workspace();
    let mut files = 0;
    for path in members.iter().flat_map(|member| sources(&root.join(&member.folder))) {
        if path.iter().any(|part| part == "fuzz") && path.iter().any(|part| part == "target") {
            continue;
        }
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        files += 1;
        assert!(lines <= LONGEST, "{} has {lines} lines, more than {LONGEST}", path.display());
    }
    assert!(files > 300, "{files}");
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let (folders, files): (Vec<_>, Vec<_>) =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).partition(|path| path.is_dir());
    let rust = files.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    rust.chain(folders.iter().flat_map(|folder| sources(folder))).collect()
}

/// The tables that list dependencies, for all targets and for some.
fn dependency_tables(manifest: &toml::Table) -> Vec<&toml::Table> {
    let targets = manifest.get("target").and_then(toml::Value::as_table);
    let targets = targets.into_iter().flat_map(|targets| targets.values().filter_map(toml::Value::as_table));
    [manifest]
        .into_iter()
        .chain(targets)
        .flat_map(|table| ["dependencies", "dev-dependencies", "build-dependencies"].map(|kind| table.get(kind)))
        .filter_map(|table| table.and_then(toml::Value::as_table))
        .collect()
}
