//! Reads the wish for a batch.

use std::{collections::BTreeMap, time::Duration};

use baton_contract::{
    batch::Order,
    objects::Objects,
    request::{MAX_METADATA, MAX_METADATA_KEY_BYTES, MAX_METADATA_VALUE_BYTES},
};
use baton_openai::{ApiError, Endpoint};
use serde::Deserialize;

use crate::files::checked_expiry;

/// The longest completion window: results are kept for a week unless the pipeline says otherwise.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3_600);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    input_file_id: String,
    endpoint: String,
    completion_window: String,
    #[serde(default)]
    metadata: Option<BTreeMap<String, String>>,
    #[serde(default)]
    output_expires_after: Option<ExpiresAfter>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpiresAfter {
    anchor: String,
    seconds: u64,
}

/// The batch that a body wishes for under an id, and its completion window in seconds.
pub(super) fn read(body: &[u8], id: &str) -> Result<(Order, u64), ApiError> {
    let mut reader = serde_json::Deserializer::from_slice(body);
    let body: Body = serde_path_to_error::deserialize(Objects(&mut reader)).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        match path.as_str() {
            "." => ApiError::invalid(inner.to_string()),
            path => ApiError::field(path, format!("{path}: {inner}")),
        }
    })?;
    reader.end().map_err(|error| ApiError::invalid(format!("after the batch: {error}")))?;
    if Endpoint::from_path(&body.endpoint).is_none() {
        let known: Vec<&str> = Endpoint::ALL.into_iter().map(Endpoint::path).collect();
        let found: String = body.endpoint.chars().take(80).collect();
        let message = format!("endpoint: expected {}, found {found:?}", known.join(" or "));
        return Err(ApiError::field("endpoint", message));
    }
    let window = humantime::parse_duration(&body.completion_window).ok();
    let window = window.filter(|window| (Duration::from_secs(1)..=LONGEST).contains(window));
    let window = window.ok_or_else(|| {
        let message = "completion_window: expected a time from 1s to 7days such as \"24h\"";
        ApiError::field("completion_window", message)
    })?;
    if let Some(metadata) = &body.metadata {
        check(metadata)?;
    }
    let expires = body.output_expires_after;
    let output_expires_after = expires
        .map(|expires| checked_expiry("output_expires_after", &expires.anchor, Some(expires.seconds)))
        .transpose()?;
    let order = Order {
        id: id.into(),
        endpoint: body.endpoint,
        input_file_id: body.input_file_id,
        completion_window: body.completion_window,
        metadata: body.metadata,
        output_expires_after,
    };
    Ok((order, window.as_secs()))
}

fn check(metadata: &BTreeMap<String, String>) -> Result<(), ApiError> {
    let short = |(key, value): (&String, &String)| {
        key.chars().count() <= MAX_METADATA_KEY_BYTES && value.chars().count() <= MAX_METADATA_VALUE_BYTES
    };
    if metadata.len() <= MAX_METADATA && metadata.iter().all(short) {
        return Ok(());
    }
    let message = format!(
        "metadata: expected at most {MAX_METADATA} pairs, keys of at most {MAX_METADATA_KEY_BYTES} and values of at most \
         {MAX_METADATA_VALUE_BYTES} characters"
    );
    Err(ApiError::field("metadata", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_read_and_what_is_wrong_with_it_is_named() {
        let good = r#"{"input_file_id":"file-1","endpoint":"/v1/completions","completion_window":"24h",
            "metadata":{"a":"b"},"output_expires_after":{"anchor":"created_at","seconds":3600}}"#;
        let (order, window) = read(good.as_bytes(), "batch_1").unwrap();
        assert_eq!((window, order.output_expires_after), (86_400, Some(3_600)));
        assert_eq!(order.metadata.unwrap()["a"], "b");
        for (from, to, param) in [
            ("/v1/completions", "/v1/embeddings", Some("endpoint")),
            ("24h", "1y", Some("completion_window")),
            ("24h", "soon", Some("completion_window")),
            ("3600", "1", Some("output_expires_after")),
            ("created_at", "now", Some("output_expires_after")),
            ("\"b\"", "7", Some("metadata.a")),
            ("\"metadata\"", "\"meta\"", Some("meta")),
            ("\"input_file_id\":\"file-1\",", "", None),
        ] {
            let error = read(good.replace(from, to).as_bytes(), "batch_1").unwrap_err();
            assert_eq!((error.status, error.param.as_deref()), (400, param), "{from} -> {to}: {error}");
        }
        let list = r#"["file-1", "/v1/completions", "24h"]"#;
        assert!(read(list.as_bytes(), "batch_1").unwrap_err().message.contains("expected an object"));
        let within = good.replace(r#"{"anchor":"created_at","seconds":3600}"#, r#"["created_at", 3600]"#);
        let error = read(within.as_bytes(), "batch_1").unwrap_err();
        assert_eq!(error.param.as_deref(), Some("output_expires_after"), "{error}");
    }
}
