#!/usr/bin/env python3
"""GGUF files against llama.cpp: what `wudao convert` writes must open there and compute the same, and what others wrote must
compute the same here. Run in the environment of llama_cpp.sh.

    llama.py families --wudao PATH --logits PATH
        converts the tiny models of golden/ (those that llama.cpp computes) and random ones of the families that are left,
        in f32, and compares logits: llama.cpp's, wudao's on the GGUF file and on the same split into several, and, for
        golden models, transformers'
    llama.py dtypes --wudao PATH --logits PATH
        converts one model in every type, and compares logits of llama.cpp and wudao on the same file
    llama.py smollm2 FILE [--check]
        writes golden/smollm2.json: greedy continuations and logits of SmolLM2-135M-Instruct (Apache-2.0)
    llama.py quality FILE --wudao PATH [--texts N]
        converts a model, such as SmolLM2's GGUF file, in every type, and compares the perplexity of held-out text, the
        corpus's English novel, in llama.cpp and in wudao: it may differ by 1 %

PATHs: `cargo build --release -p wudao` and `cargo build --release -p wudao-infer --example logits` make them.
"""

import argparse
import ctypes
import json
import pathlib
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable

import gguf
import llama_cpp
import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
GOLDEN = HERE / "golden"

# Weights stay as files have them: repacked ones are other kernels (and those for AMX do not run on every machine that
# claims to have it).
default_params = llama_cpp.llama_cpp.llama_model_default_params


def plain_params() -> llama_cpp.llama_cpp.llama_model_params:
    params = default_params()
    params.use_extra_bufts = False
    return params


llama_cpp.llama_cpp.llama_model_default_params = plain_params

# Largest difference of logits of order one, in two implementations in f32.
CLOSE = 2e-4
# The same, where llama.cpp rounds activations to as few bits as weights, on models of 96 columns.
CODED = {"f32": CLOSE, "bf16": 5e-2, "f16": 5e-2, "q8_0": 5e-2, "q4_0": 1e-1}

FAMILIES = ["llama", "mistral", "qwen3", "mixtral", "olmoe", "glm4_moe", "glm4_moe_plain"]
SMALL = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3,
    "bos_token_id": None,
    "eos_token_id": 0,
    "tie_word_embeddings": False,
}
SPARSE = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1e4}
LATENT = SMALL | {
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 24,
    "head_dim": 8,
    "attention_bias": False,
    "topk_method": "greedy",
    "n_shared_experts": 2,
    "n_group": 1,
    "topk_group": 1,
}
SIGMOID = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": True, "routed_scaling_factor": 2.5}
SOFTMAX = {"scoring_func": "softmax", "norm_topk_prob": False, "routed_scaling_factor": 1.5}


def sharpened(share: float) -> dict:
    return {"rope_scaling": YARN | {"type": "yarn", "mscale": share, "mscale_all_dim": share}}


# Families whose golden model llama.cpp does not compute (heads wider than the stream, layers without experts, ...), by name
# with what follows a dash being a habit of it.
RANDOM = {
    "qwen2": SMALL | {"rope_parameters": YARN | {"attention_factor": 1.3}},
    "qwen2_moe": SMALL | SPARSE | {"shared_expert_intermediate_size": 64, "norm_topk_prob": False},
    "qwen3_moe": SMALL | SPARSE | {"head_dim": 32, "norm_topk_prob": True, "attention_bias": False},
    "deepseek_v2": LATENT | SOFTMAX,
    "deepseek_v2-lite": LATENT | SOFTMAX | {"q_lora_rank": None} | sharpened(0.707),
    "deepseek_v3": LATENT | SIGMOID | {"n_group": 4, "topk_group": 2} | sharpened(1.0),
    "deepseek_v3-tied": LATENT | SIGMOID | {"norm_topk_prob": False, "tie_word_embeddings": True},
}


def read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    types = {"F32": np.float32, "I64": np.int64}
    header = json.loads(data[8 : 8 + size])
    arrays = {}
    for name, info in header.items():
        if name != "__metadata__":
            begin, end = info["data_offsets"]
            arrays[name] = np.frombuffer(data[8 + size + begin : 8 + size + end], types[info["dtype"]]).reshape(info["shape"])
    return arrays


def write_safetensors(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    header, at = {}, 0
    for name, array in arrays.items():
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(a.tobytes() for a in arrays.values()))


def random_weights(family: str, c: dict) -> dict[str, np.ndarray]:
    """Weights of order one under Hugging Face's names."""
    rng = np.random.default_rng(11)
    arrays = {}

    def put(name: str, *shape: int, scale: float | None = None) -> None:
        scale = scale if scale is not None else 1 / shape[-1] ** 0.5
        arrays[name] = (rng.standard_normal(shape) * scale).astype(np.float32)

    def norm(name: str, width: int) -> None:
        arrays[f"{name}.weight"] = (1 + 0.2 * rng.standard_normal(width)).astype(np.float32)

    d = c["hidden_size"]
    put("model.embed_tokens.weight", c["vocab_size"], d, scale=1.0)
    if not c["tie_word_embeddings"]:
        put("lm_head.weight", c["vocab_size"], d)
    norm("model.norm", d)
    for layer in range(c["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        norm(f"{at}.input_layernorm", d)
        norm(f"{at}.post_attention_layernorm", d)
        (latent_attention if "kv_lora_rank" in c else attention)(family, c, f"{at}.self_attn", put, norm)
        feeds = [("mlp", c["intermediate_size"])]
        experts = c.get("num_experts", c.get("n_routed_experts", 0))
        if experts and layer >= c.get("first_k_dense_replace", 0):
            put(f"{at}.mlp.gate.weight", experts, d, scale=0.5)
            feeds = [(f"mlp.experts.{e}", c["moe_intermediate_size"]) for e in range(experts)]
            if family == "deepseek_v3":
                put(f"{at}.mlp.gate.e_score_correction_bias", experts, scale=0.1)
            if family == "qwen2_moe":
                put(f"{at}.mlp.shared_expert_gate.weight", 1, d)
                feeds.append(("mlp.shared_expert", c["shared_expert_intermediate_size"]))
            if "n_shared_experts" in c:
                feeds.append(("mlp.shared_experts", c["n_shared_experts"] * c["moe_intermediate_size"]))
        for name, width in feeds:
            put(f"{at}.{name}.gate_proj.weight", width, d)
            put(f"{at}.{name}.up_proj.weight", width, d)
            put(f"{at}.{name}.down_proj.weight", d, width)
    return arrays


def attention(family: str, c: dict, at: str, put: Callable, norm: Callable) -> None:
    d, heads, kv = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
    head = c.get("head_dim", d // heads)
    for which, rows in [("q", heads), ("k", kv), ("v", kv)]:
        put(f"{at}.{which}_proj.weight", rows * head, d)
        if family.startswith("qwen2"):
            put(f"{at}.{which}_proj.bias", rows * head, scale=0.2)
    put(f"{at}.o_proj.weight", d, heads * head)
    if family == "qwen3_moe":
        for which in "qk":
            norm(f"{at}.{which}_norm", head)


def latent_attention(family: str, c: dict, at: str, put: Callable, norm: Callable) -> None:
    d, heads, rank = c["hidden_size"], c["num_attention_heads"], c["kv_lora_rank"]
    queries = heads * (c["qk_nope_head_dim"] + c["qk_rope_head_dim"])
    if q := c["q_lora_rank"]:
        put(f"{at}.q_a_proj.weight", q, d)
        norm(f"{at}.q_a_layernorm", q)
        put(f"{at}.q_b_proj.weight", queries, q, scale=2 / q**0.5)
    else:
        put(f"{at}.q_proj.weight", queries, d, scale=2 / d**0.5)
    put(f"{at}.kv_a_proj_with_mqa.weight", rank + c["qk_rope_head_dim"], d, scale=2 / d**0.5)
    norm(f"{at}.kv_a_layernorm", rank)
    put(f"{at}.kv_b_proj.weight", heads * (c["qk_nope_head_dim"] + c["v_head_dim"]), rank)
    put(f"{at}.o_proj.weight", d, heads * c["v_head_dim"])


def tokenizer(folder: pathlib.Path, size: int) -> None:
    """A byte-level tokenizer with as many tokens as the model has rows."""
    tokens = ["<|end|>", "ac", *(chr(c) for c in range(33, 127)), "Ġ", *(f"{a}{b}" for a in "ab" for b in "defg")][:size]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    (folder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": [{"id": 0, "content": "<|end|>", "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True}],
        "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {token: i for i, token in enumerate(tokens)}, "merges": ["a c"]},
    }))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "chat_template": "{{ messages }}",
    }))


def llama_logits(path: pathlib.Path, ids: list[int], threads: int = 2) -> np.ndarray:
    """Logits after each of the ids. Keys and values are kept in f32, as here."""
    model = llama_cpp.Llama(
        str(path), n_ctx=max(64, len(ids)), n_batch=len(ids), n_threads=threads, n_threads_batch=threads, logits_all=True,
        verbose=False, type_k=0, type_v=0, seed=0,
    )
    model.eval(ids)
    return np.array(model.scores[: len(ids)])


def wudao_logits(program: str, path: pathlib.Path, ids: list[int]) -> np.ndarray:
    out = subprocess.run([program, str(path), *map(str, ids)], check=True, capture_output=True).stdout
    return np.frombuffer(out, "<f4").reshape(len(ids), -1)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / max(1.0, np.abs(b).max()))


def copy_model(case: str, folder: pathlib.Path) -> list[tuple[list[int], np.ndarray | None]]:
    """A model's folder, ids to read, and what transformers computes of them, if that is known."""
    folder.mkdir()
    if case in RANDOM:
        family = case.split("-")[0]
        config = RANDOM[case] | {"model_type": family, "architectures": ["x"]}
        write_safetensors(folder / "model.safetensors", random_weights(family, config))
        ids = np.random.default_rng(1).integers(0, config["vocab_size"], (2, 24)).tolist()
        known = [(row, None) for row in ids]
    else:
        source = GOLDEN / case
        config = json.loads((source / "config.json").read_text())
        (folder / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
        golden = read_safetensors(source / "golden.safetensors")
        known = list(zip(golden["input_ids"].tolist(), golden["logits"]))
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer(folder, config["vocab_size"])
    return known


def convert(wudao: str, model: pathlib.Path, out: pathlib.Path, dtype: str) -> None:
    subprocess.run([wudao, "convert", str(model), "--out", str(out), "--dtype", dtype, "--quiet"], check=True)


def split(path: pathlib.Path) -> pathlib.Path:
    """The same model in several files, of which the first is named."""
    whole = gguf.GGUFReader(path)
    architecture = whole.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(path.with_name(f"{path.stem}-split"), architecture, split_max_tensors=len(whole.tensors) // 3 + 1)
    for field in whole.fields.values():
        if field.name == "general.architecture" or field.name.startswith("GGUF."):
            continue
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_array(field.name, field.contents())
        else:
            writer.add_key_value(field.name, field.contents(), field.types[0])
    for tensor in whole.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.with_name(f"{path.stem}-split-00001-of-00003.gguf")


def families(args: argparse.Namespace) -> bool:
    good = True
    print(f"{'model':<16} {'transformers':>14} {'llama.cpp':>14}   largest difference from wudao, relative to the largest logit")
    with tempfile.TemporaryDirectory() as scratch:
        for case in [*FAMILIES, *RANDOM]:
            folder = pathlib.Path(scratch) / case
            known = copy_model(case, folder)
            path = folder.with_suffix(".gguf")
            convert(args.wudao, folder, path, "f32")
            theirs, llama = 0.0, 0.0
            for ids, logits in known:
                ours = wudao_logits(args.logits, path, ids)
                if logits is not None:
                    theirs = max(theirs, distance(ours, logits))
                llama = max(llama, distance(ours, llama_logits(path, ids)))
            # A folder from the file computes the same bits, and so do its parts, in llama.cpp too.
            back, parts, ids = folder.with_name(f"{case}-back"), split(path), known[0][0]
            convert(args.wudao, path, back, "f32")
            ours = wudao_logits(args.logits, path, ids)
            same = all(np.array_equal(wudao_logits(args.logits, other, ids), ours) for other in (back, parts))
            same &= np.array_equal(llama_logits(parts, ids), llama_logits(path, ids))
            shown = f"{theirs:14.1e}" if known[0][1] is not None else f"{'-':>14}"
            fine = theirs <= CLOSE and llama <= CLOSE and same
            good &= fine
            print(f"{case:<16} {shown} {llama:14.1e}   {'' if fine else 'DIFFERS'}", flush=True)
    return good


def dtypes(args: argparse.Namespace) -> bool:
    good = True
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch) / "qwen3_moe"
        known = copy_model("qwen3_moe", folder)
        for dtype, bound in CODED.items():
            path = folder.with_name(f"{dtype}.gguf")
            convert(args.wudao, folder, path, dtype)
            ids = known[0][0]
            llama = distance(wudao_logits(args.logits, path, ids), llama_logits(path, ids))
            good &= llama <= bound
            print(f"{dtype:<8} {path.stat().st_size:>8} bytes {llama:10.1e} {'' if llama <= bound else 'DIFFERS'}", flush=True)
    return good


PROMPTS = [
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
    "The three most important properties of a good sorting algorithm are",
    "def fibonacci(n):\n",
]
GREEDY = 24
SAMPLED = 64


def smollm2(args: argparse.Namespace) -> bool:
    file = pathlib.Path(args.file)
    cases = []
    with tempfile.TemporaryDirectory() as scratch:
        # Every matrix as llama.cpp decodes it, so that products are of f32 and not of activations of 8 bits.
        wide = pathlib.Path(scratch) / "f32.gguf"
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.allow_requantize = llama_cpp.LLAMA_FTYPE_ALL_F32, True
        assert llama_cpp.llama_model_quantize(str(file).encode(), str(wide).encode(), ctypes.byref(params)) == 0
        for prompt in PROMPTS:
            found = {}
            for name, path in [("f32", wide), ("q4_1", file)]:
                model = llama_cpp.Llama(str(path), n_ctx=256, n_threads=2, n_threads_batch=2, logits_all=True,
                                        verbose=False, type_k=0, type_v=0)
                ids = [1, *model.tokenize(prompt.encode(), add_bos=False, special=True)]
                new, model_ids = [], list(ids)
                model.eval(ids)
                for _ in range(GREEDY):
                    best = int(model.scores[len(model_ids) - 1].argmax())
                    new.append(best)
                    model_ids.append(best)
                    if best == 2:
                        break
                    model.eval([best])
                found[name] = (ids, new, np.array(model.scores[: len(ids)]))
            ids, new, scores = found["f32"]
            top = np.sort(scores[-1])[::-1]
            print(f"{prompt[:30]!r}: first choice ahead by {top[0] - top[1]:.2f}; "
                  f"{'same' if new == found['q4_1'][1] else 'another'} continuation with activations of 8 bits", flush=True)
            picked = np.linspace(0, scores.shape[1] - 1, SAMPLED).astype(int).tolist()
            cases.append({
                "prompt": prompt, "ids": ids, "greedy": new, "greedy_q4_1": found["q4_1"][1], "columns": picked,
                "logits": [[float(f"{x:.7g}") for x in row[picked]] for row in (scores[0], scores[-1])],
            })
    text = json.dumps({"llama-cpp-python": llama_cpp.__version__, "cases": cases}) + "\n"
    path = GOLDEN / "smollm2.json"
    if args.check:
        return path.read_text() == text
    path.write_text(text)
    return True


# Predictions of a window.
WINDOW = 512
NOVEL = HERE.parent / "corpus/en/moby-dick.jsonl.zst"


def llama_nll(path: pathlib.Path, texts: list[str], begin: int, end: int) -> tuple[float, int]:
    """Mean loss in nats by the rule of hf_eval.py, and predictions."""
    model = llama_cpp.Llama(str(path), n_ctx=WINDOW, n_batch=WINDOW, n_threads=2, n_threads_batch=2, logits_all=True,
                            verbose=False, type_k=0, type_v=0)
    total, count = 0.0, 0
    for text in texts:
        ids = model.tokenize(text.encode(), add_bos=False, special=False)
        inputs, targets = [begin, *ids], [*ids, end]
        for start in range(0, len(inputs), WINDOW):
            window, expected = inputs[start : start + WINDOW], targets[start : start + WINDOW]
            model.reset()
            model.eval(window)
            logits = np.array(model.scores[: len(window)], dtype=np.float64)
            top = logits.max(axis=1, keepdims=True)
            log = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0] - logits[np.arange(len(window)), expected]
            total, count = total + log.sum(), count + len(window)
    return total / count, count


def quality(args: argparse.Namespace) -> bool:
    raw = subprocess.run(["zstd", "-dc", str(NOVEL)], check=True, capture_output=True).stdout
    texts = [json.loads(line)["text"] for line in raw.decode().splitlines()][: args.texts]
    good = True
    print(f"{'weights':<8} {'MB':>7} {'llama.cpp':>10} {'wudao':>10} {'ratio':>8}   perplexity")
    with tempfile.TemporaryDirectory() as scratch:
        held = pathlib.Path(scratch) / "held-out.jsonl"
        held.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        files = {}
        for dtype in ["f32", "bf16", "q8_0", "q4_0"]:
            files[dtype] = pathlib.Path(scratch) / f"{dtype}.gguf"
            convert(args.wudao, pathlib.Path(args.file), files[dtype], dtype)
        files["q4_1"] = pathlib.Path(args.file)
        for dtype, path in files.items():
            report = json.loads(subprocess.run(
                [args.wudao, "eval", "--model", str(path), "--weights", dtype, "--data", str(held), "--seq-len", str(WINDOW),
                 "--json", "--quiet"], check=True, capture_output=True).stdout)["total"]
            nll, count = llama_nll(path, texts, args.begin, args.end)
            assert count == report["tokens"], f"{count} predictions there, {report['tokens']} here"
            theirs, ours = np.exp(nll), np.exp(report["nll"])
            fine = abs(ours / theirs - 1) < 0.01
            good &= fine
            size = path.stat().st_size / 1e6
            print(f"{dtype:<8} {size:7.1f} {theirs:10.4f} {ours:10.4f} {ours / theirs:8.4f}   {'' if fine else 'DIFFERS'}", flush=True)
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, run in [("families", families), ("dtypes", dtypes)]:
        command = commands.add_parser(name)
        command.add_argument("--wudao", required=True)
        command.add_argument("--logits", required=True)
        command.set_defaults(run=run)
    command = commands.add_parser("smollm2")
    command.add_argument("file")
    command.add_argument("--check", action="store_true")
    command.set_defaults(run=smollm2)
    command = commands.add_parser("quality")
    command.add_argument("file")
    command.add_argument("--wudao", required=True)
    command.add_argument("--texts", type=int, default=12, help="how many texts of the novel")
    command.add_argument("--begin", type=int, default=2, help="the token that a document begins with")
    command.add_argument("--end", type=int, default=2, help="the token that it ends with")
    command.set_defaults(run=quality)
    args = parser.parse_args()
    sys.exit(0 if args.run(args) else 1)


main()
