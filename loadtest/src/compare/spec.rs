//! Targets as texts, as `loadtest compare` takes them.

use std::{path::PathBuf, str::FromStr};

use baton_contract::Name;
use baton_load::target::{Api, Server};

/// A target as it was named.
#[derive(Clone, Debug)]
pub enum Spec {
    /// `bus:nats://host:4222?root=baton&model=m`, or `bus:` for this machine's embedded pipeline.
    Bus { url: Option<String>, root: Name, model: Option<String> },
    /// `openai:http://host:8000?api=chat&model=m`.
    OpenAi { server: Server, model: Option<String> },
    /// The path of a pipeline file that is started for the purpose.
    Pipeline(PathBuf),
}

const EXPECTED: &str =
    "bus:URL?root=ROOT&model=M, openai:URL?api=chat|completions&model=M or the path of a pipeline file";

/// A text that names no target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("target: expected {EXPECTED}, found {0:?}")]
pub struct Error(String);

impl Spec {
    /// The target in a few words.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Bus { url, root, .. } => format!("bus {} ({root})", url.as_deref().unwrap_or("of this machine")),
            Self::OpenAi { server, .. } => format!("openai {}", server.url),
            Self::Pipeline(file) => file.display().to_string(),
        }
    }
}

impl FromStr for Spec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refused = || Error(text.chars().take(200).collect());
        let (kind, rest) = match text.split_once(':') {
            Some((kind @ ("bus" | "openai"), rest)) => (kind, rest),
            _ if text.ends_with(".toml") => return Ok(Self::Pipeline(text.into())),
            _ => return Err(refused()),
        };
        let (url, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (mut root, mut model, mut api) = (Name::new("baton").map_err(|_| refused())?, None, Api::Chat);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match (kind, pair.split_once('=').ok_or_else(refused)?) {
                ("bus", ("root", value)) => root = Name::new(value).map_err(|_| refused())?,
                (_, ("model", value)) => model = Some(value.to_owned()),
                ("openai", ("api", "chat")) => api = Api::Chat,
                ("openai", ("api", "completions")) => api = Api::Completions,
                _ => return Err(refused()),
            }
        }
        if kind == "bus" {
            return Ok(Self::Bus { url: (!url.is_empty()).then(|| url.to_owned()), root, model });
        }
        if !(url.starts_with("http://") || url.starts_with("https://")) {
            return Err(refused());
        }
        Ok(Self::OpenAi { server: Server::new(url.to_owned(), api), model })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_and_others_refused() {
        let bus = "bus:nats://broker:4222?root=other&model=a/b".parse().unwrap();
        assert!(
            matches!(&bus, Spec::Bus { url: Some(url), root, model: Some(model) }
                if url == "nats://broker:4222" && root.as_str() == "other" && model == "a/b"),
            "{bus:?}"
        );
        assert!(matches!("bus:".parse(), Ok(Spec::Bus { url: None, model: None, .. })));
        let openai = "openai:http://127.0.0.1:8000/v1?api=completions".parse().unwrap();
        assert!(
            matches!(&openai, Spec::OpenAi { server: Server { url, api: Api::Completions, .. }, model: None }
                if url == "http://127.0.0.1:8000/v1"),
            "{openai:?}"
        );
        assert!(matches!("pipelines/balanced.toml".parse(), Ok(Spec::Pipeline(_))));
        for bad in ["", "openai:host", "openai:http://h?root=x", "bus:?lane=x", "bus:?root=A B", "pipelines", "ftp:x"] {
            assert!(bad.parse::<Spec>().is_err(), "{bad}");
        }
    }
}
