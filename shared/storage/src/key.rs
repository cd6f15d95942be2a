//! Names of KV chunks: a keyed BLAKE3 chain over token ids, so that equal prefixes of one tenant are one object.
//!
//! root = derive_key(fingerprint, tenant salt); link = keyed_hash(root, parent, tokens). Nobody without the salt and, in a
//! store with a key, the key, can name, or guess from a name, what a tenant's chunks hold.

use std::{fmt, ops::Range};

use crate::{codec::Codec, seal::SealKey};

pub use crate::id::{ChunkId, ParseIdError};

/// Separates Baton's roots from every other use of BLAKE3. The number is that of the chunk format: formats never meet
/// under one name, so a rolling upgrade neither misreads nor removes the other version's chunks.
const ROOT_CONTEXT: &str = "baton kv chunk root, format 2";

/// Leads the hashed bytes of a full chunk.
const LINK: u8 = 1;
/// Leads the hashed bytes of a job's tail.
const TAIL: u8 = 2;
/// Leads the hashed bytes of a root that needs a key.
const SECRET: u8 = 3;
/// Leads the hashed bytes of a root whose chunks lose something.
const PACKED: u8 = 4;

/// Where the chains of one tenant on one model begin.
///
/// The fingerprint must cover everything that changes KV values: weights, tokenizer, rope parameters, KV type and layout,
/// and a codec that loses information. Lossless codecs may share a root, since a reader takes the codec from the chunk.
#[derive(Clone)]
pub struct Root {
    key: [u8; 32],
}

/// Hides the key: with it, anyone can test which prompts a tenant has sent.
impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Root(..)")
    }
}

impl Root {
    /// The root for a model's `fingerprint` and a tenant's salt, of any length; tenants with different salts share no chunk. Only a
    /// secret salt also keeps others from computing the keys of texts they guess.
    pub fn new(fingerprint: &[u8; 32], tenant_salt: &[u8]) -> Self {
        let key =
            *blake3::Hasher::new_derive_key(ROOT_CONTEXT).update(fingerprint).update(tenant_salt).finalize().as_bytes();
        Self { key }
    }

    /// The root of the same chains in a store whose chunks `key` seals: nobody without the key can compute their names.
    pub fn secret(&self, key: &SealKey) -> Self {
        self.derive(SECRET, &key.names())
    }

    /// The root of the same chains in chunks that `codec` packs. Codecs that keep every bit share a root; each other one
    /// has its own, so that nobody who asked for exact values gets rounded ones.
    pub fn packed(&self, codec: Codec) -> Self {
        match codec.is_lossless() {
            true => self.clone(),
            false => self.derive(PACKED, codec.to_string().as_bytes()),
        }
    }

    fn derive(&self, domain: u8, by: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        Self { key: *hasher.update(&[domain]).update(by).finalize().as_bytes() }
    }

    /// The id of the full chunk that holds `tokens` after `parent`, or at the start of the prompt without one.
    pub fn link(&self, parent: Option<&ChunkId>, tokens: &[u32]) -> ChunkId {
        self.hash(LINK, parent, b"", tokens)
    }

    /// The id of the tail that holds `tokens` after `parent` for one `job` only.
    pub fn tail(&self, parent: Option<&ChunkId>, tokens: &[u32], job: &str) -> ChunkId {
        self.hash(TAIL, parent, job.as_bytes(), tokens)
    }

    /// Every part before the tokens has a fixed or a stated length, so no two inputs hash the same bytes.
    fn hash(&self, domain: u8, parent: Option<&ChunkId>, job: &[u8], tokens: &[u32]) -> ChunkId {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&[domain, u8::from(parent.is_some())]);
        hasher.update(&parent.map_or([0; 32], |id| id.0));
        hasher.update(&(job.len() as u64).to_le_bytes());
        hasher.update(job);
        for token in tokens {
            hasher.update(&token.to_le_bytes());
        }
        ChunkId(*hasher.finalize().as_bytes())
    }
}

/// What a piece of a prompt is stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceKind {
    /// A full chunk, shared by every job of the tenant whose prompt begins alike.
    Chunk,
    /// The rest that fills no chunk: of this job alone.
    Tail,
}

/// One stored piece of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The name to put or get it under.
    pub id: ChunkId,
    /// The positions of its tokens in the prompt.
    pub range: Range<usize>,
    /// Whether others may share it.
    pub kind: PieceKind,
}

/// The tail of `job` among the stored `pieces` of a prompt, each a name and its tokens: the last one, if it is named so.
pub fn tail_of(root: &Root, prompt: &[u32], pieces: &[(ChunkId, usize)], job: &str) -> Option<ChunkId> {
    let ((last, tokens), before) = pieces.split_last()?;
    let start: usize = before.iter().map(|(_, tokens)| tokens).sum();
    let tokens = prompt.get(start..start.checked_add(*tokens)?)?;
    let parent = before.last().map(|(id, _)| id);
    (root.tail(parent, tokens, job) == *last).then_some(*last)
}

/// Splits a prompt into full chunks of `chunk_tokens` tokens (0 counts as 1) and, if some tokens are left, a tail for
/// `job`. The pieces are in order, touch each other and cover the prompt.
pub fn plan(root: &Root, tokens: &[u32], chunk_tokens: usize, job: &str) -> Vec<Piece> {
    let chunk_tokens = chunk_tokens.max(1);
    let mut pieces: Vec<Piece> = Vec::with_capacity(tokens.len().div_ceil(chunk_tokens));
    for (index, part) in tokens.chunks(chunk_tokens).enumerate() {
        let parent = pieces.last().map(|piece| &piece.id);
        let (id, kind) = if part.len() == chunk_tokens {
            (root.link(parent, part), PieceKind::Chunk)
        } else {
            (root.tail(parent, part, job), PieceKind::Tail)
        };
        let start = index * chunk_tokens;
        pieces.push(Piece { id, range: start..start + part.len(), kind });
    }
    pieces
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn every_input_of_a_name_changes_it() {
        let root = Root::new(&[1; 32], b"salt");
        let parent = root.link(None, &[7, 8]);
        let names = [
            root.link(Some(&parent), &[1, 2]),
            root.link(None, &[1, 2]),
            root.link(Some(&ChunkId([0; 32])), &[1, 2]),
            root.link(Some(&parent), &[2, 1]),
            root.link(Some(&parent), &[1, 2, 0]),
            root.tail(Some(&parent), &[1, 2], ""),
            root.tail(Some(&parent), &[1, 2], "job"),
            root.tail(None, &[1, 2], "job"),
            // The same bytes after the length of the job: only the length tells them apart.
            root.tail(Some(&parent), &[u32::from_le_bytes(*b"jobs"), 1, 2], ""),
            root.tail(Some(&parent), &[1, 2], "jobs"),
            Root::new(&[2; 32], b"salt").link(Some(&parent), &[1, 2]),
            Root::new(&[1; 32], b"other").link(Some(&parent), &[1, 2]),
            Root::new(&[1; 32], b"").link(Some(&parent), &[1, 2]),
            root.secret(&SealKey::new([1; 32])).link(Some(&parent), &[1, 2]),
            root.secret(&SealKey::new([2; 32])).link(Some(&parent), &[1, 2]),
            root.packed(Codec::Near).link(Some(&parent), &[1, 2]),
            root.packed(Codec::Balanced).link(Some(&parent), &[1, 2]),
        ];
        assert_eq!(root.packed(Codec::Raw).link(None, &[1]), root.packed(Codec::Lossless).link(None, &[1]));
        for (i, a) in names.iter().enumerate() {
            for b in &names[i + 1..] {
                assert_ne!(a, b, "name {i} appears twice");
            }
        }
    }

    /// Stored names outlive a build: this one changes only together with the format's version.
    #[test]
    fn a_name_stays_the_same_across_builds() {
        let id = Root::new(&[3; 32], b"tenant").link(None, &[1, 2, 3]);
        assert_eq!(id.to_string(), "7bcd56770aa267a9049b742b13e29a124d05fcac28722317ff058152a122fa79");
        assert_eq!(id.to_string().parse::<ChunkId>().unwrap(), id);
        assert!("abc".parse::<ChunkId>().unwrap_err().to_string().contains("\"abc\""));
    }

    proptest! {
        #[test]
        fn a_plan_covers_the_prompt_and_shares_exactly_the_common_chunks(
            common in vec(0u32..50_000, 0..70), a in vec(0u32..50_000, 0..40), b in vec(0u32..50_000, 0..40), size in 1usize..20,
        ) {
            let root = Root::new(&[9; 32], b"t");
            let prompts = [[&common[..], &a].concat(), [&common[..], &b].concat()];
            let plans = prompts.each_ref().map(|tokens| plan(&root, tokens, size, "one"));
            for (tokens, pieces) in prompts.iter().zip(&plans) {
                let mut at = 0;
                for piece in pieces {
                    prop_assert_eq!(piece.range.start, at);
                    let full = piece.range.len() == size;
                    prop_assert!(full || piece.range.end == tokens.len());
                    prop_assert_eq!(piece.kind == PieceKind::Chunk, full);
                    at = piece.range.end;
                }
                prop_assert_eq!(at, tokens.len());
            }
            let same = prompts[0].iter().zip(&prompts[1]).take_while(|(x, y)| x == y).count();
            for (x, y) in plans[0].iter().zip(&plans[1]) {
                let whole = x.range == y.range && x.range.end <= same;
                prop_assert_eq!(x.id == y.id, whole);
            }
            for (tokens, pieces) in prompts.iter().zip(&plans) {
                let stored: Vec<_> = pieces.iter().map(|piece| (piece.id, piece.range.len())).collect();
                let tail = pieces.last().filter(|piece| piece.kind == PieceKind::Tail).map(|piece| piece.id);
                prop_assert_eq!(tail_of(&root, tokens, &stored, "one"), tail);
                prop_assert_eq!(tail_of(&root, tokens, &stored, "two"), None);
            }
            // Another job's chunks are the same objects, its tail is not.
            for (x, y) in plans[0].iter().zip(plan(&root, &prompts[0], size, "two")) {
                prop_assert_eq!(x.id == y.id, x.kind == PieceKind::Chunk);
            }
        }
    }
}
