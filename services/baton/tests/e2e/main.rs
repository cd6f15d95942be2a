//! The whole of Baton as its users meet it: real processes, a real nats-server, real stores.

mod bus;
mod commands;
mod faults;
mod inputs;
mod load;
mod memory;
mod pipeline;
mod python;
mod support;
mod trace;

#[path = "../../../../shared/telemetry/tests/support/receiver.rs"]
mod receiver;
#[path = "../../../../shared/storage/tests/support/seaweed.rs"]
mod seaweed;
