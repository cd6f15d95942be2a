//! Which hosts and sites may ask: a browser sends requests on behalf of any page that it shows.
//!
//! Without keys a gateway serves this machine's programs, and whoever reaches it is one of them; but a page of any site can
//! send it requests, and once the site's name leads to 127.0.0.1 (DNS rebinding) reads the answers, too. So without keys a
//! request must name a host that is the gateway's own, and must not come from another site's page: browsers say where a
//! request comes from in headers that pages can't set, and programs send none of them. With keys neither is needed, because
//! no page has a key that was not given to it.

use std::net::{IpAddr, SocketAddr};

use axum::{
    extract::{Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, Uri,
        header::{HOST, ORIGIN, RETRY_AFTER},
        uri::Authority,
    },
    middleware::Next,
    response::{IntoResponse, Response},
};
use baton_openai::ApiError;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::refusal::Refusal;

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
/// Characters of a host or an origin that an error shows.
const SHOWN: usize = 100;

/// Where requests may come from.
#[derive(Clone, Debug)]
pub(crate) struct Sites {
    /// Whether callers show keys.
    pub(crate) keyed: bool,
    pub(crate) listen: IpAddr,
    /// Further hosts under which requests may come without keys.
    pub(crate) hosts: Vec<String>,
    /// Sites that browsers may let in; `*` is all.
    pub(crate) origins: Vec<String>,
}

impl Sites {
    pub(crate) fn new(keyed: bool, listen: SocketAddr, hosts: Vec<String>, origins: Vec<String>) -> Self {
        Self { keyed, listen: listen.ip(), hosts, origins }
    }

    /// Answers the questions that browsers ask before they send a request for a page, and lets the listed sites read answers.
    pub(crate) fn cors(&self) -> CorsLayer {
        let every = self.origins.iter().any(|origin| origin == "*");
        let listed = self.origins.iter().filter_map(|origin| HeaderValue::from_str(&origin.to_ascii_lowercase()).ok());
        let origins = if every { AllowOrigin::any() } else { AllowOrigin::list(listed) };
        CorsLayer::new()
            .allow_origin(origins)
            .allow_methods([Method::GET, Method::POST, Method::DELETE])
            // Clients have headers of their own, and none of them gives rights to anybody.
            .allow_headers(AllowHeaders::mirror_request())
            .allow_private_network(true)
            .expose_headers([
                HeaderName::from_static("baton-job-id"),
                HeaderName::from_static("x-request-id"),
                RETRY_AFTER,
            ])
    }

    /// Refuses what a page of another site sends, and what is meant for another host.
    fn check(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
        if self.keyed {
            return Ok(());
        }
        let host = self.host(uri, headers)?;
        self.site(method, &host, headers)
    }

    /// The host that a request is for, if it is one of ours.
    fn host(&self, uri: &Uri, headers: &HeaderMap) -> Result<Authority, ApiError> {
        let mut named = headers.get_all(HOST).iter();
        let (first, second) = (named.next(), named.next());
        let (Some(first), None) = (first, second) else {
            return Err(ApiError::invalid("expected one header Host, which names this gateway, found none or several"));
        };
        let read = |host: &HeaderValue| host.to_str().ok()?.parse::<Authority>().ok();
        let host = read(first).filter(|host| !host.as_str().contains('@'));
        let host = host.filter(|host| self.is_ours(host.host()));
        // A request to a proxy names the host in its first line, too, and that counts as well.
        match host.filter(|_| uri.authority().is_none_or(|authority| self.is_ours(authority.host()))) {
            Some(host) => Ok(host),
            None => {
                let found: String = String::from_utf8_lossy(first.as_bytes()).chars().take(SHOWN).collect();
                let message = format!(
                    "without keys this gateway answers under this machine's names only, as in localhost or 127.0.0.1; found \
                     the host {found:?}; to let it in add it to gateway.hosts, or set gateway.keys_file"
                );
                Err(ApiError::new(421, "invalid_request_error", Some("unknown_host"), message))
            }
        }
    }

    fn is_ours(&self, host: &str) -> bool {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let bare = bare.strip_suffix('.').unwrap_or(bare);
        let known = self.hosts.iter().any(|known| known.eq_ignore_ascii_case(bare));
        let own = match bare.parse::<IpAddr>().map(|address| address.to_canonical()) {
            // No site can make a browser write an address where it has a name.
            Ok(address) => {
                self.listen.is_unspecified() || address.is_loopback() || address == self.listen.to_canonical()
            }
            Err(_) => bare.eq_ignore_ascii_case("localhost"),
        };
        known || own
    }

    /// Refuses what a browser sends for a page of another site, unless that site is let in.
    fn site(&self, method: &Method, host: &Authority, headers: &HeaderMap) -> Result<(), ApiError> {
        let origin = headers.get(ORIGIN).and_then(|origin| origin.to_str().ok());
        let own = match (headers.get(FETCH_SITE), origin) {
            (Some(site), _) => {
                // Somebody who follows a link to the live page; the page with the link sees nothing of it.
                let follows = method == Method::GET && headers.get(FETCH_MODE).is_some_and(|mode| mode == "navigate");
                follows || site == "same-origin" || site == "none"
            }
            // A browser that is some years old, or a page that was not loaded by https.
            (None, Some(origin)) => is_of(origin, host),
            (None, None) => !headers.contains_key(ORIGIN),
        };
        if own || origin.is_some_and(|origin| self.lets_in(origin)) {
            return Ok(());
        }
        let found: String = origin.unwrap_or("not told").chars().take(SHOWN).collect();
        let message = format!(
            "without keys this gateway serves programs and its own page, not the pages of other sites; the request came from \
             a page, origin {found:?}; to let it in add its origin to gateway.cors_origins"
        );
        Err(ApiError::new(403, "invalid_request_error", Some("foreign_origin"), message))
    }

    fn lets_in(&self, origin: &str) -> bool {
        self.origins.iter().any(|known| known == "*" || known.eq_ignore_ascii_case(origin))
    }
}

/// Whether a page's origin is that of the host which the request is for.
fn is_of(origin: &str, host: &Authority) -> bool {
    let bare = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    bare.is_some_and(|bare| bare.eq_ignore_ascii_case(host.as_str()))
}

/// Refuses requests of strangers before anything else is looked at.
pub(crate) async fn admit(State(sites): State<std::sync::Arc<Sites>>, request: Request, next: Next) -> Response {
    match sites.check(request.method(), request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => Refusal(error).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sites(keyed: bool, listen: &str) -> Sites {
        let texts = |texts: &[&str]| texts.iter().map(|text| text.to_string()).collect();
        Sites::new(keyed, listen.parse().unwrap(), texts(&["gpu.example"]), texts(&["https://app.example"]))
    }

    fn status(sites: &Sites, method: Method, target: &str, told: &[(&'static str, &str)]) -> u16 {
        let mut headers = HeaderMap::new();
        for (name, value) in told {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        sites.check(&method, &target.parse().unwrap(), &headers).map_or_else(|error| error.status, |()| 200)
    }

    #[test]
    fn without_keys_only_this_machines_names_are_answered() {
        let ours = sites(false, "127.0.0.1:8080");
        let get = |host: &str| status(&ours, Method::GET, "/v1/files", &[("host", host)]);
        for host in [
            "127.0.0.1:8080",
            "localhost",
            "LocalHost:9",
            "localhost.:80",
            "[::1]:8080",
            "[::ffff:127.0.0.1]",
            "GPU.example:1",
        ] {
            assert_eq!(get(host), 200, "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "user@localhost",
            "10.0.0.1",
            "[fe80::1]",
            "",
            "localhost:80:80",
            "xn--localhost",
        ] {
            assert_eq!(get(host), 421, "{host}");
        }
        assert_eq!(status(&ours, Method::GET, "/", &[]), 400, "no host");
        assert_eq!(status(&ours, Method::GET, "/", &[("host", "localhost"), ("host", "evil.example")]), 400);
        // The first line names a host as well.
        for (target, expected) in [("http://evil.example/", 421), ("http://localhost:8080/", 200)] {
            assert_eq!(status(&ours, Method::GET, target, &[("host", "localhost")]), expected, "{target}");
        }
        // Whoever opens it to others is reached under any address, but no name that is not listed.
        let open = sites(false, "0.0.0.0:8080");
        for (host, expected) in
            [("10.0.0.1:8080", 200), ("[fe80::1]", 200), ("gpu.example", 200), ("evil.example", 421)]
        {
            assert_eq!(status(&open, Method::GET, "/", &[("host", host)]), expected, "{host}");
        }
        let one = sites(false, "10.0.0.1:8080");
        for (host, expected) in [("10.0.0.1:8080", 200), ("10.0.0.2:8080", 421), ("localhost", 200)] {
            assert_eq!(status(&one, Method::GET, "/", &[("host", host)]), expected, "{host}");
        }
        assert_eq!(status(&sites(true, "0.0.0.0:8080"), Method::GET, "/", &[("host", "any.example")]), 200);
    }

    #[test]
    fn without_keys_pages_of_other_sites_are_refused_and_programs_are_not() {
        let ours = sites(false, "127.0.0.1:8080");
        let host = ("host", "127.0.0.1:8080");
        let post =
            |told: &[(&'static str, &str)]| status(&ours, Method::POST, "/v1/files", &[&[host][..], told].concat());
        for program in [
            &[][..],
            &[("origin", "http://127.0.0.1:8080")],
            &[("origin", "http://127.0.0.1:8080"), ("sec-fetch-site", "same-origin")],
            &[("sec-fetch-site", "none")],
            &[("origin", "https://app.example"), ("sec-fetch-site", "cross-site")],
            &[("origin", "https://app.example")],
        ] {
            assert_eq!(post(program), 200, "{program:?}");
        }
        for page in [
            &[("origin", "https://evil.example")][..],
            &[("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")],
            &[("origin", "http://localhost:3000"), ("sec-fetch-site", "same-site")],
            &[("origin", "http://127.0.0.1:9090")],
            &[("origin", "null")],
            &[("sec-fetch-site", "cross-site")],
            &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")],
            &[("origin", "https://app.example.evil")],
        ] {
            assert_eq!(post(page), 403, "{page:?}");
        }
        let link = [host, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
        assert_eq!(status(&ours, Method::GET, "/", &link), 200, "a link to the live page");
        let picture = [host, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")];
        assert_eq!(status(&ours, Method::GET, "/api/live", &picture), 403);
        let foreign = [host, ("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")];
        assert_eq!(status(&sites(true, "0.0.0.0:1"), Method::POST, "/", &foreign), 200, "keys are needed all the same");
    }
}
