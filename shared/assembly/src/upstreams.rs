//! The clients of the foreign engines that a plan names.

use baton_contract::Name;
use baton_topology::{self as topology, MaxRunning};
use baton_upstream::{Options, Upstream};

use crate::Error;

/// The client of a foreign model; asks nobody.
pub fn open(name: &Name, upstream: &topology::Upstream) -> Result<Upstream, Error> {
    Upstream::new(options(name, upstream))
        .map_err(|source| Error::Upstream { model: name.clone(), source: Box::new(source) })
}

/// What the client of a foreign model is made of.
pub fn options(name: &Name, upstream: &topology::Upstream) -> Options {
    Options {
        engine: upstream.engine,
        name: name.to_string(),
        model: upstream.model.clone().unwrap_or_else(|| name.to_string()),
        urls: upstream.urls.clone(),
        prefill_urls: upstream.prefill_urls.clone(),
        api_key_file: upstream.api_key_file.as_ref().map(Into::into),
        ca_file: upstream.ca_file.as_ref().map(Into::into),
        max_running: match upstream.max_running {
            MaxRunning::Auto => None,
            MaxRunning::Fixed(count) => Some(count),
        },
        timeout: upstream.timeout,
    }
}
