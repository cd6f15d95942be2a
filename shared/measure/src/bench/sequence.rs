//! What sequences take in memory.

use baton_contract::kv::Shape;

/// A sequence's last page may be filled in part: no engine's page has more tokens.
const PAGE_BOUND: usize = 256;

/// Memory for the KV caches of the greediest measure: one of prompts of these lengths, or of a batch of sequences of a length.
pub(super) fn kv_bytes(shape: &Shape, lengths: &[usize], batches: &[usize], sequence: usize) -> u64 {
    let prefill = lengths.iter().copied().max().unwrap_or(0).next_multiple_of(PAGE_BOUND);
    let decode = batches.iter().copied().max().unwrap_or(0).saturating_mul(sequence.next_multiple_of(PAGE_BOUND));
    let bf16 = (shape.layers * shape.layer_values(1) * 2) as u64;
    // Fast mode keeps quantized copies besides, of about half the size; of up to 1.2 times where heads are tiny.
    (prefill.max(decode) as u64).saturating_mul(bf16).saturating_mul(5) / 2
}
