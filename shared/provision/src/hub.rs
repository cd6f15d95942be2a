//! Brings models of the Hugging Face hub into the cache that all of its tools share. The calls block.
//!
//! What the cache holds is taken as it is, without asking the hub, so that all workers of a machine use the same files and a
//! machine without a network can be given the cache. A model is downloaded at one commit, its weights last: a snapshot with
//! all its weights is complete.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs, io,
    path::{Path, PathBuf},
};

use baton_model::gguf;
use baton_topology::Hub;
use hf_hub::{
    Cache, Repo, RepoType,
    api::sync::{Api, ApiBuilder, ApiError, ApiRepo},
};
use serde::Deserialize;

/// Without these a folder is no model.
const REQUIRED: [&str; 2] = ["config.json", "tokenizer.json"];
const OPTIONAL: [&str; 3] = ["tokenizer_config.json", "generation_config.json", "chat_template.jinja"];
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Why a model could not be brought.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the variants mean")]
pub enum Error {
    #[error("there is no home directory; set HF_HOME to the folder of the hub's cache")]
    NoHome,
    #[error("cannot bring {model}")]
    Bring { model: String, source: Box<Error> },
    #[error(
        "the hub doesn't tell what the model consists of; on a machine that reaches no hub, put it into {cache} \
         (`huggingface-cli download {repository}` fills such a cache elsewhere) or name a folder or a .gguf file instead"
    )]
    Unknown { cache: PathBuf, repository: String, source: ApiError },
    #[error("the hub's commit {0:?} is no name")]
    Commit(String),
    #[error("the repository has no {file}{others}")]
    Missing { file: String, others: String },
    #[error("cannot download {file}")]
    Download { file: String, source: ApiError },
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("cannot read {INDEX}")]
    Index(#[source] serde_json::Error),
    #[error("{INDEX} names {0:?}, which is no file of the folder")]
    Shard(String),
}

/// Which hub, and where its cache is.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder that all of the hub's tools share.
    pub cache: PathBuf,
    /// URL of the hub, where it is not the public one.
    pub endpoint: Option<String>,
    /// Access token for models that are not public; without it, the one that the hub's tools keep beside the cache.
    pub token: Option<String>,
}

impl Options {
    /// What the hub's own tools understand: `HF_HUB_CACHE`, `HF_HOME`, `HF_ENDPOINT` and `HF_TOKEN`.
    pub fn from_environment() -> Result<Self, Error> {
        let text = |name| env::var(name).ok().filter(|value| !value.is_empty());
        let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let cache = variable("HF_HUB_CACHE")
            .or_else(|| variable("HF_HOME").map(|home| home.join("hub")))
            .or_else(|| env::home_dir().map(|home| home.join(".cache/huggingface/hub")))
            .ok_or(Error::NoHome)?;
        Ok(Self { cache, endpoint: text("HF_ENDPOINT"), token: text("HF_TOKEN") })
    }
}

/// The folder or the GGUF file of a model, downloaded if the cache lacks it.
pub fn fetch(model: &Hub, options: &Options) -> Result<PathBuf, Error> {
    if let Some(path) = cached(model, options) {
        return Ok(path);
    }
    download(model, options).map_err(|error| Error::Bring { model: model.to_string(), source: Box::new(error) })
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

fn download(model: &Hub, options: &Options) -> Result<PathBuf, Error> {
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
    let info = api.repo(named.clone()).info().map_err(|source| Error::Unknown {
        cache: options.cache.clone(),
        repository: model.repository.clone(),
        source,
    })?;
    if !is_plain(&info.sha) {
        return Err(Error::Commit(info.sha));
    }
    let files: BTreeSet<&str> = info.siblings.iter().map(|file| file.rfilename.as_str()).collect();
    // All files of one commit, even if the branch moves meanwhile.
    let repo = api.repo(repo(model, &info.sha));
    let path = match &model.file {
        Some(file) => {
            let parts = parts(file);
            let missing = [file].into_iter().chain(&parts).find(|part| !files.contains(part.as_str()));
            if let Some(missing) = missing {
                return Err(Error::Missing { file: missing.clone(), others: others(&files) });
            }
            for part in &parts {
                get(&repo, part)?;
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

fn get(repo: &ApiRepo, file: &str) -> Result<PathBuf, Error> {
    repo.get(file).map_err(|source| Error::Download { file: file.to_owned(), source })
}

/// Downloads what a folder needs.
fn folder(repo: &ApiRepo, files: &BTreeSet<&str>) -> Result<PathBuf, Error> {
    if let Some(missing) = REQUIRED.into_iter().find(|file| !files.contains(file)) {
        return Err(Error::Missing { file: missing.to_owned(), others: others(files) });
    }
    let get = |file: &str| get(repo, file);
    let mut folder = get(REQUIRED[0])?;
    folder.pop();
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
        return Err(Error::Missing { file: "safetensors".to_owned(), others: others(files) });
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
fn shards(index: &Path) -> Result<BTreeSet<String>, Error> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(&fs::read(index)?).map_err(Error::Index)?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    match shards.iter().find(|shard| !is_plain(shard)) {
        Some(bad) => Err(Error::Shard(bad.clone())),
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
