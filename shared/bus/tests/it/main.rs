//! What the bus promises, against a real nats-server.

mod checkpoints;
mod letters;
mod prefixes;
mod slots;
mod stage;
mod support;
