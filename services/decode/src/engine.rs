//! The thread that owns the model and steps all running answers together. Answers join and leave between any two steps.

use std::{
    sync::mpsc,
    thread::{self, JoinHandle},
};

use baton_contract::kv::Block;
use baton_engine::{
    generation::{self, Emitted, Generation},
    model::{self, Model, SequenceId, Step},
};
use tokio::sync::mpsc as channel;
use tokio_util::sync::CancellationToken;

pub(crate) struct Engine {
    answers: mpsc::Sender<Answer>,
    _thread: JoinHandle<()>,
}

/// One piece of a prompt's KV cache, as far as it could be had.
pub(crate) enum Held {
    Block(Block),
    Missing { tokens: usize },
}

pub(crate) enum Event {
    /// The answer's turn to join the batch has come.
    Joining,
    /// The prompt's KV cache is complete; so many of its tokens had to be computed again.
    Imported {
        recomputed: usize,
    },
    Token(Emitted),
    /// The answer can't go on.
    Stuck(generation::Error),
    Failed(model::Error),
}

struct Answer {
    prompt: Vec<u32>,
    held: Vec<Held>,
    generation: Generation,
    first_token: u32,
    events: channel::UnboundedSender<Event>,
}

/// An answer that takes part in every step.
struct Running {
    sequence: SequenceId,
    generation: Generation,
    last: u32,
    events: channel::UnboundedSender<Event>,
}

impl Engine {
    /// Starts the thread; `ended` is cancelled when it ends, however that happens.
    pub(crate) fn start(model: Box<dyn Model>, ended: CancellationToken) -> std::io::Result<Self> {
        let (answers, waiting) = mpsc::channel();
        let thread = thread::Builder::new().name("decode-engine".into()).spawn(move || {
            let _ended = ended.drop_guard();
            serve(model, waiting);
        })?;
        Ok(Self { answers, _thread: thread })
    }

    /// Continues an answer whose first token `generation` has accepted. Dropping the receiver ends it at the next step.
    pub(crate) fn start_answer(
        &self,
        prompt: Vec<u32>,
        held: Vec<Held>,
        generation: Generation,
        first_token: u32,
    ) -> channel::UnboundedReceiver<Event> {
        // Unbounded, yet bounded: an answer has at most max_tokens events.
        let (events, receiver) = channel::unbounded_channel();
        // If the thread has ended, the receiver closes without a word, which the caller reports.
        let _ = self.answers.send(Answer { prompt, held, generation, first_token, events });
        receiver
    }
}

fn serve(mut model: Box<dyn Model>, answers: mpsc::Receiver<Answer>) {
    let mut running: Vec<Running> = Vec::new();
    loop {
        if running.is_empty() {
            let Ok(answer) = answers.recv() else { return };
            running.extend(join(model.as_mut(), answer));
        }
        while let Ok(answer) = answers.try_recv() {
            running.extend(join(model.as_mut(), answer));
        }
        step(model.as_mut(), &mut running);
    }
}

/// Opens the answer's sequence and brings the prompt's KV cache into it.
fn join(model: &mut dyn Model, answer: Answer) -> Option<Running> {
    let Answer { prompt, held, generation, first_token, events } = answer;
    // A closed channel shows at the first token.
    let _ = events.send(Event::Joining);
    let vocabulary = model.spec().vocabulary;
    if first_token as usize >= vocabulary {
        // Found here it fails this answer alone; in the step it would fail the whole batch.
        let _ = events.send(Event::Failed(model::Error::TokenOutOfRange { token: first_token, vocabulary }));
        return None;
    }
    let sequence = model.open();
    let joined = bring(model, sequence, &prompt, held).map(|recomputed| {
        let _ = events.send(Event::Imported { recomputed });
    });
    match joined {
        Ok(()) => Some(Running { sequence, generation, last: first_token, events }),
        Err(error) => {
            model.close(sequence);
            let _ = events.send(Event::Failed(error));
            None
        }
    }
}

/// Imports what was fetched and computes the rest; returns how many tokens that were.
fn bring(model: &mut dyn Model, sequence: SequenceId, prompt: &[u32], held: Vec<Held>) -> Result<usize, model::Error> {
    let mut start = 0;
    let mut recomputed = 0;
    for piece in held {
        match piece {
            Held::Block(block) => {
                let end = start + block.tokens;
                model.import(sequence, &prompt[start..end], &block)?;
                start = end;
            }
            Held::Missing { tokens } => {
                let end = start + tokens;
                model.forward(&[Step { sequence, tokens: &prompt[start..end], logits: 0 }])?;
                recomputed += tokens;
                start = end;
            }
        }
    }
    Ok(recomputed)
}

/// One token for every running answer; those that end leave.
fn step(model: &mut dyn Model, running: &mut Vec<Running>) {
    if running.is_empty() {
        return;
    }
    let steps: Vec<Step<'_>> = running
        .iter()
        .map(|answer| Step { sequence: answer.sequence, tokens: std::slice::from_ref(&answer.last), logits: 1 })
        .collect();
    let logits = match model.forward(&steps) {
        Ok(logits) => logits,
        Err(error) => {
            tracing::error!(%error, answers = running.len(), "a decode step failed; its jobs are tried again");
            for answer in running.drain(..) {
                model.close(answer.sequence);
                let _ = answer.events.send(Event::Failed(model::Error::StepFailed(error.to_string())));
            }
            return;
        }
    };
    let mut logits = logits.into_iter();
    running.retain_mut(|answer| {
        let Some(logits) = logits.next() else {
            model.close(answer.sequence);
            return false;
        };
        let (event, ends) = match answer.generation.next(&logits) {
            Ok(emitted) => {
                answer.last = emitted.token;
                let ends = emitted.finish.is_some();
                (Event::Token(emitted), ends)
            }
            Err(error) => (Event::Stuck(error), true),
        };
        let stays = answer.events.send(event).is_ok() && !ends;
        if !stays {
            model.close(answer.sequence);
        }
        stays
    });
}
