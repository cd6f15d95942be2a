//! `baton gateway`: the HTTP interface, and its keys.

use std::{io::Write, net::SocketAddr, path::PathBuf};

use anyhow::{Context, ensure};
use baton_assembly::{serving::Process, store::open_durable};
use baton_contract::Name;
use baton_gateway::{Gateway, Options, auth};
use clap::Subcommand;

use crate::{
    context::PipelineArguments,
    output::{note, stdout},
};

#[derive(clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  baton gateway                                    serves the pipeline that runs on this machine
  baton gateway --nats nats://10.0.0.1:4222 --listen 0.0.0.0:8080
  baton gateway key alice --tenant acme --file keys.toml

`baton up` starts one by itself (gateway.replicas). Any number of gateways serve the same pipeline; none holds state. Others \
than this machine are let in with API keys (gateway.keys_file) or with gateway.open=true. Without keys, pages of other sites and \
other names than this machine's are refused, unless gateway.cors_origins and gateway.hosts list them. TLS is for a proxy in front of it.

Once it takes requests, it prints a line `ready URL` to its standard output. SIGTERM and Ctrl-C drain it."
)]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    pipeline: PipelineArguments,
    /// Address and port to listen on; port 0 takes any that is free (short for --set gateway.listen=...)
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Names the gateway in logs and traces; without it `gateway` and the process id
    #[arg(long)]
    name: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Make an API key: print it once, and add its digest to the file of keys
    Key(KeyArguments),
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton gateway key alice --tenant acme
  baton gateway key nightly --tenant acme --file /etc/baton/keys.toml

The file is TOML, one [[keys]] table each: name, sha256, tenant, and if wanted requests_per_minute and max_open (requests that \
wait for their answers at a time), both for each gateway by itself. Gateways read it again when it changes. To withdraw a key, \
delete its table.")]
struct KeyArguments {
    /// What the key is called in logs and errors
    name: String,
    /// Whose jobs they are that it asks for
    #[arg(long, default_value_t = Name::default_tenant())]
    tenant: Name,
    /// The file of keys; without it the pipeline's gateway.keys_file
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    pipeline: PipelineArguments,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.command {
        Some(Command::Key(arguments)) => make_key(&arguments),
        None => serve(arguments).await,
    }
}

fn make_key(arguments: &KeyArguments) -> anyhow::Result<()> {
    let file = match &arguments.file {
        Some(file) => file.clone(),
        None => {
            let configured = arguments.pipeline.plan()?.gateway.keys_file;
            PathBuf::from(configured.context("no file of keys: name one with --file, or set gateway.keys_file")?)
        }
    };
    ensure!(!arguments.name.trim().is_empty(), "expected a name for the key, found none");
    let key = auth::add(&file, &arguments.name, &arguments.tenant)?;
    note!(
        "added the key {:?} of tenant {} to {}; it is shown only now:",
        arguments.name,
        arguments.tenant,
        file.display()
    );
    writeln!(stdout(), "{key}").context("cannot write to standard output")
}

async fn serve(mut arguments: Arguments) -> anyhow::Result<()> {
    arguments.pipeline.set.extend(arguments.listen.map(|listen| format!("gateway.listen={listen}")));
    let found = arguments.pipeline.find()?;
    let name = arguments.name.unwrap_or_else(|| format!("gateway-{}", std::process::id()));
    let process = Process { kind: "gateway", service: "gateway", name: &name, uses_store: &|_| true };
    process
        .serve(&found, async |plan, bus, shutdown| {
            // Chunks can be computed again, files can't.
            let options = Options::of(plan, open_durable(plan)?)?;
            let gateway = Gateway::bind(bus.clone(), options).await?;
            let url = gateway.url();
            tracing::info!(gateway = name, url, "the gateway is ready");
            writeln!(stdout(), "ready {url}").context("cannot write to standard output")?;
            gateway.run(shutdown).await;
            tracing::info!("the gateway has drained");
            Ok(())
        })
        .await
}
