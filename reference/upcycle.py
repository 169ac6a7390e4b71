#!/usr/bin/env python3
"""What `wudao upcycle` writes opens in transformers and gives the dense model's logits.

Makes tiny random dense models, runs the binary on each in several ways, and compares logits. Exit 1 on a difference.

    upcycle.py --wudao target/debug/wudao
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from golden import Case, build, reload, theta, tokens

DENSE = {
    "llama": {"rope_parameters": theta(10000.0)},
    "mistral": {"sliding_window": None, "rope_parameters": theta(10000.0)},
    "qwen2": {"tie_word_embeddings": True, "rope_parameters": theta(10000.0)},
    "qwen3": {"tie_word_embeddings": True, "rope_parameters": theta(10000.0)},
}
WAYS = [["--experts", "4", "--top-k", "2"], ["--experts", "3", "--top-k", "1", "--split", "4"], ["--experts", "4", "--top-k", "2", "--family", "glm4_moe"]]
TOLERANCE = 1e-4  # relative to the largest logit: a few layers of f32 in another order


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wudao", type=Path, required=True, help="the binary")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    failed = False
    for family, config in DENSE.items():
        case = Case(family, seed=3, config=config)
        with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
            dense = Path(scratch) / "dense"
            build(case).save_pretrained(dense)
            model = reload(dense)
            ids = tokens(case, model.config.vocab_size, 2, 24)
            expected = model(input_ids=ids).logits
            for number, way in enumerate(WAYS):
                out = Path(scratch) / f"sparse{number}"
                subprocess.run([args.wudao, "upcycle", dense, "--out", out, "--router-std", "0.5", "--quiet", *way], check=True)
                sparse = reload(out)
                differs = (sparse(input_ids=ids).logits - expected).abs().max().item() / expected.abs().max().item()
                good = differs <= TOLERANCE
                failed |= not good
                print(f"{family:8} -> {sparse.config.model_type:10} {' '.join(way):45} {differs:.1e} {'' if good else 'DIFFERS'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
