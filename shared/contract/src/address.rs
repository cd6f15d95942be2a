//! Addresses of brokers, stores and webhooks, which may hold a password: what is shown of one never holds it.

/// What is shown instead of a secret.
const HIDDEN: &str = "***";

/// An address, or several separated by commas, without passwords and tokens: `nats://bob:***@host`.
pub fn without_secrets(addresses: &str) -> String {
    let mut shown = String::with_capacity(addresses.len());
    let mut rest = addresses;
    while let Some(end) = end_of_login(rest) {
        let before = &rest[..end];
        let start = before.rfind("://").map(|at| at + 3).or_else(|| before.rfind(',').map(|at| at + 1)).unwrap_or(0);
        let login = &before[start..];
        shown.push_str(&before[..start]);
        match login.split_once(':') {
            _ if is_host_and_path(login) => shown.push_str(login),
            Some((user, _)) => shown.extend([user, ":", HIDDEN]),
            // A token.
            None => shown.push_str(HIDDEN),
        }
        shown.push('@');
        rest = &rest[end + 1..];
    }
    shown.push_str(rest);
    shown
}

/// The @ after a login, or after what may be one. A password may hold one itself.
fn end_of_login(text: &str) -> Option<usize> {
    let mut end = text.find('@')?;
    while let Some(more) = text[end + 1..].find('@')
        && !text[end + 1..end + 1 + more].contains(['/', ',', ':'])
    {
        end += 1 + more;
    }
    Some(end)
}

/// Whether this is no login but a host, and the beginning of a path that holds an @.
fn is_host_and_path(text: &str) -> bool {
    let Some((authority, _)) = text.split_once('/') else { return false };
    let port = authority.rsplit_once(':').map_or("", |(_, port)| port);
    port.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_shown() {
        for (address, shown) in [
            ("nats://bob:hunter2@a:4222", "nats://bob:***@a:4222"),
            ("nats://bob:hunter2@a, tls://eve:pw@b:1/x", "nats://bob:***@a, tls://eve:***@b:1/x"),
            ("nats://t0ken@a", "nats://***@a"),
            ("bob:hunter2@a,eve:pw@b", "bob:***@a,eve:***@b"),
            // What no URL may hold unescaped.
            ("nats://bob:hun,t@er2@a,tls://b", "nats://bob:***@a,tls://b"),
            ("nats://bob:hun/ter2@a", "nats://bob:***@a"),
            // No login at all.
            ("nats://a:4222,b", "nats://a:4222,b"),
            ("s3://bucket/me@home", "s3://bucket/me@home"),
            ("https://a:80/me@home", "https://a:80/me@home"),
        ] {
            assert_eq!(without_secrets(address), shown);
        }
    }
}
