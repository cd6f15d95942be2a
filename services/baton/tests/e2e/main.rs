//! The whole of Baton as its users meet it: real processes, a real nats-server, real stores.

mod alive;
mod apart;
mod batch_run;
mod batches;
mod bench;
mod bus;
mod cancel;
mod cli;
mod clocks;
mod commands;
mod copies;
mod dead;
mod engine;
mod examples;
mod faults;
mod foreign;
mod full;
mod gateway;
mod http;
mod inputs;
mod lanes;
mod large;
mod llama_server;
mod load;
mod memory;
mod models;
mod page;
mod pipeline;
mod pipelines;
mod plan;
mod planner;
mod prefix;
mod python;
mod resume;
mod samples;
mod sdks;
mod settings;
mod stats;
mod store;
mod support;
mod tenants;
mod trace;

#[path = "../../../../shared/telemetry/tests/support/receiver.rs"]
mod receiver;
#[path = "../../../../shared/storage/tests/it/refusals.rs"]
mod refusals;
#[path = "../../../../shared/storage/tests/it/seaweed.rs"]
mod seaweed;
#[path = "../../../../shared/storage/tests/it/wheel.rs"]
mod wheel;
