#!/usr/bin/env python3
"""Writing one token at a time: PyTorch with transformers against `wudao bench decode`, on the same models.

A configuration is that of bench_train.py, and so is the PyTorch model. One sequence is written after a prompt of random
tokens, the likeliest token each time; both sides time the writing alone. Each run is a process of its own, the sides take
turns, medians are compared, and the fastest way of PyTorch counts:

    eager    a loop over experts         grouped  `grouped_mm`         batched  `batched_mm`
    compile  torch.compile with a cache of fixed size, experts as in `batched`

    reference/.venv/bin/python reference/bench_decode.py --wudao target/release/wudao --configs b --dtypes f32,bf16

Prints a Markdown table and, with --out FILE, writes every figure as JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import tomllib
from pathlib import Path

from bench_train import TUNABLES, machine, preset_of, reason, transformers_config

WAYS = {"eager": "eager", "grouped": "grouped_mm", "batched": "batched_mm", "compile": "batched_mm"}


def write(job: dict) -> dict:
    import torch
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, StaticCache

    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(job["threads"])
    torch.set_num_interop_threads(1)
    torch.manual_seed(0)
    settings = tomllib.loads(Path(job["preset"]).read_text())
    family, keys = transformers_config(settings["model"])
    options = {"experts_implementation": WAYS[job["way"]]} if "moe" in settings["model"] else {}
    config = AutoConfig.for_model(family, **{**keys, "use_cache": True})
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[job["dtype"]]
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa", **options).eval()
    step = torch.compile(model) if job["way"] == "compile" else model
    ids = torch.randint(0, keys["vocab_size"], (1, job["prompt"]), generator=torch.Generator().manual_seed(1))
    seconds = []
    with torch.inference_mode():
        for _ in range(1 + job["tries"]):  # the first one warms up
            if job["way"] == "compile":
                cache = StaticCache(config=config, max_cache_len=job["prompt"] + job["tokens"])
            else:
                cache = DynamicCache(config=config)
            token = model(input_ids=ids, past_key_values=cache).logits[:, -1:].argmax(-1)
            begin = time.perf_counter()
            for _ in range(job["tokens"]):
                token = step(input_ids=token, past_key_values=cache).logits[:, -1:].argmax(-1)
            seconds.append(time.perf_counter() - begin)
    return {"tokens_per_s": job["tokens"] / statistics.median(seconds[1:]), "torch": torch.__version__}


def run_torch(args, config: str, dtype: str, way: str) -> dict:
    job = {"preset": str(preset_of(config)), "dtype": dtype, "way": way}
    job |= {name: getattr(args, name) for name in ("threads", "prompt", "tokens", "tries")}
    threads = {"OMP_NUM_THREADS": str(args.threads), "MKL_NUM_THREADS": str(args.threads), "CUDA_VISIBLE_DEVICES": ""}
    environment = {**os.environ, **threads, "GLIBC_TUNABLES": TUNABLES}
    command = [sys.executable, __file__, "--worker"]
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, env=environment)
    return {"error": reason(done)} if done.returncode else json.loads(done.stdout.splitlines()[-1])


def run_wudao(args, config: str, dtype: str) -> dict:
    command = [args.wudao.resolve(), "--threads", args.threads, "bench", "decode", "--dtype", dtype, "--json"]
    command += ["--config", config if len(config) == 1 else preset_of(config)]
    command += ["--prompt", args.prompt, "--tokens", args.tokens, "--tries", args.tries]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    return {"error": reason(done)} if done.returncode else json.loads(done.stdout)


def main() -> int:
    if sys.argv[1:] == ["--worker"]:
        print(json.dumps(write(json.load(sys.stdin))))
        return 0
    parser = argparse.ArgumentParser(description="Time writing: PyTorch against `wudao bench decode`.")
    parser.add_argument("--wudao", type=Path, required=True, help="the binary")
    parser.add_argument("--configs", default="b", help="letters or settings files, with commas between [%(default)s]")
    parser.add_argument("--dtypes", default="f32,bf16", help="f32, bf16 or both [%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side [%(default)s]")
    parser.add_argument("--prompt", type=int, default=128, help="tokens read before [%(default)s]")
    parser.add_argument("--tokens", type=int, default=128, help="tokens written [%(default)s]")
    parser.add_argument("--tries", type=int, default=3, help="sequences of a run [%(default)s]")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of both sides [%(default)s]")
    parser.add_argument("--out", type=Path, help="where every figure goes, as JSON")
    args = parser.parse_args()
    runs = []
    for config in args.configs.split(","):
        for dtype in args.dtypes.split(","):
            for round_ in range(args.rounds):
                sides = [("wudao", lambda: run_wudao(args, config, dtype))]
                sides += [(way, lambda way=way: run_torch(args, config, dtype, way)) for way in WAYS]
                for who, run in sides:
                    load = os.getloadavg()[0]
                    found = {**run(), "config": config, "dtype": dtype, "round": round_, "who": who, "load": load}
                    runs.append(found)
                    print(config, dtype, who, found.get("error") or f"{found['tokens_per_s']:.1f} tokens/s", file=sys.stderr)
    if args.out:
        args.out.write_text(json.dumps({"machine": machine(), "runs": runs}, indent=1) + "\n")
    print("| config | type | WuDao tokens/s | share of read speed | PyTorch tokens/s | ratio |\n|---|---|---|---|---|---|")
    for config, dtype in dict.fromkeys((r["config"], r["dtype"]) for r in runs):
        mine = [r for r in runs if (r["config"], r["dtype"]) == (config, dtype) and "error" not in r]
        of = lambda who, key: statistics.median([r[key] for r in mine if r["who"] == who] or [0.0])
        best = max(WAYS, key=lambda way: of(way, "tokens_per_s"))
        ours, theirs = of("wudao", "tokens_per_s"), of(best, "tokens_per_s")
        ratio = f"{ours / theirs:.2f}" if theirs else "–"
        print(f"| {config} | {dtype} | {ours:.0f} | {of('wudao', 'share_of_read'):.2f} | {theirs:.0f} (`{best}`) | {ratio} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
