//! Writes small Hugging Face folders: random weights, and tokenizers of both kinds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

/// Rows of the embedding table.
pub const VOCABULARY: usize = 320;
pub const HIDDEN: usize = 64;
pub const FEED_FORWARD: usize = 96;
pub const HEADS: usize = 4;
pub const KV_HEADS: usize = 2;
pub const HEAD: usize = 16;
/// Control tokens of [`byte_level`], behind its bytes and merges.
pub const BEGIN: usize = 267;
pub const END: usize = 268;

/// A tensor with its shape in Hugging Face's order.
#[derive(Clone)]
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// A folder in the making.
#[derive(Clone)]
pub struct Folder {
    pub config: Value,
    pub tensors: BTreeMap<String, Tensor>,
    pub tokenizer: Value,
    /// Other files with their contents.
    pub files: BTreeMap<String, String>,
}

impl Folder {
    /// A random model of an architecture such as `Llama`, with two layers and every type among its weights.
    pub fn new(architecture: &str) -> Folder {
        let model_type = match architecture {
            "Gemma3" => "gemma3_text".to_owned(),
            other => other.to_ascii_lowercase(),
        };
        let mut config = json!({
            "architectures": [format!("{architecture}ForCausalLM")],
            "model_type": model_type,
            "num_hidden_layers": 2,
            "hidden_size": HIDDEN,
            "intermediate_size": FEED_FORWARD,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "head_dim": HEAD,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000,
            "hidden_act": "silu",
            "tie_word_embeddings": true,
            "eos_token_id": END,
        });
        if architecture == "Gemma3" {
            config["hidden_activation"] = json!("gelu_pytorch_tanh");
            config["hidden_act"] = Value::Null;
        }
        let mut folder = Folder { config, tensors: BTreeMap::new(), tokenizer: byte_level(), files: BTreeMap::new() };
        let mut random = Random(7);
        folder.matrix(&mut random, "model.embed_tokens", VOCABULARY, HIDDEN, Dtype::BF16);
        for layer in 0..2 {
            let name = |part: &str| format!("model.layers.{layer}.{part}");
            let (q, kv) = (HEADS * HEAD, KV_HEADS * HEAD);
            folder.matrix(&mut random, &name("self_attn.q_proj"), q, HIDDEN, Dtype::F32);
            folder.matrix(&mut random, &name("self_attn.k_proj"), kv, HIDDEN, Dtype::F16);
            folder.matrix(&mut random, &name("self_attn.v_proj"), kv, HIDDEN, Dtype::BF16);
            folder.matrix(&mut random, &name("self_attn.o_proj"), HIDDEN, q, Dtype::BF16);
            folder.matrix(&mut random, &name("mlp.gate_proj"), FEED_FORWARD, HIDDEN, Dtype::BF16);
            folder.matrix(&mut random, &name("mlp.up_proj"), FEED_FORWARD, HIDDEN, Dtype::F16);
            folder.matrix(&mut random, &name("mlp.down_proj"), HIDDEN, FEED_FORWARD, Dtype::BF16);
            folder.norm(&mut random, &name("input_layernorm"), HIDDEN);
            folder.norm(&mut random, &name("post_attention_layernorm"), HIDDEN);
            if matches!(architecture, "Qwen3" | "Gemma3") {
                folder.norm(&mut random, &name("self_attn.q_norm"), HEAD);
                folder.norm(&mut random, &name("self_attn.k_norm"), HEAD);
            }
            if architecture == "Gemma3" {
                folder.norm(&mut random, &name("pre_feedforward_layernorm"), HIDDEN);
                folder.norm(&mut random, &name("post_feedforward_layernorm"), HIDDEN);
            }
            if architecture == "Qwen2" {
                for (part, width) in [("q", q), ("k", kv), ("v", kv)] {
                    let values = (0..width).map(|_| random.next()).collect::<Vec<_>>();
                    let name = name(&format!("self_attn.{part}_proj.bias"));
                    folder.tensors.insert(name, Tensor::new(Dtype::F32, vec![width], &values));
                }
            }
        }
        folder.norm(&mut random, "model.norm", HIDDEN);
        folder
    }

    fn matrix(&mut self, random: &mut Random, name: &str, rows: usize, columns: usize, dtype: Dtype) {
        let values: Vec<f32> = (0..rows * columns).map(|_| random.next() * 0.3).collect();
        self.tensors.insert(format!("{name}.weight"), Tensor::new(dtype, vec![rows, columns], &values));
    }

    fn norm(&mut self, random: &mut Random, name: &str, width: usize) {
        let values: Vec<f32> = (0..width).map(|_| 1.0 + random.next() * 0.5).collect();
        self.tensors.insert(format!("{name}.weight"), Tensor::new(Dtype::F32, vec![width], &values));
    }

    /// Writes everything, the weights in one file.
    pub fn write(&self) -> Written {
        let written = self.write_settings();
        written.put("model.safetensors", &serialize(self.tensors.iter()));
        written
    }

    /// Writes everything, the weights in `count` files and an index.
    pub fn write_shards(&self, count: usize) -> Written {
        let written = self.write_settings();
        let name = |shard: usize| format!("model-{:05}-of-{count:05}.safetensors", shard + 1);
        for shard in 0..count {
            written.put(&name(shard), &serialize(self.tensors.iter().skip(shard).step_by(count)));
        }
        let map: BTreeMap<&String, String> =
            self.tensors.keys().enumerate().map(|(index, tensor)| (tensor, name(index % count))).collect();
        let index = json!({ "metadata": { "total_size": 1 }, "weight_map": map });
        written.put("model.safetensors.index.json", index.to_string().as_bytes());
        written
    }

    fn write_settings(&self) -> Written {
        let written = Written { folder: tempfile::tempdir().unwrap() };
        written.put("config.json", self.config.to_string().as_bytes());
        written.put("tokenizer.json", self.tokenizer.to_string().as_bytes());
        self.files.iter().for_each(|(name, content)| written.put(name, content.as_bytes()));
        written
    }
}

impl Tensor {
    pub fn new(dtype: Dtype, shape: Vec<usize>, values: &[f32]) -> Tensor {
        let bytes = match dtype {
            Dtype::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Dtype::F16 => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
            Dtype::BF16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
            other => panic!("{other:?} is not for weights"),
        };
        Tensor { dtype, shape, bytes }
    }
}

/// A safetensors file.
pub fn serialize<'t>(tensors: impl Iterator<Item = (&'t String, &'t Tensor)>) -> Vec<u8> {
    let views = tensors.map(|(name, tensor)| {
        (name.as_str(), TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

/// A folder on disk, until it is dropped.
pub struct Written {
    folder: tempfile::TempDir,
}

impl Written {
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub fn put(&self, name: &str, content: &[u8]) {
        std::fs::write(self.file(name), content).unwrap();
    }
}

/// Numbers between -1 and 1 that look random.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

fn added(id: usize, content: &str, special: bool) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": special,
    })
}

/// Byte-level BPE as Llama 3 has it: 256 bytes, two control tokens, merges.
pub fn byte_level() -> Value {
    let byte = |byte: u8| match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        0x00..=0x20 => char::from_u32(0x100 + u32::from(byte)).unwrap(),
        0x7f..=0xa0 => char::from_u32(0x121 + u32::from(byte) - 0x7f).unwrap(),
        0xad => '\u{143}',
    };
    let mut vocab: BTreeMap<String, usize> = (0..=255u8).map(|id| (byte(id).to_string(), usize::from(id))).collect();
    let merges = ["t h", "th e", "Ġ the", "Ġ a", "a n", "an d", "e r", "Ġ Ġ", "1 2", "12 3", "Ã ©"];
    for (id, merge) in (256..).zip(merges) {
        vocab.insert(merge.replace(' ', ""), id);
    }
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [added(BEGIN, "<|begin|>", true), added(END, "<|end|>", true), added(269, "<tool>", false)],
        "normalizer": null,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "behavior": "Isolated", "invert": false, "pattern": { "Regex": concat!(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*",
                r"|\s*[\r\n]+|\s+(?!\S)|\s+"
            ) } },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
        ] },
        "post_processor": { "type": "Sequence", "processors": [
            { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true },
            {
                "type": "TemplateProcessing",
                "single": [
                    { "SpecialToken": { "id": "<|begin|>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } },
                ],
                "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
                "special_tokens": { "<|begin|>": { "id": "<|begin|>", "ids": [BEGIN], "tokens": ["<|begin|>"] } },
            },
        ] },
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
            "vocab": vocab, "merges": merges,
        },
    })
}

/// Pieces with byte fallback. `normalizer` and `pre_tokenizer` say when a space goes before a text.
pub fn pieces(normalizer: Value, pre_tokenizer: Value) -> Value {
    let mut vocab = BTreeMap::from([("<unk>".to_owned(), 0), ("<s>".to_owned(), 1), ("</s>".to_owned(), 2)]);
    vocab.extend((0..=255).map(|byte: usize| (format!("<0x{byte:02X}>"), 3 + byte)));
    let merges = [["▁", "a"], ["▁", "▁"], ["a", "b"], ["▁a", "b"], ["a", "a"]];
    for (id, piece) in (260..).zip(["▁", "a", "b", "c", "▁a", "▁▁", "ab", "▁ab", "aa"]) {
        vocab.insert(piece.to_owned(), id);
    }
    json!({
        "version": "1.0",
        "added_tokens": [added(0, "<unk>", true), added(1, "<s>", true), added(2, "</s>", true)],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": null,
        "decoder": null,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": merges,
        },
    })
}
