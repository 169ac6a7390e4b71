#!/usr/bin/env python3
"""Training speed and memory: PyTorch with transformers against `wudao bench train`, on the same models.

A configuration is a letter (`presets/bench-a.toml` ...) or a settings file of wudao; the PyTorch model is built from that
same file, and both must count the same parameters. A step is the same work on both sides: random token ids, the loss over
the next token, backward, the norm of the gradient and clipping to 1, AdamW with decay for matrices only; where the preset
recomputes blocks, PyTorch does too. Each run is a process of its own, the two sides take turns (A B A B ...), every step is
timed by itself, and medians are compared.

PyTorch is tried in several ways, and the fastest counts. In the first round all of them run, in later rounds those
within a tenth of the fastest.

    f32    plain     as most scripts have it: a loop over experts, AdamW step by step
           malloc    + glibc told to keep its pages (TUNABLES)
           grouped   + transformers' `grouped_mm` experts
           fused     + the fused AdamW
           compile   + torch.compile
    bf16   mixed-plain    autocast over f32 weights; otherwise as `plain`
           mixed          autocast over f32 weights, with all of the above but torch.compile
           mixed-compile  + torch.compile
           pure           weights, gradients and moments in bf16, which saves memory at the price of lost updates
           pure-compile   + torch.compile

`grouped_mm` does not know autocast and would multiply the experts in f32; here it is told, or `mixed` would be slow for no
good reason.

    reference/.venv/bin/python reference/bench_train.py --wudao target/release/wudao --configs a,b,c,d --dtypes f32,bf16

Writes OUT.md, a table with ratios, OUT.svg, the same as a figure, and OUT.json, every figure of every run, anew after each run. Run it on an
idle machine: the load before each run is in the JSON. A ratio above 1 is in wudao's favour, for memory one below 1.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The one place to adjust when the command line changes.
WUDAO = "{wudao} --threads {threads} bench train --config {config} --dtype {dtype} --batch {batch} --seq {seq} --warmup {warmup} --steps {steps} --json"
# Keeps freed memory instead of giving it back to the system, and asks for huge pages: a page fault for every 4 KB of
# every temporary tensor of every step is a visible part of PyTorch's time.
TUNABLES = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=34359738368"
CLOSE = 0.9  # variants at least this fast, relative to the fastest, run again in later rounds
CLIP = 1.0


@dataclass
class Variant:
    """A way to train with PyTorch."""

    name: str
    dtype: str
    autocast: bool = False
    malloc: bool = True
    experts: str = "grouped_mm"
    fused: bool = True
    compile: bool = False


VARIANTS = [
    Variant("plain", "f32", malloc=False, experts="eager", fused=False),
    Variant("malloc", "f32", experts="eager", fused=False),
    Variant("grouped", "f32", fused=False),
    Variant("fused", "f32"),
    Variant("compile", "f32", compile=True),
    Variant("mixed-plain", "bf16", autocast=True, malloc=False, experts="eager", fused=False),
    Variant("mixed", "bf16", autocast=True),
    Variant("mixed-compile", "bf16", autocast=True, compile=True),
    Variant("pure", "bf16"),
    Variant("pure-compile", "bf16", compile=True),
]


# --- what is trained ------------------------------------------------------------------------------------------------


def preset_of(name: str) -> Path:
    path = ROOT / "presets" / f"bench-{name}.toml" if len(name) == 1 else Path(name)
    if not path.is_file():
        sys.exit(f"bench_train: there is no configuration {name} ({path})")
    return path


def transformers_config(model: dict) -> tuple[str, dict]:
    """The [model] of a settings file as transformers names it."""
    family, moe = model["family"], model.get("moe")
    same = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    same += ["num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "initializer_range"]
    config = {key: model[key] for key in same if key in model}
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": model.get("rope_theta", 10000.0)}
    config |= {"bos_token_id": None, "eos_token_id": 0, "use_cache": False}
    if family in ("llama", "qwen3", "qwen3_moe"):
        config["attention_bias"] = model.get("attention_bias", False)
    if family == "mixtral":
        config |= {
            "num_local_experts": moe["num_experts"],
            "num_experts_per_tok": moe["num_experts_per_tok"],
            "intermediate_size": moe["moe_intermediate_size"],
        }
    elif family == "qwen3_moe":
        config |= {key: moe[key] for key in ("num_experts", "num_experts_per_tok", "moe_intermediate_size")}
        config |= {"norm_topk_prob": moe.get("norm_topk_prob", True), "mlp_only_layers": moe.get("dense_layers", [])}
    elif family not in ("llama", "qwen3"):
        sys.exit(f"bench_train: no PyTorch model for the family {family}")
    return family, config


# --- one run of PyTorch, in a process of its own --------------------------------------------------------------------


def peak_rss_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def available_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def tell_grouped_mm_of_autocast(torch) -> None:
    from transformers.integrations import moe

    known = moe._grouped_mm

    def grouped_mm(input, weight, offs):
        return known(input.to(torch.bfloat16), weight.to(torch.bfloat16), offs)

    moe._grouped_mm = grouped_mm


def train(job: dict) -> dict:
    free = available_bytes()
    if free:  # rather an error here than a machine that runs out of memory
        resource.setrlimit(resource.RLIMIT_DATA, (free, free))
    import torch
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    imported = peak_rss_mb()
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(job["threads"])
    torch.set_num_interop_threads(1)
    torch.manual_seed(0)
    variant = Variant(**job["variant"])
    settings = tomllib.loads(Path(job["preset"]).read_text())
    family, keys = transformers_config(settings["model"])
    keys["max_position_embeddings"] = max(keys["max_position_embeddings"], job["seq"])
    options = {"experts_implementation": variant.experts} if "moe" in settings["model"] else {}
    weights = torch.float32 if variant.autocast or variant.dtype == "f32" else torch.bfloat16
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **keys), dtype=weights, attn_implementation="sdpa", **options
    ).train()
    if settings.get("train", {}).get("recompute", "none") == "block":
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    if variant.autocast and variant.experts == "grouped_mm":
        tell_grouped_mm_of_autocast(torch)
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95), fused=variant.fused)
    forward = torch.compile(model) if variant.compile else model

    draw = torch.Generator().manual_seed(1)
    seconds, losses = [], []
    for _ in range(job["warmup"] + job["steps"]):
        begin = time.perf_counter()
        ids = torch.randint(0, keys["vocab_size"], (job["batch"], job["seq"]), generator=draw)
        with torch.autocast("cpu", torch.bfloat16, enabled=variant.autocast):
            loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - begin)
    return {
        "seconds": seconds[job["warmup"] :],
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "parameters": sum(p.numel() for p in parameters),
        "peak_rss_mb": peak_rss_mb(),
        "import_rss_mb": imported,  # PyTorch itself, before there is a model
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


# --- turns ----------------------------------------------------------------------------------------------------------


def reason(done: subprocess.CompletedProcess) -> str:
    if done.returncode < 0:
        return f"ended by signal {-done.returncode}" + (" (out of memory?)" if done.returncode == -9 else "")
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line or line.startswith("error")]
    return ((errors or lines or ["no message"])[-1])[:300]


def run_torch(args, config: str, variant: Variant) -> dict:
    names = ("threads", "batch", "seq", "steps", "warmup")
    job = {"preset": str(preset_of(config)), "variant": vars(variant), **{name: getattr(args, name) for name in names}}
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(args.threads),
        "MKL_NUM_THREADS": str(args.threads),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    if variant.malloc:
        environment["GLIBC_TUNABLES"] = TUNABLES
    done = subprocess.run(
        [sys.executable, __file__, "--worker"], input=json.dumps(job), capture_output=True, text=True, env=environment
    )
    if done.returncode:
        return {"error": reason(done)}
    found = json.loads(done.stdout.splitlines()[-1])
    speed = [args.batch * args.seq / s for s in found["seconds"]]
    return {**found, "tokens_per_s": statistics.median(speed), "tokens_per_s_min": min(speed), "tokens_per_s_max": max(speed)}


def run_wudao(args, config: str, dtype: str) -> dict:
    fill = {**vars(args), "wudao": args.wudao.resolve(), "config": config if len(config) == 1 else preset_of(config), "dtype": dtype}
    command = [word.format(**fill) for word in WUDAO.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    return {"error": reason(done)} if done.returncode else json.loads(done.stdout)


def machine() -> dict:
    facts = {"system": platform.platform(), "python": platform.python_version(), "logical cores": os.cpu_count()}
    try:
        info = Path("/proc/cpuinfo").read_text().splitlines()
        value = lambda key: next((line.split(":", 1)[1].strip() for line in info if line.startswith(key)), "")
        facts["processor"] = value("model name")
        flags = set(value("flags").split())
        wanted = ("fma", "avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16")
        facts["instructions"] = " ".join(f for f in wanted if f in flags)
        facts["memory GB"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except OSError:
        pass  # not Linux: less is known
    return facts


# --- the report -----------------------------------------------------------------------------------------------------


def summary(runs: list[dict], who: str) -> dict | None:
    """Medians over one side's runs, or nothing if none ended well."""
    good = [r for r in runs if r["who"] == who and "error" not in r]
    if not good:
        return None
    middle = lambda key: statistics.median(r[key] for r in good)
    return {
        "runs": len(good),
        "tokens_per_s": middle("tokens_per_s"),
        "tokens_per_s_min": min(r["tokens_per_s_min"] for r in good),
        "tokens_per_s_max": max(r["tokens_per_s_max"] for r in good),
        "peak_rss_mb": middle("peak_rss_mb"),
    }


def row(config: str, dtype: str, runs: list[dict]) -> dict:
    """What the runs of one configuration in one precision come to."""
    ours = summary(runs, "wudao")
    peers = {v.name: summary(runs, v.name) for v in VARIANTS if v.dtype == dtype}
    peers = {name: found for name, found in peers.items() if found}
    best = max(peers, key=lambda name: peers[name]["tokens_per_s"], default=None)
    out = {"config": config, "dtype": dtype, "wudao": ours, "torch": peers, "best": best}
    out["errors"] = {r["who"]: r["error"] for r in runs if "error" in r}
    if ours:
        detail = next(r for r in reversed(runs) if r["who"] == "wudao" and "error" not in r)
        out |= {key: detail[key] for key in ("gflops", "peak_gflops", "share_of_peak", "seconds")}
    if ours and best:
        out["ratio"] = ours["tokens_per_s"] / peers[best]["tokens_per_s"]
        out["rss_ratio"] = ours["peak_rss_mb"] / peers[best]["peak_rss_mb"]
    return out


def markdown(report: dict) -> str:
    number = lambda x, form: "–" if x is None else format(x, form)
    lines = [
        "| config | type | wudao tokens/s | PyTorch tokens/s (best variant) | ratio | wudao RSS MB | PyTorch RSS MB | ratio | wudao GFLOP/s (of peak) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in report["rows"]:
        ours, best = r["wudao"] or {}, r["torch"].get(r["best"]) or {}
        share = f" ({100 * r['share_of_peak']:.0f} %)" if "share_of_peak" in r else ""
        cells = [
            r["config"], r["dtype"], number(ours.get("tokens_per_s"), ".0f"),
            number(best.get("tokens_per_s"), ".0f") + (f" ({r['best']})" if r["best"] else ""),
            number(r.get("ratio"), ".2f"), number(ours.get("peak_rss_mb"), ".0f"), number(best.get("peak_rss_mb"), ".0f"),
            number(r.get("rss_ratio"), ".2f"), number(r.get("gflops"), ".0f") + share,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Every variant, median tokens/s (slowest to fastest step), peak RSS:", ""]
    lines += ["| config | type | who | tokens/s | RSS MB |", "|---|---|---|---|---|"]
    for r in report["rows"]:
        for name, f in [("wudao", r["wudao"]), *r["torch"].items()]:
            if f:
                speed = f"{f['tokens_per_s']:.0f} ({f['tokens_per_s_min']:.0f}–{f['tokens_per_s_max']:.0f})"
                lines.append(f"| {r['config']} | {r['dtype']} | {name} | {speed} | {f['peak_rss_mb']:.0f} |")
        for name, error in r["errors"].items():
            lines.append(f"| {r['config']} | {r['dtype']} | {name} | failed: {error.replace('|', '/')} | |")
    facts = "; ".join(f"{key}: {value}" for key, value in {**report["machine"], **report["setup"]}.items())
    return "\n".join([*lines, "", facts, ""])


def figure(report: dict) -> str:
    """Bars of tokens a second: ours, and the fastest PyTorch's beside it."""
    rows = [r for r in report["rows"] if r["wudao"] and r["best"]]
    wide, high, left, top, bottom = 74, 220, 20, 40, 40
    width, height = 2 * left + wide * max(len(rows), 1), top + high + bottom
    most = max((max(r["wudao"]["tokens_per_s"], r["torch"][r["best"]]["tokens_per_s"]) for r in rows), default=1.0)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="10" '
        f'role="img"><title>Training, tokens a second</title><rect width="{width}" height="{height}" fill="white"/>'
        f'<text x="{left}" y="18" font-size="12">tokens a second: <tspan fill="#c0392b">WuDao</tspan>, '
        '<tspan fill="#2c5f8a">PyTorch, its fastest way</tspan></text>'
    ]
    for i, r in enumerate(rows):
        x = left + i * wide
        for at, colour, speed in ((8, "#c0392b", r["wudao"]["tokens_per_s"]), (38, "#2c5f8a", r["torch"][r["best"]]["tokens_per_s"])):
            tall = high * speed / most
            out.append(f'<rect x="{x + at}" y="{top + high - tall:.1f}" width="28" height="{tall:.1f}" fill="{colour}"/>')
            out.append(f'<text x="{x + at + 14}" y="{top + high - tall - 3:.1f}" text-anchor="middle">{speed:.0f}</text>')
        middle = x + wide / 2
        out.append(f'<text x="{middle}" y="{top + high + 14}" text-anchor="middle">{r["config"]}, {r["dtype"]}</text>')
        out.append(f'<text x="{middle}" y="{top + high + 28}" text-anchor="middle" font-weight="bold">{r["ratio"]:.2f}</text>')
    return "\n".join(out) + "\n</svg>\n"


def main() -> int:
    if sys.argv[1:] == ["--worker"]:
        print(json.dumps(train(json.load(sys.stdin))))
        return 0
    parser = argparse.ArgumentParser(description="Time training: PyTorch against `wudao bench train`.")
    parser.add_argument("--wudao", type=Path, required=True, help="the binary")
    parser.add_argument("--configs", default="a,b,c,d", help="letters or settings files, with commas between [%(default)s]")
    parser.add_argument("--dtypes", default="f32,bf16", help="f32, bf16 or both [%(default)s]")
    parser.add_argument("--variants", help="only these ways of PyTorch, with commas between")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side [%(default)s]")
    parser.add_argument("--steps", type=int, default=5, help="measured steps a run [%(default)s]")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them [%(default)s]")
    parser.add_argument("--batch", type=int, default=8, help="rows of a step [%(default)s]")
    parser.add_argument("--seq", type=int, default=512, help="tokens of a row [%(default)s]")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of both sides [%(default)s]")
    parser.add_argument("--out", type=Path, default=Path("runs/bench_train"), help="the report, without .md, .svg and .json [%(default)s]")
    args = parser.parse_args()
    if not args.wudao.is_file():
        parser.error(f"no such file: {args.wudao}")
    configs, dtypes = args.configs.split(","), args.dtypes.split(",")
    names = args.variants.split(",") if args.variants else [v.name for v in VARIANTS]
    for word in sorted(set(names) - {v.name for v in VARIANTS} | set(dtypes) - {"f32", "bf16"}):
        parser.error(f"unknown: {word}")
    for config in configs:
        transformers_config(tomllib.loads(preset_of(config).read_text())["model"])

    setup = {key: getattr(args, key) for key in ("threads", "batch", "seq", "warmup", "steps", "rounds")}
    version = subprocess.run([args.wudao.resolve(), "--version"], capture_output=True, text=True).stdout.strip()
    report = {"machine": machine(), "setup": {"wudao": version, **setup}, "rows": [], "runs": []}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for config, dtype in ((c, d) for c in configs for d in dtypes):
        sparse = "moe" in tomllib.loads(preset_of(config).read_text())["model"]
        # A dense model has no experts: `grouped` would be `malloc` again.
        variants = [v for v in VARIANTS if v.dtype == dtype and v.name in names and (sparse or v.name != "grouped")]
        runs: list[dict] = []

        def note(who: str, round: int, load: float, found: dict) -> None:
            run = {"config": config, "dtype": dtype, "who": who, "round": round, "load_before": load, **found}
            runs.append(run)
            report["runs"].append(run)
            for package in ("torch", "transformers"):
                if package in found:
                    report["setup"][package] = found[package]
            report["rows"] = [r for r in report["rows"] if (r["config"], r["dtype"]) != (config, dtype)]
            report["rows"].append(row(config, dtype, runs))
            args.out.with_name(args.out.name + ".json").write_text(json.dumps(report, indent=1))
            args.out.with_name(args.out.name + ".md").write_text(markdown(report))
            args.out.with_name(args.out.name + ".svg").write_text(figure(report))
            told = found.get("error") or f"{found['tokens_per_s']:.0f} tokens/s, {found['peak_rss_mb']:.0f} MB"
            print(f"{config} {dtype} round {round + 1} {who:14} {told}", file=sys.stderr)

        for round in range(args.rounds):
            for variant in variants:
                for who in ("wudao", variant.name):
                    if any(r["who"] == who and "error" in r for r in runs):
                        continue  # it would fail again
                    load = os.getloadavg()[0]
                    note(who, round, load, run_wudao(args, config, dtype) if who == "wudao" else run_torch(args, config, variant))
            counted = {r["parameters"] for r in runs if "parameters" in r}
            if len(counted) > 1:
                sys.exit(f"bench_train: config {config}: not the same model, the sides count {sorted(counted)} parameters")
            found = report["rows"][-1]["torch"]
            fastest = max((f["tokens_per_s"] for f in found.values()), default=0.0)
            variants = [v for v in variants if v.name in found and found[v.name]["tokens_per_s"] >= CLOSE * fastest]
            if not variants:
                break
    print(markdown(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
