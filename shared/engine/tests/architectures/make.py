"""Writes the tiny models of this folder and, as `answers.jsonl`, what llama.cpp makes of them.

    python3 make.py LLAMA_QUANTIZE ANSWER

Needs PyPI's `numpy` and `gguf`, llama.cpp's `llama-quantize`, and a small program against its library, `ANSWER`. That,
started with a model file, reads lines of an id, a tab, a prompt (escaped \\n, \\t, \\r and \\\\), and writes for each
a JSON line with `id`, `prompt_tokens` (with the token that begins a sequence; control tokens parsed if the id begins
with `!`) and `steps`: for each token but the first its id, its log-probability after the tokens before it, and the five
likeliest `[id, logprob]` there. It must compute in f32: KV cache in f32, no flash attention. Its weights are f32.

The weights are random but for their scales, which keep the distributions neither flat nor sharp. Each model has a small
tokenizer of one of the supported kinds.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import gguf
import numpy

HERE = pathlib.Path(__file__).parent

STORY = """The lighthouse keeper counted 1234 ships that winter, and each of them had a story.\n
One carried oranges; another, it's said, nothing but letters.  "Where do they all go?" asked the child.\n"""
SHORT = "Two ships and the other one went on; then the tide turned."
# What tokenizers do differently: spaces, capitals, digits, scripts, bytes without a piece, texts of special tokens.
TEXTS = ["", " ", "  the  other\n\n\nthere ", "I'LL say it's 20250 or 7", "\tthe\ttide\r\n", "naïve café — 日本 🚢",
         "the▁ship", "control <s> and <|end|> and <eos>", "theothertheretherethe", "aaaaaaaaaa<b>the</b>"]
SPECIAL = "the <s><|end|>ship<eos> there<|end|><|end|>\nthe"

MERGES = ("t h|Ġ t|h e|Ġt he|i n|e r|o n|r e|Ġ a|n d|Ġa nd|o r|Ġ s|i t|th er|he r|Ġt h|o u|n t|Ġ w|Ġ o|in g|h i|hi p|"
          "s hip|Ġs hip|1 2|12 3|Ġ Ġ|Ċ Ċ|a n|e n|t e|Ġ it").split("|")
PIECES = ("▁t|he|▁the|th|in|er|on|re|▁a|nd|▁and|an|or|▁s|it|ther|her|there|ou|▁w|▁o|ing|ip|ship|▁ship|12|▁▁|en|▁it|▁on|"
          "the|other|▁other").split("|")
LETTERS = "▁etaonishrdlucgfwpm,.yb'k1"


def byte_level(writer, pre):
    """GPT-2's alphabet, the merges, and three special tokens."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = [chr(byte) for byte in printable] + [chr(0x100 + index) for index in range(len(others))]
    tokens = characters + [merge.replace(" ", "") for merge in MERGES] + ["<s>", "<|end|>", "<b>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    kind = gguf.TokenType
    writer.add_token_types([kind.NORMAL] * (len(tokens) - 3) + [kind.CONTROL] * 2 + [kind.USER_DEFINED])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(len(tokens) - 3)
    writer.add_eos_token_id(len(tokens) - 2)
    return len(tokens)


def sentence_piece(writer, space_prefix):
    """Special tokens, all bytes, pieces by falling score; runs of line feeds and of spaces as Gemma has them."""
    kind = gguf.TokenType
    tokens = ["<unk>", "<s>", "<eos>", "<|end|>", "\n\n", "<b>"]
    kinds = [kind.UNKNOWN, kind.CONTROL, kind.CONTROL, kind.CONTROL, kind.USER_DEFINED, kind.USER_DEFINED]
    tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    kinds += [kind.BYTE] * 256
    pieces = PIECES + list(LETTERS)
    scores = [0.0] * len(tokens) + [-float(rank) for rank in range(len(pieces))]
    tokens += pieces
    kinds += [kind.NORMAL] * len(pieces)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_space_prefix(space_prefix)
    return len(tokens)


class Model:
    """A random model; written as stored, and with the same values in f32."""

    def __init__(self, architecture, seed, tokenizer, layers=2, hidden=64, wide=96, heads=4, kv=2, size=16, tied=True,
                 stored=numpy.float16, base=10_000.0, more=lambda writer: None):
        self.__dict__.update(locals())

    def tensors(self, vocabulary):
        random = numpy.random.default_rng(self.seed)
        hidden, wide, size = self.hidden, self.wide, self.size
        queries, kv = self.heads * size, self.kv * size
        gemma = self.architecture == "gemma3"
        matrix = lambda rows, columns, gain: random.normal(0, gain / columns**0.5, (rows, columns)).astype(self.stored)
        vector = lambda length, mean, spread: random.normal(mean, spread, length).astype(numpy.float32)
        norm = lambda length: vector(length, 1, 0.2)
        yield "token_embd.weight", random.normal(0, 1.6 / hidden**0.5, (vocabulary, hidden)).astype(self.stored)
        if not self.tied:
            yield "output.weight", matrix(vocabulary, hidden, 1.6)
        yield "output_norm.weight", norm(hidden)
        for layer in range(self.layers):
            name = f"blk.{layer}."
            yield name + "attn_norm.weight", norm(hidden)
            yield name + "attn_q.weight", matrix(queries, hidden, 1.3)
            yield name + "attn_k.weight", matrix(kv, hidden, 1.3)
            yield name + "attn_v.weight", matrix(kv, hidden, 1)
            yield name + "attn_output.weight", matrix(hidden, queries, 1)
            if self.architecture == "qwen2":
                yield name + "attn_q.bias", vector(queries, 0, 0.5)
                yield name + "attn_k.bias", vector(kv, 0, 0.5)
                yield name + "attn_v.bias", vector(kv, 0, 0.5)
            if gemma or self.architecture == "qwen3":
                yield name + "attn_q_norm.weight", vector(size, 1.3, 0.2)
                yield name + "attn_k_norm.weight", vector(size, 1.3, 0.2)
            if gemma:
                yield name + "post_attention_norm.weight", norm(hidden)
                yield name + "post_ffw_norm.weight", norm(hidden)
            yield name + "ffn_norm.weight", norm(hidden)
            yield name + "ffn_gate.weight", matrix(wide, hidden, 1.5)
            yield name + "ffn_up.weight", matrix(wide, hidden, 1)
            yield name + "ffn_down.weight", matrix(hidden, wide, 1)
        if "llama3" in self.name:
            yield "rope_freqs.weight", llama3_divisors(self.base, size)

    def write(self, path, f32):
        writer = gguf.GGUFWriter(path, self.architecture)
        writer.add_name(self.name)
        writer.add_block_count(self.layers)
        writer.add_context_length(512)
        writer.add_embedding_length(self.hidden)
        writer.add_feed_forward_length(self.wide)
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(self.kv)
        writer.add_key_length(self.size)
        writer.add_value_length(self.size)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_rope_freq_base(self.base)
        self.more(writer)
        for name, values in self.tensors(self.tokenizer(writer)):
            writer.add_tensor(name, values.astype(numpy.float32) if f32 else values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def llama3_divisors(base, size, factor=8.0, low=1.0, high=4.0, original=128):
    """How Llama 3.1's description divides the frequencies: waves much longer than the original context wholly."""
    waves = 2 * numpy.pi * base ** (numpy.arange(0, size, 2) / size)
    smooth = (original / waves - low) / (high - low)
    blended = 1 / ((1 - smooth) / factor + smooth)
    divisors = numpy.where(waves < original / high, 1, numpy.where(waves > original / low, factor, blended))
    return divisors.astype(numpy.float32)


def gemma(writer):
    # Window and pattern such that one of six layers sees all; only that one turns eight times slower.
    writer.add_sliding_window(16)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(8.0)



def linear(writer):
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(2.0)


BPE = lambda pre: lambda writer: byte_level(writer, pre)
SPM = lambda space_prefix: lambda writer: sentence_piece(writer, space_prefix)
WIDE = dict(layers=1, hidden=256, wide=256, heads=8, kv=1, size=32, stored=numpy.float32)
MODELS = {
    "llama3": Model("llama", 1, BPE("llama-bpe"), tied=False),
    "llama-linear": Model("llama", 2, SPM(True), wide=64, more=linear),
    "qwen2": Model("qwen2", 3, BPE("qwen2"), base=1_000_000.0),
    "qwen3": Model("qwen3", 4, BPE("qwen2"), size=32, wide=64, base=1_000_000.0),
    "gemma3": Model("gemma3", 5, SPM(False), layers=6, wide=64, heads=2, kv=1, base=1_000_000.0, more=gemma),
    "llama-q4_k": Model("llama", 6, SPM(True), **WIDE),
    "llama-q6_k": Model("llama", 7, SPM(True), **WIDE),
    "qwen2-q3_k": Model("qwen2", 8, BPE("qwen2"), **WIDE),
    "qwen3-q5_0": Model("qwen3", 9, BPE("qwen2"), stored=numpy.float32),
}
# Arguments of llama-quantize; the last is the type of every matrix that isn't named before.
QUANTIZED = {
    "llama-q4_k": ["Q4_K_S"],
    "llama-q6_k": ["--tensor-type", "attn_q=q6_k", "--tensor-type", "attn_v=q6_k", "--tensor-type", "ffn_down=q6_k",
                   "--token-embedding-type", "q5_k", "Q4_K_S"],
    "qwen2-q3_k": ["--tensor-type", "ffn_gate=q2_k", "--tensor-type", "ffn_up=q2_k", "Q3_K_S"],
    "qwen3-q5_0": ["--tensor-type", "ffn_up=q5_1", "--tensor-type", "attn_v=q4_1", "Q5_0"],
}


def main(quantize, answer):
    escape = lambda text: text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
    run = lambda *arguments: subprocess.run(list(map(str, arguments)), check=True, capture_output=True)
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        plain = pathlib.Path(scratch, "f32.gguf")
        for name, model in MODELS.items():
            model.name = name
            path = HERE / f"{name}.gguf"
            if name in QUANTIZED:
                model.write(plain, f32=True)
                run(quantize, "--pure", *QUANTIZED[name][:-1], plain, path, QUANTIZED[name][-1])
                run(quantize, "--allow-requantize", path, plain, "F32")
            else:
                model.write(path, f32=False)
                model.write(plain, f32=True)
            prompts = {"story": STORY} if name not in QUANTIZED else {"short": SHORT}
            prompts |= {f"text-{index}": text for index, text in enumerate(TEXTS)} | {"!special": SPECIAL}
            asked = "".join(f"{id}\t{escape(text)}\n" for id, text in prompts.items())
            answers = subprocess.run([answer, plain], input=asked.encode(), check=True, capture_output=True).stdout
            for line in answers.decode().splitlines():
                case = json.loads(line)
                id = case["id"]
                if id not in ("story", "short"):
                    case.pop("steps", None)
                lines.append(json.dumps({"model": name, **case, "prompt": prompts[id]}, ensure_ascii=False))
            print(name, path.stat().st_size)
    (HERE / "answers.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
