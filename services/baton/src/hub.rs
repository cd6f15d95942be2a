//! Brings models of the Hugging Face hub into the cache that all of its tools share. The calls block.
//!
//! What the cache holds is taken as it is, without asking the hub, so that all workers of a machine use the same files and a
//! machine without a network can be given the cache. A model is downloaded at one commit, its weights last: a snapshot with
//! all its weights is complete.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use baton_engine::gguf;
use baton_topology::Hub;
use hf_hub::{
    Cache, Repo, RepoType,
    api::sync::{Api, ApiBuilder, ApiRepo},
};
use serde::Deserialize;

/// Without these a folder is no model.
const REQUIRED: [&str; 2] = ["config.json", "tokenizer.json"];
const OPTIONAL: [&str; 3] = ["tokenizer_config.json", "generation_config.json", "chat_template.jinja"];
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Which hub, and where its cache is.
#[derive(Clone, Debug)]
pub struct Options {
    pub cache: PathBuf,
    /// URL of the hub, where it is not the public one.
    pub endpoint: Option<String>,
    /// Access token for models that are not public; without it, the one that the hub's tools keep beside the cache.
    pub token: Option<String>,
}

impl Options {
    /// What the hub's own tools understand: `HF_HUB_CACHE`, `HF_HOME`, `HF_ENDPOINT` and `HF_TOKEN`.
    pub fn from_environment() -> Result<Self> {
        let text = |name| env::var(name).ok().filter(|value| !value.is_empty());
        let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let cache = variable("HF_HUB_CACHE")
            .or_else(|| variable("HF_HOME").map(|home| home.join("hub")))
            .or_else(|| env::home_dir().map(|home| home.join(".cache/huggingface/hub")))
            .context("there is no home directory; set HF_HOME to the folder of the hub's cache")?;
        Ok(Self { cache, endpoint: text("HF_ENDPOINT"), token: text("HF_TOKEN") })
    }
}

/// The folder or the GGUF file of a model, downloaded if the cache lacks it.
pub fn fetch(model: &Hub, options: &Options) -> Result<PathBuf> {
    if let Some(path) = cached(model, options) {
        return Ok(path);
    }
    download(model, options).with_context(|| format!("cannot bring {model}"))
}

fn repo(model: &Hub, revision: &str) -> Repo {
    Repo::with_revision(model.repository.clone(), RepoType::Model, revision.to_owned())
}

fn revision(model: &Hub) -> &str {
    model.revision.as_deref().unwrap_or("main")
}

/// What the cache holds of a model, if it is all there.
fn cached(model: &Hub, options: &Options) -> Option<PathBuf> {
    let repo = repo(model, revision(model));
    let folder = options.cache.join(repo.folder_name());
    // A revision is a name that stands for a commit, or the commit itself.
    let commit = fs::read_to_string(folder.join("refs").join(repo.revision()));
    let commit = commit.as_deref().map_or(repo.revision(), str::trim);
    let snapshot = is_plain(commit).then(|| folder.join("snapshots").join(commit))?;
    match &model.file {
        Some(file) => {
            let whole = parts(file).iter().all(|part| snapshot.join(part).is_file());
            whole.then(|| snapshot.join(file))
        }
        None => is_complete(&snapshot).then_some(snapshot),
    }
}

fn is_complete(snapshot: &Path) -> bool {
    let has = |file: &str| snapshot.join(file).is_file();
    let shards = || shards(&snapshot.join(INDEX)).is_ok_and(|shards| shards.iter().all(|shard| has(shard)));
    REQUIRED.into_iter().all(has) && (has(SINGLE) || shards())
}

fn download(model: &Hub, options: &Options) -> Result<PathBuf> {
    let cache = Cache::new(options.cache.clone());
    let mut builder = ApiBuilder::from_cache(cache.clone()).with_retries(3);
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
    }
    if options.token.is_some() {
        builder = builder.with_token(options.token.clone());
    }
    let api: Api = builder.build()?;
    let named = repo(model, revision(model));
    let info = api.repo(named.clone()).info().with_context(|| {
        format!(
            "the hub doesn't tell what the model consists of; on a machine that reaches no hub, put it into {} \
             (`huggingface-cli download {}` fills such a cache elsewhere) or name a folder or a .gguf file instead",
            options.cache.display(),
            model.repository
        )
    })?;
    ensure!(is_plain(&info.sha), "the hub's commit {:?} is no name", info.sha);
    let files: BTreeSet<&str> = info.siblings.iter().map(|file| file.rfilename.as_str()).collect();
    // All files of one commit, even if the branch moves meanwhile.
    let repo = api.repo(repo(model, &info.sha));
    let path = match &model.file {
        Some(file) => {
            let parts = parts(file);
            let missing = [file].into_iter().chain(&parts).find(|part| !files.contains(part.as_str()));
            ensure!(missing.is_none(), "the repository has no {}{}", missing.unwrap_or(file), others(&files));
            for part in &parts {
                repo.get(part).with_context(|| format!("cannot download {part}"))?;
            }
            repo.get(file)?
        }
        None => folder(&repo, &files)?,
    };
    cache.repo(named).create_ref(&info.sha)?;
    Ok(path)
}

/// The files of the model of which a GGUF file is one.
fn parts(file: &str) -> Vec<String> {
    gguf::part_names(file).unwrap_or_else(|| vec![file.to_owned()])
}

/// Downloads what a folder needs.
fn folder(repo: &ApiRepo, files: &BTreeSet<&str>) -> Result<PathBuf> {
    if let Some(missing) = REQUIRED.into_iter().find(|file| !files.contains(file)) {
        bail!("the repository has no {missing}{}", others(files));
    }
    let get = |file: &str| repo.get(file).with_context(|| format!("cannot download {file}"));
    let folder = get(REQUIRED[0])?.parent().context("a snapshot is a folder")?.to_owned();
    for file in REQUIRED.into_iter().chain(OPTIONAL).filter(|file| files.contains(file)) {
        get(file)?;
    }
    if files.contains(SINGLE) {
        get(SINGLE)?;
    } else if files.contains(INDEX) {
        for shard in shards(&get(INDEX)?)? {
            get(&shard)?;
        }
    } else {
        bail!("the repository has no safetensors{}", others(files));
    }
    Ok(folder)
}

/// The end of a message about files that are missing: what else could be asked for.
fn others(files: &BTreeSet<&str>) -> String {
    let gguf: Vec<&str> = files.iter().copied().filter(|file| file.to_ascii_lowercase().ends_with(".gguf")).collect();
    match gguf.as_slice() {
        [] => String::new(),
        gguf => format!("; its GGUF files are {}: name one behind the model's name", gguf.join(", ")),
    }
}

/// The files that an index of shards names.
fn shards(index: &Path) -> Result<BTreeSet<String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(&fs::read(index)?).with_context(|| format!("cannot read {INDEX}"))?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    match shards.iter().find(|shard| !is_plain(shard)) {
        Some(bad) => bail!("{INDEX} names {bad:?}, which is no file of the folder"),
        None => Ok(shards),
    }
}

/// Whether a name from elsewhere is safe in a path.
fn is_plain(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=255).contains(&name.len()) && !name.starts_with('.') && name.chars().all(allowed)
}

#[cfg(test)]
mod tests;
