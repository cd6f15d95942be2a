//! What a context says.

use std::path::PathBuf;

use baton_contract::{Name, without_secrets};
use serde::{Deserialize, Serialize};

/// A pipeline by name: how to reach it, and as whom.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// `broker.url` of the pipeline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nats: Option<String>,
    /// `store.url` of the pipeline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    /// Whose jobs the commands are about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Name>,
    /// `broker.credentials` of the pipeline; an absolute path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<PathBuf>,
    /// The pipeline's file; an absolute path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipeline: Option<PathBuf>,
}

impl Context {
    /// What it says of the pipeline, as the variables of the environment would say it.
    pub fn variables(&self) -> Vec<(String, String)> {
        let variable = |key: &str, value: String| (format!("{}{key}", baton_topology::ENVIRONMENT_PREFIX), value);
        let nats = self.nats.clone().map(|url| variable("BROKER__URL", url));
        let store = self.store.clone().map(|url| variable("STORE__URL", url));
        let credentials = self.credentials.as_ref().map(|path| path.display().to_string());
        let credentials = credentials.map(|path| variable("BROKER__CREDENTIALS", path));
        [nats, store, credentials].into_iter().flatten().collect()
    }

    /// Without the passwords that its URLs may have.
    pub fn shown(&self) -> Self {
        Self {
            nats: self.nats.as_deref().map(without_secrets),
            store: self.store.as_deref().map(without_secrets),
            ..self.clone()
        }
    }

    /// The keys that it has, for people.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let lines = [
            ("description", self.description.clone()),
            ("nats", self.nats.clone()),
            ("store", self.store.clone()),
            ("tenant", self.tenant.as_ref().map(Name::to_string)),
            ("creds", path(&self.credentials)),
            ("pipeline", path(&self.pipeline)),
        ];
        lines.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
    }
}
