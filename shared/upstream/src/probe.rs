//! What an instance tells of itself, outside of any request.

use std::time::Duration;

use baton_contract::upstream::Engine;
use reqwest::Method;
use serde_json::Value;

use crate::{
    Fault, Instance,
    http::{Limit, Sent, body},
};

/// An instance answers such a question within this time.
const WITHIN: Duration = Duration::from_secs(5);
/// The most that it may tell.
const MOST_BYTES: usize = 4 << 20;

impl Instance {
    /// Names of the models that it serves (`GET /v1/models`).
    ///
    /// # Errors
    ///
    /// It can't be reached, refuses, or answers something else.
    pub async fn models(&self) -> Result<Vec<String>, Fault> {
        let told: Value = serde_json::from_slice(&self.get("/v1/models").await?).unwrap_or_default();
        let Some(models) = told["data"].as_array() else {
            let expected = "answered /v1/models with no list of models; check the model's urls";
            return Err(Fault::elsewhere(format!("{} {expected}", self.url())));
        };
        let aliases = |model: &Value| model["aliases"].as_array().cloned().unwrap_or_default();
        let names = models.iter().flat_map(|model| [vec![model["id"].clone()], aliases(model)].concat());
        let mut names: Vec<String> = names.filter_map(|name| name.as_str().map(str::to_owned)).collect();
        names.dedup();
        Ok(names)
    }

    /// What it tells of its queue and its speed, in Prometheus' format (`GET /metrics`); at most 4 MiB.
    ///
    /// # Errors
    ///
    /// It can't be reached, or has no such page.
    pub async fn metrics(&self) -> Result<String, Fault> {
        Ok(String::from_utf8_lossy(&self.get("/metrics").await?).into_owned())
    }

    /// Whether it takes requests: by `GET /health`, or by its list of models if nothing is known of the engine.
    ///
    /// # Errors
    ///
    /// It can't be reached, or says that it does not.
    pub async fn health(&self) -> Result<(), Fault> {
        let path = if self.engine() == Engine::OpenAi { "/v1/models" } else { "/health" };
        self.get(path).await.map(drop)
    }

    /// A whole page.
    pub(crate) async fn get(&self, path: &str) -> Result<Vec<u8>, Fault> {
        let limit = Limit::within(WITHIN);
        let sent = Sent { method: Method::GET, url: self.at(path), body: Default::default(), trace: &[], limit };
        let response = self.http().send(self.url(), &sent).await?;
        body(self.url(), response, MOST_BYTES, limit).await
    }
}
