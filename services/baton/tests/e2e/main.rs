//! The whole of Baton as its users meet it: real processes, a real nats-server, real stores.

mod bench;
mod bus;
mod cancel;
mod commands;
mod dead;
mod faults;
mod inputs;
mod lanes;
mod load;
mod memory;
mod pipeline;
mod prefix;
mod python;
mod resume;
mod samples;
mod store;
mod support;
mod trace;

#[path = "../../../../shared/telemetry/tests/support/receiver.rs"]
mod receiver;
#[path = "../../../../shared/storage/tests/support/seaweed.rs"]
mod seaweed;
