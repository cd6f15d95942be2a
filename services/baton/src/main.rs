//! `baton`: the command line and the supervisor. What the commands do lies in the crates they call.
#![forbid(unsafe_code)]

mod bench;
mod cancel;
mod collector;
mod context;
mod demo;
mod dlq;
mod doctor;
mod guard;
mod hub;
mod jobs;
mod kv;
mod local;
mod memory;
mod prompts;
mod reconcile;
mod setup;
mod submit;
mod supervisor;
mod table;
mod worker;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

/// Language-model inference as a dataflow over NATS JetStream: publish a request, get every answer, whatever crashed.
#[derive(Parser)]
#[command(name = "baton", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring what the embedded mode needs: nats-server and the default model
    Setup(SetupArguments),
    /// Run a whole pipeline on a handful of prompts and show where the time went
    Demo(demo::Arguments),
    /// Run a pipeline in the foreground, each worker a process of its own; Ctrl-C drains it
    Up(supervisor::Arguments),
    /// Run one worker of a stage against any broker and any store
    Worker(worker::Arguments),
    /// Submit one or many requests; wait for the answers or collect them later
    Submit(submit::Arguments),
    /// Show what is known about a job
    Job(jobs::JobArguments),
    /// Fetch the result of a job
    Result(jobs::ResultArguments),
    /// End a job that nobody wants any more; what there is of its answer is kept
    Cancel(cancel::Arguments),
    /// Look at what no worker could finish; try it again or drop it
    Dlq(dlq::Arguments),
    /// Find accepted jobs that have lost their message, and let them begin again
    Reconcile(reconcile::Arguments),
    /// Look at the stored KV chunks, and remove those that nobody needs
    Kv(kv::Arguments),
    /// Check that broker, store and model work
    Doctor(doctor::Arguments),
    /// Answer in this one process, without broker or store: the reference for the pipeline
    Run(local::RunArguments),
    /// Replay a reference file through the engine and compare token by token
    Verify(local::VerifyArguments),
    /// Measure the parts on this machine
    Bench(bench::Arguments),
    /// Run a command that ends when the caller does
    #[command(hide = true)]
    Guard(guard::Arguments),
}

#[derive(clap::Args)]
#[command(after_help = "\
Everything goes into Baton's own folder: $BATON_HOME, or the user's data directory. A nats-server on the PATH is used as \
it is. `demo` and `up` do the same when something is missing.")]
struct SetupArguments {
    /// Say nothing unless it fails
    #[arg(long, short)]
    quiet: bool,
    /// Print the paths as JSON
    #[arg(long)]
    json: bool,
    /// The model to bring
    #[arg(long, value_enum, default_value_t)]
    model: setup::Model,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // It replaces this process and must not start threads before.
    if let Command::Guard(arguments) = arguments.command {
        return report(guard::run(&arguments));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = match runtime.context("cannot start the async runtime") {
        Ok(runtime) => runtime,
        Err(error) => return report(Err(error)),
    };
    let code = runtime.block_on(async {
        match arguments.command {
            Command::Setup(arguments) => report(bring(arguments).await),
            Command::Demo(arguments) => report(demo::run(arguments).await),
            Command::Up(arguments) => report(supervisor::run(arguments).await),
            Command::Worker(arguments) => report(worker::run(arguments).await),
            Command::Submit(arguments) => submit::run(arguments).await.unwrap_or_else(|error| report(Err(error))),
            Command::Job(arguments) => report(jobs::job(arguments).await),
            Command::Result(arguments) => jobs::result(arguments).await.unwrap_or_else(|error| report(Err(error))),
            Command::Cancel(arguments) => cancel::run(arguments).await.unwrap_or_else(|error| report(Err(error))),
            Command::Dlq(arguments) => report(dlq::run(arguments).await),
            Command::Reconcile(arguments) => report(reconcile::run(arguments).await),
            Command::Kv(arguments) => report(kv::run(arguments).await),
            Command::Doctor(arguments) => doctor::run(arguments).await.unwrap_or_else(|error| report(Err(error))),
            Command::Run(arguments) => local::run(arguments).await.unwrap_or_else(|error| report(Err(error))),
            Command::Verify(arguments) => report(local::verify(arguments).await),
            Command::Bench(arguments) => report(bench::run(arguments).await),
            Command::Guard(_) => unreachable!("handled before the runtime starts"),
        }
    });
    // A thread that still waits for standard input must not keep the process.
    runtime.shutdown_background();
    code
}

fn report(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn bring(arguments: SetupArguments) -> anyhow::Result<()> {
    let setup = setup::Setup::from_environment(arguments.quiet);
    let brought = tokio::task::spawn_blocking(move || {
        anyhow::Ok((setup.ensure_nats_server()?, setup.ensure_model(arguments.model)?))
    });
    let (nats_server, model) = brought.await??;
    if arguments.json {
        println!("{}", serde_json::json!({ "nats_server": nats_server, "model": model }));
    } else if !arguments.quiet {
        println!("nats-server    {}", nats_server.display());
        println!("model          {}", model.display());
    }
    Ok(())
}
