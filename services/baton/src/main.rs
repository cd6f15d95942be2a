//! `baton`: the command line and the supervisor. What the commands do lies in the crates they call.
#![forbid(unsafe_code)]
// These panic where nobody reads any more; `output` does not.
#![warn(clippy::print_stderr, clippy::print_stdout)]

mod batch;
mod bench;
mod calibrate;
mod cancel;
mod completions;
mod context;
mod contexts;
mod demo;
mod dlq;
mod doctor;
mod exit;
mod gateway;
mod guard;
mod help;
mod jobs;
mod kv;
mod local;
mod measuring;
mod output;
mod plan;
mod planner;
mod prompts;
mod provision;
mod reconcile;
mod role;
mod setup;
mod submit;
mod top;
mod up;
mod worker;

use std::{process::ExitCode, thread};

use anyhow::Context as _;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::exit::report;

/// Language-model inference as a dataflow over NATS JetStream: publish a request, get every answer, whatever crashed.
#[derive(Parser)]
#[command(
    name = "baton",
    version,
    propagate_version = true,
    after_help = "\
Examples:
  baton demo                                          everything once, then gone
  baton up                                            a whole pipeline on this machine, until Ctrl-C
  baton submit 'Why is the sea salty?' --stream
  baton batch run requests.jsonl answers.jsonl        OpenAI's batch lines; may be killed and run again
  baton jobs --status failed --since 1h
  baton top

Each command tells more with --help. What scripts may read is on standard output, one JSON object a line with --json; \
messages and progress are on standard error. Colours appear on terminals only, and nowhere if NO_COLOR is set.

Exit codes:
  0    done
  1    an error, or a check that did not pass
  2    the command line makes no sense
  3    the command did its part, and jobs or lines of a batch failed
  130  stopped by Ctrl-C before the end"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring what the embedded mode needs: nats-server and the default model
    Setup(setup::Arguments),
    /// Run a whole pipeline on a handful of prompts and show where the time went
    Demo(demo::Arguments),
    /// Run a pipeline in the foreground, each worker a process of its own; Ctrl-C drains it
    Up(up::Arguments),
    /// Make a pipeline in its broker, or change the settings that all its processes share
    Provision(provision::Arguments),
    /// Run one worker of a stage against any broker and any store
    Worker(worker::Arguments),
    /// Have a worker change from prefill to decode or back
    Role(role::Arguments),
    /// Decide how many workers each stage needs, and have them change their role
    Planner(planner::Arguments),
    /// Serve the pipeline over HTTP, with OpenAI's interface; make API keys
    Gateway(gateway::Arguments),
    /// Submit one or many requests; wait for the answers or collect them later
    Submit(submit::Arguments),
    /// Show what is known about a job
    Job(jobs::JobArguments),
    /// Fetch the result of a job
    Result(jobs::ResultArguments),
    /// Run files of requests, many thousands of lines long
    Batch(batch::Arguments),
    /// List jobs, those that changed last first
    Jobs(jobs::ListArguments),
    /// Cancel jobs; what there is of their answers is kept
    Cancel(cancel::Arguments),
    /// Look at what no worker could finish; try it again or drop it
    Dlq(dlq::Arguments),
    /// Find accepted jobs that have lost their message, and let them begin again
    Reconcile(reconcile::Arguments),
    /// Look at the stored KV chunks, and remove those that nobody needs
    Kv(kv::Arguments),
    /// Watch the pipeline: queues, workers, tokens a second
    Top(top::Arguments),
    /// Give names to pipelines, and choose one
    Context(contexts::Arguments),
    /// Check that broker, store and model work
    Doctor(doctor::Arguments),
    /// Answer in this one process, without broker or store: the reference for the pipeline
    Run(local::RunArguments),
    /// Replay a reference file through the engine and compare token by token
    Verify(local::VerifyArguments),
    /// Measure the parts on this machine
    Bench(bench::Arguments),
    /// Measure what a model costs on this machine, for `baton plan`
    Calibrate(calibrate::Arguments),
    /// Predict what each split of the workers would do with a workload, and recommend one
    Plan(plan::Arguments),
    /// Write the script that lets a shell complete commands and options
    Completions(completions::Arguments),
    /// Run a command that ends when the caller does
    #[command(hide = true)]
    Guard(guard::Arguments),
}

impl Command {
    /// Whether files of requests, answers or KV caches come of it, its logs included. Others write what their user asks for, as
    /// readable as the user's other files.
    fn keeps_what_users_said(&self) -> bool {
        matches!(
            self,
            Self::Demo(_)
                | Self::Doctor(_)
                | Self::Gateway(_)
                | Self::Kv(_)
                | Self::Planner(_)
                | Self::Up(_)
                | Self::Worker(_)
        )
    }
}

/// A worker's threads for what blocks: files, packing chunks, reading requests, grammars. The allocator keeps for each thread's
/// arena the most that it ever held, so that with tokio's 512 a worker would grow for as long as it meets new coincidences.
const BLOCKING: usize = 8;

fn main() -> ExitCode {
    let matches = help::in_groups(Arguments::command()).get_matches();
    let arguments = Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    // It replaces this process and must not start threads before.
    if let Command::Guard(arguments) = arguments.command {
        return report(guard::run(&arguments));
    }
    if arguments.command.keeps_what_users_said() {
        baton_provision::private::all_from_now_on();
    }
    let mut runtime = match arguments.command {
        // Its engine and whatever else computes have threads of their own; passing what is left from one thread to another
        // would take longer than doing it.
        Command::Worker(_) => {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            runtime.max_blocking_threads(
                thread::available_parallelism().map_or(BLOCKING, |cores| BLOCKING.max(cores.get())),
            );
            runtime
        }
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = match runtime.enable_all().build().context("cannot start the async runtime") {
        Ok(runtime) => runtime,
        Err(error) => return report(Err(error)),
    };
    let code = runtime.block_on(async {
        match arguments.command {
            Command::Setup(arguments) => report(setup::run(arguments).await),
            Command::Demo(arguments) => report(demo::run(arguments).await),
            Command::Up(arguments) => report(up::run(arguments).await),
            Command::Provision(arguments) => provision::run(arguments).await.unwrap_or_else(|error| report(Err(error))),
            Command::Worker(arguments) => report(worker::run(arguments).await),
            Command::Role(arguments) => report(role::run(arguments).await),
            Command::Planner(arguments) => report(planner::run(arguments).await),
            Command::Gateway(arguments) => report(gateway::run(arguments).await),
            Command::Submit(arguments) => submit::run(arguments).await.unwrap_or_else(|error| report(Err(error))),
            Command::Batch(arguments) => batch::run(arguments).await.unwrap_or_else(|error| report(Err(error))),
            Command::Jobs(arguments) => report(jobs::list(arguments).await),
            Command::Top(arguments) => report(top::run(arguments).await),
            Command::Context(arguments) => report(contexts::run(arguments)),
            Command::Completions(arguments) => report(completions::run(&arguments, Arguments::command())),
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
            Command::Calibrate(arguments) => report(calibrate::run(arguments).await),
            Command::Plan(arguments) => report(plan::run(arguments).await),
            Command::Guard(_) => unreachable!("handled before the runtime starts"),
        }
    });
    // A thread that still waits for standard input must not keep the process.
    runtime.shutdown_background();
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    /// They serve until they are told to stop, or print one word or a script.
    const WITHOUT_JSON: [&str; 6] = ["up", "worker", "planner", "gateway", "key", "completions"];

    fn each(command: &clap::Command, name: &str, visit: &mut impl FnMut(&str, &clap::Command)) {
        for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
            let name = format!("{name} {}", command.get_name());
            if command.has_subcommands() { each(command, &name, visit) } else { visit(&name, command) }
        }
    }

    #[test]
    fn every_command_has_examples_and_what_prints_can_print_json() {
        let all = Arguments::command();
        all.clone().debug_assert();
        let mut seen = 0;
        each(&all, "baton", &mut |name, command| {
            seen += 1;
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Examples:") && help.contains(name), "{name} --help has no examples");
            let json = command.get_arguments().any(|argument| argument.get_id() == "json");
            assert!(json || WITHOUT_JSON.contains(&command.get_name()), "{name} has no --json");
        });
        assert!(seen > 20, "only {seen} commands were looked at");
    }
}
