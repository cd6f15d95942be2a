//! The fields of a JSON object, each asked for by name; what nobody asked for is refused.

use baton_contract::objects::Objects;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::ApiError;

/// An object whose fields are taken out one by one.
pub(crate) struct Fields {
    map: Map<String, Value>,
    /// Where the object is in the request: empty, or a path that ends with a dot.
    place: String,
}

impl Fields {
    pub(crate) fn root(body: &[u8]) -> Result<Self, ApiError> {
        let text = std::str::from_utf8(body)
            .map_err(|error| ApiError::invalid(format!("expected a body in UTF-8, found another: {error}")))?;
        match serde_json::from_str(text) {
            Ok(Value::Object(map)) => Ok(Self { map, place: String::new() }),
            Ok(other) => Err(ApiError::invalid(format!("expected a JSON object, found {}", kind(&other)))),
            Err(error) => Err(ApiError::invalid(format!("expected a JSON object, found none: {error}"))),
        }
    }

    pub(crate) fn of(value: Value, place: &str) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Self { map, place: format!("{place}.") }),
            other => Err(ApiError::field(place, format!("{place}: expected an object, found {}", kind(&other)))),
        }
    }

    /// A field as it is; null is as if it were not there.
    pub(crate) fn raw(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// A field that may be left out.
    pub(crate) fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        let Some(value) = self.raw(name) else { return Ok(None) };
        let place = format!("{}{name}", self.place);
        serde_path_to_error::deserialize(Objects(value)).map(Some).map_err(|error| {
            let within = error.path().to_string();
            let path = match within.as_str() {
                "." => place.clone(),
                within if within.starts_with('[') => format!("{place}{within}"),
                within => format!("{place}.{within}"),
            };
            ApiError::field(&path, format!("{path}: {}", error.inner()))
        })
    }

    /// Refuses a field that is known and not supported, unless it says what is the case anyway.
    pub(crate) fn refuse(&mut self, name: &str, neutral: &[Value], why: &str) -> Result<(), ApiError> {
        match self.raw(name) {
            Some(value) if !neutral.contains(&value) => {
                let path = format!("{}{name}", self.place);
                let error = ApiError::field(&path, format!("{path}: not supported: {why}"));
                Err(ApiError { code: Some("unsupported_parameter".into()), ..error })
            }
            _ => Ok(()),
        }
    }

    /// Leaves a field as it is for [`Self::rest`].
    pub(crate) fn put(&mut self, name: &str, value: Value) {
        self.map.insert(name.to_owned(), value);
    }

    /// Leaves a field out if it says what is the case anyway.
    pub(crate) fn leave_out(&mut self, name: &str, neutral: &[Value]) {
        if self.map.get(name).is_some_and(|value| neutral.contains(value)) {
            self.map.remove(name);
        }
    }

    /// What was not asked for; null is as if it were not there.
    pub(crate) fn rest(self) -> Map<String, Value> {
        self.map.into_iter().filter(|(_, value)| !value.is_null()).collect()
    }

    /// Refuses what was not asked for.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        match self.map.keys().next() {
            Some(name) => {
                let shown: String = name.chars().take(80).collect();
                let path = format!("{}{shown}", self.place);
                let error = ApiError::field(&path, format!("{path}: unknown field"));
                Err(ApiError { code: Some("unknown_parameter".into()), ..error })
            }
            None => Ok(()),
        }
    }
}

pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
