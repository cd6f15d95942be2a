//! As whom to come to the broker: by a credentials file, and by what stands in its URLs.

use std::{io, path::Path};

use async_nats::Auth;
use nkeys::KeyPair;
use percent_encoding::percent_decode_str;

use crate::Error;

/// What the URLs tell: a user, a user and a password, or a token.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Login {
    user: Option<String>,
    password: Option<String>,
    token: Option<String>,
}

/// The servers of URLs separated by commas, without the login that they tell.
pub(super) fn of_urls(urls: &str) -> Result<(Vec<String>, Login), Error> {
    let mut servers = Vec::new();
    let mut login = Login::default();
    for url in urls.split(',').map(str::trim) {
        let (scheme, rest) = url.split_once("://").unwrap_or(("nats", url));
        let (told, host) = rest.rsplit_once('@').unwrap_or(("", rest));
        servers.push(format!("{scheme}://{host}"));
        let told = Login::parse(told)?;
        if login == Login::default() {
            login = told;
        } else if told != Login::default() && told != login {
            return Err(Error::Logins);
        }
    }
    Ok((servers, login))
}

impl Login {
    fn parse(text: &str) -> Result<Self, Error> {
        let decode = |text: &str| percent_decode_str(text).decode_utf8().map(Into::into).map_err(|_| Error::Logins);
        Ok(match text.split_once(':') {
            None if text.is_empty() => Self::default(),
            None => Self { token: Some(decode(text)?), ..Self::default() },
            Some((user, password)) => {
                Self { user: Some(decode(user)?), password: Some(decode(password)?), ..Self::default() }
            }
        })
    }

    /// What the broker is answered that has sent a `nonce` to be signed.
    pub(super) fn answer(&self, credentials: Option<&Path>, nonce: &[u8]) -> Result<Auth, Error> {
        let mut auth = Auth::new();
        (auth.username, auth.password, auth.token) = (self.user.clone(), self.password.clone(), self.token.clone());
        if let Some(path) = credentials {
            let unreadable = |source| Error::Credentials { path: path.to_owned(), source };
            let text = std::fs::read_to_string(path).map_err(unreadable)?;
            let (jwt, signature) = sign(&text, nonce).map_err(|message| unreadable(io::Error::other(message)))?;
            (auth.jwt, auth.signature) = (Some(jwt), Some(signature));
        }
        Ok(auth)
    }
}

/// The JWT of a credentials file, and the nonce signed by its seed.
fn sign(credentials: &str, nonce: &[u8]) -> Result<(String, Vec<u8>), &'static str> {
    let jwt = section(credentials, "BEGIN NATS USER JWT").ok_or("it has no user JWT")?;
    let seed = section(credentials, "BEGIN USER NKEY SEED").ok_or("it has no seed")?;
    let key = KeyPair::from_seed(seed).map_err(|_| "its seed is no NKey seed")?;
    let signature = key.sign(nonce).map_err(|_| "its seed can sign nothing")?;
    Ok((jwt.to_owned(), signature))
}

/// The line below a title.
fn section<'a>(text: &'a str, title: &str) -> Option<&'a str> {
    let below = text.lines().skip_while(|line| !line.contains(title)).skip(1);
    below.map(str::trim).find(|line| !line.is_empty()).filter(|line| !line.starts_with('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(user: &str, password: &str, token: &str) -> Login {
        let said = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Login { user: said(user), password: said(password), token: said(token) }
    }

    #[test]
    fn urls_tell_servers_and_one_login() {
        for (urls, servers, expected) in [
            ("nats://a:4222", vec!["nats://a:4222"], login("", "", "")),
            ("bob:s%40cret@a", vec!["nats://a"], login("bob", "s@cret", "")),
            ("tls://t%6Fken@a, nats://b:1", vec!["tls://a", "nats://b:1"], login("", "", "token")),
            ("nats://a,nats://bob:x:y@b", vec!["nats://a", "nats://b"], login("bob", "x:y", "")),
        ] {
            let (found, told) = of_urls(urls).unwrap();
            assert_eq!(found, servers);
            assert!(told == expected, "{urls}");
        }
        assert!(matches!(of_urls("nats://bob:x@a,nats://eve:x@b"), Err(Error::Logins)));
    }

    #[test]
    fn a_credentials_file_is_read_anew_for_every_answer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("user.creds");
        let keys = [KeyPair::new_user(), KeyPair::new_user()];
        for (number, key) in keys.iter().enumerate() {
            let seed = key.seed().unwrap();
            let text = format!(
                "-----BEGIN NATS USER JWT-----\njwt{number}\n------END NATS USER JWT------\n\nimportant\n\
                 -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
            );
            std::fs::write(&path, text).unwrap();
            let auth = Login::default().answer(Some(&path), b"nonce").unwrap();
            assert_eq!(auth.jwt.unwrap(), format!("jwt{number}"));
            key.verify(b"nonce", &auth.signature.unwrap()).unwrap();
        }
        std::fs::write(&path, "-----BEGIN NATS USER JWT-----\n------END NATS USER JWT------\n").unwrap();
        assert!(matches!(Login::default().answer(Some(&path), b""), Err(Error::Credentials { .. })));
    }
}
