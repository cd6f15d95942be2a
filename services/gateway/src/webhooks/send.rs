//! One call of a webhook.

use std::{net::SocketAddr, time::Duration};

use baton_contract::causes;
use reqwest::{Client, StatusCode, Url, redirect::Policy};
use tokio::{net::lookup_host, time::timeout};

use super::{
    guard::{self, Range},
    sign::Secret,
};

/// How long a call may take, the look-up of the host's name included.
const WITHIN: Duration = Duration::from_secs(10);

pub(super) struct Call<'a> {
    pub(super) id: &'a str,
    pub(super) url: &'a str,
    pub(super) secret: &'a str,
    pub(super) body: String,
    /// The time that receivers compare with theirs, in milliseconds since 1970.
    pub(super) now_ms: u64,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("expected a url such as https://example.org/hook, without a user or password")]
    Url,
    #[error("expected a secret of whsec_ and 24 to 64 bytes in base64")]
    Secret,
    #[error("the host's name leads to no address: {0}")]
    Unknown(String),
    #[error("{0} is an internal address; gateway.webhooks_allow may allow it")]
    Internal(std::net::IpAddr),
    #[error("no answer within {WITHIN:?}")]
    Slow,
    #[error("the call failed: {0}")]
    Failed(String),
    #[error("the receiver answered {0}")]
    Refused(StatusCode),
}

impl Error {
    /// Whether the receiver wants no more of it.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Refused(StatusCode::GONE))
    }
}

/// Makes a call, unless it leads to an internal address. Whatever a name stands for is looked up once, checked, and what was
/// checked is connected to. Redirects are not followed.
pub(super) async fn send(call: Call<'_>, allow: &[Range]) -> Result<(), Error> {
    timeout(WITHIN, attempt(call, allow)).await.map_err(|_| Error::Slow)?
}

async fn attempt(call: Call<'_>, allow: &[Range]) -> Result<(), Error> {
    let secret = Secret::read(call.secret).ok_or(Error::Secret)?;
    let url = checked(call.url).ok_or(Error::Url)?;
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else { return Err(Error::Url) };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let addresses = lookup_host((bare, port)).await.map_err(|error| Error::Unknown(causes(&error)))?;
    let addresses: Vec<SocketAddr> = addresses.collect();
    if addresses.is_empty() {
        return Err(Error::Unknown("none was found".into()));
    }
    if let Some(internal) = addresses.iter().find(|address| !guard::may_call(address.ip(), allow)) {
        return Err(Error::Internal(internal.ip()));
    }
    let failed = |error: reqwest::Error| Error::Failed(causes(&error.without_url()));
    // A client of its own for each call: it knows no other address of the host, and keeps no connection.
    let client = Client::builder().no_proxy().redirect(Policy::none()).resolve_to_addrs(host, &addresses);
    let client = client.build().map_err(failed)?;
    let timestamp = call.now_ms / 1_000;
    let request = client
        .post(url)
        .header("content-type", "application/json")
        .header("user-agent", concat!("baton/", env!("CARGO_PKG_VERSION")))
        .header("webhook-id", call.id)
        .header("webhook-timestamp", timestamp.to_string())
        .header("webhook-signature", secret.sign(call.id, timestamp, &call.body))
        .body(call.body);
    let response = request.send().await.map_err(failed)?;
    if response.status().is_success() { Ok(()) } else { Err(Error::Refused(response.status())) }
}

/// A URL that can be called.
fn checked(url: &str) -> Option<Url> {
    let url: Url = url.parse().ok()?;
    let plain = matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.password().is_none();
    plain.then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn refused(url: &str) -> Error {
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        send(Call { id: "evt_1", url, secret, body: "{}".into(), now_ms: 0 }, &[]).await.unwrap_err()
    }

    #[tokio::test]
    async fn a_url_that_leads_inside_is_not_called_whatever_it_looks_like() {
        for url in [
            "http://127.0.0.1:1/",
            "http://localhost:1/",
            "http://[::1]:1/",
            "http://2130706433/",
            "http://0x7f.1/",
            "http://[::ffff:169.254.169.254]/latest/meta-data",
            "http://169.254.169.254/",
            "https://10.0.0.1/",
        ] {
            assert!(matches!(refused(url).await, Error::Internal(_)), "{url}");
        }
        for url in ["", "example.org", "ftp://example.org/", "file:///etc/passwd", "https://user:secret@example.org/"] {
            assert!(matches!(refused(url).await, Error::Url), "{url}");
        }
    }
}
