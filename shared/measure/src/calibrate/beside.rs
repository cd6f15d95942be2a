//! Other engines that compute while something is measured, as workers do that share a machine: this program again, which is told
//! on its standard input what to do, tells on its standard output that it does it, and ends with its input.

use std::{
    env,
    ffi::OsString,
    io::{BufRead, BufReader, Write, stdin, stdout},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::mpsc::{self, Receiver, TryRecvError},
    thread,
};

use baton_model::model::{Model, SequenceId, Step};

use super::Neighbours;
use crate::error::Error;

/// Tokens of a prompt that an engine beside prefills.
const PROMPT: usize = 512;
/// Answers that it decodes together, and the most tokens of each.
const ANSWERS: (usize, usize) = (8, 512);

/// What an engine beside does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Do {
    Rest,
    Prefill,
    Decode,
}

impl Do {
    fn as_str(self) -> &'static str {
        match self {
            Self::Rest => "rest",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }

    fn read(word: &str) -> Option<Self> {
        [Self::Rest, Self::Prefill, Self::Decode].into_iter().find(|it| it.as_str() == word)
    }
}

/// Other workers' engines, and one that stands for the worker's own while messages and chunks are on their way.
pub(super) struct Beside {
    others: Vec<Engine>,
    own: Option<Engine>,
}

impl Beside {
    /// The neighbours, which rest; with none of them nothing stands for the own one either. Blocks until all have loaded.
    pub(super) fn start(neighbours: &Neighbours) -> Result<Self, Error> {
        let all = if neighbours.count > 0 { neighbours.count + 1 } else { 0 };
        // All load at the same time.
        let mut engines = (0..all).map(|_| Engine::start(&neighbours.arguments)).collect::<Result<Vec<_>, _>>()?;
        for engine in &mut engines {
            engine.turn_to(Do::Rest)?;
        }
        let own = engines.pop();
        Ok(Self { others: engines, own })
    }

    /// The others do this, the own one rests. Returns when it is so.
    pub(super) fn only(&mut self, what: Do) -> Result<(), Error> {
        self.own.iter_mut().try_for_each(|own| own.turn_to(Do::Rest))?;
        self.others.iter_mut().try_for_each(|engine| engine.turn_to(what))
    }

    /// The others decode, the own one prefills.
    pub(super) fn all(&mut self) -> Result<(), Error> {
        self.others.iter_mut().try_for_each(|engine| engine.turn_to(Do::Decode))?;
        self.own.iter_mut().try_for_each(|own| own.turn_to(Do::Prefill))
    }

    pub(super) fn processes(&self) -> Vec<u32> {
        self.others.iter().chain(&self.own).map(|engine| engine.process.id()).collect()
    }
}

/// A process that computes.
struct Engine {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Engine {
    fn start(arguments: &[OsString]) -> Result<Self, Error> {
        let program = env::current_exe().map_err(Error::Program)?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().map_err(Error::Neighbour)?;
        let output = process.stdout.take().ok_or(Error::NeighbourLeft)?;
        Ok(Self { input: process.stdin.take(), output: BufReader::new(output), process })
    }

    /// Returns when it does so.
    fn turn_to(&mut self, what: Do) -> Result<(), Error> {
        let told = self.input.as_mut().is_some_and(|input| writeln!(input, "{}", what.as_str()).is_ok());
        let mut answer = String::new();
        let heard = told && self.output.read_line(&mut answer).is_ok() && answer.trim() == what.as_str();
        if heard { Ok(()) } else { Err(Error::NeighbourLeft) }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.input = None;
        // It ends with its input, after the pass that it is at.
        let _ = self.process.wait();
    }
}

/// Computes what standard input says until it ends, beside another process that measures. Blocks.
///
/// # Errors
///
/// If a pass fails.
pub fn keep_company(model: &mut dyn Model) -> Result<(), Error> {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let words = stdin().lock().lines().map_while(Result::ok);
        words.filter_map(|word| Do::read(word.trim())).try_for_each(|what| tell.send(what))
    });
    let memory = model.memory();
    let most = (memory.pages * memory.page_tokens).min(model.spec().context).saturating_sub(1);
    let (answers, longest) = ANSWERS;
    let longest = longest.min(most / answers).max(2);
    let prompt: Vec<u32> = (0..PROMPT.min(most)).map(|token| token as u32 % model.spec().vocabulary as u32).collect();
    let mut what = Do::Rest;
    let mut sequences: Vec<SequenceId> = Vec::new();
    while let Some(next) = next(&told, what) {
        what = next;
        let full = sequences.first().is_some_and(|first| model.len(*first).unwrap_or(longest) >= longest);
        if what != Do::Decode || full {
            sequences.drain(..).for_each(|sequence| model.close(sequence));
        }
        match what {
            Do::Rest => {}
            Do::Prefill => {
                let sequence = model.open();
                model.forward(&[Step { sequence, tokens: &prompt, logits: 1 }])?;
                model.close(sequence);
            }
            Do::Decode => {
                let tokens = if sequences.is_empty() { longest.div_ceil(8) } else { 1 };
                if sequences.is_empty() {
                    sequences = (0..answers).map(|_| model.open()).collect();
                }
                let step = |&sequence| Step { sequence, tokens: &prompt[..tokens], logits: 1 };
                model.forward(&sequences.iter().map(step).collect::<Vec<_>>())?;
            }
        }
    }
    Ok(())
}

/// What to do now, after `what`; none if nobody wants anything any more. Who rests waits until he is told something.
fn next(told: &Receiver<Do>, what: Do) -> Option<Do> {
    let heard = match what {
        Do::Rest => told.recv().ok()?,
        what => match told.try_recv() {
            Ok(next) => next,
            Err(TryRecvError::Empty) => return Some(what),
            Err(TryRecvError::Disconnected) => return None,
        },
    };
    // Whoever waits for the answer may be gone.
    writeln!(stdout(), "{}", heard.as_str()).ok()?;
    Some(heard)
}
