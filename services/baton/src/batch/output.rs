//! The file of a batch's answers: what it has already, and how more is added to it so that a kill at any time costs nothing.

use std::{
    collections::{HashMap, VecDeque},
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use baton_contract::outcome::Outcome;
use baton_gateway::openai::{self, ApiError};
use serde::Deserialize;
use serde_json::{Value, json};

use super::input::{Key, Tag};

/// One line of answers, as far as it tells which it is.
#[derive(Deserialize)]
struct Known {
    id: String,
    #[serde(default)]
    custom_id: Option<String>,
    #[serde(default)]
    error: Option<Value>,
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
    // `batch-` and 32 digits.
    let base = if id.starts_with("batch-") { id.get(..38).unwrap_or(id) } else { id };
    let hash = blake3::hash(base.as_bytes());
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
    /// are taken out first.
    pub fn open(path: &Path, again: bool) -> anyhow::Result<(Self, Answered)> {
        if path == Path::new("-") {
            return Ok((Self::Stdout, Answered::default()));
        }
        let mut file = lock(OpenOptions::new().read(true).write(true).create(true).truncate(false), path)?;
        repair(&mut file).with_context(|| format!("cannot repair {}", path.display()))?;
        if again {
            file = without_errors(file, path)?;
        }
        let mut answered = Answered::default();
        file.seek(SeekFrom::Start(0))?;
        for (number, line) in (1..).zip(BufReader::new(&file).split(b'\n')) {
            let line = line.with_context(|| format!("cannot read {}", path.display()))?;
            answered.note(&known(&line, number, path)?);
        }
        file.seek(SeekFrom::End(0))?;
        Ok((Self::File(file), answered))
    }

    /// Adds whole lines, each with its end. What was added stays if the process is killed at once.
    pub fn add(&mut self, lines: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
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
    serde_json::from_slice(line).with_context(|| {
        format!(
            "line {number} of {} is no answer of a batch; remove it, or choose another file for the answers",
            path.display()
        )
    })
}

/// Ends the last line if it is whole; else takes it away, for its job has its result in the broker.
fn repair(file: &mut File) -> io::Result<()> {
    let length = file.seek(SeekFrom::End(0))?;
    let mut start = length;
    let mut last = Vec::new();
    while start > 0 {
        let step = start.min(1 << 16);
        start -= step;
        file.seek(SeekFrom::Start(start))?;
        let mut block = vec![0; step as usize];
        file.read_exact(&mut block)?;
        block.append(&mut last);
        last = block;
        if let Some(end) = last.iter().rposition(|byte| *byte == b'\n') {
            start += end as u64 + 1;
            last.drain(..=end);
            break;
        }
    }
    if last.is_empty() {
        return Ok(());
    }
    if serde_json::from_slice::<Value>(&last).is_ok() {
        file.seek(SeekFrom::End(0))?;
        return file.write_all(b"\n");
    }
    file.set_len(start)
}

/// Puts a copy without the answers that are errors in the file's place.
fn without_errors(file: File, path: &Path) -> anyhow::Result<File> {
    let failed = || format!("cannot rewrite {}", path.display());
    let mut name = path.file_name().map(ToOwned::to_owned).unwrap_or_default();
    name.push(".new");
    let new: PathBuf = path.with_file_name(name);
    let copy = lock(OpenOptions::new().read(true).write(true).create(true).truncate(true), &new)?;
    let mut writer = BufWriter::new(&copy);
    let mut file = file;
    file.seek(SeekFrom::Start(0))?;
    for (number, line) in (1..).zip(BufReader::new(&file).split(b'\n')) {
        let line = line.with_context(failed)?;
        if known(&line, number, path)?.error.is_none_or(|error| error.is_null()) {
            writer.write_all(&line).and_then(|()| writer.write_all(b"\n")).with_context(failed)?;
        }
    }
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
mod tests {
    use baton_contract::JobId;

    use super::*;

    fn tag(custom: &str, id: &str) -> Tag {
        Tag { id: JobId::new(id).unwrap(), custom_id: Some(custom.into()), endpoint: None }
    }

    #[test]
    fn a_file_cut_off_anywhere_is_repaired_and_continued() {
        let error = ApiError::invalid("broken");
        let lines: Vec<Vec<u8>> =
            (0..3).map(|i| refusal(&tag(&format!("c{i}"), &format!("job-{i}")), i, &error).unwrap()).collect();
        let whole = lines.concat();
        let directory = tempfile::tempdir().unwrap();
        for cut in 0..=whole.len() {
            // A file of its own: a process that another test starts just then holds the last one's lock for a moment.
            let path = directory.path().join(format!("out-{cut}.jsonl"));
            fs::write(&path, &whole[..cut]).unwrap();
            let (mut output, mut answered) = Output::open(&path, false).unwrap();
            for (i, line) in lines.iter().enumerate() {
                if answered.need(&tag(&format!("c{i}"), &format!("job-{i}"))) == Need::Run {
                    output.add(line).unwrap();
                }
            }
            assert_eq!(fs::read(&path).unwrap(), whole, "cut off after {cut} bytes");
        }
    }

    #[test]
    fn what_a_line_needs_depends_on_its_name_and_its_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.jsonl");
        let hex = "0123456789abcdef0123456789abcdef";
        fs::write(
            &path,
            format!(
                "{}\n{}\n",
                json!({ "id": format!("batch-{hex}-2"), "custom_id": "a", "error": null }),
                json!({ "id": "own", "error": { "code": "internal" } }),
            ),
        )
        .unwrap();
        let (_output, mut answered) = Output::open(&path, false).unwrap();
        assert_eq!((answered.before, answered.failed_before), (2, 1));
        assert!(Output::open(&path, false).is_err(), "two runs write one file");
        assert_eq!(answered.need(&tag("a", &format!("batch-{hex}"))), Need::Nothing);
        assert_eq!(answered.need(&tag("a", &format!("batch-{hex}"))), Need::Twice);
        assert_eq!(answered.need(&tag("b", &format!("batch-{hex}"))), Need::Run);
        assert_eq!(answered.need(&tag("b", &format!("batch-{hex}"))), Need::Twice);
        let own = Tag { custom_id: None, ..tag("", "own") };
        assert_eq!(answered.need(&own), Need::Nothing);

        let again = directory.path().join("again.jsonl");
        fs::copy(&path, &again).unwrap();
        let path = again;
        let (_output, mut answered) = Output::open(&path, true).unwrap();
        assert_eq!((answered.before, answered.failed_before), (1, 0));
        assert_eq!(answered.need(&own), Need::Run, "its error was taken out");
        assert_eq!(answered.need(&tag("a", "batch-another")), Need::Changed);
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 1);
    }
}
