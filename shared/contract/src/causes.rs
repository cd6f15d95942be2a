//! How an error is printed: itself and what caused it, each once.

use std::error::Error;

/// An error's text and, after colons, the texts of its sources. The one place in the tree that prints a chain: an error's own
/// `Display` never holds its source. Other crates' errors often do, or say what their source says in more words: what was said
/// already is left out.
pub fn causes(error: &(dyn Error + 'static)) -> String {
    let mut parts = vec![error.to_string()];
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !said.is_empty() && !parts.iter().any(|part| part.contains(&said)) {
            parts.pop_if(|last| said.contains(&**last));
            parts.push(said);
        }
        source = cause.source();
    }
    parts.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Sample {
        #[error("cannot read the file")]
        Quiet { source: Box<Sample> },
        #[error("cannot fetch: {0}")]
        Chatty(#[source] Box<Sample>),
        #[error("permission denied")]
        Leaf,
        #[error("permission")]
        Shorter { source: Box<Sample> },
    }

    #[test]
    fn each_cause_is_said_once() {
        let chatty = Sample::Chatty(Box::new(Sample::Leaf));
        assert_eq!(causes(&chatty), "cannot fetch: permission denied");
        let nested = Sample::Quiet { source: Box::new(chatty) };
        assert_eq!(causes(&nested), "cannot read the file: cannot fetch: permission denied");
        assert_eq!(causes(&Sample::Leaf), "permission denied");
        let shorter = Sample::Shorter { source: Box::new(Sample::Leaf) };
        let nested = Sample::Quiet { source: Box::new(shorter) };
        assert_eq!(causes(&nested), "cannot read the file: permission denied");
    }
}
