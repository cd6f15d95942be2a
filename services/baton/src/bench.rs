//! `baton bench`: how fast the parts are on this machine, each without the others.

mod bus;
mod engine;
mod kv;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(clap::Subcommand)]
enum Bench {
    /// Measure what the way of a job costs: broker, stages and object store, with an engine that takes no time
    Bus(bus::Arguments),
    /// Measure prefill, decode, loading and memory of the engine
    Engine(engine::Arguments),
    /// Measure the codecs of the KV cache on a text: size, speed, and what the model loses
    Kv(kv::Arguments),
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.bench {
        Bench::Bus(arguments) => bus::run(arguments).await,
        Bench::Engine(arguments) => engine::run(arguments).await,
        Bench::Kv(arguments) => kv::run(arguments).await,
    }
}
