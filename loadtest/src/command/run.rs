//! `loadtest run`.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::Context;
use baton_contract::Name;
use baton_load::{
    Measured, Options, Target, page, table,
    target::{Api, Key, Server},
};
use baton_loadtest::pipeline;
use clap::ValueEnum;
use serde_json::{Map, Value};

use crate::progress_bar;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  loadtest run --request-rate 2 --num-prompts 60 --goodput ttft:500 tpot:50
  loadtest run --request-rate 10 --burstiness 0.3 --num-prompts 500 --warmup 20 --workload prompts --html run.html
  loadtest run --concurrency 64 --duration 30 --prompt-tokens lognormal:300:0.8 --output-tokens uniform:16:256
  loadtest run --trace conversation.jsonl --time-scale 0.1 --length-scale 0.1 --duration 60
  loadtest run --target openai --url http://127.0.0.1:8000 --model m --request-rate inf --num-prompts 200 --json > run.json

With a rate or a trace, requests go out when it is their time and never wait for answers, and latencies count from the \
intended send time; (send delay) tells how late the client itself was. With --concurrency each request waits for room.

Names are those of vLLM's benchmark: ttft, tpot, itl, e2el, request_throughput, output_throughput, goodput.

Exit status: 0 if any request completed, 1 otherwise.")]
pub struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Who gets the load
    #[arg(long, value_enum, default_value = "bus")]
    target: Kind,
    /// The server's URL, with or without /v1
    #[arg(long, value_name = "URL", required_if_eq("target", "openai"))]
    url: Option<String>,
    /// Which of OpenAI's two ways: chat turns random token ids into about as many words, completions sends them as they are
    #[arg(long, value_enum, default_value = "chat")]
    api: Api,
    /// Sent to the server as a bearer token
    #[arg(long, value_name = "KEY", env = "OPENAI_API_KEY", hide_env_values = true)]
    api_key: Option<Key>,
    /// Fields for every request to the server, as a JSON object: '{"ignore_eos": true}'
    #[arg(long, value_name = "JSON", value_parser = object)]
    extra_body: Option<Map<String, Value>>,
    /// NATS URLs of the broker, separated by commas; without it the running embedded pipeline of this machine
    #[arg(long, value_name = "URL", env = "BATON__BROKER__URL")]
    nats: Option<String>,
    /// A NATS credentials file (JWT and seed)
    #[arg(long, value_name = "FILE", env = "BATON__BROKER__CREDENTIALS")]
    credentials: Option<PathBuf>,
    /// The word under which the pipeline's subjects stand
    #[arg(long, default_value = "baton", env = "BATON__ROOT")]
    root: Name,
    /// Print the whole report as one JSON object
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// Print a Markdown table with the run as its one row
    #[arg(long)]
    markdown: bool,
    /// Write the whole report to this file too, as JSON
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write one JSON object a request to this file
    #[arg(long, value_name = "FILE")]
    requests: Option<PathBuf>,
    /// Write one page with figures and plots to this file, which needs nothing from elsewhere
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// A Baton pipeline, over NATS
    Bus,
    /// A server that speaks OpenAI's protocol
    Openai,
}

fn object(text: &str) -> Result<Map<String, Value>, serde_json::Error> {
    serde_json::from_str(text)
}

/// Whether any request completed.
pub async fn run(arguments: Arguments) -> anyhow::Result<bool> {
    let target = target(&arguments).await?;
    let bar = progress_bar("{bar:30} {pos}/{len} ended, {msg}  {elapsed}");
    let measured = baton_load::run(&target, &arguments.options, |progress| {
        bar.set_length(progress.total.unwrap_or(progress.sent) as u64);
        bar.set_position(progress.ended as u64);
        bar.set_message(format!("{} under way", progress.sent - progress.ended));
    })
    .await?;
    bar.finish_and_clear();
    write(&arguments, &measured)?;
    let report = &measured.report;
    let text = if arguments.json {
        serde_json::to_string(report)? + "\n"
    } else if arguments.markdown {
        table::MARKDOWN_HEAD.to_owned() + &table::markdown_row(report)
    } else {
        table::plain(report)
    };
    super::print(&text)?;
    Ok(report.completed > 0)
}

async fn target(arguments: &Arguments) -> anyhow::Result<Target> {
    let Arguments { nats, credentials, root, api, api_key, .. } = arguments;
    if arguments.target == Kind::Openai {
        let url = arguments.url.clone().context("--target openai needs --url")?;
        let extra = arguments.extra_body.clone().unwrap_or_default();
        return Ok(Target::OpenAi(Server { api_key: api_key.clone(), extra, ..Server::new(url, *api) }));
    }
    // What the environment calls embedded is the same as nothing here.
    let url = nats.clone().filter(|url| url != "embedded");
    Ok(Target::from(pipeline::connect(url, root, credentials.clone()).await?))
}

fn write(arguments: &Arguments, measured: &Measured) -> anyhow::Result<()> {
    if let Some(path) = &arguments.output {
        save(path, &(serde_json::to_string(&measured.report)? + "\n"))?;
    }
    if let Some(path) = &arguments.html {
        save(path, &page::of(measured))?;
    }
    if let Some(path) = &arguments.requests {
        let failed = || format!("cannot write {}", path.display());
        let mut file = BufWriter::new(File::create(path).with_context(failed)?);
        for line in measured.lines() {
            serde_json::to_writer(&mut file, &line).with_context(failed)?;
            file.write_all(b"\n").with_context(failed)?;
        }
        file.flush().with_context(failed)?;
    }
    Ok(())
}

pub fn save(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
