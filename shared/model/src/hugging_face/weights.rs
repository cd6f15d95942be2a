//! Safetensors: one file, or shards that an index names.
//!
//! A file is the length of its header (8 bytes, little-endian), the header (JSON: a type, a shape and a range of bytes for
//! every tensor) and the data, which the ranges cover without gap or overlap.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::Deserialize;

use super::document::{Documents, SMALL};
use super::error::{Error, damaged};
use crate::checkpoint::{self, Bytes, Entry};
use crate::quants::Type;

/// Most bytes of a header: one of a thousand layers has under 2 MB.
const MAX_HEADER: u64 = 16 << 20;
/// Most bytes of an index.
const MAX_INDEX: u64 = 4 * SMALL;
const MAX_SHARDS: usize = 1024;
const MAX_DIMENSIONS: usize = 4;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The tensors of a folder by Hugging Face's names, and the files they lie in.
pub(super) struct Weights {
    pub(super) tensors: BTreeMap<String, Entry>,
    pub(super) files: Vec<Mmap>,
}

#[derive(Deserialize)]
struct Header {
    #[serde(rename = "__metadata__", default)]
    _metadata: Option<serde::de::IgnoredAny>,
    #[serde(flatten)]
    tensors: HashMap<String, TensorInfo>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Maps the weights of `folder` and reads their headers.
pub(super) fn open(folder: &Path, documents: &mut Documents) -> Result<Weights, checkpoint::Error> {
    let mut weights = Weights { tensors: BTreeMap::new(), files: Vec::new() };
    if folder.join(SINGLE).exists() {
        weights.add(folder, SINGLE, documents)?;
        return Ok(weights);
    }
    let Some(index) = documents.optional(INDEX, MAX_INDEX)? else {
        return Err(Error::MissingFile { file: SINGLE }.into());
    };
    let map = index.json::<Index>()?.weight_map;
    let mut shards = BTreeMap::<&str, Vec<&str>>::new();
    for (tensor, shard) in &map {
        shards.entry(shard).or_default().push(tensor);
    }
    if let Some(bad) = shards.keys().find(|shard| !is_plain(shard)) {
        return Err(damaged(INDEX, format!("expected names of .safetensors files, found {bad:?}")).into());
    }
    if shards.is_empty() || shards.len() > MAX_SHARDS {
        return Err(damaged(INDEX, format!("expected 1 to {MAX_SHARDS} files, found {}", shards.len())).into());
    }
    for (shard, expected) in shards {
        let found = weights.add(folder, shard, documents)?;
        let missing = expected.iter().find(|tensor| !weights.tensors.contains_key(**tensor));
        if missing.is_some() || found != expected.len() {
            let what = match missing {
                Some(tensor) => format!("tensor {tensor} should be in {shard}, and is not"),
                None => format!("{} tensors should be in {shard}, which has {found}", expected.len()),
            };
            return Err(damaged(INDEX, what).into());
        }
    }
    Ok(weights)
}

/// Whether a name is that of a file in the folder itself.
fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    name.len() <= 255 && name.ends_with(".safetensors") && !name.starts_with('.') && name.chars().all(plain)
}

impl Weights {
    /// Adds the tensors of a file, and returns how many it has.
    fn add(&mut self, folder: &Path, name: &str, documents: &mut Documents) -> Result<usize, checkpoint::Error> {
        let map = checkpoint::map(&folder.join(name))?;
        documents.digest(name, &(map.len() as u64).to_le_bytes());
        let (data, header) = header(&map).map_err(|what| damaged(name, what))?;
        let tensors = header.tensors();
        let count = tensors.len();
        for (tensor, info) in tensors {
            let (start, end) = info.data_offsets;
            let bytes = Bytes::Mapped { file: self.files.len(), range: data + start..data + end };
            let entry = Entry { dtype: dtype(&tensor, info)?, dims: dims(name, &tensor, &info.shape)?, bytes };
            if self.tensors.insert(tensor.clone(), entry).is_some() {
                return Err(damaged(name, format!("tensor {tensor} is in another file, too")).into());
            }
        }
        self.files.push(map);
        Ok(count)
    }
}

/// Where the data begins, and what it is: ranges that cover the rest of the file.
fn header(bytes: &[u8]) -> Result<(usize, Metadata), String> {
    let Some((length, rest)) = bytes.split_first_chunk() else {
        return Err(format!("expected at least 8 bytes, found {}", bytes.len()));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER || length > rest.len() as u64 {
        return Err(format!("a header of {length} bytes in a file of {}, expected at most {MAX_HEADER}", bytes.len()));
    }
    let (header, data) = rest.split_at(length as usize);
    let header: Header = serde_json::from_slice(header).map_err(|error| format!("its header says {error}"))?;
    let mut tensors: Vec<_> = header.tensors.into_iter().collect();
    tensors.sort_unstable_by_key(|(_, info)| info.data_offsets);
    let metadata = Metadata::new(None, tensors).map_err(|error| error.to_string())?;
    if metadata.data_len() != data.len() {
        return Err(format!("{} bytes of data, expected {}", data.len(), metadata.data_len()));
    }
    Ok((bytes.len() - data.len(), metadata))
}

fn dtype(tensor: &str, info: &TensorInfo) -> Result<Type, Error> {
    match info.dtype {
        Dtype::F32 => Ok(Type::F32),
        Dtype::F16 => Ok(Type::F16),
        Dtype::BF16 => Ok(Type::BF16),
        other => Err(Error::UnsupportedType { tensor: tensor.to_owned(), found: format!("{other:?}") }),
    }
}

/// Dimensions in ggml's order.
fn dims(file: &str, tensor: &str, shape: &[usize]) -> Result<Vec<usize>, Error> {
    if !(1..=MAX_DIMENSIONS).contains(&shape.len()) || shape.contains(&0) {
        return Err(damaged(file, format!("tensor {tensor} has the shape {shape:?}, expected 1 to 4 sizes above 0")));
    }
    Ok(shape.iter().rev().copied().collect())
}
