//! The keys of a model that a foreign engine serves; they stand beside its `source`.

use std::{collections::BTreeMap, time::Duration};

use baton_contract::{Name, upstream::Engine};

use super::{HOUR, SECOND, unknown_model};
use crate::{
    plan::{Fallback, MaxRunning, Model, Upstream},
    section::Section,
    settings::secret_in,
};

/// After this long the fallback takes jobs where the file does not say.
const FALLBACK_AFTER: Duration = Duration::from_secs(5);

pub(super) fn upstream(section: &mut Section<'_>) -> Upstream {
    let mut upstream = Upstream::default();
    let engines = Engine::ALL.map(|engine| (engine.as_str(), engine));
    if section.may_have("engine") {
        upstream.engine = section.choice("engine", &engines).unwrap_or(upstream.engine);
    }
    upstream.urls = urls(section, "urls");
    if section.may_have("prefill_urls") {
        upstream.prefill_urls = urls(section, "prefill_urls");
        if !upstream.engine.hands_over() {
            section.note("prefill_urls", "only instances of vllm and sglang hand KV caches to each other");
        }
    }
    upstream.model = section.optional_text("model", "the model's name at the engine", |text| !text.is_empty());
    upstream.api_key_file = section.optional_text("api_key_file", "the path of a file", |text| !text.is_empty());
    upstream.ca_file = section.optional_text("ca_file", "the path of a PEM file", |text| !text.is_empty());
    if section.may_have("max_running") {
        upstream.max_running = section.auto_or("max_running", 1..=65_536).map_or(MaxRunning::Auto, MaxRunning::Fixed);
    }
    if section.may_have("timeout") {
        upstream.timeout = section.duration("timeout", SECOND..=24 * HOUR);
    }
    if section.may_have("fallback") {
        let after = match section.may_have("fallback_after") {
            true => section.duration("fallback_after", SECOND..=HOUR),
            false => FALLBACK_AFTER,
        };
        upstream.fallback = section.name("fallback").map(|model| Fallback { model, after });
    }
    upstream
}

fn urls(section: &mut Section<'_>, key: &str) -> Vec<String> {
    let urls = section.urls(key);
    if let Some(problem) = urls.iter().find_map(|url| secret_in(url)) {
        section.note(key, problem);
    }
    urls.into_iter().map(|url| url.trim_end_matches('/').trim_end_matches("/v1").to_owned()).collect()
}

/// A fallback is one of Baton's own models.
pub(super) fn check_fallbacks(section: &Section<'_>, models: &BTreeMap<Name, Model>) {
    for (name, model) in models {
        let Model::Upstream(Upstream { fallback: Some(fallback), .. }) = model else { continue };
        let key = format!("{name}.fallback");
        match models.get(&fallback.model) {
            None => section.note(&key, unknown_model(&fallback.model, models)),
            Some(Model::Upstream(_)) => {
                section.note(&key, "expected one of Baton's own models, found another engine's")
            }
            Some(_) => {}
        }
    }
}
