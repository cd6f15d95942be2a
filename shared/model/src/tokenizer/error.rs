//! Why a text can't become tokens.

/// What `tokenizer.ggml.pre` may say.
pub(super) const SUPPORTED_PRE: &str =
    "smollm, gpt-2, default, llama-bpe (also as llama3 or llama-v3), qwen2 (also as deepseek-r1-qwen), tekken";

/// Why a text can't become tokens, or a file has no tokenizer.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the variants mean")]
pub enum Error {
    #[error("the model file's {key} is missing or malformed, expected {expected}; fetch or convert the file again")]
    Metadata { key: &'static str, expected: &'static str },
    #[error(
        "tokenizer.ggml.model is {found:?}, supported are \"gpt2\" (byte-level BPE) and \"llama\" (SentencePiece); \
         choose another model"
    )]
    UnsupportedModel { found: String },
    #[error("tokenizer.ggml.pre is {found:?}, supported are {}; choose another model", SUPPORTED_PRE)]
    UnsupportedPre { found: String },
    #[error("the model file's merges don't fit its tokens: {0}; fetch or convert the file again")]
    Merges(String),
    #[error("the text has {bytes} bytes, more than {limit} can't fit the model's context; shorten it")]
    TooLong { bytes: usize, limit: usize },
    #[error("token {token} has the id {id}, and the model knows only the {rows} ids below; leave it out of the text")]
    NotEmbedded { token: String, id: u32, rows: usize },
    #[error("a word could not be encoded: {0}")]
    Word(String),
}
