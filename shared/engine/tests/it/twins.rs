//! A folder and a GGUF file of the same weights compute the same.

use baton_engine::llama::Llama;
use baton_model::model::{self, Compute, Model, Step};
use serde_json::json;

use crate::folder::{Folder, HEAD};
use crate::twin::{open, twin};

#[test]
fn both_compute_the_same_bits() {
    for (class, architecture) in [("Llama", "llama"), ("Mistral", "llama"), ("Qwen3", "qwen3"), ("Gemma3", "gemma3")] {
        let mut folder = Folder::new(class);
        // For Gemma, whose second layer sees all; the others see all anyway.
        folder.config["sliding_window"] = if class == "Gemma3" { json!(8) } else { json!(null) };
        folder.config["sliding_window_pattern"] = json!(2);
        folder.config["query_pre_attn_scalar"] = json!(HEAD);
        let logits = |checkpoint| {
            let options = model::Options { compute: Compute::Exact, ..model::Options::default() };
            let mut model = Llama::load(checkpoint, &options).unwrap_or_else(|error| panic!("{class}: {error}"));
            let tokens: Vec<u32> = (0..24).map(|index| index * 37 % 256).collect();
            let sequence = model.open();
            let logits = model.forward(&[Step { sequence, tokens: &tokens, logits: tokens.len() }]).unwrap().remove(0);
            assert!(logits.iter().all(|logit| logit.is_finite()) && logits.iter().any(|logit| *logit != 0.0));
            logits.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let (found, expected) = (logits(open(&folder.write())), logits(twin(&folder, architecture)));
        assert!(found == expected, "{class}");
    }
}
