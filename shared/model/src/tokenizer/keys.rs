//! Keys of model files that tokenizers read, and what they may hold.

/// Values of `tokenizer.ggml.token_type`. All others mark words.
pub(crate) const NORMAL: i64 = 1;
pub(crate) const UNKNOWN: i64 = 2;
pub(crate) const CONTROL: i64 = 3;
pub(crate) const USER_DEFINED: i64 = 4;
pub(crate) const BYTE: i64 = 6;

/// The `tokenizer.ggml.model` of pieces with ranked merges, which Hugging Face's folders have and GGUF files don't.
pub(crate) const RANKED_PIECES: &str = "baton.ranked";
/// With ranked pieces, when a space goes before a text that begins a sequence or follows a special token: `never`, `always`,
/// `each` (unless it begins with one) or `first` (likewise, but only at the beginning).
pub(crate) const SPACE_PREFIX: &str = "baton.tokenizer.space_prefix";
/// Whether text is brought to Unicode's normal form C before it is cut into words; without it, the word pattern's name says.
pub(crate) const NFC: &str = "baton.tokenizer.nfc";
/// Ids of all tokens that end an answer, besides those that GGUF has keys for.
pub(crate) const END_IDS: &str = "baton.tokenizer.end_token_ids";
