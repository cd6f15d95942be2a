//! `baton bench`: how fast the parts are on this machine, each without the others.

mod engine;
mod machine;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(clap::Subcommand)]
enum Bench {
    /// Measure prefill, decode, loading and memory of the engine
    Engine(engine::Arguments),
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.bench {
        Bench::Engine(arguments) => engine::run(arguments).await,
    }
}
