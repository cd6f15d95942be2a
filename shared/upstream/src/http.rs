//! The way to an engine: one client for all instances of a model, with a bound on every wait and on every body.

use std::{fs, sync::Once, time::Duration};

use baton_contract::causes;
use bytes::Bytes;
use reqwest::{
    Certificate, Client, Method, Response, Url,
    header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, DATE, HeaderMap, RETRY_AFTER},
    redirect::Policy,
};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use crate::{
    Error, Fault, Options,
    key::Key,
    refusal::{Site, refused},
};

/// A connection is there within this time, or the instance is not.
const CONNECT: Duration = Duration::from_secs(5);
/// Engines close connections that are idle for 5 seconds; one that is closed just as a request goes out costs a try.
const IDLE: Duration = Duration::from_secs(4);
/// A refusal's body is read up to here.
const MOST_REFUSAL_BYTES: usize = 64 << 10;

/// A model's client.
#[derive(Debug)]
pub(crate) struct Http {
    client: Client,
    key: Option<Key>,
    /// The longest silence.
    pub(crate) timeout: Duration,
}

/// What is sent.
pub(crate) struct Sent<'a> {
    pub(crate) method: Method,
    pub(crate) url: Url,
    /// JSON, or nothing.
    pub(crate) body: Bytes,
    /// Headers of the trace.
    pub(crate) trace: &'a [(String, String)],
    /// How long the wait for an answer's beginning, or for a refusal, may be.
    pub(crate) limit: Limit,
}

/// The end of a wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    until: Instant,
    within: Duration,
}

impl Limit {
    /// One that begins now.
    pub(crate) fn within(within: Duration) -> Self {
        Self { until: Instant::now() + within, within }
    }

    /// Whether the wait took too long.
    pub(crate) fn is_over(self) -> bool {
        Instant::now() >= self.until
    }

    /// Waits for what an instance says.
    pub(crate) async fn wait<T>(self, at: &str, what: impl Future<Output = T>) -> Result<T, Fault> {
        let silent = |_| Fault::later(format!("{at} said nothing of use for {:?}", self.within));
        timeout_at(self.until, what).await.map_err(silent)
    }
}

impl Http {
    /// A client that follows no redirect and asks no proxy, whatever the environment says: what goes to an engine goes there.
    /// Certificates are checked against those that the system trusts, and the `ca_file`'s.
    pub(crate) fn new(options: &Options) -> Result<Self, Error> {
        static PROVIDER: Once = Once::new();
        // Fails only if the process has one already, which will do.
        PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
        let key = options.api_key_file.as_deref().map(Key::read).transpose()?;
        let mut client = Client::builder()
            .redirect(Policy::none())
            .no_proxy()
            .referer(false)
            .user_agent(concat!("baton/", env!("CARGO_PKG_VERSION")))
            .tcp_nodelay(true)
            .connect_timeout(CONNECT)
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(usize::MAX);
        if let Some(path) = &options.ca_file {
            let read = |source| Error::Read { path: path.clone(), source };
            let bundle = Certificate::from_pem_bundle(&fs::read(path).map_err(read)?).unwrap_or_default();
            if bundle.is_empty() {
                return Err(Error::Ca { path: path.clone() });
            }
            client = client.tls_certs_merge(bundle);
        } else if options.urls.iter().chain(&options.prefill_urls).all(|url| url.starts_with("http://")) {
            // Nothing to check: a machine without certificates will do.
            client = client.tls_certs_only([]);
        }
        let client = client.build().map_err(|source| Error::Client { model: options.name.clone(), source })?;
        Ok(Self { client, key, timeout: options.timeout })
    }

    /// Who is at a URL, for messages.
    pub(crate) fn site<'a>(&'a self, url: &'a str) -> Site<'a> {
        Site { url, key_file: self.key.as_ref().map(Key::path) }
    }

    /// A fault that does not hold the key.
    pub(crate) fn told(&self, fault: Fault) -> Fault {
        match &self.key {
            Some(key) => Fault { message: key.hide(&fault.message), ..fault },
            None => fault,
        }
    }

    /// Sends a request. Returns once a response of success begins; any other is a fault.
    pub(crate) async fn send(&self, at: &str, sent: &Sent<'_>) -> Result<Response, Fault> {
        let mut first = true;
        loop {
            let mut request = self.client.request(sent.method.clone(), sent.url.clone());
            if !sent.body.is_empty() {
                request = request.body(sent.body.clone()).header(CONTENT_TYPE, "application/json");
                request = request.header(ACCEPT, "text/event-stream, application/json");
            }
            if let Some(key) = &self.key {
                request = request.header(AUTHORIZATION, key.header());
            }
            for (name, value) in sent.trace {
                request = request.header(name, value);
            }
            let response = match sent.limit.wait(at, request.send()).await? {
                Ok(response) => response,
                // The connection had been idle, and was closed just then.
                Err(error) if first && is_closed(&error) => {
                    first = false;
                    continue;
                }
                Err(error) => return Err(lost(at, &error)),
            };
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            // A key that has been replaced in its file is used from then on.
            if first && status.as_u16() == 401 && self.key.as_ref().is_some_and(Key::renew) {
                first = false;
                continue;
            }
            return Err(self.refusal(at, response, sent.limit).await);
        }
    }

    async fn refusal(&self, at: &str, response: Response, limit: Limit) -> Fault {
        let (status, pause) = (response.status().as_u16(), pause(response.headers()));
        // The status says enough where the body can't be read.
        let body = body(at, response, MOST_REFUSAL_BYTES, limit).await.unwrap_or_default();
        let body = serde_json::from_slice(&body).unwrap_or_else(|_| prose(&body));
        self.told(refused(self.site(at), status, pause, &body))
    }
}

/// A body that is no JSON: a page for people says nothing that fits into a line.
fn prose(body: &[u8]) -> Value {
    let text = String::from_utf8_lossy(body);
    match text.trim() {
        "" => Value::Null,
        page if page.starts_with('<') => "(an HTML page)".into(),
        text => text.chars().filter(|c| !c.is_control()).take(200).collect::<String>().into(),
    }
}

/// A whole body of at most `most` bytes, however its size is told.
pub(crate) async fn body(at: &str, mut response: Response, most: usize, limit: Limit) -> Result<Vec<u8>, Fault> {
    let large = || Fault::elsewhere(format!("{at} answered with more than {most} bytes"));
    let told = response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if told.is_some_and(|told| told > most as u64) {
        return Err(large());
    }
    let mut body = Vec::new();
    loop {
        let bytes = limit.wait(at, response.chunk()).await?;
        let Some(bytes) = bytes.map_err(|error| lost(at, &error))? else { return Ok(body) };
        if body.len() + bytes.len() > most {
            return Err(large());
        }
        body.extend_from_slice(&bytes);
    }
}

/// A pause as engines ask for it: in seconds, or until a time, which is compared with the engine's own clock.
fn pause(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let after = text(RETRY_AFTER)?;
    if let Ok(seconds) = after.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let (then, now) = (httpdate::parse_http_date(after).ok()?, httpdate::parse_http_date(text(DATE)?).ok()?);
    Some(then.duration_since(now).unwrap_or_default())
}

/// A connection that failed.
pub(crate) fn lost(at: &str, error: &reqwest::Error) -> Fault {
    let said = sources(error).map_or_else(|| error.to_string(), causes);
    if let Some(parse) = find::<hyper::Error>(error).filter(|error| error.is_parse()) {
        return match parse.is_parse_too_large() {
            true => Fault::elsewhere(format!("{at} answered with headers that are too large")),
            false => Fault::later(format!("{at} does not speak HTTP/1.1; check the model's urls: {said}")),
        };
    }
    if error.is_connect() {
        let help = match find::<rustls::Error>(error) {
            Some(rustls::Error::InvalidCertificate(_)) => {
                "; name the CA that signed its certificate as the model's ca_file"
            }
            _ => "",
        };
        return Fault::later(format!("{at} can't be reached: {said}{help}"));
    }
    Fault::later(format!("the connection to {at} was lost: {said}"))
}

/// What is below the client's own words, which hold the URL, and those of its layers, which say nothing.
fn sources(error: &reqwest::Error) -> Option<&(dyn std::error::Error + 'static)> {
    let first = std::error::Error::source(error)?;
    if error.is_body() || error.is_decode() { Some(first) } else { first.source().or(Some(first)) }
}

/// Whether an engine closed the connection before it said anything.
fn is_closed(error: &reqwest::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    let cut = |error: &std::io::Error| matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof);
    !error.is_connect()
        && (find::<hyper::Error>(error).is_some_and(hyper::Error::is_incomplete_message)
            || find::<std::io::Error>(error).is_some_and(cut))
}

/// The first cause of a kind.
fn find<E: std::error::Error + 'static>(error: &reqwest::Error) -> Option<&E> {
    let mut next = std::error::Error::source(error);
    while let Some(one) = next {
        if let Some(found) = one.downcast_ref::<E>() {
            return Some(found);
        }
        // Such an error does not name what it holds as its source.
        let within = one.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = match within {
            Some(within) => Some(within),
            None => one.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_read_in_seconds_and_as_times() {
        let of = |after: &str, date: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, after.parse().unwrap());
            if let Some(date) = date {
                headers.insert(DATE, date.parse().unwrap());
            }
            pause(&headers).map(|pause| pause.as_millis())
        };
        let now = Some("Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(of("7", None), Some(7_000));
        assert_eq!(of("0.25", None), Some(250));
        assert_eq!(of("Sun, 06 Nov 1994 08:49:40 GMT", now), Some(3_000));
        assert_eq!(of("Sun, 06 Nov 1994 08:00:00 GMT", now), Some(0));
        for odd in ["-1", "soon", "1e400", "NaN", "Sun, 06 Nov 1994 08:49:40 GMT"] {
            assert_eq!(of(odd, None), None, "{odd}");
        }
        assert_eq!(pause(&HeaderMap::new()), None);
    }
}
