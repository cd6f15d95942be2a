//! A folder and a GGUF file of the same weights are the same model.

use std::f64::consts::TAU;

use baton_model::checkpoint::Value;
use baton_model::quants::Type;
use serde_json::json;

use super::folder::{Folder, HEAD};
use super::twin::{open, side_by_side, twin};

#[test]
fn keys_and_tensors_are_those_of_a_gguf_file() {
    for (class, architecture) in [("Llama", "llama"), ("Qwen3", "qwen3")] {
        let folder = Folder::new(class);
        let written = folder.write();
        let (found, expected) = (open(&written), twin(&folder, architecture));
        let names: Vec<&str> = found.tensor_names().collect();
        assert_eq!(names, expected.tensor_names().collect::<Vec<_>>());
        for name in names {
            let (found, expected) = (found.tensor(name).unwrap(), expected.tensor(name).unwrap());
            assert_eq!((found.dtype, found.dims), (expected.dtype, expected.dims), "{name}");
            let rotates = name.ends_with("attn_q.weight") || name.ends_with("attn_k.weight");
            if !rotates || architecture == "qwen3" {
                assert!(found.bytes == expected.bytes, "{name}");
            } else {
                assert!(side_by_side(found.bytes, found.rows()) == expected.bytes, "{name}");
            }
        }
        for name in ["block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"]
        {
            let key = format!("{architecture}.{name}");
            assert_eq!(found.unsigned(&key).unwrap(), expected.unsigned(&key).unwrap(), "{key}");
        }
        for name in ["attention.head_count_kv", "attention.key_length", "rope.dimension_count"] {
            let key = format!("{architecture}.{name}");
            assert_eq!(found.unsigned(&key).unwrap(), expected.unsigned(&key).unwrap(), "{key}");
        }
        assert_eq!(found.float(&format!("{architecture}.rope.freq_base")).unwrap(), 10_000.0);
        assert_eq!(found.float(&format!("{architecture}.attention.layer_norm_rms_epsilon")).unwrap(), 1e-6);
        assert_eq!(found.string("baton.rope.pairs").unwrap(), "halves");
        assert!(found.get("baton.norm.shift").is_none());
        let name = written.path().file_name().unwrap().to_str().unwrap();
        assert_eq!(found.string("general.name").unwrap(), name);
    }
}

#[test]
fn shards_hold_the_same_tensors_as_one_file() {
    let folder = Folder::new("Llama");
    let (one, three) = (folder.write(), folder.write_shards(3));
    let (one, three) = (open(&one), open(&three));
    assert_eq!(one.tensor_names().collect::<Vec<_>>(), three.tensor_names().collect::<Vec<_>>());
    for name in one.tensor_names() {
        let (one, three) = (one.tensor(name).unwrap(), three.tensor(name).unwrap());
        assert_eq!((one.dtype, one.dims, one.bytes), (three.dtype, three.dims, three.bytes), "{name}");
    }
}

#[test]
fn the_digest_covers_all_that_decides() {
    let digest = |change: &dyn Fn(&mut Folder)| {
        let mut folder = Folder::new("Llama");
        change(&mut folder);
        open(&folder.write()).digest()
    };
    let same = digest(&|_| {});
    assert_eq!(digest(&|_| {}), same, "another folder with the same files");
    let changes: [&dyn Fn(&mut Folder); 4] = [
        &|folder| folder.config["rope_theta"] = json!(20_000),
        &|folder| folder.tokenizer["post_processor"] = json!(null),
        &|folder| drop(folder.files.insert("chat_template.jinja".to_owned(), "{{ bos_token }}".to_owned())),
        &|folder| folder.tensors.get_mut("model.norm.weight").unwrap().bytes[0] ^= 1,
    ];
    for (index, change) in changes.iter().enumerate() {
        assert_ne!(digest(change), same, "change {index}");
    }
}

#[test]
fn a_table_that_is_the_head_too_is_not_taken_twice() {
    let mut folder = Folder::new("Llama");
    let table = folder.tensors["model.embed_tokens.weight"].clone();
    folder.tensors.insert("lm_head.weight".to_owned(), table);
    assert!(open(&folder.write()).tensor("output.weight").is_none(), "tied");
    folder.config["tie_word_embeddings"] = json!(false);
    assert!(open(&folder.write()).tensor("output.weight").is_some(), "not tied");
    folder.config["tie_word_embeddings"] = json!(null);
    assert!(open(&folder.write()).tensor("output.weight").is_some(), "not said, and there");
}

#[test]
fn gemma_is_told_apart() {
    let mut folder = Folder::new("Gemma3");
    folder.config["sliding_window"] = json!(8);
    folder.config["layer_types"] = json!(["sliding_attention", "full_attention"]);
    folder.config["rope_scaling"] = json!({ "rope_type": "linear", "factor": 8.0 });
    folder.config["query_pre_attn_scalar"] = json!(64);
    folder.config["rope_theta"] = json!(1_000_000.0);
    let gemma = open(&folder.write());
    assert_eq!(gemma.float("baton.norm.shift").unwrap(), 1.0);
    assert_eq!(gemma.float("gemma3.attention.scale").unwrap(), 0.125);
    assert_eq!(gemma.unsigned("gemma3.attention.sliding_window").unwrap(), 8);
    let pattern = Value::Array(vec![Value::Bool(true), Value::Bool(false)]);
    assert_eq!(gemma.get("gemma3.attention.sliding_window_pattern"), Some(&pattern));
    assert_eq!(gemma.float("gemma3.rope.freq_base").unwrap(), 1e6);
    assert_eq!(gemma.float("gemma3.rope.freq_base_swa").unwrap(), 1e4);
    assert_eq!(gemma.string("gemma3.rope.scaling.type").unwrap(), "linear");
    assert_eq!(gemma.float("gemma3.rope.scaling.factor").unwrap(), 8.0);
    for part in ["attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm", "attn_q_norm", "attn_k_norm"] {
        assert!(gemma.tensor(&format!("blk.1.{part}.weight")).is_some(), "{part}");
    }
    let bytes = |from: &str| &folder.tensors[&format!("model.layers.1.{from}.weight")].bytes;
    assert_eq!(gemma.tensor("blk.1.post_attention_norm.weight").unwrap().bytes, bytes("post_attention_layernorm"));
    assert_eq!(gemma.tensor("blk.1.ffn_norm.weight").unwrap().bytes, bytes("pre_feedforward_layernorm"));

    // The same in the form that Transformers 5 writes.
    for key in ["rope_scaling", "rope_theta", "rope_local_base_freq"] {
        folder.config[key] = json!(null);
    }
    folder.config["rope_parameters"] = json!({
        "full_attention": { "rope_type": "linear", "factor": 8.0, "rope_theta": 1e6 },
        "sliding_attention": { "rope_type": "default", "rope_theta": 2e4 },
    });
    let gemma = open(&folder.write());
    assert_eq!(gemma.float("gemma3.rope.freq_base").unwrap(), 1e6);
    assert_eq!(gemma.float("gemma3.rope.freq_base_swa").unwrap(), 2e4);
    assert_eq!(gemma.float("gemma3.rope.scaling.factor").unwrap(), 8.0);
}

#[test]
fn windows_are_those_that_the_architecture_uses() {
    let window = |class: &str, settings: serde_json::Value| {
        let mut folder = Folder::new(class);
        settings.as_object().unwrap().iter().for_each(|(key, value)| folder.config[key] = value.clone());
        let checkpoint = open(&folder.write());
        let key = |name: &str| format!("{}.attention.{name}", checkpoint.string("general.architecture").unwrap());
        let window = checkpoint.get(&key("sliding_window")).and_then(Value::as_u64);
        let pattern = checkpoint.get(&key("sliding_window_pattern")).and_then(Value::as_array);
        (window, pattern.map(|pattern| pattern.iter().map(|local| local.as_bool().unwrap()).collect::<Vec<_>>()))
    };
    assert_eq!(window("Mistral", json!({ "sliding_window": 64 })), (Some(64), None));
    assert_eq!(window("Mistral", json!({ "sliding_window": null })), (None, None));
    assert_eq!(window("Mistral", json!({})), (Some(4096), None));
    assert_eq!(window("Llama", json!({ "sliding_window": 64 })), (None, None));
    assert_eq!(window("Qwen2", json!({ "sliding_window": 64, "use_sliding_window": false })), (None, None));
    let qwen = json!({ "sliding_window": 64, "use_sliding_window": true, "max_window_layers": 1 });
    assert_eq!(window("Qwen2", qwen), (Some(64), Some(vec![false, true])));
}

#[test]
fn llama_3_scaling_becomes_divisors() {
    let mut folder = Folder::new("Llama");
    folder.config["rope_theta"] = json!(500_000.0);
    folder.config["rope_scaling"] = json!({
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    });
    let checkpoint = open(&folder.write());
    let divisors = checkpoint.tensor("rope_freqs.weight").unwrap();
    assert_eq!((divisors.dtype, divisors.dims), (Type::F32, &[HEAD / 2][..]));
    let mut found = [0.0; HEAD / 2];
    divisors.dequantize_row(0, &mut found);
    // In 128 positions pair 0 turns 20 times, pair 1 (theta^(-1/8)) 3.95 times, pair 2 0.77 times.
    let turns = 128.0 * 500_000f64.powf(-1.0 / 8.0) / TAU;
    let kept = (turns - 1.0) / 3.0;
    assert_eq!(found[0], 1.0);
    assert!((f64::from(found[1]) - 1.0 / (kept + (1.0 - kept) / 32.0)).abs() < 1e-6 && found[1] > 1.01, "{found:?}");
    assert_eq!(found[2..], [32.0; HEAD / 2 - 2]);
}
