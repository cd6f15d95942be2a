//! The KV values of the simulated model.

use baton_contract::kv;

use super::story;
use crate::sampling::exp;

/// Makes KV values.
pub(super) struct Values {
    /// Magnitudes of the normal distribution at 4096 equal steps of probability, as bf16 bit patterns.
    magnitudes: Vec<u16>,
}

impl Values {
    pub(super) fn new() -> Values {
        const COUNT: usize = 4096;
        const STEP: f64 = 1.0 / 4096.0;
        // Integrates the half-normal density, sqrt(2 / pi) exp(-x^2 / 2), and notes where each share is reached.
        let density = |x: f64| 0.797_884_560_802_865_4 * exp(-x * x / 2.0);
        let mut magnitudes = Vec::with_capacity(COUNT);
        let (mut x, mut share) = (0.0, 0.0);
        while magnitudes.len() < COUNT {
            let wanted = (magnitudes.len() as f64 + 0.5) / COUNT as f64;
            while share < wanted && x < 5.0 {
                share += STEP * density(x + STEP / 2.0);
                x += STEP;
            }
            magnitudes.push(half::bf16::from_f64(x).to_bits());
        }
        Values { magnitudes }
    }

    /// Fills a token's row, all layers: `[layer, K then V]`.
    pub(super) fn fill(&self, row: &mut [u16], shape: kv::Shape, token: u32, position: usize) {
        for (layer, values) in row.chunks_exact_mut(2 * shape.width).enumerate() {
            let mut seed = story::mix(story::mix(u64::from(token) << 32 | layer as u64) ^ position as u64);
            for four in values.chunks_mut(4) {
                seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut bits = story::mix(seed);
                for value in four {
                    *value = self.magnitudes[(bits & 0xfff) as usize] | ((bits & 0x1000) << 3) as u16;
                    bits >>= 16;
                }
            }
            values[..2].copy_from_slice(&story::token_values(token));
        }
    }
}
