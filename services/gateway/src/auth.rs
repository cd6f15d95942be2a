//! API keys, their tenants and their limits.
//!
//! Only digests of keys are known here, and they are compared in constant time. Without a file of keys everybody is the
//! tenant `default`.

mod file;

use std::sync::Arc;

use axum::{
    extract::FromRequestParts,
    http::{header::AUTHORIZATION, request::Parts},
};
use baton_contract::Name;
use baton_openai::ApiError;
pub use file::{Entry, Error, KeysFile, add};
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{State, refusal::Refusal};

mod allowance;
use allowance::Allowance;

/// What an API key begins with, so that people and scanners know one when they see it.
pub const KEY_PREFIX: &str = "bt-";

/// The tenant whose API key a request carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant(pub Name);

/// The key that a request carries, with its limits.
#[derive(Clone, Debug)]
pub struct Caller {
    pub tenant: Name,
    key: Arc<Key>,
}

/// What is known about a key while the process runs.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) entry: Entry,
    allowance: Option<Allowance>,
    open: Option<Arc<Semaphore>>,
}

/// Counts against a key's `max_open` as long as it lives.
#[derive(Debug)]
pub struct Permit {
    _open: Option<OwnedSemaphorePermit>,
}

impl Key {
    pub(crate) fn new(entry: Entry) -> Self {
        let allowance = entry.requests_per_minute.map(Allowance::per_minute);
        let open = entry.max_open.map(|most| Arc::new(Semaphore::new(most as usize)));
        Self { entry, allowance, open }
    }
}

impl Caller {
    /// Counts a request that makes work, or refuses it where the key has had its share.
    pub fn admit(&self) -> Result<Permit, ApiError> {
        let name = &self.key.entry.name;
        let open = match &self.key.open {
            None => None,
            Some(open) => Some(open.clone().try_acquire_owned().map_err(|_| {
                let most = self.key.entry.max_open.unwrap_or_default();
                ApiError::busy(format!(
                    "the key {name} has {most} requests open, as many as it may; wait for one to end"
                ))
            })?),
        };
        if let Some(Err(wait)) = self.key.allowance.as_ref().map(Allowance::take) {
            let most = self.key.entry.requests_per_minute.unwrap_or_default();
            let error = ApiError::busy(format!("the key {name} may send {most} requests a minute; send fewer"));
            return Err(ApiError { retry_after: wait.as_secs_f64().ceil() as u32, ..error });
        }
        Ok(Permit { _open: open })
    }
}

/// SHA-256, by which keys are known.
pub(crate) fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

fn refused(message: &str) -> ApiError {
    ApiError::new(401, "authentication_error", Some("invalid_api_key"), message)
}

impl FromRequestParts<State> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Refusal> {
        let key = match &state.keys {
            None => state.everybody.clone(),
            Some(keys) => {
                let header = parts.headers.get(AUTHORIZATION).ok_or_else(|| {
                    refused("expected an API key in the header `Authorization: Bearer KEY`, found none")
                })?;
                let (scheme, key) = header.to_str().ok().and_then(|text| text.split_once(' ')).unwrap_or_default();
                let key = if scheme.eq_ignore_ascii_case("bearer") { key.trim() } else { "" };
                keys.find(&digest(key))
                    .ok_or_else(|| refused("this API key is not known here; `baton gateway key NAME` makes one"))?
            }
        };
        Ok(Self { tenant: key.entry.tenant.clone(), key })
    }
}

impl FromRequestParts<State> for Tenant {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Refusal> {
        Caller::from_request_parts(parts, state).await.map(|caller| Self(caller.tenant))
    }
}
