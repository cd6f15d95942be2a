//! The file of a batch's answers: what it has already, and how more is added to it so that a kill at any time costs nothing.

use std::{
    collections::{HashMap, VecDeque},
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use baton_contract::{envelope, outcome::Outcome};
use baton_openai::{AnswerLine, ApiError, LineError, LineResponse};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;

use crate::{
    error::Error,
    input::{self, Key, Tag},
};

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
pub trait Sink: Send {
    /// Adds whole lines, each with its end. What was added stays if the process is killed at once.
    ///
    /// # Errors
    ///
    /// If they can't be written.
    fn add(&mut self, lines: &[u8]) -> io::Result<()>;
}

impl Sink for File {
    fn add(&mut self, lines: &[u8]) -> io::Result<()> {
        self.write_all(lines)
    }
}

/// Opens a file of answers, or makes it, locked and at its end; repairs a last line that a kill cut off. With `again`, answers
/// that are errors are taken out first. A file that is no file of answers is left as it is; what is no file at all (a pipe, a
/// device) is only written. Blocks.
///
/// # Errors
///
/// If it can't be opened, read or mended, another run writes it, or a line of it is no answer.
pub fn open(path: &Path, again: bool) -> Result<(File, Answered), Error> {
    if fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
        let file = OpenOptions::new().write(true).open(path);
        return Ok((file.map_err(unopened(path))?, Answered::default()));
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
    file.seek(SeekFrom::End(0)).map_err(unread(path))?;
    Ok((file, answered))
}

fn unopened(path: &Path) -> impl Fn(io::Error) -> Error {
    move |source| Error::Open { path: path.to_owned(), source }
}

fn unread(path: &Path) -> impl Fn(io::Error) -> Error {
    move |source| Error::Read { name: path.display().to_string(), source }
}

/// Answers on their way to the output.
pub(crate) struct Writer {
    sink: Box<dyn Sink>,
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
    pub(crate) fn new(sink: Box<dyn Sink>, in_order: bool) -> Self {
        Self { sink, order: in_order.then(Order::default) }
    }

    /// A line is under way; each is put later.
    pub(crate) fn begin(&mut self, number: u64) {
        if let Some(order) = &mut self.order {
            order.queue.push_back(number);
        }
    }

    /// Writes a line's answer, once it is its turn.
    pub(crate) fn put(&mut self, number: u64, line: Vec<u8>) -> io::Result<()> {
        let Some(order) = &mut self.order else { return self.sink.add(&line) };
        order.ready.insert(number, line);
        while let Some(line) = order.queue.front().and_then(|first| order.ready.remove(first)) {
            order.queue.pop_front();
            self.sink.add(&line)?;
        }
        Ok(())
    }

    /// Answers that wait for those of earlier lines.
    pub(crate) fn held(&self) -> usize {
        self.order.as_ref().map_or(0, |order| order.ready.len())
    }
}

fn lock(options: &OpenOptions, path: &Path) -> Result<File, Error> {
    let file = options.open(path).map_err(unopened(path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(_) => Err(Error::Locked { path: path.to_owned() }),
    }
}

fn known(line: &[u8], number: u64, path: &Path) -> Result<Known, Error> {
    let strange = |source| Error::Strange { number, path: path.to_owned(), source };
    let known: Known = serde_json::from_slice(line).map_err(|error| strange(Some(error)))?;
    match known.error.is_some() || known.response.is_some() || known.status.is_some() {
        true => Ok(known),
        false => Err(strange(None)),
    }
}

/// Shows each whole line of a file to `see`, without its end, and returns where the last line begins that has no end, and its
/// bytes. Fails at the first line that is no answer.
fn each(
    mut file: &File,
    path: &Path,
    mut see: impl FnMut(&[u8], Known) -> Result<(), Error>,
) -> Result<(u64, Vec<u8>), Error> {
    file.seek(SeekFrom::Start(0)).map_err(unread(path))?;
    let (mut reader, mut line, mut start) = (BufReader::new(file), Vec::new(), 0);
    for number in 1.. {
        line.clear();
        let read = reader.by_ref().take(LONGEST).read_until(b'\n', &mut line).map_err(unread(path))?;
        if line.pop_if(|last| *last == b'\n').is_none() {
            // The end of the file, unless the line goes on.
            if read as u64 >= LONGEST {
                return Err(Error::LongAnswer { number, path: path.to_owned(), most: LONGEST });
            }
            break;
        }
        see(&line, known(&line, number, path)?)?;
        start += read as u64;
    }
    Ok((start, line))
}

/// Ends the last line if it is whole; else takes it away, for its job has its result in the broker. Changes nothing where
/// another line is no answer, or the last is no beginning of one.
fn repair(file: &mut File, path: &Path) -> Result<(), Error> {
    let failed = |source| Error::Repair { path: path.to_owned(), source };
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
        file.seek(SeekFrom::End(0)).map_err(failed)?;
        return file.write_all(b"\n").map_err(failed);
    }
    if !BEGINNING.starts_with(&last) && !last.starts_with(BEGINNING) {
        known(&last, number, path)?;
    }
    file.set_len(start).map_err(failed)
}

/// Puts a copy without the answers that are errors in the file's place.
fn without_errors(file: File, path: &Path) -> Result<File, Error> {
    let failed = |source| Error::Rewrite { path: path.to_owned(), source };
    let mut name = path.file_name().map(ToOwned::to_owned).unwrap_or_default();
    name.push(".new");
    let new: PathBuf = path.with_file_name(name);
    let copy = lock(OpenOptions::new().read(true).write(true).create(true).truncate(true), &new)?;
    let mut writer = BufWriter::new(&copy);
    each(&file, path, |line, known| {
        if known.error.is_none_or(|error| error.is_null()) {
            writer.write_all(line).and_then(|()| writer.write_all(b"\n")).map_err(failed)?;
        }
        Ok(())
    })?;
    writer.flush().map_err(failed)?;
    drop(writer);
    fs::rename(&new, path).map_err(failed)?;
    Ok(copy)
}

/// The line that says how a job ended, and whether it is an error.
pub(crate) fn answer(tag: &Tag, outcome: &Outcome) -> serde_json::Result<(Vec<u8>, bool)> {
    let Some(endpoint) = tag.endpoint else {
        let mut line = serde_json::to_vec(&serde_json::to_value(outcome)?)?;
        line.push(b'\n');
        return Ok((line, outcome.error.is_some()));
    };
    let id = outcome.id.as_str();
    match baton_openai::response(endpoint, outcome) {
        Ok(body) => {
            let response = Some(LineResponse::answer(Some(id), body));
            let line = AnswerLine { id, custom_id: tag.custom_id.as_deref(), response, error: None };
            Ok((line.bytes()?, false))
        }
        Err(error) => Ok((refused(tag, id, &error)?, true)),
    }
}

/// The line that says why there is no answer.
pub(crate) fn refusal(tag: &Tag, number: u64, error: &ApiError) -> serde_json::Result<Vec<u8>> {
    let error = ApiError { message: format!("line {number}: {}", error.message), ..error.clone() };
    refused(tag, tag.id.as_str(), &error)
}

fn refused(tag: &Tag, id: &str, error: &ApiError) -> serde_json::Result<Vec<u8>> {
    let response = Some(LineResponse::refused(Some(id), error));
    let custom_id = tag.custom_id.as_deref();
    AnswerLine { id, custom_id, response, error: Some(LineError::of(error)) }.bytes()
}

#[cfg(test)]
mod tests;
