"""Writes values.bin: random blocks of every type and the values that PyPI's `gguf` gives them.

    python -m venv venv && venv/bin/pip install gguf==0.19.0 && venv/bin/python make.py

The file is, for each type: its ggml number, its length in bytes and its number of values (u32 each, little-endian), the
bytes, the values (f32). The bytes are random but for the f16 scales, which are small, large, negative, subnormal or zero.
"""

import pathlib

import numpy
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type, quants

VALUES = 1024

# Where a block keeps its f16 numbers.
SCALES = {
    Type.Q4_0: [0],
    Type.Q4_1: [0, 2],
    Type.Q5_0: [0],
    Type.Q5_1: [0, 2],
    Type.Q8_0: [0],
    Type.Q2_K: [80, 82],
    Type.Q3_K: [108],
    Type.Q4_K: [0, 2],
    Type.Q5_K: [0, 2],
    Type.Q6_K: [208],
}
EXTREMES = [0.0, -0.0, 2.0**-24, -(2.0**-24), 65504.0, -65504.0, 2.0**-14 - 2.0**-24, -0.333]


def floats(random, count):
    """Scales as they occur, and some that hardly do."""
    values = random.normal(0, 0.05, count)
    values[:: 3] = random.choice(EXTREMES, len(values[:: 3]))
    return values.astype(numpy.float16)


def blocks(random, kind):
    block_len, block_bytes = GGML_QUANT_SIZES[kind]
    count = max(VALUES // block_len, 5)
    if kind == Type.F32:
        return random.normal(0, 1, VALUES).astype(numpy.float32).view(numpy.uint8)
    if kind == Type.F16:
        return floats(random, VALUES).view(numpy.uint8)
    bytes = random.integers(0, 256, (count, block_bytes), dtype=numpy.uint8)
    if kind == Type.BF16:
        # No NaN, whose payload may differ.
        bytes[(bytes[:, 1] & 0x7F) == 0x7F, 1] = 0x3F
    for at in SCALES.get(kind, []):
        bytes[:, at : at + 2] = floats(random, count).view(numpy.uint8).reshape(-1, 2)
    return bytes.reshape(-1)


def main():
    random = numpy.random.default_rng(1)
    with open(pathlib.Path(__file__).with_name("values.bin"), "wb") as out:
        for kind in [Type.F32, Type.F16, Type.BF16, *SCALES]:
            bytes = blocks(random, kind)
            values = quants.dequantize(bytes, kind).astype(numpy.float32).reshape(-1)
            assert numpy.isfinite(values).all(), kind
            out.write(numpy.array([kind, len(bytes), len(values)], dtype="<u4").tobytes())
            out.write(bytes.tobytes())
            out.write(values.astype("<f4").tobytes())


main()
