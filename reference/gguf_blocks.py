"""Golden values of GGUF blocks: golden/gguf_blocks.json, from the `gguf` package (MIT), ggml's own.

For every type that we read: random blocks and the numbers they stand for; for the types that we write: random numbers and
their blocks. Bits are hexadecimal, numbers those of little-endian f32.
Usage: an environment with gguf==0.19.0 and numpy==2.4.6 (llama_cpp.sh makes one), then gguf_blocks.py [--check]
"""

import argparse
import json
import pathlib
import sys

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize

PATH = pathlib.Path(__file__).parent / "golden" / "gguf_blocks.json"
READ = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]
WRITE = ["F16", "BF16", "Q4_0", "Q8_0"]
# Bytes of a block that are f16 scales: random bits would often be infinite or no number.
HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}


def random_blocks(name: str, count: int, rng: np.random.Generator) -> np.ndarray:
    size, width = gguf.GGML_QUANT_SIZES[Type[name]]
    if name in ("F16", "BF16"):
        numbers = rng.standard_normal(count, dtype=np.float32)
        return quantize(numbers, Type[name]).view(np.uint8).reshape(-1)
    blocks = rng.integers(0, 256, (count, width), dtype=np.uint8)
    for at in HALVES[name]:
        scales = rng.standard_normal(count).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(count, 2)
    return blocks.reshape(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with what is committed instead of writing it")
    args = parser.parse_args()
    rng = np.random.default_rng(7)
    decoded, encoded = {}, {}
    for name in READ:
        blocks = random_blocks(name, 16 if "F" in name else 2, rng)
        numbers = dequantize(blocks, Type[name]).astype("<f4")
        assert np.isfinite(numbers).all()
        decoded[name] = {"blocks": blocks.tobytes().hex(), "numbers": numbers.tobytes().hex()}
    for name in WRITE:
        numbers = rng.standard_normal(64, dtype=np.float32)
        numbers[32] = 0.0
        encoded[name] = {
            "numbers": numbers.astype("<f4").tobytes().hex(),
            "blocks": quantize(numbers, Type[name]).tobytes().hex(),
        }
    text = json.dumps({"gguf": "0.19.0", "decoded": decoded, "encoded": encoded}, indent=1) + "\n"
    if args.check:
        sys.exit("gguf_blocks.json differs" if PATH.read_text() != text else 0)
    PATH.write_text(text)


main()
