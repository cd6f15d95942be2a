//! What all processes of a pipeline must agree on, as it is kept in the broker.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Map;
use toml::{Table, Value};

use crate::{
    Model, Plan,
    plan::StoreUrl,
    tables::{find, insert, leaves, overlay},
};

/// What must be the same in all processes; `*` is any name. A process that was told another value is refused.
pub(crate) const AGREED: [&str; 35] = [
    "default_model",
    "lanes",
    "compute",
    "broker.replicas",
    "store.url",
    "store.codec",
    "store.chunk_tokens",
    "store.sync",
    "store.max_age",
    "store.max_bytes",
    "store.gc_interval",
    "models.*.source",
    "models.*.engine",
    "models.*.model",
    "models.*.fallback",
    "models.*.sim.layers",
    "models.*.sim.kv_width",
    "models.*.sim.context",
    "models.*.sim.answer_tokens.min",
    "models.*.sim.answer_tokens.max",
    "stages.ingest.ack_wait",
    "stages.ingest.max_deliver",
    "stages.prefill.ack_wait",
    "stages.prefill.max_deliver",
    "stages.decode.ack_wait",
    "stages.decode.max_deliver",
    "stages.decode.prefill_tokens",
    "gateway.ack_wait",
    "gateway.max_output",
    "limits.backlog_messages",
    "limits.backlog_bytes",
    "limits.tenant_backlog",
    "tenants.*.weight",
    "tenants.*.max_running",
    "results.keep",
];

/// What a process takes over where it was told nothing, and may have otherwise all the same.
const SUGGESTED: [&str; 15] = [
    "models.*.urls",
    "models.*.prefill_urls",
    "models.*.max_running",
    "models.*.timeout",
    "models.*.fallback_after",
    "models.*.sim.prefill_s_per_token",
    "models.*.sim.decode_s_per_step",
    "stages.prefill.batch_tokens",
    "stages.decode.checkpoint_ms",
    "planner.interval",
    "planner.drain",
    "planner.prefill.floor",
    "planner.prefill.ceiling",
    "planner.decode.floor",
    "planner.decode.ceiling",
];

/// The shape of [`Settings`] that this release writes. It reads any with this number, whatever fields they have besides.
pub(crate) const FORMAT: u32 = 1;

/// A pipeline's shared settings, as they are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    pub(crate) format: u32,
    /// Names the pipeline, so that its store can be told from any other.
    pub pipeline: String,
    /// Whether the store has a mark of that name.
    #[serde(default)]
    pub marked: bool,
    /// The release that wrote them last.
    #[serde(default)]
    pub written_by: String,
    settings: Map<String, serde_json::Value>,
    /// What other releases keep here.
    #[serde(flatten)]
    others: Map<String, serde_json::Value>,
}

/// What streams tell of the settings that they were made with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Copies of each stream.
    pub replicas: usize,
    /// How long results are kept; none if for ever.
    pub results: Option<Duration>,
    /// Jobs that a stage's queue takes; none if any number.
    pub backlog_messages: Option<u64>,
    /// Jobs that may wait of each tenant; none if any number.
    pub tenant_backlog: Option<u64>,
}

/// A setting that is kept with one value and wanted with another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// As in `stages.decode.slots`.
    pub key: String,
    /// Nothing if it is not set.
    pub kept: Option<String>,
    /// Nothing if it is not to be set.
    pub wanted: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_none = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".into());
        write!(f, "{}: the pipeline has {}, wanted {}", self.key, or_none(&self.kept), or_none(&self.wanted))
    }
}

impl Settings {
    /// The settings of a plan, for a pipeline that has none yet and gets this name.
    pub fn of(plan: &Plan, pipeline: String) -> Self {
        let settings = json(shared(plan));
        let written_by = env!("CARGO_PKG_VERSION").to_owned();
        Self { format: FORMAT, pipeline, marked: false, written_by, settings, others: Map::new() }
    }

    /// The settings of a pipeline that was made by a release that kept none: what its streams tell.
    pub fn standing(standing: &Standing) -> Self {
        let mut table = Table::new();
        let integer = |number: u64| i64::try_from(number).ok().map(Value::Integer);
        let keys = [
            ("broker.replicas", i64::try_from(standing.replicas).ok().map(Value::Integer)),
            ("results.keep", standing.results.map(|keep| humantime::format_duration(keep).to_string().into())),
            ("limits.backlog_messages", standing.backlog_messages.and_then(integer)),
            ("limits.tenant_backlog", standing.tenant_backlog.and_then(integer)),
        ];
        for (key, value) in keys {
            if let Some(value) = value {
                insert(&mut table, key, value);
            }
        }
        let (pipeline, written_by) = (String::new(), String::new());
        Self { format: FORMAT, pipeline, marked: false, written_by, settings: json(table), others: Map::new() }
    }

    /// The same pipeline with a plan's settings. What other releases keep of it stays.
    pub fn changed(&self, plan: &Plan) -> Self {
        let new = shared(plan);
        let mut settings = Table::new();
        for (key, value) in leaves(&table(&self.settings)) {
            // Unknown keys of a model or tenant go with it.
            let mut parts = key.split('.');
            let owner = parts.next().zip(parts.next());
            let gone = owner.is_some_and(|(kind, name)| {
                matches!(kind, "models" | "tenants")
                    && new.get(kind).and_then(Value::as_table).is_none_or(|owners| !owners.contains_key(name))
            });
            if !is_shared(&key) && !gone {
                insert(&mut settings, &key, value);
            }
        }
        overlay(&mut settings, new);
        let written_by = env!("CARGO_PKG_VERSION").to_owned();
        Self { settings: json(settings), written_by, ..self.clone() }
    }

    /// The same with the store that they had not named, and its mark.
    pub fn with_store(&self, plan: &Plan) -> Self {
        Self { marked: true, ..self.changed(plan) }
    }

    /// Where the store is; none if nobody has named one yet.
    pub fn store_url(&self) -> Option<String> {
        find(&self.known(), "store.url")?.as_str().map(str::to_owned)
    }

    /// What is different in a plan, whether it must agree or not.
    pub fn differences(&self, plan: &Plan) -> Vec<Difference> {
        compare(&self.known(), &shared(plan), |_| true)
    }

    /// What this release knows of them.
    pub(crate) fn known(&self) -> Table {
        let mut known = Table::new();
        for (key, value) in leaves(&table(&self.settings)).into_iter().filter(|(key, _)| is_shared(key)) {
            insert(&mut known, &key, value);
        }
        known
    }
}

impl Plan {
    /// The part of the plan that is this machine's and not the pipeline's, as a pipeline's text.
    pub fn machine_toml(&self) -> String {
        let mut own = Table::new();
        for (key, value) in leaves(&serialized(self)) {
            let models = match key.as_str() {
                "stages.prefill.models" => Some(&self.stages.prefill.compute.models),
                "stages.decode.models" => Some(&self.stages.decode.compute.models),
                _ => None,
            };
            // All of them, whichever that will be.
            let all = models.is_some_and(|models| models.iter().eq(self.models.keys()));
            if !is_shared(&key) && !all {
                insert(&mut own, &key, value);
            }
        }
        own.to_string()
    }
}

/// The shared settings of a plan.
pub(crate) fn shared(plan: &Plan) -> Table {
    let mut shared = Table::new();
    let mut all = leaves(&serialized(plan));
    // No place that others could find.
    if plan.store.url == StoreUrl::Embedded {
        all.remove("store.url");
    }
    for (key, value) in all.into_iter().filter(|(key, _)| is_shared(key)) {
        insert(&mut shared, &key, value);
    }
    shared
}

fn serialized(plan: &Plan) -> Table {
    Table::try_from(plan).expect("a plan holds only numbers, texts, lists and tables with text keys")
}

fn is_shared(key: &str) -> bool {
    matches(&AGREED, key) || matches(&SUGGESTED, key)
}

pub(crate) fn matches(patterns: &[&str], key: &str) -> bool {
    patterns.iter().any(|pattern| {
        let (mut parts, mut wanted) = (key.split('.'), pattern.split('.'));
        loop {
            match (parts.next(), wanted.next()) {
                (None, None) => return true,
                (Some(part), Some(wanted)) if wanted == "*" || wanted == part => {}
                _ => return false,
            }
        }
    })
}

pub(crate) fn compare(kept: &Table, wanted: &Table, counts: impl Fn(&str) -> bool) -> Vec<Difference> {
    let (kept, wanted) = (leaves(kept), leaves(wanted));
    let mut keys: Vec<_> = kept.keys().chain(wanted.keys()).collect();
    keys.sort();
    keys.dedup();
    let differs = |key: &&String| {
        let (kept, wanted) = (kept.get(*key), wanted.get(*key));
        kept != wanted && counts(key) && !(is_path(key, kept) && is_path(key, wanted))
    };
    let shown = |value: Option<&Value>| value.map(ToString::to_string);
    let difference =
        |key: &String| Difference { key: key.clone(), kept: shown(kept.get(key)), wanted: shown(wanted.get(key)) };
    keys.into_iter().filter(differs).map(difference).collect()
}

/// Whether it is a model's place on a machine, which may be another on each.
fn is_path(key: &str, value: Option<&Value>) -> bool {
    let source = value.and_then(Value::as_str);
    matches(&["models.*.source"], key)
        && source.is_some_and(|source| matches!(Model::from_source(source), Some(Model::File(_))))
}

fn json(table: Table) -> Map<String, serde_json::Value> {
    match serde_json::to_value(table) {
        Ok(serde_json::Value::Object(map)) => map,
        _ => Map::new(),
    }
}

/// What TOML can say of it: everything that a release writes.
fn table(map: &Map<String, serde_json::Value>) -> Table {
    let value = |value: &serde_json::Value| match value {
        serde_json::Value::Object(map) => Some(Value::Table(table(map))),
        other => Value::try_from(other).ok(),
    };
    map.iter().filter_map(|(key, found)| Some((key.clone(), value(found)?))).collect()
}

/// A store's place without what makes no difference.
pub(crate) fn store_place(url: &str) -> &str {
    if url.ends_with("//") { url } else { url.trim_end_matches('/') }
}

/// What is wrong with a place that holds a password: every client of the broker could read it there.
pub(crate) fn secret_in(url: &str) -> Option<&'static str> {
    let authority = url.split_once("://")?.1.split('/').next()?;
    authority.contains('@').then_some(
        "expected no user or password in the URL: a store's credentials come from the environment, as in AWS_ACCESS_KEY_ID",
    )
}
