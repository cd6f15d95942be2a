//! Files that are cut, flipped or lie about their sizes: an error, never a panic.

use baton_engine::checkpoint::{self, Value};
use baton_engine::gguf::Error;
use baton_engine::model::{self, Compute, Model, Step};
use baton_engine::source::{Source, vocabulary};
use baton_engine::{llama, verify};
use proptest::prelude::*;

use crate::writer::{F32, Q4_0, Tiny, Writer};
use crate::{load, load_as, open};

/// Why a file is not even read.
fn refused(bytes: &[u8]) -> Error {
    match open(bytes) {
        Err(checkpoint::Error::Gguf(error)) => error,
        other => panic!("the file is damaged, but was {other:?}"),
    }
}

#[test]
fn values_and_tensors_are_read_as_written() {
    let mut writer = Writer::new(1);
    writer.pair("u8", 0, &[200]);
    writer.pair("i16", 3, &(-5i16).to_le_bytes());
    writer.pair("bool", 7, &[1]);
    writer.pair("f64", 12, &0.1f64.to_le_bytes());
    writer.pair(
        "nested",
        9,
        &[&9u32.to_le_bytes()[..], &1u64.to_le_bytes(), &[0; 4], &2u64.to_le_bytes(), &[7, 8]].concat(),
    );
    writer.tensor("t", &[2, 3], F32, &[1.5f32.to_le_bytes(), 2.5f32.to_le_bytes()].concat().repeat(3));
    let file = open(&writer.finish()).unwrap();
    assert_eq!(file.unsigned("u8").unwrap(), 200);
    assert_eq!(file.get("i16").unwrap().as_i64(), Some(-5));
    assert_eq!(file.get("i16").unwrap().as_u64(), None);
    assert_eq!(file.get("bool").unwrap().as_bool(), Some(true));
    assert_eq!(file.float("f64").unwrap(), 0.1);
    let inner = Value::Array(vec![Value::Unsigned(7), Value::Unsigned(8)]);
    assert_eq!(file.get("nested").unwrap().as_array(), Some(&[inner][..]));
    let tensor = file.tensor("t").unwrap();
    assert_eq!((tensor.dims, tensor.rows(), tensor.row_len()), (&[2, 3][..], 3, 2));
    let mut row = [0.0; 2];
    tensor.dequantize_row(2, &mut row);
    assert_eq!(row, [1.5, 2.5]);
    assert_eq!(file.string("u8").unwrap_err().to_string(), "u8 must be a string, found an unsigned integer");
    assert!(matches!(file.unsigned("none"), Err(checkpoint::Error::MissingKey { .. })));
    assert_eq!(file.digest(), *blake3::hash(&writer.finish()).as_bytes());
}

#[test]
fn every_truncation_is_an_error() {
    let file = Tiny { layers: 1, ..Tiny::new(1) }.file();
    let header = 2600;
    for len in (0..header).chain((header..file.len() - 32).step_by(997)) {
        assert!(open(&file[..len]).is_err(), "{len} of {} bytes were accepted", file.len());
    }
}

#[test]
fn lies_about_sizes_are_errors() {
    let with = |build: &dyn Fn(&mut Writer)| {
        let mut writer = Writer::new(1);
        build(&mut writer);
        refused(&writer.finish())
    };
    let huge = u64::MAX.to_le_bytes();
    let truncated = |error| assert!(matches!(error, Error::Truncated { .. }), "{error}");
    let damaged = |error| assert!(matches!(error, Error::Damaged { .. }), "{error}");
    truncated(with(&|w| w.pair("string", 8, &huge)));
    let array = with(&|w| w.pair("array", 9, &[&[0; 4][..], &1_000_000u64.to_le_bytes()].concat()));
    assert!(matches!(array, Error::Truncated { what: "an array", .. }), "refused before its values: {array}");
    damaged(with(&|w| w.pair("array", 9, &[&[0; 4][..], &huge].concat())));
    damaged(with(&|w| w.pair("deep", 9, &[&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat().repeat(50))));
    damaged(with(&|w| w.pair("kind", 13, &[0; 64])));
    damaged(with(&|w| w.pair("general.alignment", 4, &3u32.to_le_bytes())));
    damaged(with(&|w| (0..2).for_each(|_| w.number("twice", 1))));
    damaged(with(&|w| w.tensor("overflow", &[32, usize::MAX, usize::MAX], F32, &[])));
    damaged(with(&|w| w.tensor("beyond", &[32, 1000], F32, &[0; 128])));
    damaged(with(&|w| w.tensor("empty", &[0, usize::MAX], F32, &[])));
    damaged(with(&|w| w.tensor("half a block", &[16], Q4_0, &[0; 18])));
    damaged(with(&|w| w.tensor("dimensions", &[1; 5], F32, &[0; 4])));
    let unsupported = with(&|w| w.tensor("t", &[256], 23, &[0; 136])).to_string();
    assert!(unsupported.contains("23 (IQ4_XS)") && unsupported.contains("Q4_K"), "{unsupported}");
    for at in [8, 16] {
        let mut file = Writer::new(1).finish();
        file[at..at + 8].copy_from_slice(&huge);
        truncated(refused(&file));
    }
    let mut other = Writer::new(1).finish();
    other[4..8].copy_from_slice(&3u32.to_be_bytes());
    assert!(matches!(refused(&other), Error::Version { .. }));
}

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
    assert!(matches!(load(&Tiny { rope: 18, ..Tiny::new(1) }.file()), Err(llama::Error::Unsupported { .. })));
    assert!(matches!(load(&Tiny { queries: 6, kv: 4, ..Tiny::new(1) }.file()), Err(llama::Error::Unsupported { .. })));
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
