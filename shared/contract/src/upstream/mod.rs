//! What is asked of engines that others wrote: which there are, which fields of a request each understands, and how a request
//! that Baton has admitted is put to one.

mod ask;
mod back;
mod engines;
mod fields;
mod message;
mod own;
mod wording;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    envelope::Fingerprint,
    outcome::{Code, Failure},
};

pub use self::{
    ask::{Ask, Handover},
    engines::Engines,
    message::{merge, whole},
};

/// An engine that serves OpenAI's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Engine {
    /// vLLM.
    #[serde(rename = "vllm")]
    Vllm,
    /// SGLang.
    #[serde(rename = "sglang")]
    Sglang,
    /// llama.cpp's server.
    #[serde(rename = "llama.cpp")]
    LlamaCpp,
    /// Any other: what it understands is not known, and left to its own answer.
    #[serde(rename = "openai")]
    OpenAi,
}

impl Engine {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Vllm, Self::Sglang, Self::LlamaCpp, Self::OpenAi];

    /// As in a pipeline's file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vllm => "vllm",
            Self::Sglang => "sglang",
            Self::LlamaCpp => "llama.cpp",
            Self::OpenAi => "openai",
        }
    }

    /// Whether instances of it can hand a prompt's KV cache to each other.
    pub fn hands_over(self) -> bool {
        matches!(self, Self::Vllm | Self::Sglang)
    }
}

/// Says of an answer that this model at such an engine gave it, whichever of its instances; of its weights nothing is known.
pub fn fingerprint(engine: Engine, model: &str) -> Fingerprint {
    let mut hasher = blake3::Hasher::new_derive_key("baton foreign model 1");
    hasher.update(engine.as_str().as_bytes()).update(&[0]).update(model.as_bytes());
    *hasher.finalize().as_bytes()
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What an engine is known not to have.
fn unsupported(message: impl Into<String>) -> Failure {
    Failure::new(Code::UnknownField, message)
}
