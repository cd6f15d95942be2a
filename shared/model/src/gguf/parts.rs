//! Models in several GGUF files, as `llama-gguf-split` writes them: `NAME-00001-of-00003.gguf` and so on. Each is a GGUF file
//! of some of the tensors; the first has the model's metadata.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::error::{Error, damaged};
use super::read::{Contents, parse};
use crate::checkpoint::{self, Checkpoint, Value};

/// More are not opened: each is a mapping of the process.
const MAX_PARTS: u64 = 1024;

/// From 0.
const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
/// Of all parts together.
const TENSORS: &str = "split.tensors.count";

/// The names of all parts of a model, of one of which this is the name; None if the name is not of that form. Names may be
/// paths.
pub fn part_names(name: &str) -> Option<Vec<String>> {
    let (stem, number, count) = split_name(name)?;
    let known = (1..=MAX_PARTS).contains(&count) && (1..=count).contains(&number);
    known.then(|| (1..=count).map(|number| format!("{stem}{}", ending(number, count))).collect())
}

fn ending(number: u64, count: u64) -> String {
    format!("-{number:05}-of-{count:05}.gguf")
}

/// What a name says before its ending, and the two numbers in that.
fn split_name(name: &str) -> Option<(&str, u64, u64)> {
    let numbered = name.strip_suffix(".gguf")?;
    let (rest, count) = numbered.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits =
        |text: &str| (text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?;
    Some((stem, digits(number)?, digits(count)?))
}

/// The parts of a model.
pub(super) struct Parts {
    paths: Vec<PathBuf>,
}

/// The parts of the model whose file at `path` says `metadata`; None if it is the whole model.
pub(super) fn of(path: &Path, metadata: &BTreeMap<String, Value>) -> Result<Option<Parts>, Error> {
    let count = number(metadata, COUNT)?.unwrap_or(1);
    if count <= 1 {
        return Ok(None);
    }
    if count > MAX_PARTS {
        return Err(Error::TooManyParts { limit: MAX_PARTS, found: count });
    }
    let part = number(metadata, NUMBER)?.unwrap_or(0).saturating_add(1);
    let expected = ending(part, count);
    let names = (path.file_name().and_then(|name| name.to_str()))
        .filter(|name| name.ends_with(&expected))
        .and_then(part_names)
        .ok_or(Error::PartName { part, count, expected })?;
    Ok(Some(Parts { paths: names.into_iter().map(|name| path.with_file_name(name)).collect() }))
}

impl Parts {
    /// Maps all parts and reads what they say. `path` is the one that was named.
    pub(super) fn open(self, path: &Path) -> Result<Checkpoint, checkpoint::Error> {
        let count = self.paths.len();
        let (mut files, mut metadata, mut tensors) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        for (place, path) in self.paths.into_iter().enumerate() {
            let map = checkpoint::map(&path).map_err(|error| match error {
                checkpoint::Error::Io { path, source } if source.kind() == io::ErrorKind::NotFound => {
                    Error::MissingPart { path, count, source }.into()
                }
                error => error,
            })?;
            let part = parse(&map, place).and_then(|contents| check(contents, place as u64, count as u64));
            let (said, held) = part.map_err(|source| Error::Part { path, source: Box::new(source) })?;
            if place == 0 {
                metadata = said;
            }
            for (name, entry) in held {
                if tensors.contains_key(&name) {
                    return Err(damaged("a tensor must occur once in all parts", name).into());
                }
                tensors.insert(name, entry);
            }
            files.push(map);
        }
        let (expected, found) = (number(&metadata, TENSORS)?, tensors.len() as u64);
        match expected.filter(|expected| *expected != found) {
            Some(expected) => Err(Error::OtherPart { what: "tensors in all parts", expected, found }.into()),
            None => Ok(Checkpoint::new(path, metadata, tensors, files, Vec::new())),
        }
    }
}

/// Refuses what is not the part that its name says.
fn check(contents: Contents, number_expected: u64, count: u64) -> Result<Contents, Error> {
    for (what, key, expected) in
        [("its number, from 0,", NUMBER, number_expected), ("the number of parts", COUNT, count)]
    {
        let found = number(&contents.0, key)?.unwrap_or(0);
        if found != expected {
            return Err(Error::OtherPart { what, expected, found });
        }
    }
    Ok(contents)
}

fn number(metadata: &BTreeMap<String, Value>, key: &'static str) -> Result<Option<u64>, Error> {
    match metadata.get(key) {
        None => Ok(None),
        Some(value) => value
            .as_u64()
            .map(Some)
            .ok_or_else(|| damaged("the keys of split models must be whole numbers", format!("{key} = {value:?}"))),
    }
}
