//! Models on disk that are no GGUF files: what is made of Hugging Face folders, and what is refused.

mod folder;
mod hostile;
mod refusals;
mod tokenizer;
mod twin;
mod twins;

use crate::gguf::writer;
