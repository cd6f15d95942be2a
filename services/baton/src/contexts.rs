//! `baton context`: names for the pipelines that one works with, each a small file in the user's configuration folder.

use std::{fs, io::Write, path::PathBuf};

use anyhow::{Context as _, bail};
use baton_assembly::contexts::{Context, Folder};
use baton_contract::Name;
use baton_terminal::table;
use baton_topology::Plan;
use serde::Serialize;
use serde_json::json;

use crate::{exit::Usage, output::stdout};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton context add prod --nats tls://nats.example.org:4222 --store s3://kv/baton --creds prod.creds --tenant acme --select
  baton context ls
  baton jobs --context staging            this once
  BATON_CONTEXT= baton up                 this once without any

Contexts are files in $XDG_CONFIG_HOME/baton/contexts (~/.config without that variable) that only their owner may read. A \
value comes from the first of these that has it: a flag, the environment (BATON__BROKER__URL, BATON_TENANT and so on), the \
context, the pipeline file, the defaults. The context is the one of --context, of BATON_CONTEXT, or the selected one; where \
--pipeline or BATON_PIPELINE names a file, the selected one is left out.")]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Write down a context
    Add(AddArguments),
    /// List the contexts
    #[command(alias = "list")]
    Ls(ListArguments),
    /// Use a context wherever a command names none
    Select(NameArguments),
    /// Use none where a command names none
    Unselect(UnselectArguments),
    /// Show a context
    Show(ShowArguments),
    /// Remove a context
    #[command(alias = "remove")]
    Rm(NameArguments),
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton context add staging --nats nats://10.0.0.1:4222 --store s3://kv/staging
  baton context add prod --pipeline pipelines/balanced.toml --creds prod.creds --tenant acme --select")]
struct AddArguments {
    /// Its name: a-z, 0-9, _ and -
    name: Name,
    /// NATS URLs of the broker, separated by commas
    #[arg(long, value_name = "URL")]
    nats: Option<String>,
    /// URL of the object store
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// Tenant that the commands are about
    #[arg(long, value_name = "NAME")]
    tenant: Option<Name>,
    /// NATS credentials file (JWT and seed)
    #[arg(long, value_name = "FILE")]
    creds: Option<PathBuf>,
    /// Pipeline file
    #[arg(long, short, value_name = "FILE")]
    pipeline: Option<PathBuf>,
    /// What it is, for people
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Select it, too
    #[arg(long)]
    select: bool,
    /// Replace a context of this name
    #[arg(long)]
    replace: bool,
    /// Print the context as JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton context ls
  baton context ls --json | jq -r .name

The selected one has a star. With --json each line is an object: name, selected, and what `add` was given. Passwords in URLs \
are not shown.")]
struct ListArguments {
    /// Print one JSON object per context
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton context select staging
  baton context rm staging")]
struct NameArguments {
    name: Name,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton context unselect")]
struct UnselectArguments {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  baton context show
  baton context show prod --json")]
struct ShowArguments {
    /// Which one; without it the one of BATON_CONTEXT, or the selected one
    #[arg(env = "BATON_CONTEXT")]
    name: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Reads and writes files only, so it is not asynchronous.
pub fn run(arguments: Arguments) -> anyhow::Result<()> {
    let folder = Folder::of_user()?;
    match arguments.command {
        Command::Add(arguments) => add(&folder, arguments),
        Command::Ls(arguments) => list(&folder, arguments.json),
        Command::Select(NameArguments { name, json }) => {
            folder.read(&name)?;
            folder.select(Some(&name))?;
            told(json, json!({ "name": name, "selected": true }), &format!("{name} is selected"))
        }
        Command::Unselect(UnselectArguments { json }) => {
            folder.select(None)?;
            told(json, json!({ "name": null, "selected": false }), "no context is selected")
        }
        Command::Show(arguments) => show(&folder, arguments),
        Command::Rm(NameArguments { name, json }) => {
            folder.remove(&name)?;
            told(json, json!({ "name": name, "removed": true }), &format!("{name} is removed"))
        }
    }
}

fn told(json: bool, object: serde_json::Value, text: &str) -> anyhow::Result<()> {
    let mut out = stdout();
    Ok(if json { writeln!(out, "{object}") } else { writeln!(out, "{text}") }?)
}

fn add(folder: &Folder, arguments: AddArguments) -> anyhow::Result<()> {
    let absolute = |path: Option<PathBuf>| -> anyhow::Result<Option<PathBuf>> {
        let Some(path) = path else { return Ok(None) };
        Ok(Some(fs::canonicalize(&path).with_context(|| format!("cannot find {}", path.display()))?))
    };
    let context = Context {
        description: arguments.description,
        nats: arguments.nats,
        store: arguments.store,
        tenant: arguments.tenant,
        credentials: absolute(arguments.creds)?,
        pipeline: absolute(arguments.pipeline)?,
    };
    if context.lines().iter().all(|(key, _)| *key == "description") {
        bail!(Usage(
            "a context says something: give at least one of --nats, --store, --tenant, --creds, --pipeline".into()
        ));
    }
    // What is wrong with it is told now rather than at its first use.
    let text = context
        .pipeline
        .as_ref()
        .map(|path| fs::read_to_string(path).with_context(|| format!("cannot read the pipeline {}", path.display())));
    Plan::load(text.transpose()?.as_deref(), context.variables(), &[])?;
    folder.write(&arguments.name, &context, arguments.replace)?;
    if arguments.select {
        folder.select(Some(&arguments.name))?;
    }
    print(folder, &arguments.name, &context, arguments.json)
}

fn show(folder: &Folder, arguments: ShowArguments) -> anyhow::Result<()> {
    let name = match arguments.name.filter(|name| !name.is_empty()) {
        Some(name) => Some(Name::new(&name).with_context(|| format!("{name:?} is no name of a context"))?),
        None => folder.selected()?,
    };
    let Some(name) = name else { bail!("no context is selected; `baton context ls` lists those there are") };
    let context = folder.read(&name)?;
    print(folder, &name, &context, arguments.json)
}

/// What is told of a context.
#[derive(Serialize)]
struct Shown {
    name: Name,
    selected: bool,
    #[serde(flatten)]
    context: Context,
}

fn print(folder: &Folder, name: &Name, context: &Context, json: bool) -> anyhow::Result<()> {
    let selected = folder.selected()?.as_ref() == Some(name);
    let shown = Shown { name: name.clone(), selected, context: context.shown() };
    let mut out = stdout();
    if json {
        writeln!(out, "{}", serde_json::to_string(&shown)?)?;
        return Ok(());
    }
    writeln!(out, "{:<13}{name}{}", "context", if selected { " (selected)" } else { "" })?;
    for (key, value) in shown.context.lines() {
        writeln!(out, "{key:<13}{value}")?;
    }
    Ok(())
}

fn list(folder: &Folder, json: bool) -> anyhow::Result<()> {
    let selected = folder.selected()?;
    let mut rows = Vec::new();
    let mut out = stdout();
    for name in folder.names()? {
        let context = folder.read(&name)?.shown();
        let selected = selected.as_ref() == Some(&name);
        if json {
            writeln!(out, "{}", serde_json::to_string(&Shown { name, selected, context })?)?;
            continue;
        }
        let or_none = |value: Option<String>| value.unwrap_or_else(|| "-".into());
        let file = context.pipeline.map(|path| path.display().to_string());
        let name = format!("{name}{}", if selected { " *" } else { "" });
        let tenant = context.tenant.map(String::from);
        rows.push(vec![name, or_none(context.nats), or_none(context.store), or_none(tenant), or_none(file)]);
    }
    if !json {
        write!(out, "{}", table::render(&["context", "nats", "store", "tenant", "pipeline"], &rows))?;
    }
    Ok(())
}
