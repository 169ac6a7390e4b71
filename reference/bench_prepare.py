#!/usr/bin/env python3
"""The yardstick of `wudao prepare`: Hugging Face `datasets.map` with a fast tokenizer, two processes.

From a folder of raw `.jsonl` (field `text`) and `.txt` files (one document each), both also with `.zst`, to a packed token
file: each document is encoded, the end-of-text id is appended, documents are concatenated and cut into rows of fixed
length, and the rows are written as one array of uint16 (vocabularies up to 65 536) or uint32. Tokenizing and packing
happen in one `map` instead of the usual two, which spares the peer an intermediate table. The time counts from the first
byte read to the last byte written, without the start of Python and its imports. Each run has an empty cache.

    bench_prepare.py DATA_DIR --tokenizer tokenizer.json [--wudao PATH_TO_BINARY] [--rounds 3]

With --wudao, the two take turns (A B A B ...) and the ratio of the medians is printed: above 1, wudao is faster. wudao is
timed as a whole process. Prints JSON, with the machine's load before each run: on a busy machine the times mean little.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# The one place to adjust when the command line changes.
WUDAO = "{wudao} prepare {inputs} --tokenizer {tokenizer} --out {out} --threads {threads}"
JSONL, TXT = (".jsonl", ".jsonl.zst"), (".txt", ".txt.zst")
PROCESSES = 2
BATCH = 1000  # documents a call of the mapped function, the default of datasets
WRITE = 1024  # rows a write


def inputs_of(folder: Path) -> list[Path]:
    found = sorted(p for p in folder.rglob("*") if p.is_file() and p.name.endswith(JSONL + TXT))
    if not found:
        sys.exit(f"bench_prepare: no .jsonl or .txt file (also .zst) under {folder}")
    return found


def prepare(files: list[Path], tokenizer_file: Path, end: str, length: int, out: Path, cache: Path) -> dict:
    """The Hugging Face way, timed. Runs in a process of its own."""
    import numpy as np
    from datasets import concatenate_datasets, load_dataset
    from datasets.utils.logging import disable_progress_bar, set_verbosity_error
    from transformers import PreTrainedTokenizerFast

    disable_progress_bar()
    set_verbosity_error()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file))
    end_id = tokenizer.convert_tokens_to_ids(end)
    if end_id is None:
        sys.exit(f"bench_prepare: {tokenizer_file} has no token {end!r}: name its end-of-text token with --end")
    kind = np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32

    def pack(batch):
        stream = []
        for ids in tokenizer(batch["text"], add_special_tokens=False, return_attention_mask=False)["input_ids"]:
            stream += ids
            stream.append(end_id)
        # The rest of a batch, shorter than a row, is dropped, as in the usual recipe.
        return {"row": [stream[i : i + length] for i in range(0, len(stream) - length + 1, length)]}

    start = time.perf_counter()
    parts = []
    jsonl, txt = ([str(f) for f in files if f.name.endswith(kinds)] for kinds in (JSONL, TXT))
    if jsonl:
        parts.append(load_dataset("json", data_files=jsonl, split="train", cache_dir=str(cache)).select_columns("text"))
    if txt:
        parts.append(load_dataset("text", data_files=txt, split="train", sample_by="document", cache_dir=str(cache)))
    raw = concatenate_datasets(parts)
    packed = raw.map(pack, batched=True, batch_size=BATCH, num_proc=PROCESSES, remove_columns=["text"])
    rows = packed.with_format("numpy")
    with open(out / "tokens.bin", "wb") as f:
        for i in range(0, len(rows), WRITE):
            f.write(np.asarray(rows[i : i + WRITE]["row"]).astype(kind).tobytes())
    seconds = time.perf_counter() - start
    size = sum(len(text.encode()) for batch in raw.iter(BATCH) for text in batch["text"])
    return {"seconds": seconds, "documents": len(raw), "text_bytes": size, "tokens": len(rows) * length}


def run_datasets(args, files: list[Path], scratch: Path) -> dict:
    out, cache = scratch / "out", scratch / "cache"
    out.mkdir(), cache.mkdir()
    job = {"files": [str(f) for f in files], "tokenizer": str(args.tokenizer), "end": args.end, "length": args.length}
    environment = {
        **os.environ,
        "TOKENIZERS_PARALLELISM": "false",  # two processes are the two threads
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(cache),
    }
    done = subprocess.run(
        [sys.executable, __file__, "--worker", str(out), str(cache)],
        input=json.dumps(job), capture_output=True, text=True, env=environment,
    )
    if done.returncode:
        sys.exit(f"bench_prepare: datasets failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def run_wudao(args, files: list[Path], scratch: Path) -> dict:
    fill = {"wudao": str(args.wudao.resolve()), "tokenizer": str(args.tokenizer), "out": str(scratch / "shards"), "threads": str(PROCESSES)}
    command = []
    for word in WUDAO.split():
        command += [str(f) for f in files] if word == "{inputs}" else [word.format(**fill)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"bench_prepare: {' '.join(command[:2])} ... failed ({done.returncode}):\n{done.stderr}")
    return {"seconds": seconds}


def main() -> int:
    if sys.argv[1:2] == ["--worker"]:
        job = json.load(sys.stdin)
        files = [Path(f) for f in job["files"]]
        print(json.dumps(prepare(files, Path(job["tokenizer"]), job["end"], job["length"], Path(sys.argv[2]), Path(sys.argv[3]))))
        return 0

    parser = argparse.ArgumentParser(description="Time raw text to packed tokens: Hugging Face datasets against `wudao prepare`.")
    parser.add_argument("data", type=Path, help="folder of .jsonl and .txt files, also .zst")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json")
    parser.add_argument("--end", default="<|endoftext|>", help="the token that ends a document")
    parser.add_argument("--length", type=int, default=2048, help="tokens in a packed row")
    parser.add_argument("--wudao", type=Path, help="the binary to compare with")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each, in turn")
    args = parser.parse_args()
    if args.wudao and not args.wudao.is_file():
        parser.error(f"no such file: {args.wudao}")
    files = inputs_of(args.data)

    contestants = {"datasets": run_datasets} | ({"wudao": run_wudao} if args.wudao else {})
    runs = {name: [] for name in contestants}
    busy = {name: [] for name in contestants}
    facts = {}
    for turn in range(args.rounds):
        for name, run in contestants.items():
            busy[name].append(os.getloadavg()[0])
            scratch = Path(tempfile.mkdtemp(prefix="bench_prepare."))
            try:
                result = run(args, files, scratch)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
            runs[name].append(result.pop("seconds"))
            facts |= result
            print(f"round {turn + 1} {name:8} {runs[name][-1]:8.2f} s", file=sys.stderr)
    median = {name: statistics.median(times) for name, times in runs.items()}
    speed = {name: facts["text_bytes"] / 1e6 / seconds for name, seconds in median.items()}
    report = {**facts, "processes": PROCESSES, "seconds": runs, "median_seconds": median, "median_mb_per_second": speed, "load_before": busy}
    if args.wudao:
        report["ratio"] = median["datasets"] / median["wudao"]
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
