//! Why a Hugging Face folder can't be used.

/// What to say of models that are none of [`Architecture`].
const ARCHITECTURES: &str =
    "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM and Gemma3ForCausalLM";

/// Why a folder can't be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the variants mean")]
pub enum Error {
    #[error("the folder has no {file}; fetch the model again, or name a GGUF file")]
    MissingFile { file: &'static str },
    #[error("{file} has {bytes} bytes, expected at most {limit}; choose another model, or a GGUF file of this one")]
    TooLarge { file: String, bytes: u64, limit: u64 },
    #[error("{file} can't be understood; fetch the model again, or choose another")]
    Json { file: String, source: serde_json::Error },
    #[error("the model is a {found}, supported are {}; choose another model", ARCHITECTURES)]
    Architecture { found: String },
    #[error("{file}: {key} must be {expected}, found {found}")]
    Key { file: &'static str, key: String, expected: &'static str, found: String },
    #[error("{file}: {key} is {found}, supported is only {expected}; choose another model, or a GGUF file of this one")]
    Unsupported { file: &'static str, key: String, found: String, expected: &'static str },
    #[error("{file} is damaged: {what}; fetch the model again, or choose another")]
    Damaged { file: String, what: String },
    #[error(
        "tensor {tensor} has type {found}; supported are F32, F16 and BF16; choose a model stored so, or a GGUF file"
    )]
    UnsupportedType { tensor: String, found: String },
    #[error("tensor {tensor} is none of this architecture's; choose another model, or a GGUF file of this one")]
    UnknownTensor { tensor: String },
    #[error("there is no tensor {tensor}; fetch the model again, or choose another")]
    MissingTensor { tensor: &'static str },
}

pub(super) fn damaged(file: impl Into<String>, what: impl Into<String>) -> Error {
    Error::Damaged { file: file.into(), what: what.into() }
}
