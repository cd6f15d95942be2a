//! Tokens that stand for their text as a whole, wherever it occurs.

use std::collections::{HashMap, HashSet};

/// The special tokens of a vocabulary.
#[derive(Default)]
pub(super) struct Specials {
    tokens: HashMap<Box<[u8]>, Special>,
    /// By first byte: how long the texts are that begin with it, longest first.
    lengths: HashMap<u8, Vec<usize>>,
    /// All of their ids.
    ids: HashSet<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Special {
    pub(super) id: u32,
    /// Control tokens steer the model; text of users must not be able to produce them.
    pub(super) control: bool,
}

impl Specials {
    /// No text becomes a special token without text. Of equal texts the first counts.
    pub(super) fn add(&mut self, text: &str, special: Special) {
        self.ids.insert(special.id);
        let Some(first) = text.bytes().next() else { return };
        self.tokens.entry(text.as_bytes().into()).or_insert(special);
        let lengths = self.lengths.entry(first).or_default();
        if let Err(place) = lengths.binary_search_by(|length| text.len().cmp(length)) {
            lengths.insert(place, text.len());
        }
    }

    /// The longest special token that `text` begins with, and its length in bytes; control tokens only if `control`.
    /// The work depends on the number of different lengths, not on the number of tokens.
    pub(super) fn at(&self, text: &[u8], control: bool) -> Option<(Special, usize)> {
        let lengths = self.lengths.get(text.first()?)?;
        lengths.iter().find_map(|&length| {
            let special = self.tokens.get(text.get(..length)?)?;
            (control || !special.control).then_some((*special, length))
        })
    }

    pub(super) fn contains(&self, id: u32) -> bool {
        self.ids.contains(&id)
    }

    pub(super) fn text(&self, id: u32) -> Option<&str> {
        let (text, _) = self.tokens.iter().find(|(_, special)| special.id == id)?;
        std::str::from_utf8(text).ok()
    }

    /// Texts of the control tokens.
    pub(super) fn controls(&self) -> impl Iterator<Item = &str> {
        self.tokens.iter().filter(|(_, special)| special.control).filter_map(|(text, _)| std::str::from_utf8(text).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_that_may_stand_there_is_found() {
        let mut specials = Specials::default();
        for (id, (text, control)) in (0..).zip([("<a>", true), ("<", false), ("<a>b", true), ("<a", false), ("", true)])
        {
            specials.add(text, Special { id, control });
        }
        let id =
            |text: &str, control| specials.at(text.as_bytes(), control).map(|(special, length)| (special.id, length));
        assert_eq!(id("<a>bc", true), Some((2, 4)));
        assert_eq!(id("<a>", true), Some((0, 3)));
        assert_eq!(id("<a>b", false), Some((3, 2)));
        assert_eq!(id("<b>", true), Some((1, 1)));
        assert_eq!((id("a>", true), id("", true)), (None, None));
        let mut controls: Vec<_> = specials.controls().collect();
        controls.sort_unstable();
        assert_eq!(controls, ["<a>", "<a>b"]);
    }
}
