//! The KV cache of a run of tokens, as plain numbers: what the engine exports, the storage packs and the engine imports.

/// The shape of one model's KV cache. A decoder of foreign bytes derives every size it allocates from this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Transformer layers.
    pub layers: usize,
    /// Values per token in K, and as many in V: KV heads times head size.
    pub width: usize,
}

impl Shape {
    /// bf16 values that one layer holds for `tokens` tokens: K and V.
    pub fn layer_values(&self, tokens: usize) -> usize {
        2 * tokens * self.width
    }

    /// Bytes that all layers hold for `tokens` tokens, uncompressed.
    pub fn bytes(&self, tokens: usize) -> usize {
        self.layers * self.layer_values(tokens) * size_of::<u16>()
    }
}

/// The KV cache of `tokens` consecutive tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Tokens that it holds.
    pub tokens: usize,
    /// One entry a layer: bf16 bit patterns, first K as `[tokens, width]` row-major, then V likewise.
    pub layers: Vec<Vec<u16>>,
}

impl Block {
    /// Whether the block holds exactly what `shape` demands.
    pub fn fits(&self, shape: &Shape) -> bool {
        self.layers.len() == shape.layers
            && self.layers.iter().all(|layer| layer.len() == shape.layer_values(self.tokens))
    }

    /// Whether all values are numbers, and none infinite.
    pub fn is_finite(&self) -> bool {
        self.layers.iter().all(|layer| is_finite(layer))
    }
}

/// Whether all of these bf16 values are numbers, and none infinite.
pub fn is_finite(values: &[u16]) -> bool {
    const EXPONENT: u16 = 0x7f80;
    // Without a way out of the loop, which compiles to vectors.
    !values.iter().fold(false, |found, value| found | (value & EXPONENT == EXPONENT))
}
