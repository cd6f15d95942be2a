//! The file of a batch's answers: what it has already, and how more is added to it so that a kill at any time costs nothing.

use std::{
    collections::{HashMap, VecDeque},
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use baton_contract::{envelope, outcome::Outcome};
use baton_gateway::openai::{self, ApiError};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, json};

use super::input::{self, Key, Tag};

use crate::output::stdout;

/// Bytes of a line that can be an answer: several times what the broker takes as a result, of which OpenAI's form is longer.
const LONGEST: u64 = 8 * envelope::MAX_BYTES as u64;
/// What each line that is written begins with.
const BEGINNING: &[u8] = b"{\"id\"";

/// One line of answers, as far as it tells which it is.
#[derive(Deserialize)]
struct Known {
    id: String,
    #[serde(default)]
    custom_id: Option<String>,
    #[serde(default)]
    error: Option<Value>,
    /// Of an answer in OpenAI's form, and of a result in Baton's own. A request has neither.
    #[serde(default)]
    response: Option<IgnoredAny>,
    #[serde(default)]
    status: Option<IgnoredAny>,
}

/// What is known of a name that lines have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    /// Of the job's id, without the number of its attempt.
    id: u32,
    /// Whether the output has its answer from an earlier run.
    answered: bool,
    /// Whether the input had it in this run.
    read: bool,
}

/// What is to be done about a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// It has no answer yet.
    Run,
    /// It has its answer.
    Nothing,
    /// The answer under its name is another line's.
    Changed,
    /// A line before it has its name.
    Twice,
}

/// Which lines have answers: 25 bytes a line, whatever the line is, in a table that is up to twice as large.
#[derive(Debug, Default)]
pub struct Answered {
    seen: HashMap<Key, Seen>,
    /// Answers that an earlier run wrote.
    pub before: u64,
    /// Those of them that are errors.
    pub failed_before: u64,
}

/// A short digest of the part of an id that all attempts have.
fn short(id: &str) -> u32 {
    let hash = blake3::hash(input::first_of(id).as_bytes());
    u32::from_le_bytes(std::array::from_fn(|byte| hash.as_bytes()[byte]))
}

impl Answered {
    fn note(&mut self, known: &Known) {
        let key = Key::of_name(known.custom_id.as_deref(), &known.id);
        self.seen.insert(key, Seen { id: short(&known.id), answered: true, read: false });
        self.before += 1;
        self.failed_before += u64::from(known.error.as_ref().is_some_and(|error| !error.is_null()));
    }

    /// What a line of the input needs. To be asked once for each.
    pub fn need(&mut self, tag: &Tag) -> Need {
        let id = short(tag.id.as_str());
        match self.seen.entry(tag.key()) {
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(Seen { id, answered: false, read: true });
                Need::Run
            }
            std::collections::hash_map::Entry::Occupied(mut entry) => {
                let seen = entry.get_mut();
                if std::mem::replace(&mut seen.read, true) || !seen.answered {
                    Need::Twice
                } else if seen.id == id {
                    Need::Nothing
                } else {
                    Need::Changed
                }
            }
        }
    }
}

/// Where answers go.
pub enum Output {
    Stdout,
    /// Locked, and written at its end.
    File(File),
}

impl Output {
    /// Opens a file of answers, or makes it; repairs a last line that a kill cut off. With `again`, answers that are errors
    /// are taken out first. A file that is no file of answers is left as it is; what is no file at all (a pipe, a device) is
    /// only written.
    pub fn open(path: &Path, again: bool) -> anyhow::Result<(Self, Answered)> {
        if path == Path::new("-") {
            return Ok((Self::Stdout, Answered::default()));
        }
        if fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
            let file = OpenOptions::new().write(true).open(path);
            return Ok((
                Self::File(file.with_context(|| format!("cannot open {}", path.display()))?),
                Answered::default(),
            ));
        }
        let mut file = lock(OpenOptions::new().read(true).write(true).create(true).truncate(false), path)?;
        repair(&mut file, path)?;
        if again {
            file = without_errors(file, path)?;
        }
        let mut answered = Answered::default();
        each(&file, path, |_, known| {
            answered.note(&known);
            Ok(())
        })?;
        file.seek(SeekFrom::End(0))?;
        Ok((Self::File(file), answered))
    }

    /// Adds whole lines, each with its end. What was added stays if the process is killed at once.
    pub fn add(&mut self, lines: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut out = stdout();
                out.write_all(lines)?;
                out.flush()
            }
            Self::File(file) => file.write_all(lines),
        }
    }
}

/// Answers on their way to the output.
pub struct Writer {
    output: Output,
    order: Option<Order>,
}

/// Holds answers back until those of earlier lines are written.
#[derive(Default)]
struct Order {
    /// The lines that are under way, by their places.
    queue: VecDeque<u64>,
    ready: HashMap<u64, Vec<u8>>,
}

impl Writer {
    /// Writes as answers come, or `in_order` of their lines.
    pub fn new(output: Output, in_order: bool) -> Self {
        Self { output, order: in_order.then(Order::default) }
    }

    /// Whether standard output is taken by the answers.
    pub fn is_stdout(&self) -> bool {
        matches!(self.output, Output::Stdout)
    }

    /// A line is under way; each is put later.
    pub fn begin(&mut self, number: u64) {
        if let Some(order) = &mut self.order {
            order.queue.push_back(number);
        }
    }

    /// Writes a line's answer, once it is its turn.
    pub fn put(&mut self, number: u64, line: Vec<u8>) -> io::Result<()> {
        let Some(order) = &mut self.order else { return self.output.add(&line) };
        order.ready.insert(number, line);
        while let Some(line) = order.queue.front().and_then(|first| order.ready.remove(first)) {
            order.queue.pop_front();
            self.output.add(&line)?;
        }
        Ok(())
    }

    /// Answers that wait for those of earlier lines.
    pub fn held(&self) -> usize {
        self.order.as_ref().map_or(0, |order| order.ready.len())
    }
}

fn lock(options: &OpenOptions, path: &Path) -> anyhow::Result<File> {
    let file = options.open(path).with_context(|| format!("cannot open {}", path.display()))?;
    if file.try_lock().is_err() {
        bail!("another `baton batch run` writes {}; wait for it or choose another file", path.display());
    }
    Ok(file)
}

fn known(line: &[u8], number: u64, path: &Path) -> anyhow::Result<Known> {
    let strange = || {
        let path = path.display();
        format!("line {number} of {path} is no answer of a batch; remove it, or choose another file for the answers")
    };
    let known: Known = serde_json::from_slice(line).with_context(strange)?;
    ensure!(known.error.is_some() || known.response.is_some() || known.status.is_some(), strange());
    Ok(known)
}

/// Shows each whole line of a file to `see`, without its end, and returns where the last line begins that has no end, and its
/// bytes. Fails at the first line that is no answer.
fn each(
    mut file: &File,
    path: &Path,
    mut see: impl FnMut(&[u8], Known) -> anyhow::Result<()>,
) -> anyhow::Result<(u64, Vec<u8>)> {
    let failed = || format!("cannot read {}", path.display());
    file.seek(SeekFrom::Start(0)).with_context(failed)?;
    let (mut reader, mut line, mut start) = (BufReader::new(file), Vec::new(), 0);
    for number in 1.. {
        line.clear();
        let read = reader.by_ref().take(LONGEST).read_until(b'\n', &mut line).with_context(failed)?;
        if line.pop_if(|last| *last == b'\n').is_none() {
            // The end of the file, unless the line goes on.
            ensure!(
                (read as u64) < LONGEST,
                "line {number} of {} has more than {LONGEST} bytes, so it is no answer of a batch; choose another file",
                path.display()
            );
            break;
        }
        see(&line, known(&line, number, path)?)?;
        start += read as u64;
    }
    Ok((start, line))
}

/// Ends the last line if it is whole; else takes it away, for its job has its result in the broker. Changes nothing where
/// another line is no answer, or the last is no beginning of one.
fn repair(file: &mut File, path: &Path) -> anyhow::Result<()> {
    let failed = || format!("cannot repair {}", path.display());
    let mut number = 1;
    let (start, last) = each(file, path, |_, _| {
        number += 1;
        Ok(())
    })?;
    if last.is_empty() {
        return Ok(());
    }
    if serde_json::from_slice::<Known>(&last).is_ok() {
        known(&last, number, path)?;
        file.seek(SeekFrom::End(0)).with_context(failed)?;
        return file.write_all(b"\n").with_context(failed);
    }
    if !BEGINNING.starts_with(&last) && !last.starts_with(BEGINNING) {
        known(&last, number, path)?;
    }
    file.set_len(start).with_context(failed)
}

/// Puts a copy without the answers that are errors in the file's place.
fn without_errors(file: File, path: &Path) -> anyhow::Result<File> {
    let failed = || format!("cannot rewrite {}", path.display());
    let mut name = path.file_name().map(ToOwned::to_owned).unwrap_or_default();
    name.push(".new");
    let new: PathBuf = path.with_file_name(name);
    let copy = lock(OpenOptions::new().read(true).write(true).create(true).truncate(true), &new)?;
    let mut writer = BufWriter::new(&copy);
    each(&file, path, |line, known| {
        if known.error.is_none_or(|error| error.is_null()) {
            writer.write_all(line).and_then(|()| writer.write_all(b"\n")).with_context(failed)?;
        }
        Ok(())
    })?;
    writer.flush().with_context(failed)?;
    drop(writer);
    fs::rename(&new, path).with_context(failed)?;
    Ok(copy)
}

/// The line that says how a job ended, and whether it is an error.
pub fn answer(tag: &Tag, outcome: &Outcome) -> serde_json::Result<(Vec<u8>, bool)> {
    let Some(endpoint) = tag.endpoint else {
        return Ok((line(&serde_json::to_value(outcome)?)?, outcome.error.is_some()));
    };
    match openai::response(endpoint, outcome) {
        Ok(body) => {
            let response = json!({ "status_code": 200, "request_id": outcome.id, "body": body });
            let value = json!({ "id": outcome.id, "custom_id": tag.custom_id, "response": response, "error": null });
            Ok((line(&value)?, false))
        }
        Err(error) => Ok((refused(tag, outcome.id.as_str(), &error)?, true)),
    }
}

/// The line that says why there is no answer.
pub fn refusal(tag: &Tag, number: u64, error: &ApiError) -> serde_json::Result<Vec<u8>> {
    let error = ApiError { message: format!("line {number}: {}", error.message), ..error.clone() };
    refused(tag, tag.id.as_str(), &error)
}

fn refused(tag: &Tag, id: &str, error: &ApiError) -> serde_json::Result<Vec<u8>> {
    let response = json!({ "status_code": error.status, "request_id": id, "body": error.body() });
    let code = error.code.as_deref().unwrap_or(error.kind);
    let short = json!({ "code": code, "message": error.message, "param": error.param });
    line(&json!({ "id": id, "custom_id": tag.custom_id, "response": response, "error": short }))
}

fn line(value: &Value) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests;
