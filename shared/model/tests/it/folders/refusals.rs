//! What is understood and not supported, or not understood: refused with what was found and what is supported.

use baton_contract::causes;
use baton_model::hugging_face;
use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use super::folder::{Folder, HIDDEN, Tensor, VOCABULARY, pieces};

fn refused(folder: &Folder) -> String {
    match hugging_face::open(folder.write().path()) {
        Ok(_) => panic!("{} was taken", folder.config),
        Err(error) => causes(&error),
    }
}

/// Asserts that each value of `config.json` is refused with a message that contains the texts.
fn config(class: &str, cases: &[(&str, Value, &[&str])]) {
    for (key, value, texts) in cases {
        let mut folder = Folder::new(class);
        folder.config[*key] = value.clone();
        let message = refused(&folder);
        assert!(texts.iter().all(|text| message.contains(text)), "{key}: {message}");
    }
}

#[test]
fn configurations() {
    let yarn = json!({ "rope_type": "yarn", "factor": 4.0 });
    let incomplete = json!({ "rope_type": "llama3", "factor": 4.0 });
    config(
        "Llama",
        &[
            ("architectures", json!(["MixtralForCausalLM"]), &["MixtralForCausalLM", "Qwen3ForCausalLM"]),
            ("architectures", json!(["Gemma3ForConditionalGeneration"]), &["Gemma3ForConditionalGeneration"]),
            ("quantization_config", json!({ "quant_method": "gptq", "bits": 4 }), &["\"gptq\"", "F32, F16 or BF16"]),
            ("num_local_experts", json!(8), &["num_local_experts is 8"]),
            ("rope_scaling", yarn, &["yarn", "default, linear or llama3"]),
            ("rope_scaling", incomplete, &["low_freq_factor must be a positive number, found nothing"]),
            ("rope_scaling", json!({ "type": "linear", "factor": 0 }), &["factor must be a positive number, found 0"]),
            ("partial_rotary_factor", json!(0.5), &["partial_rotary_factor is 0.5", "only 1"]),
            ("hidden_act", json!("relu"), &["hidden_act is relu", "silu"]),
            ("hidden_size", json!("64"), &["hidden_size must be an unsigned integer, found \"64\""]),
            ("hidden_size", json!(-64), &["hidden_size must be an unsigned integer, found -64"]),
            ("rms_norm_eps", json!(null), &["rms_norm_eps must be a number, found nothing"]),
            ("tie_word_embeddings", json!(false), &["no tensor lm_head.weight"]),
        ],
    );
    config(
        "Gemma3",
        &[
            ("hidden_activation", json!("silu"), &["hidden_activation is silu", "gelu_pytorch_tanh"]),
            ("final_logit_softcapping", json!(30.0), &["final_logit_softcapping is 30"]),
            ("layer_types", json!(["full_attention"]), &["layer_types", "for each layer"]),
            ("layer_types", json!(["full_attention", "linear_attention"]), &["linear_attention"]),
        ],
    );
}

#[test]
fn files() {
    let folder = Folder::new("Llama");
    for (file, found) in [
        ("config.json", "no config.json"),
        ("tokenizer.json", "no tokenizer.json"),
        ("model.safetensors", "no model.sa"),
    ] {
        let written = folder.write();
        std::fs::remove_file(written.file(file)).unwrap();
        let message = hugging_face::open(written.path()).unwrap_err().to_string();
        assert!(message.contains(found), "{message}");
    }
    let mut unknown = folder.clone();
    unknown
        .tensors
        .insert("model.layers.0.mlp.experts.0.up_proj.weight".to_owned(), Tensor::new(Dtype::F32, vec![1], &[0.0]));
    assert!(refused(&unknown).contains("tensor model.layers.0.mlp.experts.0.up_proj.weight is none of"));
    let mut padded = folder.clone();
    padded.tensors.insert("model.layers.01.mlp.up_proj.weight".to_owned(), Tensor::new(Dtype::F32, vec![1], &[0.0]));
    assert!(refused(&padded).contains("model.layers.01"));
    let mut integers = folder.clone();
    let norm = Tensor { dtype: Dtype::I8, shape: vec![HIDDEN], bytes: vec![0; HIDDEN] };
    integers.tensors.insert("model.norm.weight".to_owned(), norm);
    let message = refused(&integers);
    assert!(message.contains("model.norm.weight has type I8") && message.contains("BF16"), "{message}");
    let mut headless = folder;
    headless.tensors.remove("model.embed_tokens.weight");
    assert!(refused(&headless).contains("no tensor model.embed_tokens.weight"));
}

#[test]
fn tokenizers() {
    let cases: [(&str, Value, &str); 12] = [
        ("/model/type", json!("Unigram"), "\"Unigram\""),
        ("/model/ignore_merges", json!(false), "ignore_merges is false"),
        ("/model/dropout", json!(0.1), "dropout"),
        ("/model/end_of_word_suffix", json!("</w>"), "suffix"),
        ("/model/vocab/a", json!(VOCABULARY), "must have an id below the 320 rows"),
        ("/model/vocab/a", json!(u64::MAX), "must have an id below"),
        ("/model/vocab/a", json!(98), "id 98 is that of"),
        ("/model/merges", json!(["t h e"]), "two tokens without spaces"),
        ("/normalizer", json!({ "type": "Lowercase" }), "Lowercase"),
        ("/pre_tokenizer/pretokenizers/0/pattern/Regex", json!(r"\w+|\W+"), "SentencePiece's pieces"),
        ("/added_tokens/0/lstrip", json!(true), "lstrip"),
        ("/post_processor/processors/1/single/0/SpecialToken/id", json!("<|end|>"), "the post_processor"),
    ];
    for (pointer, value, text) in cases {
        let mut folder = Folder::new("Llama");
        let settings = json!({ "bos_token": "<|begin|>", "eos_token": { "content": "<|end|>" } });
        folder.files.insert("tokenizer_config.json".to_owned(), settings.to_string());
        match pointer.rsplit_once('/') {
            Some((parent, key)) if pointer.contains("vocab") => {
                folder.tokenizer.pointer_mut(parent).unwrap()[key] = value
            }
            _ => *folder.tokenizer.pointer_mut(pointer).unwrap() = value,
        }
        let message = refused(&folder);
        assert!(message.contains(text), "{pointer}: {message}");
    }
    let mut folder = Folder::new("Llama");
    let space = json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true });
    folder.tokenizer = pieces(json!(null), space);
    assert!(refused(&folder).contains("Metaspace"));
    let mut folder = Folder::new("Llama");
    folder.files.insert("tokenizer_config.json".to_owned(), json!({ "eos_token": "<nothing>" }).to_string());
    assert!(refused(&folder).contains("eos_token must be the text of a token, found \"<nothing>\""));
    let mut folder = Folder::new("Llama");
    folder.config["eos_token_id"] = json!([0, "5000"]);
    assert!(refused(&folder).contains("eos_token_id must be ids of tokens, found \"5000\""));
}
