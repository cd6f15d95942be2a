//! Language models without their arithmetic: files, configuration, tokenizer, chat template, sampling and answers, and
//! what every engine offers ([`model::Model`]). An engine without weights, [`sim`], is here too.
//!
//! Calls block, and those on a model belong on a thread of their own. Nothing here computes a forward pass of a real
//! model, depends on Burn, or knows of the bus or the object store.
#![warn(missing_docs, unreachable_pub)]

pub mod chat;
pub mod checkpoint;
pub mod config;
pub mod engine_thread;
pub mod formats;
pub mod generation;
pub mod gguf;
pub mod hugging_face;
pub mod loan;
pub mod model;
pub mod prompt;
pub mod quants;
pub mod sampling;
pub mod sim;
pub mod source;
pub mod text;
pub mod threads;
pub mod tokenizer;
pub mod verify;
pub mod vocabulary;
