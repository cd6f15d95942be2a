//! The client against engines that answer as scripted, over real connections: good ones, and all kinds of bad ones.

mod answers;
mod bad;
mod connections;
mod handover;
mod llama;
mod probes;
mod secrets;
mod support;
