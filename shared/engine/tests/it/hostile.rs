//! Models that are damaged, flipped or none of ours: an error, never a panic, and no answer from numbers that are none.

use baton_engine::llama;
use baton_model::config;
use baton_model::model::{self, Compute, Model, Step};
use baton_model::source::{Source, vocabulary};
use baton_model::verify;
use proptest::prelude::*;

use crate::writer::Tiny;
use crate::{load, load_as, open};

#[test]
fn other_models_are_refused_by_name() {
    let refused = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let file = Tiny::new(1).file();
        let at = file.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        let file = [&file[..at], to.as_bytes(), &file[at + to.len()..]].concat();
        load(&file).err().unwrap().to_string()
    };
    assert!(refused("llama", "olmo2").contains("\"olmo2\", supported are llama"));
    assert!(refused("llama.block_count", "llama.block_counx").contains("no llama.block_count"));
    assert!(refused("blk.1.ffn_up.weight", "blk.1.ffn_xp.weight").contains("no tensor blk.1.ffn_up.weight"));
    let mut narrow = Tiny::new(1).file();
    let key = b"llama.feed_forward_length";
    // The value's type, then the value.
    let at = narrow.windows(key.len()).position(|window| window == key).unwrap() + key.len() + 4;
    narrow[at..at + 4].copy_from_slice(&24u32.to_le_bytes());
    assert!(load(&narrow).err().unwrap().to_string().contains("feed_forward_length is 24"));
    assert!(matches!(
        load(&Tiny { rope: 18, ..Tiny::new(1) }.file()),
        Err(llama::Error::Config(config::Error::Unsupported { .. }))
    ));
    assert!(matches!(
        load(&Tiny { queries: 6, kv: 4, ..Tiny::new(1) }.file()),
        Err(llama::Error::Config(config::Error::Unsupported { .. }))
    ));
}

/// The file with other bytes at the end of a tensor.
fn spoil(file: &[u8], tensor: &str, bytes: &[u8]) -> Vec<u8> {
    let opened = open(file).unwrap();
    let old = opened.tensor(tensor).unwrap().bytes;
    let start = file.windows(old.len()).position(|window| window == old).unwrap();
    let (mut file, end) = (file.to_vec(), start + old.len());
    file[end - bytes.len()..end].copy_from_slice(bytes);
    file
}

#[test]
fn weights_that_are_not_finite_are_refused_by_name() {
    let file = Tiny { tied: false, ..Tiny::new(1) }.file();
    // A block of Q8_0 is its scale and 32 quants.
    let mut block = [1; 34];
    block[..2].copy_from_slice(&half::f16::NEG_INFINITY.to_le_bytes());
    let cases: [(&str, &[u8]); 4] = [
        ("output_norm.weight", &f32::NAN.to_le_bytes()),
        ("blk.1.attn_q.weight", &f32::INFINITY.to_le_bytes()),
        ("blk.0.attn_v.weight", &half::bf16::NAN.to_le_bytes()),
        ("blk.1.ffn_down.weight", &block),
    ];
    for (tensor, bytes) in cases {
        match load(&spoil(&file, tensor, bytes)) {
            Err(llama::Error::NonFinite { tensor: found }) => assert_eq!(found, tensor),
            other => panic!("{tensor}: {:?}", other.err()),
        }
    }
}

#[test]
fn a_kv_cache_that_is_not_finite_is_not_exported() {
    // Finite weights, whose products are not.
    let large = half::bf16::MAX.to_le_bytes().repeat(64);
    let file = spoil(&Tiny::new(1).file(), "blk.1.attn_v.weight", &large);
    for compute in [Compute::Exact, Compute::Fast] {
        let mut model = load_as(&file, compute, 1 << 24).unwrap();
        let sequence = model.open();
        model.forward(&[Step { sequence, tokens: &[5, 6, 7], logits: 1 }]).unwrap();
        let exported = model.export(sequence, 1..3);
        assert!(matches!(exported, Err(model::Error::NonFinite { start: 1, end: 3 })), "{compute:?}: {exported:?}");
    }
    // What comes of it is compared with nothing.
    let mut model = load(&file).unwrap();
    let vocabulary = vocabulary(&Source::Sim(Default::default())).unwrap();
    let case = br#"{"id": "a", "prompt": "!", "prompt_tokens": [33], "completion_tokens": [34],
        "steps": [{"token": 34, "logprob": -1.0, "top": [[34, -1.0]]}]}"#;
    let case = serde_json::from_slice(case).unwrap();
    let report = verify::run(&vocabulary, &mut model, 0, [Ok(case)].into_iter()).unwrap();
    assert_eq!((report.steps, report.non_finite), (0, 1));
    let compared = verify::divergence(&mut load(&file).unwrap(), &mut model, &[vec![33]]);
    assert!(matches!(compared, Err(model::Error::NonFiniteLogits)), "{compared:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever a flip leaves readable loads and computes, or is refused.
    #[test]
    fn flipped_bytes_never_panic(flips in prop::collection::vec((0usize..2600, 1u8..), 1..4)) {
        let mut file = Tiny { layers: 1, ..Tiny::new(1) }.file();
        for (at, mask) in flips {
            file[at] ^= mask;
        }
        if let Ok(mut model) = load(&file) {
            let tokens = [0];
            let sequence = model.open();
            let step = Step { sequence, tokens: &tokens, logits: 1 };
            prop_assert_eq!(model.forward(&[step]).unwrap()[0].len(), model.spec().vocabulary);
        }
    }
}
