#!/usr/bin/env python3
"""Held-out bits per byte of several runs in one figure, and the same as a Markdown table.

    plot_runs.py --out docs/figures/bf16.svg [--title TEXT] RUN_FOLDER ...

A run's name is its folder's. Runs whose names agree up to the last `-` share a colour. Standard library only.
"""

import argparse
import json
from pathlib import Path

COLOURS = ["#c0392b", "#2c5f8a", "#27ae60", "#8e44ad", "#d68910"]
WIDTH, HEIGHT, TOP, RIGHT, BOTTOM, LEFT = 640, 360, 34, 90, 40, 52


def evaluations(folder: Path) -> list:
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["bits_per_byte"]) for line in lines if line["kind"] == "evaluation"]


def figure(runs: dict, title: str) -> str:
    points = [point for run in runs.values() for point in run]
    last, low = max(step for step, _ in points), min(bits for _, bits in points)
    high = max(bits for _, bits in points)
    low, high = low - 0.05 * (high - low), high + 0.05 * (high - low)
    x = lambda step: LEFT + (WIDTH - LEFT - RIGHT) * step / last  # noqa: E731
    y = lambda bits: TOP + (HEIGHT - TOP - BOTTOM) * (high - bits) / (high - low)  # noqa: E731
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12" '
        f'role="img"><title>{title}</title><rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="18">{title}</text>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">step</text>',
    ]
    for i in range(6):
        bits, step = low + i / 5 * (high - low), last * i // 5
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(bits):.1f}" y2="{y(bits):.1f}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 6}" y="{y(bits) + 4:.1f}" text-anchor="end">{bits:.2f}</text>')
        out.append(f'<text x="{x(step):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{step}</text>')
    groups = sorted({name.rpartition("-")[0] for name in runs})
    labels = sorted((y(run[-1][1]), name) for name, run in runs.items())
    # Labels lie beside the ends of their lines, 13 apart, and the lowest above the axis.
    places, at = [], HEIGHT - BOTTOM + 13.0
    for i, (end, _) in reversed(list(enumerate(labels))):
        at = min(at - 13, max(end, labels[0][0] + 13 * i))
        places.append(at)
    for (_, name), at in zip(labels, reversed(places)):
        colour = COLOURS[groups.index(name.rpartition("-")[0]) % len(COLOURS)]
        line = " ".join(f"{x(step):.1f},{y(bits):.1f}" for step, bits in runs[name])
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        out.append(f'<text x="{WIDTH - RIGHT + 6}" y="{at + 4:.1f}" fill="{colour}">{name} {runs[name][-1][1]:.3f}</text>')
    return "\n".join(out) + "\n</svg>\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--title", default="bits per byte of held-out text")
    args = parser.parse_args()
    runs = {folder.name: evaluations(folder) for folder in args.runs}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(figure(runs, args.title))
    steps = sorted({step for run in runs.values() for step, _ in run})
    print("| step | " + " | ".join(runs) + " |\n|---" * 1 + "|---" * len(runs) + "|")
    for step in steps:
        print(f"| {step} | " + " | ".join(f"{dict(run).get(step, float('nan')):.3f}" for run in runs.values()) + " |")


if __name__ == "__main__":
    main()
