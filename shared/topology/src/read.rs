//! Turns the merged layers into a plan: which keys there are, what they may hold, and what must hold between them.

mod stages;
mod upstream;

use core::net::SocketAddr;
use std::{collections::BTreeMap, time::Duration};

use baton_contract::Name;
use toml::{Table, Value};

use crate::{
    Errors,
    layers::Layers,
    plan::{
        AnswerTokens, Bounds, Broker, BrokerUrl, Codec, Gateway, Limits, LogFormat, Mode, Model, Plan, Planner, Reach,
        Results, Roles, Sim, Stages, Store, StoreUrl, Telemetry, Tenant,
    },
    section::{Reader, Section, suggestion},
    settings::{secret_in, store_place},
};

/// The name of the model that `baton setup` brings, in a pipeline that names none.
const DEFAULT_MODEL: &str = "smollm2-135m";

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);
const YEAR: Duration = Duration::from_secs(31_557_600);

pub(crate) fn plan(mut layers: Layers) -> Result<Plan, Errors> {
    add_default_model(&mut layers.table);
    let reader = Reader::new(layers.texts);
    let mut root = Section::root(&reader, layers.table);

    let subject_root = root.name("root");
    let lanes = root.names("lanes", 1..=8);
    let compute = root.choice("compute", &[("fast", Mode::Fast), ("exact", Mode::Exact)]);
    let broker = broker(root.table("broker"));
    let store = store(root.table("store"));
    let models = models(root.table("models"));
    let default_model = default_model(&mut root, &models);
    let stages = stages::stages(root.table("stages"), &models);
    let gateway = gateway(root.table("gateway"));
    let planner = planner(root.table("planner"), stages.as_ref());
    let limits = limits(root.table("limits"));
    let tenants = tenants(root.table("tenants"));
    let results = results(root.table("results"));
    let telemetry = telemetry(root.table("telemetry"));
    root.finish();

    let problems = reader.problems.into_inner();
    match (subject_root, compute, broker, store, default_model, stages, gateway, planner) {
        (
            Some(root),
            Some(compute),
            Some(broker),
            Some(store),
            Some(default_model),
            Some(stages),
            Some(gateway),
            Some(planner),
        ) if problems.is_empty() => Ok(Plan {
            root,
            default_model,
            lanes,
            compute,
            broker,
            store,
            models,
            stages,
            gateway,
            planner,
            limits,
            tenants,
            results,
            telemetry,
        }),
        _ => Err(Errors(problems)),
    }
}

/// What is needed to reach the broker. Says nothing about other keys.
pub(crate) fn reach(layers: Layers) -> Result<Reach, Errors> {
    let reader = Reader::new(layers.texts);
    let mut root = Section::root(&reader, layers.table);
    let subject_root = root.name("root");
    let broker = broker(root.table("broker"));
    let telemetry = telemetry(root.table("telemetry"));
    let problems = reader.problems.into_inner();
    match (subject_root, broker) {
        (Some(root), Some(broker)) if problems.is_empty() => Ok(Reach { root, broker, telemetry }),
        _ => Err(Errors(problems)),
    }
}

/// A pipeline that names models gets those only, so this is no part of the defaults that files grow together with.
fn add_default_model(table: &mut Table) {
    let models = table.entry("models").or_insert_with(|| Table::new().into());
    if let Value::Table(models) = models
        && models.is_empty()
    {
        let model = Table::from_iter([("source".to_owned(), Value::from("default"))]);
        models.insert(DEFAULT_MODEL.into(), model.into());
    }
}

fn broker(mut section: Section<'_>) -> Option<Broker> {
    let expected = "\"embedded\" or nats:// or tls:// URLs separated by commas";
    let url = section.text("url", expected, |text| {
        text == "embedded" || text.split(',').all(|url| is_url(url, &["nats://", "tls://"]))
    });
    let credentials =
        section.optional_text("credentials", "the path of a NATS credentials file", |text| !text.is_empty());
    let replicas = section.integer("replicas", 1..=5);
    if matches!(replicas, 2 | 4) {
        section.note("replicas", format!("expected 1, 3 or 5, found {replicas}"));
    }
    if url == "embedded" && replicas > 1 {
        section.note("replicas", "the embedded broker is one server and keeps 1 copy");
    }
    section.finish();
    let url = if url == "embedded" { BrokerUrl::Embedded } else { BrokerUrl::Servers(url) };
    Some(Broker { url, credentials, replicas })
}

fn store(mut section: Section<'_>) -> Option<Store> {
    let expected = "\"embedded\", file:///directory, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix";
    let url = section.text("url", expected, |text| {
        text == "embedded" || is_directory(text) || is_url(text, &["s3://", "gs://", "az://"])
    });
    if let Some(problem) = secret_in(&url) {
        section.note("url", problem);
    }
    let codecs =
        [("lossless", Codec::Lossless), ("near", Codec::Near), ("balanced", Codec::Balanced), ("raw", Codec::Raw)];
    let codec = section.choice("codec", &codecs);
    let chunk_tokens = section.integer("chunk_tokens", 16..=4096);
    if !chunk_tokens.is_multiple_of(16) {
        section.note("chunk_tokens", format!("expected a multiple of 16, found {chunk_tokens}"));
    }
    let sync = section.choice("sync", &[("never", false), ("always", true)]);
    let key_file = section.optional_text("key_file", "the path of a file", |text| !text.is_empty());
    let cache_memory = section.may_have("cache_memory").then(|| section.bytes("cache_memory"));
    let cache_path = section.optional_text("cache_path", "the path of a directory", |text| !text.is_empty());
    let cache_disk = section.may_have("cache_disk").then(|| section.bytes("cache_disk"));
    match (&cache_path, &cache_disk) {
        (Some(_), None) => section.note("cache_disk", "expected the bytes that cache_path may hold, such as \"20GiB\""),
        (None, Some(_)) => section.note("cache_path", "expected the directory that may hold cache_disk bytes"),
        _ => {}
    }
    let max_age = section.duration("max_age", HOUR..=YEAR);
    let max_bytes = section.may_have("max_bytes").then(|| section.bytes("max_bytes"));
    let gc_interval = section.duration("gc_interval", 60 * SECOND..=YEAR);
    section.finish();
    let url = if url == "embedded" { StoreUrl::Embedded } else { StoreUrl::Url(store_place(&url).to_owned()) };
    Some(Store {
        url,
        codec: codec?,
        chunk_tokens,
        sync: sync?,
        key_file,
        cache_memory,
        cache_path,
        cache_disk,
        max_age,
        max_bytes,
        gc_interval,
    })
}

fn models(mut section: Section<'_>) -> BTreeMap<Name, Model> {
    let mut models = BTreeMap::new();
    for key in section.keys() {
        let name = Name::new(&key).map_err(|error| section.note(&key, format!("the model's name: {error}"))).ok();
        let mut model = section.table(&key);
        let expected = "\"default\", \"sim\", \"openai\", the path of a .gguf file, the path of a folder with a slash in it, or \
                        hf:owner/name, perhaps with @revision and /file.gguf";
        let source = model.text("source", expected, |text| match Model::from_source(text) {
            // A folder's name can't be told from a slip of the pen, its path can.
            Some(Model::File(path)) => path.to_ascii_lowercase().ends_with(".gguf") || path.contains('/'),
            other => other.is_some(),
        });
        let parsed = match Model::from_source(&source) {
            Some(Model::Sim(_)) => Model::Sim(sim(model.table("sim"))),
            Some(Model::Upstream(_)) => Model::Upstream(upstream::upstream(&mut model)),
            // A source that is none was noted, and such a pipeline has no plan.
            other => other.unwrap_or(Model::Default),
        };
        if !matches!(parsed, Model::Sim(_)) && model.has("sim") {
            model.table("sim");
            model.note("sim", "only a model whose source is \"sim\" has this table");
        }
        model.finish();
        models.extend(name.map(|name| (name, parsed)));
    }
    upstream::check_fallbacks(&section, &models);
    section.finish();
    models
}

fn sim(mut section: Section<'_>) -> Sim {
    let mut sim = Sim::default();
    for (key, range, field) in [
        ("layers", 1..=1024, &mut sim.layers),
        ("kv_width", 2..=65_536, &mut sim.kv_width),
        ("context", 1..=1 << 24, &mut sim.context),
    ] {
        if section.may_have(key) {
            *field = section.integer(key, range);
        }
    }
    for (key, field) in
        [("prefill_s_per_token", &mut sim.prefill_s_per_token), ("decode_s_per_step", &mut sim.decode_s_per_step)]
    {
        if section.may_have(key) {
            *field = section.number(key, 0.0..=3600.0);
        }
    }
    if section.may_have("answer_tokens") {
        sim.answer_tokens = Some(answer_tokens(section.table("answer_tokens")));
    }
    section.finish();
    sim
}

fn answer_tokens(mut section: Section<'_>) -> AnswerTokens {
    let (min, max) = (section.integer("min", 1..=1 << 24), section.integer("max", 1..=1 << 24));
    if min > max {
        section.note("min", format!("expected at most max, {max}, found {min}"));
    }
    section.finish();
    // The ranges above fit.
    AnswerTokens { min: min as u32, max: max as u32 }
}

/// The model of a request that names none: if there is only one, that.
fn default_model(root: &mut Section<'_>, models: &BTreeMap<Name, Model>) -> Option<Name> {
    if root.may_have("default_model") {
        let name = root.name("default_model")?;
        if !models.contains_key(&name) {
            root.note("default_model", unknown_model(&name, models));
        }
        return Some(name);
    }
    match models.len() {
        0 | 1 => models.keys().next().cloned(),
        count => {
            root.note("default_model", format!("expected the name of one of the {count} models, found nothing"));
            None
        }
    }
}

/// What a few requests need at a time.
const LEAST_BODY_MEMORY: u64 = 16 << 20;

fn gateway(mut section: Section<'_>) -> Option<Gateway> {
    let replicas = section.integer("replicas", 0..=1);
    let expected = "an address and a port such as \"127.0.0.1:8080\"";
    let listen = section.text("listen", expected, |text| text.parse::<SocketAddr>().is_ok());
    let keys_file = section.optional_text("keys_file", "the path of a file", |text| !text.is_empty());
    let open = section.flag("open");
    let hosts = section.may_have("hosts").then(|| section.hosts("hosts"));
    let cors_origins = section.may_have("cors_origins").then(|| section.origins("cors_origins"));
    let max_connections = section.integer("max_connections", 1..=65_536);
    let body_memory = section.bytes("body_memory");
    if body_memory.0 < LEAST_BODY_MEMORY && body_memory.0 > 0 {
        section.note("body_memory", "expected at least 16MiB: a request may have 4MiB, and a file is read in parts");
    }
    let batches = section.integer("batches", 0..=1_024);
    let ack_wait = section.duration("ack_wait", SECOND..=HOUR);
    let max_output = section.bytes("max_output");
    let webhook_allow = section.may_have("webhook_allow").then(|| section.ranges("webhook_allow"));
    section.finish();
    let listen = listen.parse().ok()?;
    Some(Gateway {
        replicas,
        listen,
        keys_file,
        open: open?,
        hosts: hosts.unwrap_or_default(),
        cors_origins: cors_origins.unwrap_or_default(),
        max_connections,
        body_memory,
        batches,
        ack_wait,
        max_output,
        webhook_allow: webhook_allow.unwrap_or_default(),
    })
}

fn planner(mut section: Section<'_>, stages: Option<&Stages>) -> Option<Planner> {
    let enabled = section.flag("enabled");
    let roles = section.choice("roles", &[("fixed", Roles::Fixed), ("flexible", Roles::Flexible)]);
    if roles == Some(Roles::Flexible)
        && let Some(Err(problem)) = stages.map(Stages::interchangeable)
    {
        section.note("roles", problem);
    }
    let interval = section.duration("interval", SECOND..=60 * SECOND);
    let drain = section.duration("drain", Duration::ZERO..=HOUR);
    let profile = section.optional_text("profile", "the path of a profile", |text| !text.is_empty());
    let (prefill, decode) = (bounds(section.table("prefill")), bounds(section.table("decode")));
    section.finish();
    Some(Planner { enabled: enabled?, roles: roles?, interval, drain, profile, prefill, decode })
}

fn bounds(mut section: Section<'_>) -> Bounds {
    let (floor, ceiling) = (section.integer("floor", 0..=1024), section.integer("ceiling", 0..=1024));
    if floor > ceiling {
        section.note("floor", format!("expected at most ceiling, {ceiling}, found {floor}"));
    }
    section.finish();
    Bounds { floor, ceiling }
}

fn limits(mut section: Section<'_>) -> Limits {
    let backlog_messages = section.integer("backlog_messages", 1..=1_000_000_000);
    let backlog_bytes = section.may_have("backlog_bytes").then(|| section.bytes("backlog_bytes"));
    let tenant_backlog =
        section.may_have("tenant_backlog").then(|| section.integer("tenant_backlog", 1..=1_000_000_000));
    section.finish();
    Limits { backlog_messages, backlog_bytes, tenant_backlog }
}

fn tenants(mut section: Section<'_>) -> BTreeMap<Name, Tenant> {
    let mut tenants = BTreeMap::new();
    for key in section.keys() {
        let name = Name::new(&key).map_err(|error| section.note(&key, format!("the tenant's name: {error}"))).ok();
        let mut tenant = section.table(&key);
        let weight = if tenant.may_have("weight") { tenant.integer("weight", 1..=100) } else { 1 };
        let max_running = tenant.may_have("max_running").then(|| tenant.integer("max_running", 1..=1_000_000_000));
        tenant.finish();
        tenants.extend(name.map(|name| (name, Tenant { weight, max_running })));
    }
    section.finish();
    tenants
}

fn results(mut section: Section<'_>) -> Results {
    let keep = section.duration("keep", 3600 * SECOND..=YEAR);
    section.finish();
    Results { keep }
}

fn telemetry(mut section: Section<'_>) -> Telemetry {
    let otlp_endpoint = section
        .optional_text("otlp_endpoint", "an http:// or https:// URL", |text| is_url(text, &["http://", "https://"]));
    let log = section.text("log", "a log filter such as \"info\"", |text| !text.trim().is_empty());
    let log_format = section.choice("log_format", &[("text", LogFormat::Text), ("json", LogFormat::Json)]);
    section.finish();
    // A format that is none was noted, and such a pipeline has no plan.
    Telemetry { otlp_endpoint, log, log_format: log_format.unwrap_or(LogFormat::Text) }
}

fn unknown_model(name: &Name, models: &BTreeMap<Name, Model>) -> String {
    format!("no model is named {:?}{}", name.as_str(), suggestion(name.as_str(), models.keys().map(Name::as_str)))
}

/// Whether it starts as one of `schemes` and goes on with something that could be a host, a bucket or a path.
fn is_url(text: &str, schemes: &[&str]) -> bool {
    schemes.iter().filter_map(|scheme| text.strip_prefix(scheme)).any(|rest| {
        rest.starts_with(|c: char| c != '/') && !rest.contains(|c: char| c.is_whitespace() || c.is_control())
    })
}

/// Whether it is a local directory. It is taken as it stands, with spaces if it has some.
fn is_directory(url: &str) -> bool {
    url.strip_prefix("file:///").is_some_and(|path| !path.is_empty() && !path.contains(char::is_control))
}
