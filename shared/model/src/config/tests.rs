//! What becomes of the keys, and what is refused.

use std::io::Write;

use super::error::ARCHITECTURES;
use super::*;
use crate::gguf;

#[path = "../../tests/it/gguf/writer.rs"]
mod writer;

use writer::{F32, Writer};

const LAYERS: usize = 12;

/// A file of the architecture with the keys that every file has and, but for the embeddings, only the tensors that tell
/// architectures apart.
fn read(architecture: &str, more: impl Fn(&mut Writer)) -> Result<Config, Error> {
    let mut to = Writer::new(1);
    to.string("general.architecture", architecture);
    for (key, value) in [
        ("block_count", LAYERS),
        ("context_length", 1000),
        ("embedding_length", 64),
        ("feed_forward_length", 32),
        ("attention.head_count", 4),
    ] {
        to.number(&format!("{architecture}.{key}"), value);
    }
    to.float(&format!("{architecture}.attention.layer_norm_rms_epsilon"), 1e-6);
    to.tensor("token_embd.weight", &[64, 3], F32, &[0; 4 * 64 * 3]);
    let norms: &[&str] = match architecture {
        "gemma3" => &["attn_q_norm", "attn_k_norm", "post_attention_norm", "post_ffw_norm"],
        "qwen3" => &["attn_q_norm", "attn_k_norm"],
        _ => &[],
    };
    for layer in 0..LAYERS {
        norms.iter().for_each(|norm| to.tensor(&format!("blk.{layer}.{norm}.weight"), &[1], F32, &[0; 4]));
    }
    more(&mut to);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&to.finish()).unwrap();
    Config::read(&gguf::open(file.path()).unwrap())
}

fn refused(architecture: &str, more: impl Fn(&mut Writer)) -> String {
    read(architecture, more).expect_err("refused").to_string()
}

fn windows(config: &Config) -> Vec<Option<usize>> {
    config.layers.iter().map(|layer| layer.window).collect()
}

fn close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).for_each(|(found, expected)| assert!((found / expected - 1.0).abs() < 1e-6, "{found}"));
}

#[test]
fn each_architecture_has_its_own_ways() {
    let llama = read("llama", |_| ()).unwrap();
    assert_eq!(
        (llama.pairs, llama.gate, llama.rope_width(), llama.layers.len()),
        (Pairs::Adjacent, Gate::Silu, 16, LAYERS)
    );
    assert_eq!((llama.attention_scale, llama.embedding_scale, llama.norm_shift), (0.25, 1.0, 0.0));
    close(&llama.ropes[0].frequencies[..3], &[1.0, 0.316_227_766, 0.1]);
    assert_eq!(read("qwen2", |_| ()).unwrap().pairs, Pairs::Halves);
    assert_eq!(read("qwen3", |_| ()).unwrap().gate, Gate::Silu);
    let gemma = read("gemma3", |to| to.number("gemma3.attention.key_length", 32)).unwrap();
    assert_eq!(
        (gemma.pairs, gemma.gate, gemma.embedding_scale, gemma.rope_width()),
        (Pairs::Halves, Gate::Gelu, 8.0, 32)
    );
    let folder = |to: &mut Writer| {
        to.string("baton.rope.pairs", "halves");
        to.float("baton.norm.shift", 1.0);
    };
    let folder = read("llama", folder).unwrap();
    assert_eq!((folder.pairs, folder.norm_shift), (Pairs::Halves, 1.0));
    assert_eq!(refused("bloom", |_| ()).matches(ARCHITECTURES).count(), 1);
}

#[test]
fn windows_and_their_ropes() {
    let gemma = read("gemma3", |to| {
        to.number("gemma3.attention.sliding_window", 512);
        to.float("gemma3.rope.freq_base", 1e6);
        to.string("gemma3.rope.scaling.type", "linear");
        to.float("gemma3.rope.scaling.factor", 8.0);
    });
    let gemma = gemma.unwrap();
    let local = |layer: usize| layer % 6 != 5;
    assert_eq!(windows(&gemma), (0..LAYERS).map(|layer| local(layer).then_some(512)).collect::<Vec<_>>());
    assert!(gemma.layers.iter().enumerate().all(|(index, layer)| layer.rope == usize::from(local(index))));
    close(&gemma.ropes[0].frequencies[..2], &[1.0 / 8.0, 0.177_827_941 / 8.0]);
    close(&gemma.ropes[1].frequencies[..2], &[1.0, 0.316_227_766]);

    let mistral = read("llama", |to| to.number("llama.attention.sliding_window", 100)).unwrap();
    assert_eq!((windows(&mistral), mistral.ropes.len()), (vec![Some(100); LAYERS], 1));
    let beyond = read("llama", |to| to.number("llama.attention.sliding_window", 1000)).unwrap();
    assert_eq!(windows(&beyond), [None; LAYERS]);
    let none = read("gemma3", |to| to.number("gemma3.attention.sliding_window", 0)).unwrap();
    assert_eq!((windows(&none), none.ropes.len()), (vec![None; LAYERS], 1));

    let pattern = |count: usize| {
        move |to: &mut Writer| {
            to.number("qwen2.attention.sliding_window", 9);
            let bools: Vec<u8> = (0..count).map(|layer| u8::from(layer > 9)).collect();
            let array = [&7u32.to_le_bytes()[..], &(count as u64).to_le_bytes(), &bools].concat();
            to.pair("qwen2.attention.sliding_window_pattern", 9, &array);
        }
    };
    let listed = windows(&read("qwen2", pattern(LAYERS)).unwrap());
    assert_eq!(listed, [&[None; 10][..], &[Some(9); 2]].concat());
    assert!(refused("qwen2", pattern(LAYERS - 1)).contains("12 bools or a number"));
    let third = read("gemma3", |to| {
        to.number("gemma3.attention.sliding_window", 9);
        to.number("gemma3.attention.sliding_window_pattern", 3);
    });
    assert_eq!(windows(&third.unwrap())[..4], [Some(9), Some(9), None, Some(9)]);
}

#[test]
fn llama_3_divides_the_frequencies() {
    let divided = |values: &'static [f32]| {
        move |to: &mut Writer| {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            to.tensor("rope_freqs.weight", &[values.len()], F32, &bytes);
        }
    };
    let llama = read("llama", divided(&[1.0, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0, 8.0])).unwrap();
    close(&llama.ropes[0].frequencies[..3], &[1.0, 0.158_113_883, 0.025]);
    assert!(refused("llama", divided(&[1.0; 7])).contains("rope_freqs.weight"));
    assert!(
        refused("llama", divided(&[0.0; 8])).contains("rope_freqs.weight is 0, supported is only positive numbers")
    );
    assert!(refused("llama", divided(&[f32::NAN; 8])).contains("rope_freqs.weight is NaN"));
}

#[test]
fn what_would_compute_another_model_is_refused() {
    let string = |key: &'static str, value: &'static str| move |to: &mut Writer| to.string(key, value);
    let number = |key: &'static str, value: usize| move |to: &mut Writer| to.number(key, value);
    let float = |key: &'static str, value: f32| move |to: &mut Writer| to.float(key, value);
    let tensor = |name: &'static str| move |to: &mut Writer| to.tensor(name, &[1], F32, &[0; 4]);
    let yarn = refused("qwen3", string("qwen3.rope.scaling.type", "yarn"));
    assert_eq!(yarn, "qwen3.rope.scaling.type is yarn, supported is only none or linear; choose another model");
    assert!(refused("llama", number("llama.expert_count", 8)).contains("llama.expert_count is 8, supported is only 0"));
    assert!(refused("gemma3", float("gemma3.final_logit_softcapping", 30.0)).contains("softcapping is 30"));
    assert!(refused("llama", float("llama.rope.scaling.factor", -1.0)).contains("a positive number"));
    assert!(refused("llama", float("llama.rope.freq_base", f32::NAN)).contains("a positive number"));
    assert!(refused("llama", number("llama.attention.key_length", 24)).contains("a multiple of 16"));
    assert!(refused("llama", number("llama.attention.value_length", 32)).contains("value_length is 32"));
    assert!(refused("llama", number("llama.rope.dimension_count", 18)).contains("an even number up to 16"));
    assert!(refused("gemma3", number("gemma3.attention.key_length_swa", 32)).contains("key_length_swa is 32"));
    assert!(refused("llama", string("llama.attention.sliding_window", "wide")).contains("unsigned integer"));
    assert!(refused("llama", string("baton.rope.pairs", "thirds")).contains("halves"));
    assert!(refused("llama", float("baton.norm.shift", 0.5)).contains("0 or 1"));
    for name in ["blk.11.ffn_down.bias", "blk.3.attn_output.bias", "output.bias", "blk.0.attn_q_norm.weight"] {
        assert!(refused("llama", tensor(name)).contains(&format!("{name} is a tensor")), "{name}");
    }
    assert!(read("llama", tensor("blk.0.attn_q.bias")).is_ok());
    let neutral = |to: &mut Writer| {
        to.number("llama.expert_count", 0);
        to.float("llama.rope.scaling.factor", 0.0);
        to.number("llama.attention.key_length_swa", 16);
        to.number("llama.attention.key_length", 16);
    };
    assert!(read("llama", neutral).is_ok());
}

#[test]
fn a_family_without_its_norms_is_refused() {
    let mut to = Writer::new(1);
    to.string("general.architecture", "qwen3");
    to.number("qwen3.block_count", 1);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&to.finish()).unwrap();
    let error = Config::read(&gguf::open(file.path()).unwrap()).expect_err("refused").to_string();
    assert!(error.contains("no tensor blk.0.attn_q_norm.weight"), "{error}");
}
