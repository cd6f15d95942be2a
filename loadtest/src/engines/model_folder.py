"""Writes a llama model's GGUF file as a Hugging Face folder in bf16, for engines that read no GGUF. Arguments: file, folder."""

import json
import pathlib
import sys

import numpy
import torch
from gguf import GGUFReader, dequantize
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CONTROL_TOKEN = 3
PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

reader = GGUFReader(sys.argv[1])
folder = pathlib.Path(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)


def value(key):
    return reader.fields[key].contents()


def write(name, content):
    (folder / name).write_text(json.dumps(content))


def name_of(tensor):
    match tensor.removesuffix(".weight").split("."):
        case ["token_embd"]:
            return "model.embed_tokens.weight"
        case ["output_norm"]:
            return "model.norm.weight"
        case ["blk", layer, part]:
            return f"model.layers.{layer}.{PARTS[part]}.weight"
    raise SystemExit(f"unknown tensor {tensor}")


def weights_of(tensor):
    weights = numpy.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=numpy.float32)
    heads = {"attn_q": "head_count", "attn_k": "head_count_kv"}.get(tensor.name.split(".")[-2])
    if heads:
        # GGUF has the two halves of each head's rotation side by side, row by row.
        count = value(f"llama.attention.{heads}")
        rows, columns = weights.shape
        weights = weights.reshape(count, rows // count // 2, 2, columns).transpose(0, 2, 1, 3).reshape(rows, columns)
    return torch.from_numpy(numpy.array(weights)).to(torch.bfloat16)


tokens = value("tokenizer.ggml.tokens")
begin, end = value("tokenizer.ggml.bos_token_id"), value("tokenizer.ggml.eos_token_id")
context = value("llama.context_length")
write("generation_config.json", {"bos_token_id": begin, "eos_token_id": end})
write(
    "config.json",
    {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "hidden_size": value("llama.embedding_length"),
        "intermediate_size": value("llama.feed_forward_length"),
        "num_hidden_layers": value("llama.block_count"),
        "num_attention_heads": value("llama.attention.head_count"),
        "num_key_value_heads": value("llama.attention.head_count_kv"),
        "max_position_embeddings": context,
        "rms_norm_eps": float(value("llama.attention.layer_norm_rms_epsilon")),
        "rope_theta": float(value("llama.rope.freq_base")),
        "vocab_size": len(tokens),
        "bos_token_id": begin,
        "eos_token_id": end,
    },
)
write(
    "tokenizer_config.json",
    {
        "tokenizer_class": "GPT2Tokenizer",
        "bos_token": tokens[begin],
        "eos_token": tokens[end],
        "model_max_length": context,
        "chat_template": value("tokenizer.chat_template"),
    },
)
pairs = [tuple(merge.split(" ", 1)) for merge in value("tokenizer.ggml.merges")]
tokenizer = Tokenizer(models.BPE(vocab={token: id for id, token in enumerate(tokens)}, merges=pairs))
tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)
tokenizer.decoder = decoders.ByteLevel()
kinds = value("tokenizer.ggml.token_type")
control = [token for token, kind in zip(tokens, kinds) if kind == CONTROL_TOKEN]
tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
tokenizer.save(str(folder / "tokenizer.json"))
save_file(
    {name_of(tensor.name): weights_of(tensor) for tensor in reader.tensors},
    folder / "model.safetensors",
    metadata={"format": "pt"},
)
