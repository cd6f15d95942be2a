//! Model files, the text around their tokens, and the simulated model.

mod chat;
mod folders;
mod gguf;
mod sim;
mod text;
