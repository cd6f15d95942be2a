//! Why nothing was measured.

use std::{io, path::PathBuf};

use baton_contract::outcome::{Outcome, Status};
use baton_model::{model, source, threads::ThreadsError, tokenizer};
use baton_storage::{chunk, kv, store};
use nix::errno::Errno;

/// Why a measurement could not begin or end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A model that can't be loaded.
    #[error("cannot load model {model}")]
    Load {
        /// As it was named.
        model: String,
        /// Why not.
        source: Box<baton_engine::Error>,
    },
    /// A model whose vocabulary can't be read.
    #[error("cannot load model {model}")]
    Vocabulary {
        /// As it was named.
        model: String,
        /// Why not.
        source: source::Error,
    },
    /// A sequence that the model can't have.
    #[error("{option}: the model's context is {context} tokens, found {length}; ask for fewer")]
    TooLong {
        /// The option that asks for it.
        option: &'static str,
        /// Tokens that a sequence may have.
        context: usize,
        /// Tokens that it would have.
        length: usize,
    },
    /// A text that can't be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A text that can't be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file that is no text.
    #[error("{} is no UTF-8 text: its byte {at} begins no character", path.display())]
    NoText {
        /// The file.
        path: PathBuf,
        /// The place of the byte, from 0.
        at: usize,
    },
    /// A text that the tokenizer can't take.
    #[error("cannot encode {}", path.display())]
    Encode {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: tokenizer::Error,
    },
    /// A text without tokens.
    #[error("{} has no tokens: give a text that is not empty", path.display())]
    NoTokens {
        /// The file.
        path: PathBuf,
    },
    /// A text with too few tokens.
    #[error("{name} must have {needed} tokens for --prompt and --next, found {found}; ask for fewer")]
    ShortText {
        /// The file, as it was named.
        name: String,
        /// Tokens that are measured with.
        needed: usize,
        /// Tokens that it has.
        found: usize,
    },
    /// A prompt that fills no chunk.
    #[error("--no-blobs needs a prompt that fills a chunk: expected --prompt in multiples of 16, found {prompt}")]
    PartOfAChunk {
        /// Its tokens.
        prompt: u32,
    },
    /// A job of a measurement that did not complete.
    #[error("job {id} {status:?}: {message}")]
    Job {
        /// Its id.
        id: String,
        /// How it ended.
        status: Status,
        /// Why.
        message: String,
    },
    /// A load some of whose requests did not complete.
    #[error("{failed} requests failed, {lost} were lost: {example}")]
    Requests {
        /// Requests that failed.
        failed: usize,
        /// Requests without a result.
        lost: usize,
        /// Why the first of them failed.
        example: String,
    },
    /// A load some of whose jobs did not complete.
    #[error("{completed} of {jobs} jobs of the measurement ended")]
    Unfinished {
        /// Jobs that completed.
        completed: usize,
        /// Jobs that were sent.
        jobs: usize,
    },
    /// A load that was over before it was steady.
    #[error("the machine is too slow for this demo: no request was sent after the first {warm_up}")]
    TooSlow {
        /// Requests before those that count.
        warm_up: usize,
    },
    /// A measurement of nothing.
    #[error("no job was measured")]
    NoJobs,
    /// Too few sizes for coefficients.
    #[error("only {found} sizes of {what} fit the model's context and --kv-memory; give it more memory")]
    FewSizes {
        /// Sizes that fit.
        found: usize,
        /// Of what.
        what: &'static str,
    },
    /// Too few prompts for coefficients.
    #[error("only {found} sizes of prompts fit the engine's context; start it with a longer one")]
    FewPrompts {
        /// Sizes that fit.
        found: usize,
    },
    /// Too few steps for coefficients.
    #[error("only {found} numbers of answers at a time could be timed; nobody else may ask the engine meanwhile")]
    FewSteps {
        /// Numbers that could.
        found: usize,
    },
    /// A foreign engine that does not count tokens.
    #[error("the engine answered without a token, or without saying how many it took (usage)")]
    NoUsage,
    /// A foreign engine that fails.
    #[error(transparent)]
    Foreign(#[from] baton_upstream::Fault),
    /// Times that follow no cost model.
    #[error("no coefficients explain the times of {what}")]
    NoFit {
        /// Of what.
        what: &'static str,
    },
    /// A store that does not keep what it takes.
    #[error("the store lost a chunk that was put just now; try `baton doctor`")]
    LostChunk,
    /// A processor whose time is unknown.
    #[error("cannot read the processor's time")]
    Clock(#[source] Errno),
    /// This program, which can't be found.
    #[error("cannot find this program")]
    Program(#[source] io::Error),
    /// A neighbour that can't be started.
    #[error("cannot start another engine")]
    Neighbour(#[source] io::Error),
    /// A neighbour that ended.
    #[error("an engine that was to compute meanwhile has ended; what it said of it stands above")]
    NeighbourLeft,
    /// A directory that can't be made.
    #[error("cannot create {}", path.display())]
    Create {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A directory that can't be removed.
    #[error("cannot remove {}", path.display())]
    Remove {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What failed while a pipeline of its own ran.
    #[error("the {what} failed; the workers' log is {}", log.display())]
    Pipeline {
        /// What was measured.
        what: &'static str,
        /// The workers' log.
        log: PathBuf,
        /// What failed.
        source: Box<Self>,
    },
    /// The process was asked to stop.
    #[error("stopped")]
    Stopped,
    /// Settings that make no pipeline.
    #[error(transparent)]
    Plan(#[from] baton_topology::Errors),
    /// A pipeline that can't be started or stopped.
    #[error(transparent)]
    Assembly(#[from] baton_assembly::Error),
    /// Something that this machine lacks.
    #[error(transparent)]
    Provision(#[from] baton_provision::Error),
    /// The compute threads.
    #[error(transparent)]
    Threads(#[from] ThreadsError),
    /// A pass that failed.
    #[error(transparent)]
    Engine(#[from] model::Error),
    /// A reference that can't be read or compared with.
    #[error(transparent)]
    Verify(#[from] baton_model::verify::Error),
    /// A chunk that can't be packed.
    #[error(transparent)]
    Chunk(#[from] chunk::Error),
    /// A store that can't be opened.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A store that refused.
    #[error(transparent)]
    Kv(#[from] kv::Error),
    /// A load that could not be made.
    #[error(transparent)]
    LoadMade(#[from] baton_load::Error),
    /// The broker refused or could not be reached.
    #[error(transparent)]
    Bus(#[from] baton_bus::Error),
    /// A name that is none.
    #[error(transparent)]
    Name(#[from] baton_contract::name::Error),
    /// Something that JSON can't hold.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// A thread of this process that ended before its work.
    #[error(transparent)]
    Task(#[from] tokio::task::JoinError),
}

impl Error {
    /// A job of a measurement that did not complete.
    pub(crate) fn job(outcome: &Outcome) -> Self {
        let message = outcome.error.as_ref().map(|error| error.message.clone()).unwrap_or_default();
        Self::Job { id: outcome.id.to_string(), status: outcome.status, message }
    }
}
