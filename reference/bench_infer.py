#!/usr/bin/env python3
"""The yardstick of `wudao bench infer`: llama.cpp, by way of its Python binding's low-level calls, two threads.

One model of random weights, a Qwen3-MoE of 701 M parameters of which a token meets 140 M, is written twice, as safetensors
and as GGUF, from the same numbers; llama.cpp's own converter makes the files of 8 and of 4 bits. Then both programs take
turns (A B A B ...), each in a process of its own, and do the same: read a prompt of 512 tokens; write 128 tokens, one stream;
serve several clients at once, each with a prompt of 64 tokens and an answer of 64. A token is the likeliest one.

    llama_cpp.sh && .llama/bin/python bench_infer.py make MODELS
    .llama/bin/python bench_infer.py run MODELS --wudao target/release/wudao [--codings q4_0,q8_0,bf16] [--rounds 3]

`--smol MODEL:FILE.gguf --codings q4_1` in place of MODELS compares a real model; MODEL, for wudao, may be the same file. Prints a table with ratios (above 1, wudao is faster) and,
with --json FILE, writes all figures and, beside it as .svg, a picture of them. Memory is what the process held at most.
"""

import argparse
import json
import os
import resource
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path

D, LAYERS, EXPERTS, TOP_K, FFN, VOCAB, HEADS, KV, DIM = 1024, 12, 32, 4, 512, 32000, 16, 4, 64
THREADS, PROMPT, TOKENS, SHORT = 2, 512, 128, 64
CLIENTS = (1, 4, 16)
POSITIONS = 4096


def make(folder: Path, wudao: str) -> None:
    """Writes the model both ways."""
    import gguf
    import numpy as np

    rng = np.random.default_rng(1)

    def bf16(shape, std=0.02):
        wide = (std * rng.standard_normal(shape, dtype=np.float32)).view(np.uint32)
        return ((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16).astype(np.uint16)

    folder.mkdir(parents=True, exist_ok=True)
    ones = np.full(D, 0x3F80, np.uint16)
    tensors = {"model.embed_tokens.weight": bf16((VOCAB, D)), "lm_head.weight": bf16((VOCAB, D)), "model.norm.weight": ones}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        for name, shape in [("q", (HEADS * DIM, D)), ("k", (KV * DIM, D)), ("v", (KV * DIM, D)), ("o", (D, HEADS * DIM))]:
            tensors[f"{at}self_attn.{name}_proj.weight"] = bf16(shape)
        for name in ["q", "k"]:
            tensors[f"{at}self_attn.{name}_norm.weight"] = np.full(DIM, 0x3F80, np.uint16)
        for name in ["input_layernorm", "post_attention_layernorm"]:
            tensors[f"{at}{name}.weight"] = ones
        tensors[f"{at}mlp.gate.weight"] = bf16((EXPERTS, D))
        for e in range(EXPERTS):
            for name, shape in [("gate", (FFN, D)), ("up", (FFN, D)), ("down", (D, FFN))]:
                tensors[f"{at}mlp.experts.{e}.{name}_proj.weight"] = bf16(shape)

    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, x in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(x.shape), "data_offsets": [at, at + x.nbytes]}
        at += x.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for x in tensors.values():
            x.tofile(file)
    config = {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "attention_bias": False, "hidden_act": "silu",
        "decoder_sparse_step": 1, "eos_token_id": 0, "head_dim": DIM, "hidden_size": D, "intermediate_size": FFN,
        "max_position_embeddings": POSITIONS, "mlp_only_layers": [], "moe_intermediate_size": FFN, "norm_topk_prob": True,
        "num_attention_heads": HEADS, "num_experts": EXPERTS, "num_experts_per_tok": TOP_K, "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "router_aux_loss_coef": 0.001,
        "tie_word_embeddings": False, "vocab_size": VOCAB, "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    corpus = Path(__file__).resolve().parent.parent / "corpus" / "en"
    learn = [wudao, "tokenizer", "train", str(corpus), "--vocab-size", "1000", "--out", str(folder), "--quiet"]
    subprocess.run(learn, check=True)

    writer = gguf.GGUFWriter(str(folder / "bf16.gguf"), "qwen3moe")
    writer.add_block_count(LAYERS)
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(FFN)
    writer.add_expert_feed_forward_length(FFN)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(TOP_K)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV)
    writer.add_key_length(DIM)
    writer.add_value_length(DIM)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    kind = gguf.GGMLQuantizationType

    def vector(name, x):
        writer.add_tensor(name, (x.astype(np.uint32) << 16).view(np.float32))

    def matrix(name, x):
        writer.add_tensor(name, x.view(np.uint8), raw_dtype=kind.BF16)

    matrix("token_embd.weight", tensors["model.embed_tokens.weight"])
    matrix("output.weight", tensors["lm_head.weight"])
    vector("output_norm.weight", ones)
    for layer in range(LAYERS):
        at, to = f"model.layers.{layer}.", f"blk.{layer}."
        vector(f"{to}attn_norm.weight", tensors[f"{at}input_layernorm.weight"])
        vector(f"{to}ffn_norm.weight", tensors[f"{at}post_attention_layernorm.weight"])
        for name in ["q", "k", "v"]:
            matrix(f"{to}attn_{name}.weight", tensors[f"{at}self_attn.{name}_proj.weight"])
        matrix(f"{to}attn_output.weight", tensors[f"{at}self_attn.o_proj.weight"])
        for name in ["q", "k"]:
            vector(f"{to}attn_{name}_norm.weight", tensors[f"{at}self_attn.{name}_norm.weight"])
        vector(f"{to}ffn_gate_inp.weight", tensors[f"{at}mlp.gate.weight"])
        for name in ["gate", "up", "down"]:
            experts = [tensors[f"{at}mlp.experts.{e}.{name}_proj.weight"] for e in range(EXPERTS)]
            matrix(f"{to}ffn_{name}_exps.weight", np.stack(experts))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    import llama_cpp

    for name, to in [("q8_0", llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0), ("q4_0", llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0)]:
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.nthread = to, THREADS
        done = llama_cpp.llama_model_quantize(
            str(folder / "bf16.gguf").encode(), str(folder / f"{name}.gguf").encode(), params
        )
        if done != 0:
            sys.exit(f"bench_infer: llama.cpp cannot write {name}")


def without_amx() -> None:
    """Lets the system refuse AMX registers to this process: with them llama.cpp (of llama-cpp-python 0.3.36) crashes at the
    first batch of several tokens. It then takes the instructions below."""
    import ctypes

    load, equal, answer = 0x20, 0x15, 0x06
    arch_prctl, request, allow, refuse = 158, 0x1023, 0x7FFF0000, 0x00050001
    program = [
        (load, 0, 0, 0), (equal, 0, 3, arch_prctl), (load, 0, 0, 16), (equal, 0, 1, request),
        (answer, 0, 0, refuse), (answer, 0, 0, allow),
    ]
    code = b"".join(struct.pack("<HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = ctypes.create_string_buffer(struct.pack("<H6xQ", len(program), ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) != 0 or libc.prctl(22, 2, header, 0, 0) != 0:
        sys.exit("bench_infer: the system takes no filter of system calls")


def peer(path: str, tries: int, huge: bool) -> dict:
    """What llama.cpp does, in this process. The first try warms up."""
    import ctypes

    without_amx()

    import llama_cpp as ll
    import numpy as np

    quiet = ll.llama_log_callback(lambda level, text, data: None)
    ll.llama_log_set(quiet, ctypes.c_void_p(0))
    ll.llama_backend_init()
    loading = ll.llama_model_default_params()
    loading.use_mmap = not huge
    model = ll.llama_model_load_from_file(path.encode(), loading)
    vocab = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(model))
    params = ll.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = 16 * 2 * SHORT + 2048, 2048, 512
    params.n_seq_max, params.n_threads, params.n_threads_batch, params.kv_unified = max(CLIENTS), THREADS, THREADS, True
    ctx = ll.llama_init_from_model(model, params)
    batch = ll.llama_batch_init(2048, 0, max(CLIENTS))

    def decode(rows):
        """rows of (token, position, sequence, wanted): the likeliest tokens after the wanted ones."""
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
            batch.seq_id[i][0] = sequence
        if ll.llama_decode(ctx, batch) != 0:
            sys.exit("bench_infer: llama.cpp cannot decode")
        logits = (ll.llama_get_logits_ith(ctx, i) for i, row in enumerate(rows) if row[3])
        return [int(np.ctypeslib.as_array(row, shape=(vocab,)).argmax()) for row in logits]

    def prompt(n, seed):
        return [(i * 7919 + seed * 104729) % vocab for i in range(n)]

    def clear():
        ll.llama_memory_clear(ll.llama_get_memory(ctx), True)

    def once():
        found = {}
        clear()
        start = time.perf_counter()
        decode([(t, i, 0, i == PROMPT - 1) for i, t in enumerate(prompt(PROMPT, 0))])
        found["prompt"] = PROMPT / (time.perf_counter() - start)
        clear()
        token = decode([(prompt(1, 1)[0], 0, 0, True)])[0]
        start = time.perf_counter()
        for i in range(1, TOKENS):
            token = decode([(token, i, 0, True)])[0]
        found["stream"] = (TOKENS - 1) / (time.perf_counter() - start)
        for clients in CLIENTS:
            clear()
            start = time.perf_counter()
            rows = [(t, i, c, i == SHORT - 1) for c in range(clients) for i, t in enumerate(prompt(SHORT, 2 + c))]
            tokens = decode(rows)
            written = time.perf_counter()
            for i in range(SHORT, 2 * SHORT - 1):
                tokens = decode([(t, i, c, True) for c, t in enumerate(tokens)])
            end = time.perf_counter()
            found[f"clients {clients}"] = clients * SHORT / (end - start)
            found[f"writing {clients}"] = clients * (SHORT - 1) / (end - written)
        return found

    all_tries = [once() for _ in range(tries + 1)][1:]
    found = {key: statistics.median(t[key] for t in all_tries) for key in all_tries[0]}
    found["rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return found


def theirs(file: str, tries: int) -> dict:
    """llama.cpp with the file mapped into memory, and with a copy of it in huge pages, as far as the system gives them on request:
    the better of each figure."""
    found = []
    for more, variables in ([], {}), (["--huge"], {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}):
        command = [sys.executable, __file__, "peer", file, "--tries", str(tries), *more]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **variables})
        found.append(json.loads(done.stdout))
    return {key: (min if key == "rss_mb" else max)(one[key] for one in found) for key in found[0]}


def ours(wudao: str, folder: str, coding: str, tries: int) -> dict:
    command = [wudao, "bench", "infer", folder, "--weights", coding, "--json", "--tries", str(tries), "--quiet"]
    command += ["--threads", str(THREADS), "--clients", ",".join(map(str, CLIENTS))]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    found = {"prompt": answer["prompt_tokens_per_s"], "stream": answer["tokens_per_s"]}
    for p in answer["parallel"]:
        found[f"clients {p['clients']}"] = p["tokens_per_s"]
        found[f"writing {p['clients']}"] = p["writing_tokens_per_s"]
    found["rss_mb"] = answer["peak_rss_mb"]
    found["weights_mb"], found["cache_mb"] = answer["weight_mb"], answer["cache_mb"]
    return found


def run(args) -> None:
    cases = []
    for coding in args.codings.split(","):
        if args.smol:
            model, file = args.smol.split(":")
            cases.append((coding, model, file))
        else:
            cases.append((coding, str(args.models), str(args.models / f"{coding}.gguf")))
    figures = {}
    for coding, folder, file in cases:
        rounds = []
        for _ in range(args.rounds):
            rounds.append((ours(args.wudao, folder, coding, args.tries), theirs(file, args.tries)))
        both = [{k: statistics.median(r[i][k] for r in rounds) for k in rounds[0][i]} for i in range(2)]
        figures[coding] = {"wudao": both[0], "llama.cpp": both[1]}
        print(f"\n{coding}\n| | wudao | llama.cpp | ratio |\n|---|---|---|---|")
        for key, value in both[0].items():
            other = both[1].get(key)
            ratio = f"| {other:.1f} | {value / other:.2f} |" if other else "| | |"
            print(f"| {key} | {value:.1f} {ratio}", flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=2) + "\n")
        Path(args.json).with_suffix(".svg").write_text(picture(figures))


def picture(figures: dict) -> str:
    """Bars of tokens a second, ours and theirs, a panel for each kind of work, a pair for each coding."""
    panels = {"prompt": "reading 512 tokens", "stream": "writing, one stream", "clients 16": "16 clients"}
    pair, high, left, top = 62, 150, 20, 56
    panel = pair * len(figures) + 30
    width, height = left + panel * len(panels), top + high + 40
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="10" role="img">'
        f'<title>Inference, tokens a second</title><rect width="{width}" height="{height}" fill="white"/>'
        f'<text x="{left}" y="18" font-size="12">tokens a second: <tspan fill="#c0392b">WuDao</tspan>, '
        '<tspan fill="#2c5f8a">llama.cpp</tspan></text>'
    ]
    for i, (key, name) in enumerate(panels.items()):
        x = left + i * panel
        out.append(f'<text x="{x}" y="36" font-size="11">{name}</text>')
        most = max(side[key] for both in figures.values() for side in both.values())
        for j, (coding, both) in enumerate(figures.items()):
            at = x + j * pair
            for shift, colour, speed in ((0, "#c0392b", both["wudao"][key]), (27, "#2c5f8a", both["llama.cpp"][key])):
                tall = high * speed / most
                out.append(f'<rect x="{at + shift}" y="{top + high - tall:.1f}" width="25" height="{tall:.1f}" fill="{colour}"/>')
                out.append(f'<text x="{at + shift + 12.5}" y="{top + high - tall - 3:.1f}" text-anchor="middle">{speed:.0f}</text>')
            ratio = both["wudao"][key] / both["llama.cpp"][key]
            out.append(f'<text x="{at + 26}" y="{top + high + 14}" text-anchor="middle">{coding}</text>')
            out.append(f'<text x="{at + 26}" y="{top + high + 28}" text-anchor="middle" font-weight="bold">{ratio:.1f}</text>')
    return "\n".join(out) + "\n</svg>\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    maker = commands.add_parser("make")
    runner = commands.add_parser("run")
    for p in (maker, runner):
        p.add_argument("models", type=Path, nargs="?", default=Path("models"))
        p.add_argument("--wudao", default="target/release/wudao")
    runner.add_argument("--codings", default="q4_0,q8_0,bf16")
    runner.add_argument("--smol", help="for wudao a folder or a GGUF file, and for llama.cpp a GGUF file, of the same model")
    runner.add_argument("--rounds", type=int, default=3)
    runner.add_argument("--json")
    alone = commands.add_parser("peer")
    alone.add_argument("file")
    alone.add_argument("--huge", action="store_true", help="no mapping of the file")
    for p in (runner, alone):
        p.add_argument("--tries", type=int, default=3)
    args = parser.parse_args()
    if args.command == "make":
        make(args.models, args.wudao)
    elif args.command == "run":
        run(args)
    else:
        print(json.dumps(peer(args.file, args.tries, args.huge)))


if __name__ == "__main__":
    main()
