#!/usr/bin/env python3
"""The loss of a checkpoint on held-out text, as transformers computes it: the second opinion on `wudao eval`.

The rule, which is `wudao eval`'s too. A document's text is encoded without special tokens to ids t1..tn. With E, the
end-of-text id of the configuration (`eos_token_id`, the first one if it is a list), the inputs are [E, t1..tn] and the
targets [t1..tn, E]: n + 1 predictions. This sequence is cut into consecutive windows of at most `--seq-len` predictions, and
each window runs on its own, from position 0. `nll` is the mean over all predictions of all documents, in nats, summed in
f64; `bits_per_byte` is the total over ln 2 over the bytes of the UTF-8 text.

A `.txt` file is one document; a `.jsonl` file has one a line, in the field `text`; both also with `.zst`. A document with
nothing but white space is no document.

    hf_eval.py --model DIR --data FILE... [--seq-len N] [--wudao-json FILE]

Prints JSON: tokens (predictions), bytes, nll, perplexity, bits_per_byte. With --wudao-json, compares with the fields under
`total` of what `wudao eval --json` printed, and exits 1 if the losses differ by 1e-4 (relative) or more, or the counts at
all. The model runs in f32. Fails, rather than warns, if the checkpoint has a tensor too few or too many, or if
AutoTokenizer gives other ids than `tokenizer.json`: it must open unchanged.
"""

import argparse
import io
import json
import math
import os
import sys
from pathlib import Path

# Everything is read from the folder: a file that is missing there must not be looked for elsewhere.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import tokenizers
import torch
import transformers
import zstandard
from transformers import AutoModelForCausalLM, AutoTokenizer

RELATIVE_LIMIT = 1e-4


class Refused(Exception):
    """Something about the input that a person has to mend."""


def documents(path: Path):
    """The texts of one file."""
    raw = path.read_bytes()
    suffixes = path.suffixes
    if suffixes and suffixes[-1] == ".zst":
        raw = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(raw), read_across_frames=True).read()
        suffixes = suffixes[:-1]
    kind = suffixes[-1] if suffixes else ""
    try:
        if kind == ".txt":
            texts = [raw.decode("utf-8-sig")]
        elif kind == ".jsonl":
            texts = [json.loads(line)["text"] for line in raw.decode("utf-8-sig").split("\n") if line.strip()]
        else:
            raise Refused(f"{path}: neither .txt nor .jsonl (nor these with .zst)")
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as e:
        raise Refused(f"{path}: {type(e).__name__}: {e}") from e
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise Refused(f"{path}: the field `text` of record {i + 1} is not a string")
        if text.strip():
            yield text


def open_model(folder: Path):
    if not (folder / "config.json").is_file():
        raise Refused(f"{folder} is no checkpoint folder: it has no config.json")
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager", output_loading_info=True
    )
    for what, names in report.items():
        if names:
            raise Refused(f"{folder}: {what}: {names}")
    return model.eval()


def end_of_text(config) -> int:
    end = config.eos_token_id
    end = end[0] if isinstance(end, list) else end
    if end is None:
        raise Refused("config.json has no eos_token_id")
    return end


def windows(ids: list[int], end: int, length: int):
    """(inputs, targets) of each window of a document."""
    inputs, targets = [end, *ids], [*ids, end]
    for start in range(0, len(inputs), length):
        yield inputs[start : start + length], targets[start : start + length]


@torch.no_grad()
def window_nll(model, batch) -> float:
    """Total loss of windows of one length, side by side: a batch does not mix its rows."""
    inputs = torch.tensor([i for i, _ in batch])
    targets = torch.tensor([t for _, t in batch])
    predicted = model(input_ids=inputs, use_cache=False).logits.double().log_softmax(-1)
    return -predicted.gather(-1, targets[..., None]).sum().item()


def evaluate(folder: Path, files: list[Path], seq_len: int | None, batch_size: int) -> dict:
    model = open_model(folder)
    end = end_of_text(model.config)
    limit = model.config.max_position_embeddings
    seq_len = seq_len or limit
    if not 1 <= seq_len <= limit:
        raise Refused(f"--seq-len {seq_len}: the model takes 1 to {limit} (max_position_embeddings)")
    if not (folder / "tokenizer.json").is_file():
        raise Refused(f"{folder} has no tokenizer.json")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    auto = AutoTokenizer.from_pretrained(folder)

    tokens, size, total, waiting = 0, 0, [], {}
    for path in files:
        for text in documents(path):
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            if auto.encode(text, add_special_tokens=False) != ids:
                raise Refused(f"{folder}: AutoTokenizer ({type(auto).__name__}) gives other ids than tokenizer.json on a text of {path}")
            size += len(text.encode())
            for inputs, targets in windows(ids, end, seq_len):
                tokens += len(inputs)
                same_length = waiting.setdefault(len(inputs), [])
                same_length.append((inputs, targets))
                if len(same_length) == batch_size:
                    total.append(window_nll(model, waiting.pop(len(inputs))))
    for length in sorted(waiting):
        total.append(window_nll(model, waiting[length]))
    if not tokens:
        raise Refused("there is no text in the data")
    nats = math.fsum(total)
    nll = nats / tokens
    return {
        "tokens": tokens,
        "bytes": size,
        "nll": nll,
        "perplexity": math.exp(min(nll, 700.0)),
        "bits_per_byte": nats / math.log(2.0) / size,
    }


def agrees(ours: dict, path: Path) -> bool:
    """Compares with wudao's figures, and says how they stand on standard error."""
    try:
        theirs = json.loads(path.read_text())["total"]
        theirs = {k: theirs[k] for k in ("tokens", "bytes", "nll")}
    except (json.JSONDecodeError, KeyError, TypeError) as e:
        raise Refused(f"{path}: not what `wudao eval --json` prints: {type(e).__name__}: {e}") from e
    good = True
    for count in ("tokens", "bytes"):
        if ours[count] != theirs[count]:
            print(f"{count}: transformers {ours[count]}, wudao {theirs[count]}: not the same text", file=sys.stderr)
            good = False
    relative = abs(ours["nll"] - theirs["nll"]) / abs(ours["nll"])
    good &= relative < RELATIVE_LIMIT  # false for NaN, as it must be
    print(f"nll: transformers {ours['nll']:.9f}, wudao {theirs['nll']:.9f}, relative difference {relative:.2e}", file=sys.stderr)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description="Loss of a checkpoint by transformers, for comparison with `wudao eval`.")
    parser.add_argument("--model", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help=".txt or .jsonl files, also .zst")
    parser.add_argument("--seq-len", type=int, help="predictions in a window (default: max_position_embeddings)")
    parser.add_argument("--batch-size", type=int, default=8, help="windows run side by side")
    parser.add_argument("--wudao-json", type=Path, help="what `wudao eval --json` printed for the same model and data")
    args = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        result = evaluate(args.model, args.data, args.seq_len, args.batch_size)
        print(json.dumps(result))
        return 0 if args.wudao_json is None or agrees(result, args.wudao_json) else 1
    except (Refused, OSError) as e:
        print(f"hf_eval: {e}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
