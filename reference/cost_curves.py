#!/usr/bin/env python3
"""How the speed of training changes as work grows: longer rows, more experts, larger batches, deeper models.

Each point is one `wudao bench train --json`; everything that a curve does not vary is fixed:

    length    config b, 16384 tokens a step, in rows of 512 to 16384
    experts   2 layers of width 512, vocabulary 8192, top 4 of 8 to 512 experts of 256: equal active parameters
    batch     config b, rows of 512, 1 to 32 of them a step
    depth     config b, 2 to 32 layers, 8 rows of 512

    cost_curves.py --wudao PATH_TO_BINARY --out docs/figures [--dtype bf16] [--steps 5] [--curve NAME ...]

Writes OUT/cost-NAME.json (every answer, with the machine's load before it) and OUT/cost.svg, and prints one Markdown table a
curve. Standard library only. Tokens a second are medians of the steps; GFLOP/s are of the model's work, so that they stay
level where speed falls only because a token costs more.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

LAYERS = "model.num_hidden_layers"
FEW = {LAYERS: 2, "model.vocab_size": 8192}
CURVES = {
    "length": ("tokens of a row", "b", [(n, 16384 // n, n, {}) for n in (512, 1024, 2048, 4096, 8192, 16384)]),
    "experts": (
        "experts",
        "c",
        [(n, 8, 512, {**FEW, "model.moe.num_experts": n}) for n in (8, 16, 32, 64, 128, 256, 512)],
    ),
    "batch": ("rows of 512", "b", [(n, n, 512, {}) for n in (1, 2, 4, 8, 16, 32)]),
    "depth": ("layers", "b", [(n, 8, 512, {LAYERS: n}) for n in (2, 4, 8, 16, 32)]),
}


def measure(wudao: str, dtype: str, steps: int, config: str, batch: int, length: int, settings: dict) -> dict:
    command = [wudao, "bench", "train", "--config", config, "--dtype", dtype, "--batch", str(batch), "--seq", str(length)]
    command += ["--steps", str(steps), "--json", "--quiet"]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    load = os.getloadavg()[0]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(f"cost_curves: {' '.join(command)} failed:\n{run.stderr}")
    return {**json.loads(run.stdout), "load": round(load, 2)}


def table(axis: str, points: list) -> str:
    head = f"| {axis} | tokens/s | slowest – fastest | GFLOP/s | of peak | GFLOP a token | memory, GB |\n|---|---|---|---|---|---|---|\n"
    rows = ""
    for x, a in points:
        a_token = a["gflops"] / a["tokens_per_s"]
        rows += f"| {x} | {a['tokens_per_s']:.0f} | {a['tokens_per_s_min']:.0f} – {a['tokens_per_s_max']:.0f} "
        rows += f"| {a['gflops']:.0f} | {100 * a['share_of_peak']:.0f} % | {a_token:.3f} | {a['peak_rss_mb'] / 1e3:.2f} |\n"
    return head + rows


def figure(curves: dict) -> str:
    """One panel a curve: GFLOP/s of model work (bars, left), tokens a second above them."""
    width, height, left, bottom, top = 320, 220, 44, 34, 30
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * width} {2 * height}" font-family="sans-serif" '
        'font-size="10" role="img"><title>Speed of training as work grows</title>'
        f'<rect width="{2 * width}" height="{2 * height}" fill="white"/>'
    ]
    for i, (name, points) in enumerate(curves.items()):
        axis = CURVES[name][0]
        x0, y0 = i % 2 * width, i // 2 * height
        peak = max(a["peak_gflops"] for _, a in points)
        most = min(peak, 1.2 * max(a["gflops"] for _, a in points))
        wide, high = width - left - 14, height - bottom - top
        y = lambda gflops: y0 + top + high * (1 - gflops / most)  # noqa: E731
        out.append(f'<text x="{x0 + left}" y="{y0 + 14}" font-size="12">{axis}</text>')
        for share in (0, 0.25, 0.5, 0.75, 1):
            at = y(share * most)
            out.append(f'<line x1="{x0 + left}" x2="{x0 + left + wide}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>')
            out.append(f'<text x="{x0 + left - 4}" y="{at + 3:.1f}" text-anchor="end">{share * most:.0f}</text>')
        step = wide / len(points)
        for j, (x, a) in enumerate(points):
            at, end = x0 + left + (j + 0.15) * step, y(a["gflops"])
            middle = at + 0.35 * step
            out.append(
                f'<rect x="{at:.1f}" y="{end:.1f}" width="{0.7 * step:.1f}" height="{y(0) - end:.1f}" fill="#3b6ea5"/>'
                f'<text x="{middle:.1f}" y="{end - 3:.1f}" text-anchor="middle">{a["tokens_per_s"]:.0f}</text>'
                f'<text x="{middle:.1f}" y="{y(0) + 12:.1f}" text-anchor="middle">{x}</text>'
            )
        note = f"GFLOP/s (bars; the peak is {peak:.0f}); tokens/s (above them)"
        out.append(f'<text x="{x0 + left}" y="{y(0) + 26:.1f}" fill="#666">{note}</text>')
    return "\n".join(out) + "\n</svg>\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wudao", default="target/release/wudao")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--curve", nargs="*", choices=list(CURVES), default=list(CURVES))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.curve:
        axis, config, wanted = CURVES[name]
        points = []
        for x, batch, length, settings in wanted:
            points.append((x, measure(args.wudao, args.dtype, args.steps, config, batch, length, settings)))
            print(f"{name} {x}: {points[-1][1]['tokens_per_s']:.0f} tokens/s", file=sys.stderr)
        (args.out / f"cost-{name}.json").write_text(json.dumps(points, indent=1) + "\n")
    # The figure shows what has been measured, now or before.
    files = {name: args.out / f"cost-{name}.json" for name in CURVES}
    curves = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    (args.out / "cost.svg").write_text(figure(curves))
    for name, points in curves.items():
        print(f"\n{name}, {points[0][1]['dtype']}\n\n{table(CURVES[name][0], points)}")


if __name__ == "__main__":
    main()
