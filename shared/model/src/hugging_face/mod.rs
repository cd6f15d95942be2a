//! Hugging Face folders: `config.json`, safetensors and `tokenizer.json`, translated to GGUF's keys and names.
//!
//! What GGUF has no words for is told by keys of our own: `baton.rope.pairs` = `halves` (the rotated pairs of queries and
//! keys are a head's two halves, where GGUF's llama files have them side by side), `baton.norm.shift` (what is missing from
//! the norms' weights: Gemma's are stored less 1) and `baton.tokenizer.end_token_ids` (all tokens that end an answer).
//! What would be computed otherwise than the folder means is refused. Every file is bounded before it is read, every range
//! is checked against the bytes that are really there, and no name in a file becomes a path unless it is a plain one.

mod config;
mod document;
pub(crate) mod error;
mod names;
mod tokenizer;
mod weights;

use std::collections::BTreeMap;
use std::path::Path;

use crate::checkpoint::{self, Bytes, Checkpoint, Entry, Value};
use crate::quants::Type;
use document::Documents;
pub use error::Error;
use error::damaged;

/// Opens a folder: reads its JSON files and the headers of its weights. The weights are read when they are used.
pub fn open(folder: &Path) -> Result<Checkpoint, checkpoint::Error> {
    let mut documents = Documents::new(folder);
    let settings = documents.required("config.json", document::SMALL)?.settings()?;
    let config = config::Config::read(&settings)?;
    let weights = weights::open(folder, &mut documents)?;
    let mut tensors = BTreeMap::new();
    for (name, entry) in weights.tensors {
        match names::translate(&name, config.architecture) {
            names::Name::Known(known) => {
                if tensors.insert(known, entry).is_some() {
                    return Err(damaged("the weights", format!("tensor {name} is there twice")).into());
                }
            }
            names::Name::Ignored => {}
            names::Name::Unknown => return Err(Error::UnknownTensor { tensor: name }.into()),
        }
    }
    // Folders of models with tied weights may hold the table twice.
    match (config.tied, tensors.contains_key("output.weight")) {
        (Some(true), true) => drop(tensors.remove("output.weight")),
        (Some(false), false) => return Err(Error::MissingTensor { tensor: "lm_head.weight" }.into()),
        _ => {}
    }
    if let Some(divisors) = config.rope_divisors {
        let bytes = divisors.iter().flat_map(|divisor| divisor.to_le_bytes()).collect();
        let entry = Entry { dtype: Type::F32, dims: vec![divisors.len()], bytes: Bytes::Owned(bytes) };
        tensors.insert("rope_freqs.weight".to_owned(), entry);
    }
    let embedding = (tensors.get("token_embd.weight")).and_then(|entry| entry.dims.get(1));
    let vocabulary = *embedding.ok_or(Error::MissingTensor { tensor: "model.embed_tokens.weight" })?;
    let mut metadata = config.metadata;
    metadata.insert("general.name".to_owned(), Value::String(model_name(folder)));
    metadata.extend(tokenizer::read(&mut documents, &settings, vocabulary)?);
    Ok(Checkpoint::new(folder, metadata, tensors, weights.files, documents.into_digested()))
}

/// The folder's name; that of the model if the folder is a snapshot in the hub's cache.
fn model_name(folder: &Path) -> String {
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let snapshots = folder.parent().filter(|parent| parent.ends_with("snapshots"));
    let model = snapshots.and_then(Path::parent).and_then(name);
    match model.as_deref().and_then(|model| model.rsplit_once("--")) {
        Some((_, model)) => model.to_owned(),
        None => name(&folder).unwrap_or_else(|| "model".to_owned()),
    }
}
