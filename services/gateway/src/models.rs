//! `/v1/models`: what the pipeline serves.

use axum::{
    Json,
    extract::{Path, State as FromState},
};
use baton_contract::upstream::Engine;
use baton_openai::ApiError;
use serde_json::{Value, json};

use crate::{State, auth::Caller, refusal::Refusal};

pub(crate) async fn list(_: Caller, FromState(state): FromState<State>) -> Json<Value> {
    let models: Vec<Value> = state.facts.models.iter().map(|model| describe(model.as_str(), &state)).collect();
    Json(json!({ "object": "list", "data": models }))
}

pub(crate) async fn one(
    _: Caller,
    FromState(state): FromState<State>,
    Path(model): Path<String>,
) -> Result<Json<Value>, Refusal> {
    match state.facts.models.iter().find(|known| known.as_str() == model) {
        Some(known) => Ok(Json(describe(known.as_str(), &state))),
        None => Err(ApiError::unknown_model(&model.chars().take(80).collect::<String>()).into()),
    }
}

fn describe(model: &str, state: &State) -> Value {
    let owner = state.facts.engines.of(Some(model)).map_or("baton", Engine::as_str);
    json!({ "id": model, "object": "model", "created": state.started, "owned_by": owner })
}
