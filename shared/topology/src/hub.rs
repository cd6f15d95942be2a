//! Models of the Hugging Face hub, as pipelines name them.

use std::fmt;

/// A model of the hub: `hf:owner/name`, `hf:owner/name@revision`, `hf:owner/name/file.gguf` or
/// `hf:owner/name@revision/file.gguf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hub {
    /// `owner/name`.
    pub repository: String,
    /// A branch, a tag or a commit; without it the branch `main`.
    pub revision: Option<String>,
    /// A GGUF file in the repository. Without it the model is the folder: its safetensors.
    pub file: Option<String>,
}

impl Hub {
    /// What every model of the hub begins with.
    pub const PREFIX: &str = "hf:";

    /// The model that `text` names, if it names one. All parts are plain names that are safe in paths and URLs.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix(Self::PREFIX)?.split('/');
        let (owner, name) = (parts.next()?, parts.next()?);
        let (name, revision) = match name.split_once('@') {
            Some((name, revision)) => (name, Some(revision)),
            None => (name, None),
        };
        let file = parts.collect::<Vec<_>>();
        let plain = [owner, name].into_iter().chain(revision).chain(file.iter().copied()).all(is_plain);
        let gguf = file.last().is_none_or(|file| file.to_ascii_lowercase().ends_with(".gguf"));
        (plain && gguf).then(|| Self {
            repository: format!("{owner}/{name}"),
            revision: revision.map(str::to_owned),
            file: (!file.is_empty()).then(|| file.join("/")),
        })
    }
}

/// Letters, digits, `-`, `_` and `.`, the latter neither first nor doubled.
fn is_plain(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=96).contains(&name.len()) && !name.starts_with('.') && !name.contains("..") && name.chars().all(allowed)
}

impl fmt::Display for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", Self::PREFIX, self.repository)?;
        self.revision.iter().try_for_each(|revision| write!(f, "@{revision}"))?;
        self.file.iter().try_for_each(|file| write!(f, "/{file}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written_alike() {
        let parts = |text| Hub::parse(text).map(|hub| (hub.repository, hub.revision, hub.file));
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(parts("hf:a/b-1.5_x"), Some(("a/b-1.5_x".to_owned(), None, None)));
        assert_eq!(parts("hf:a/b@v1"), Some(("a/b".to_owned(), some("v1"), None)));
        assert_eq!(parts("hf:a/b@v1/x.gguf"), Some(("a/b".to_owned(), some("v1"), some("x.gguf"))));
        assert_eq!(parts("hf:a/b/q4/x.GGUF"), Some(("a/b".to_owned(), None, some("q4/x.GGUF"))));
        for text in ["hf:a/b", "hf:a/b@v1", "hf:a/b@v1/x.gguf", "hf:a/b/q4/x.gguf"] {
            assert_eq!(Hub::parse(text).map(|hub| hub.to_string()).as_deref(), Some(text));
        }
        let bad = [
            "a/b",
            "hf:a",
            "hf:",
            "hf:a/",
            "hf:/b",
            "hf:a/b@",
            "hf:a/b/",
            "hf:a/b/model.safetensors",
            "hf:a/../x.gguf",
            "hf:../b",
            "hf:a/b/../x.gguf",
            "hf:a/b/.x.gguf",
            "hf:a/b c",
            "hf:a/b@refs/pr/1",
            "hf:a/b?x=1",
            "hf:a/é",
            "hf:a/b@x@y",
        ];
        assert_eq!(bad.into_iter().filter(|text| Hub::parse(text).is_some()).collect::<Vec<_>>(), [""; 0]);
    }
}
