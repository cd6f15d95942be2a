//! `baton setup`: brings what the embedded mode needs.

use std::io::Write;

use baton_provision::setup::{self, Setup};
use serde_json::json;
use tokio::task::spawn_blocking;

use crate::output::stdout;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton setup
  baton setup --model gemma3-270m --json | jq -r .model

Everything goes into Baton's own folder: $BATON_HOME, or the user's data directory. A nats-server on the PATH is used as \
it is. `demo` and `up` do the same when something is missing.")]
pub struct Arguments {
    /// Say nothing unless it fails
    #[arg(long, short)]
    quiet: bool,
    /// Print the paths as JSON
    #[arg(long)]
    json: bool,
    /// The model to bring
    #[arg(long, value_enum, default_value_t)]
    model: Model,
}

#[derive(Clone, Copy, Default, clap::ValueEnum)]
enum Model {
    /// SmolLM2-135M-Instruct in Q4_1: the default model of `baton run` and of pipelines
    #[default]
    #[value(name = "smollm2-135m")]
    SmolLm2,
    /// Gemma 3 270M in Q4_K_M, without instructions: completes text
    #[value(name = "gemma3-270m")]
    Gemma3,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let model = match arguments.model {
        Model::SmolLm2 => setup::Model::SmolLm2,
        Model::Gemma3 => setup::Model::Gemma3,
    };
    let setup = Setup::from_environment(arguments.quiet)?;
    let brought = spawn_blocking(move || anyhow::Ok((setup.ensure_nats_server()?, setup.ensure_model(model)?)));
    let (nats_server, model) = brought.await??;
    if arguments.json {
        writeln!(stdout(), "{}", json!({ "nats_server": nats_server, "model": model }))?;
    } else if !arguments.quiet {
        writeln!(stdout(), "nats-server    {}", nats_server.display())?;
        writeln!(stdout(), "model          {}", model.display())?;
    }
    Ok(())
}
