//! Reads OpenAI's requests, with vLLM's additions.

use std::collections::BTreeMap;

use baton_contract::{
    Name, causes,
    outcome::Code,
    request::{MAX_METADATA, MAX_METADATA_VALUE_BYTES, Request},
    upstream::Engines,
};
use serde::Deserialize;

use crate::{alike::sampling, endpoint::Endpoint, error::ApiError, fields::Fields, foreign, own};

/// One request, understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Which way it came.
    pub endpoint: Endpoint,
    /// Without an id. `lane` is what `service_tier` said, unless that was `auto` or `default`; whether the pipeline has such
    /// a lane or model is not yet known.
    pub request: Request,
    /// Whether the answer is wanted in pieces.
    pub stream: bool,
    /// Whether a stream ends with the usage.
    pub include_usage: bool,
    /// The model as the request named it.
    pub model: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamOptions {
    #[serde(default)]
    include_usage: Option<bool>,
    #[serde(default)]
    include_obfuscation: Option<bool>,
}

/// Reads a request: every field of it is understood, by Baton or by the foreign engine that serves its model, or a 400 names the one
/// that is not.
pub fn read(endpoint: Endpoint, body: &[u8], engines: &Engines) -> Result<Call, ApiError> {
    let mut fields = Fields::root(body)?;
    let mut request = Request::default();
    let model: Option<String> = fields.take("model")?;
    request.model = model.clone();
    let stream = fields.take::<bool>("stream")?.unwrap_or(false);
    let include_usage = match fields.take::<StreamOptions>("stream_options")? {
        Some(_) if !stream => {
            return Err(ApiError::field("stream_options", "stream_options: expected it with stream: true only"));
        }
        Some(StreamOptions { include_obfuscation: Some(true), .. }) => {
            let param = "stream_options.include_obfuscation";
            return Err(ApiError::field(param, format!("{param}: not supported: streams carry no padding")));
        }
        options => options.unwrap_or_default().include_usage.unwrap_or(false),
    };
    sampling(&mut fields, &mut request)?;
    about_the_job(&mut fields, &mut request)?;
    match engines.of(model.as_deref()) {
        None => {
            own::read(endpoint, &mut fields, &mut request)?;
            fields.finish()?;
        }
        Some(engine) => foreign::read(endpoint, fields, &mut request, engine)?,
    }
    check(endpoint, &request)?;
    Ok(Call { endpoint, request, stream, include_usage, model })
}

/// What a request must hold whatever the pipeline is.
fn check(endpoint: Endpoint, request: &Request) -> Result<(), ApiError> {
    // The lane is checked against the pipeline's later.
    let mut request = request.clone();
    let lane = request.lane.take().and_then(|lane| Name::new(&lane).ok());
    let unnamed = || Name::new("unnamed").map_err(|error| ApiError::internal(causes(&error)));
    let lane = lane.map_or_else(unnamed, Ok)?;
    request.check(&lane, 0).map(drop).map_err(|failure| {
        let error = ApiError::from(&failure);
        match (failure.code, endpoint) {
            (Code::EmptyPrompt, Endpoint::ChatCompletions) => ApiError { param: Some("messages".into()), ..error },
            (Code::EmptyPrompt, Endpoint::Completions) => ApiError { param: Some("prompt".into()), ..error },
            _ => error,
        }
    })
}

/// Whose the job is, how urgent, and what comes back with it.
fn about_the_job(fields: &mut Fields, request: &mut Request) -> Result<(), ApiError> {
    request.metadata = fields.take("metadata")?.unwrap_or_default();
    for name in ["user", "safety_identifier"] {
        if let Some(value) = fields.take::<String>(name)? {
            label(&mut request.metadata, name, value)?;
        }
    }
    request.lane = fields.take::<String>("service_tier")?.filter(|tier| tier != "auto" && tier != "default");
    request.deadline = fields.take("deadline")?;
    Ok(())
}

/// Keeps a field that only says whose the request is as a pair of the metadata, under its own name.
fn label(metadata: &mut BTreeMap<String, String>, name: &str, value: String) -> Result<(), ApiError> {
    let refuse = |found: String| Err(ApiError::field(name, format!("{name}: {found}")));
    if value.len() > MAX_METADATA_VALUE_BYTES {
        return refuse(format!("expected at most {MAX_METADATA_VALUE_BYTES} bytes, found {}", value.len()));
    }
    if let Some(other) = metadata.get(name).filter(|other| **other != value) {
        return refuse(format!("is kept in the metadata, expected no other value there, found {other:?}"));
    }
    if metadata.len() == MAX_METADATA && !metadata.contains_key(name) {
        return refuse(format!(
            "is kept in the metadata, expected less than {MAX_METADATA} pairs there, found as many"
        ));
    }
    metadata.insert(name.to_owned(), value);
    Ok(())
}
