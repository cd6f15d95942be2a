"""Writes corpus/gguf: small model files by PyPI's `gguf`, and what one may meet instead of a model file.

    python -m venv venv && venv/bin/pip install gguf==0.19.0 && venv/bin/python make.py

Files called `refused-...` are no models that we can run, the others are; those called `...-bpe` have a tokenizer, too.
"""

import pathlib

import numpy
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type, GGUFEndian, GGUFValueType as Kind, GGUFWriter

FOLDER = pathlib.Path(__file__).with_name("corpus") / "gguf"
random = numpy.random.default_rng(1)


def tensor(writer, name, shape, kind=Type.F32):
    """Random weights; `shape` as numpy has it, the row's length last."""
    if kind in (Type.F32, Type.F16):
        return writer.add_tensor(name, random.normal(0, 0.1, shape).astype(numpy.float32 if kind == Type.F32 else numpy.float16))
    block_len, block_bytes = GGML_QUANT_SIZES[kind]
    shape = (*shape[:-1], shape[-1] // block_len * block_bytes)
    writer.add_tensor(name, random.integers(0, 0x30, shape, dtype=numpy.uint8), raw_dtype=kind)


def model(path, architecture, hidden, vocabulary, embedding, endian=GGUFEndian.LITTLE):
    """A writer with the keys that every model has, of one layer."""
    writer = GGUFWriter(path, architecture, endianess=endian)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_key_length(16)
    writer.add_value_length(16)
    writer.add_layer_norm_rms_eps(1e-5)
    tensor(writer, "token_embd.weight", (vocabulary, hidden), embedding)
    return writer


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def every_type(path):
    """All quantized types, and a byte-level tokenizer."""
    writer = model(path, "llama", 256, 8, Type.Q8_0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    tokens = ["<|im_start|>", "<|im_end|>", "a", "b", "\u0120", "ab", "\u0120a", "\u0120ab"]
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 1, 1, 1, 1, 1, 1])
    writer.add_token_merges(["a b", "\u0120 a", "\u0120 ab"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    tensor(writer, "blk.0.attn_norm.weight", (256,))
    tensor(writer, "blk.0.attn_q.weight", (32, 256), Type.Q4_K)
    tensor(writer, "blk.0.attn_k.weight", (16, 256), Type.Q5_K)
    tensor(writer, "blk.0.attn_v.weight", (16, 256), Type.Q6_K)
    tensor(writer, "blk.0.attn_output.weight", (256, 32), Type.Q5_0)
    tensor(writer, "blk.0.ffn_norm.weight", (256,))
    tensor(writer, "blk.0.ffn_gate.weight", (32, 256), Type.Q2_K)
    tensor(writer, "blk.0.ffn_up.weight", (32, 256), Type.Q3_K)
    tensor(writer, "blk.0.ffn_down.weight", (256, 32), Type.Q4_0)
    tensor(writer, "output_norm.weight", (256,))
    tensor(writer, "output.weight", (8, 256), Type.Q5_1)
    finish(writer)


def gemma3(path):
    """Norms of heads, a window, a SentencePiece tokenizer."""
    writer = model(path, "gemma3", 32, 6, Type.BF16)
    writer.add_sliding_window(16)
    writer.add_rope_freq_base(1e6)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<pad>", "<eos>", "<0x0A>", "\u2581", "a", "\u2581a"])
    writer.add_token_scores([0.0, 0.0, 0.0, -1.0, -2.0, -3.0])
    writer.add_token_types([3, 3, 6, 1, 1, 1])
    writer.add_eos_token_id(1)
    for name in ["attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm"]:
        tensor(writer, f"blk.0.{name}.weight", (32,))
    for name in ["attn_q_norm", "attn_k_norm"]:
        tensor(writer, f"blk.0.{name}.weight", (16,))
    tensor(writer, "blk.0.attn_q.weight", (32, 32), Type.F16)
    finish(writer)


def every_kind(path):
    """All kinds of metadata, nested arrays, another alignment, a scaled rotation, version 2."""
    writer = model(path, "llama", 32, 4, Type.Q4_1)
    writer.add_custom_alignment(64)
    for kind, value in [
        (Kind.UINT8, 200), (Kind.INT8, -5), (Kind.UINT16, 60000), (Kind.INT16, -5), (Kind.UINT32, 1 << 31),
        (Kind.INT32, -5), (Kind.UINT64, 1 << 63), (Kind.INT64, -5), (Kind.FLOAT32, 0.5), (Kind.FLOAT64, 0.1),
        (Kind.BOOL, True), (Kind.STRING, "text"),
    ]:
        writer.add_key_value(f"kind.{kind.name}", value, kind)
    writer.add_array("nested", [[1, 2], [3]])
    tensor(writer, "rope_freqs.weight", (8,))
    writer.tensors[0]["rope_freqs.weight"].tensor[:] = 2.0
    finish(writer)
    bytes = bytearray(path.read_bytes())
    bytes[4] = 2
    path.write_bytes(bytes)


def other_type(path):
    writer = model(path, "llama", 256, 4, Type.F16)
    tensor(writer, "blk.0.attn_q.weight", (32, 256), Type.IQ4_XS)
    finish(writer)


def first_of_two(path):
    """A part of a model, whose other part is not there."""
    writer = model(path, "llama", 32, 4, Type.Q4_1)
    for key, value, kind in [("split.no", 0, Kind.UINT16), ("split.count", 2, Kind.UINT16), ("split.tensors.count", 2, Kind.INT32)]:
        writer.add_key_value(key, value, kind)
    finish(writer)


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    every_type(FOLDER / "llama-bpe.gguf")
    gemma3(FOLDER / "gemma3.gguf")
    every_kind(FOLDER / "kinds.gguf")
    other_type(FOLDER / "refused-type.gguf")
    finish(model(FOLDER / "refused-big-endian.gguf", "llama", 32, 4, Type.Q4_1, GGUFEndian.BIG))
    finish(model(FOLDER / "refused-architecture.gguf", "bert", 32, 4, Type.Q4_1))
    first_of_two(FOLDER / "refused-part.gguf")
    whole = (FOLDER / "kinds.gguf").read_bytes()
    (FOLDER / "refused-truncated.gguf").write_bytes(whole[: len(whole) // 2])
    (FOLDER / "refused-empty.gguf").write_bytes(b"")
    # What fetching a large file without its extension for git leaves.
    (FOLDER / "refused-pointer.gguf").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


main()
