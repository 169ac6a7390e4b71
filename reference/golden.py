#!/usr/bin/env python3
"""Golden values: what PyTorch and transformers compute on tiny random models.

For each folder of `golden/` this script builds a model with seeded weights (f32, CPU, eager attention, eager
experts), saves it with `save_pretrained`, and writes beside it

    golden.safetensors   input_ids [2,S], labels [2,S], logits [2,S,V], loss [], grad.<name> for every trained tensor
    losses.json          ten AdamW losses on the same batch, with every hyper-parameter
    greedy.json          a prompt and the 32 tokens that follow when the likeliest is taken each time
    packed.safetensors   (some folders) documents run one by one, for attention that must not cross a document's edge

Models with latent attention (deepseek_v2, deepseek_v3) are not trained by WuDao: their folders have input_ids and logits
alone, and greedy.json.

`labels` follows transformers: it equals `input_ids`, and the shift by one is the loss's business, so that the loss is
the mean over the 2*(S-1) next-token predictions. Gradients carry the names of the saved file, where every expert is
a tensor of its own, though transformers 5 holds them fused in memory.

A golden file is worth what it would catch. So before a folder is written, this script plants errors (a router that
forgets its bias, a rotation of the whole head, an epsilon of the wrong size, ...) and requires each of them to move the
logits visibly; and it requires the ten losses to be well conditioned: weights moved by one part in a million must
not change them by more than `CONDITION`, or a test on another machine would compare noise.

    golden.py                  write every folder
    golden.py llama mixtral    write these
    golden.py --check          regenerate elsewhere, compare with what is committed, exit 1 on a difference above 1e-5
    golden.py --rope           print the scaled rotary frequencies that the tests of crates/model/src/rope.rs hold
"""

import argparse
import contextlib
import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

HERE = Path(__file__).resolve().parent
GOLDEN = HERE / "golden"

SEQUENCE = 24
BATCH = 2
DOCUMENTS = (5, 11, 8)
STEPS = 10
ADAMW = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}

TOLERANCE = 1e-5  # --check: largest difference, relative to the largest magnitude in the tensor (at least 1)
GREEDY = 32
MARGIN = 1e-2  # greedy.json: the likeliest token's logit is ahead of the next by at least this much
VISIBLE = 1e-3  # a planted error moves some logit by at least this much
NUDGE = 1e-5  # a hundred times the rounding of f32
CONDITION = 2e-4  # ten losses: relative change allowed when every weight moves by about NUDGE of itself

COMMON = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,  # not hidden_size / num_attention_heads, on purpose
    "max_position_embeddings": 64,
    # Larger than anyone would train with: an epsilon that is ignored must show.
    "rms_norm_eps": 1e-3,
    "bos_token_id": None,
    "eos_token_id": 0,
    "tie_word_embeddings": False,
}
SPARSE = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}


@dataclass
class Case:
    """One folder of golden/."""

    model_type: str
    seed: int
    config: dict
    # Configuration keys that, changed to these values, must change the logits.
    plant: list[dict] = field(default_factory=list)
    packed: bool = False
    # The correction bias of a sigmoid router, the same for every sparse layer. Some entries are so low that score + bias is
    # negative: a router that masks the closed groups with 0 instead of -inf then chooses wrongly.
    correction: list[float] | None = None

    @property
    def latent(self) -> bool:
        """Multi-head latent attention."""
        return "kv_lora_rank" in self.config


def theta(value, **more):
    return {"rope_type": "default", "rope_theta": value, **more}


def scaled(kind, value, factor, **more):
    """Rotary frequencies scaled from 16 positions to more, in a model so small that some pairs are blended."""
    return {"rope_type": kind, "rope_theta": value, "factor": factor, **more}


LLAMA3 = {"low_freq_factor": 0.5, "high_freq_factor": 2.0, "original_max_position_embeddings": 16}
YARN = {"beta_fast": 4.0, "beta_slow": 0.5, "original_max_position_embeddings": 16}
EPS = {"rms_norm_eps": 1e-6}
# Widths of which none is another's multiple, in hidden states that four heads divide.
LATENT = {
    **SPARSE,
    "head_dim": 8,  # of the rotated part, as transformers has it
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
}
CASES = {
    "llama": Case(
        "llama",
        seed=4,
        config={"vocab_size": 101, "attention_bias": True, "rope_parameters": theta(10000.0)},
        plant=[EPS, {"rope_parameters": theta(500.0)}],
        packed=True,
    ),
    "qwen3": Case(
        "qwen3",
        seed=15,
        config={"tie_word_embeddings": True, "rope_parameters": theta(1000000.0)},
        plant=[EPS, {"rope_parameters": theta(10000.0)}],
    ),
    "mixtral": Case(
        "mixtral",
        seed=7,
        config={
            "intermediate_size": 20,
            "head_dim": None,  # hidden_size / num_attention_heads
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "rope_parameters": theta(1000000.0),
        },
        plant=[EPS, {"num_experts_per_tok": 3}],
    ),
    "qwen3_moe": Case(
        "qwen3_moe",
        seed=2,
        config={**SPARSE, "num_experts": 8, "norm_topk_prob": False, "mlp_only_layers": [1], "rope_parameters": theta(1000000.0)},
        plant=[EPS, {"norm_topk_prob": True}, {"num_experts_per_tok": 3}],
        packed=True,
    ),
    "qwen3_moe_norm": Case(
        "qwen3_moe",
        seed=15,
        config={
            **SPARSE,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "norm_topk_prob": True,
            "decoder_sparse_step": 2,  # only layer 1 is sparse
            "attention_bias": True,  # and o_proj has one too
            "rope_parameters": theta(10000.0),
        },
        plant=[EPS, {"norm_topk_prob": False}, {"num_experts_per_tok": 2}],
    ),
    "glm4_moe": Case(
        "glm4_moe",
        seed=1,
        config={
            **SPARSE,
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "num_experts_per_tok": 3,
            "n_group": 2,
            "topk_group": 1,
            "routed_scaling_factor": 1.75,
            "norm_topk_prob": True,
            "first_k_dense_replace": 1,
            "use_qk_norm": True,
            "attention_bias": True,
            "num_nextn_predict_layers": 0,
            "eos_token_id": [0, 3],  # a list, as published GLM configurations have it
            "rope_parameters": theta(10000.0, partial_rotary_factor=0.5),
        },
        plant=[
            EPS,
            {"n_group": 1},
            {"topk_group": 2},
            {"routed_scaling_factor": 1.0},
            {"norm_topk_prob": False},
            {"rope_parameters": theta(10000.0, partial_rotary_factor=1.0)},
        ],
        correction=[0.10, -0.20, -0.75, 0.30, -0.10, 0.25, -0.85, 0.05],
    ),
    "glm4_moe_plain": Case(
        "glm4_moe",
        seed=33,
        config={
            **SPARSE,
            "n_routed_experts": 6,
            "n_shared_experts": 2,
            "n_group": 1,
            "topk_group": 1,
            "routed_scaling_factor": 2.5,
            "norm_topk_prob": False,
            "first_k_dense_replace": 1,
            "use_qk_norm": False,
            "attention_bias": True,
            "num_nextn_predict_layers": 0,
            "rope_parameters": theta(10000.0, partial_rotary_factor=0.5),
        },
        plant=[EPS, {"routed_scaling_factor": 1.0}, {"norm_topk_prob": True}],
        correction=[-0.15, 0.20, 0.05, -0.30, 0.10, -1.50],
    ),
    "mistral": Case(
        "mistral",
        seed=1,
        config={"sliding_window": None, "rope_parameters": scaled("llama3", 100.0, 4.0, **LLAMA3)},
        plant=[
            EPS,
            {"rope_parameters": scaled("linear", 100.0, 4.0)},
            {"rope_parameters": scaled("llama3", 100.0, 4.0, **{**LLAMA3, "high_freq_factor": 1.0})},
            {"sliding_window": 8},
        ],
    ),
    "qwen2": Case(
        "qwen2",
        seed=2,
        config={"tie_word_embeddings": True, "rope_parameters": scaled("yarn", 100.0, 4.0, **YARN)},
        plant=[
            EPS,
            {"rope_parameters": scaled("yarn", 100.0, 4.0, **YARN, attention_factor=1.0)},
            {"rope_parameters": scaled("yarn", 100.0, 4.0, **{**YARN, "beta_slow": 2.0})},
        ],
    ),
    "qwen2_moe": Case(
        "qwen2_moe",
        seed=5,
        config={
            **SPARSE,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "shared_expert_intermediate_size": 48,
            "mlp_only_layers": [0],
            "rope_parameters": theta(10000.0),
        },
        plant=[EPS, {"norm_topk_prob": True}, {"num_experts_per_tok": 2}],
    ),
    "olmoe": Case(
        "olmoe",
        seed=27,
        config={
            "intermediate_size": 20,
            "head_dim": 8,  # hidden_size / num_attention_heads: the norm of all queries is as wide as the model
            "num_key_value_heads": 4,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "pad_token_id": None,
            "rope_parameters": scaled("linear", 10000.0, 4.0),
        },
        plant=[EPS, {"norm_topk_prob": True}, {"num_experts_per_tok": 2}, {"rope_parameters": theta(10000.0)}, {"clip_qkv": 1.0}],
    ),
    "deepseek_v2": Case(
        "deepseek_v2",
        seed=1,
        config={
            **LATENT,
            "q_lora_rank": None,
            "n_shared_experts": 2,
            "topk_method": "greedy",
            "routed_scaling_factor": 1.5,
            # The factor of cosines and that of the softmax scale differ from 1 and from one another.
            "rope_parameters": scaled("yarn", 100.0, 4.0, **YARN, mscale=1.5, mscale_all_dim=0.7),
        },
        plant=[
            EPS,
            {"routed_scaling_factor": 1.0},
            {"num_experts_per_tok": 2},
            {"rope_parameters": scaled("yarn", 100.0, 4.0, **YARN, mscale=0.7, mscale_all_dim=0.7)},
            {"rope_parameters": scaled("yarn", 100.0, 4.0, **YARN)},
        ],
    ),
    "deepseek_v2_groups": Case(
        "deepseek_v2",
        seed=1,
        config={
            **LATENT,
            "q_lora_rank": 14,
            "n_shared_experts": 1,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 2.0,
            "attention_bias": True,
            "rope_parameters": theta(10000.0),
        },
        plant=[EPS, {"topk_method": "greedy"}, {"topk_group": 3}, {"routed_scaling_factor": 1.0}],
    ),
    "deepseek_v3": Case(
        "deepseek_v3",
        seed=1,
        config={
            **LATENT,
            "q_lora_rank": 14,
            "n_shared_experts": 1,
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 2.5,
            "norm_topk_prob": True,
            "num_nextn_predict_layers": 0,
            "rope_parameters": scaled("yarn", 100.0, 4.0, **YARN, mscale=1.0, mscale_all_dim=1.0),
        },
        plant=[
            EPS,
            {"n_group": 1, "topk_group": 1},
            {"topk_group": 4},
            {"norm_topk_prob": False},
            {"rope_interleave": False},
            {"rope_parameters": scaled("yarn", 100.0, 4.0, **YARN)},
        ],
        correction=[0.10, -0.20, -0.75, 0.30, -0.10, 0.25, -0.85, 0.05],
    ),
    "deepseek_v3_plain": Case(
        "deepseek_v3",
        seed=1,
        config={
            **LATENT,
            "q_lora_rank": None,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
            "routed_scaling_factor": 1.25,
            "norm_topk_prob": False,
            "num_nextn_predict_layers": 0,
            "rope_interleave": False,
            "attention_bias": True,
            "rope_parameters": theta(10000.0),
        },
        plant=[EPS, {"norm_topk_prob": True}, {"routed_scaling_factor": 1.0}, {"rope_interleave": True}],
        correction=[0.10, -0.20, -0.75, 0.30, -0.10, 0.25, -0.85, 0.05],
    ),
}


# --- building -------------------------------------------------------------------------------------------------------


def build(case: Case):
    """The model of a case, its weights drawn in the order of their names from one generator."""
    config = AutoConfig.for_model(case.model_type, **{**COMMON, **case.config})
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    draw = torch.Generator().manual_seed(case.seed)
    # Without a norm on queries and keys, large ones make attention so sharp that training amplifies rounding a thousandfold.
    normed = any(name.endswith("q_norm.weight") for name, _ in model.named_parameters())
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=draw)
            if name.endswith("norm.weight"):
                p.copy_(1.0 + 0.2 * noise)
            elif name.endswith(".bias"):
                p.copy_(0.3 * noise)
            elif not normed and name.endswith(("q_proj.weight", "k_proj.weight", "q_b_proj.weight")):
                p.copy_(0.15 * noise)
            elif "embed_tokens" in name or name.endswith("mlp.gate.weight"):
                p.copy_(0.5 * noise)
            else:
                p.copy_(0.3 * noise)
        for name, b in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                b.copy_(torch.tensor(case.correction))
    return model.eval()


def reload(folder: Path, **changes):
    """The saved model, with configuration keys changed, as anyone would open it."""
    return AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", experts_implementation="eager", **changes
    ).eval()


def saved_names(model_type: str, tensors: dict) -> dict:
    """Tensors under the names of memory -> tensors under the names of the saved file: the fused experts come apart."""
    out = {}
    for name, t in tensors.items():
        prefix, fused, _ = name.partition(".mlp.experts.")
        if not fused:
            if model_type == "mixtral":
                name = name.replace(".mlp.gate.", ".block_sparse_moe.gate.")
            out[name] = t
            continue
        block = "block_sparse_moe" if model_type == "mixtral" else "mlp"
        gate, up, down = ("w1", "w3", "w2") if model_type == "mixtral" else ("gate_proj", "up_proj", "down_proj")
        for e in range(t.shape[0]):
            stem = f"{prefix}.{block}.experts.{e}"
            if name.endswith("gate_up_proj"):
                assert t.ndim == 3 and t.shape[1] % 2 == 0, (name, t.shape)
                out[f"{stem}.{gate}.weight"], out[f"{stem}.{up}.weight"] = t[e].chunk(2, dim=0)
            else:
                assert name.endswith("down_proj") and t.ndim == 3, (name, t.shape)
                out[f"{stem}.{down}.weight"] = t[e]
    return {name: t.detach().contiguous().clone() for name, t in out.items()}


def gradients(case: Case, model, folder: Path) -> dict:
    """Every gradient under its saved name; the renaming is proven on the weights themselves, which the file holds."""
    saved = load_file(folder / "model.safetensors")
    weights = saved_names(case.model_type, dict(model.named_parameters()))
    trained = {n for n in saved if not n.endswith("e_score_correction_bias")}
    assert set(weights) == trained, set(weights) ^ trained
    for name, w in weights.items():
        assert torch.equal(w, saved[name]), name
    grads = saved_names(case.model_type, {n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert set(grads) == trained, set(grads) ^ trained
    for name, g in grads.items():
        assert g.shape == saved[name].shape and g.dtype == torch.float32, name
        assert torch.isfinite(g).all(), name
    return {f"grad.{n}": g for n, g in grads.items()}


# --- running --------------------------------------------------------------------------------------------------------


def tokens(case: Case, vocab: int, *shape: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1000 + case.seed)
    return torch.randint(0, vocab, shape, generator=draw)


def next_token_nll(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each next token, summed; the formula written out, independent of transformers' loss."""
    predicted = logits[:, :-1].log_softmax(-1)
    return -predicted.gather(-1, ids[:, 1:, None]).sum()


def losses(model, ids: torch.Tensor) -> list[float]:
    """Ten losses, each taken before its update. Matrices decay (fused experts are matrices too); vectors do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": ADAMW["weight_decay"]},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=ADAMW["lr"], betas=(ADAMW["beta1"], ADAMW["beta2"]), eps=ADAMW["eps"], foreach=False, fused=False
    )
    correction = {n: b.clone() for n, b in model.named_buffers() if n.endswith("e_score_correction_bias")}
    out = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        out.append(loss.item())
        optimizer.step()
    for name, b in model.named_buffers():
        assert name not in correction or torch.equal(b, correction[name]), f"{name} was trained"
    return out


def greedy(model, ids: torch.Tensor) -> dict:
    """The continuation of the first prompt of which no choice is close, without a cache; of a prompt that leads to several
    tokens if there is one (models with tied embeddings like to repeat themselves)."""
    found = []
    for n in range(2, SEQUENCE):
        for row in ids:
            prompt = all_ids = row[:n].tolist()
            margin = float("inf")
            for _ in range(GREEDY):
                with torch.no_grad():
                    best = model(input_ids=torch.tensor([all_ids])).logits[0, -1].topk(2)
                margin = min(margin, (best.values[0] - best.values[1]).item())
                all_ids = [*all_ids, best.indices[0].item()]
            if margin > MARGIN:
                found.append({"prompt": prompt, "tokens": all_ids[n:], "margin": round(margin, 4)})
                if len(set(all_ids[n:])) > 3:
                    return found[-1]
    assert found, "every prompt has a close choice: take another seed"
    return max(found, key=lambda g: len(set(g["tokens"])))


def packed(case: Case, model, folder: Path) -> dict:
    """Documents one by one, each from position 0; the loss is the mean over all predictions of all of them."""
    ids = tokens(case, model.config.vocab_size, sum(DOCUMENTS)).split(DOCUMENTS)
    out, total = {}, 0.0
    model.zero_grad()
    for i, document in enumerate(ids):
        logits = model(input_ids=document[None]).logits
        total = total + next_token_nll(logits, document[None])
        out[f"doc{i}.input_ids"] = document.clone()
        out[f"doc{i}.logits"] = logits[0].detach().clone()
    loss = total / sum(n - 1 for n in DOCUMENTS)
    loss.backward()
    out["loss"] = loss.detach()
    out.update(gradients(case, model, folder))
    model.zero_grad()
    return out


# --- proving that the files are worth having -----------------------------------------------------------------------


@contextlib.contextmanager
def planted_router(model_type: str, how: str):
    """A sigmoid router with one error of the kind people make."""
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
    from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeTopkRouter

    Router = {"glm4_moe": Glm4MoeTopkRouter, "deepseek_v3": DeepseekV3TopkRouter}[model_type]

    true_forward, true_fill, true_gather = Router.forward, torch.Tensor.masked_fill, torch.Tensor.gather

    def without_bias(self, x):
        kept = self.e_score_correction_bias.clone()
        self.e_score_correction_bias.zero_()
        out = true_forward(self, x)
        self.e_score_correction_bias.copy_(kept)
        return out

    def closed_groups_zero(self, x):
        torch.Tensor.masked_fill = lambda t, mask, value: true_fill(t, mask, 0.0)
        try:
            return true_forward(self, x)
        finally:
            torch.Tensor.masked_fill = true_fill

    def bias_in_weights(self, x):
        bias = self.e_score_correction_bias
        torch.Tensor.gather = lambda t, dim, index: true_gather(t + bias, dim, index)
        try:
            return true_forward(self, x)
        finally:
            torch.Tensor.gather = true_gather

    Router.forward = {"without_bias": without_bias, "closed_groups_zero": closed_groups_zero, "bias_in_weights": bias_in_weights}[how]
    try:
        yield
    finally:
        Router.forward = true_forward


def planted_in_latent_attention(case: Case, folder: Path) -> dict:
    """Models with one error each in their attention."""

    def of(change):
        model = reload(folder)
        for layer in model.model.layers:
            change(layer.self_attn)
        return model

    def eps(attention):
        # The latents' norms have an epsilon of their own, which no configuration changes.
        attention.kv_a_layernorm.variance_epsilon = COMMON["rms_norm_eps"]

    def scale(attention):
        attention.scaling = attention.qk_head_dim**-0.5

    errors = {"latent epsilon": of(eps)}
    if "mscale_all_dim" in case.config["rope_parameters"]:
        errors["plain scale"] = of(scale)
    return errors


def prove_visible(case: Case, folder: Path, ids: torch.Tensor, logits: torch.Tensor) -> dict:
    """Plants every error of the case and returns by how much each moved the logits."""
    moved = {}
    with torch.no_grad():
        for change in case.plant:
            changed = reload(folder, **change)(input_ids=ids).logits
            moved[json.dumps(change)] = (changed - logits).abs().max().item()
        if case.correction:
            model = reload(folder)
            errors = ["without_bias", "bias_in_weights"]
            if case.config["n_group"] > 1:
                errors.append("closed_groups_zero")
            for how in errors:
                with planted_router(case.model_type, how):
                    moved[how] = (model(input_ids=ids).logits - logits).abs().max().item()
        if case.latent:
            for how, model in planted_in_latent_attention(case, folder).items():
                moved[how] = (model(input_ids=ids).logits - logits).abs().max().item()
        # Every tensor in the file matters: nudge each, in no special direction (a query scaled as a whole is undone by its
        # norm), and look.
        model = reload(folder)
        draw = torch.Generator().manual_seed(0)
        for name, p in model.named_parameters():
            kept = p.detach().clone()
            p.mul_(1.0 + 0.1 * torch.randn(p.shape, generator=draw))
            moved[f"nudge {name}"] = (model(input_ids=ids).logits - logits).abs().max().item()
            p.copy_(kept)
    for what, by in moved.items():
        assert by > VISIBLE, f"{folder.name}: {what} moves the logits by only {by:.2g}"
    return moved


def prove_conditioned(folder: Path, ids: torch.Tensor, expected: list[float]) -> float:
    """Largest relative change of the ten losses when every weight moves by about `NUDGE` of itself, a few times over."""
    worst = 0.0
    for seed in range(3):
        model = reload(folder)
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.0 + NUDGE * torch.randn(p.shape, generator=draw))
        worst = max([worst] + [abs(a - b) / abs(b) for a, b in zip(losses(model, ids), expected)])
    assert worst < CONDITION, f"{folder.name}: the ten losses are ill conditioned ({worst:.2g}): choose another seed"
    return worst


# --- writing --------------------------------------------------------------------------------------------------------


def write(name: str, folder: Path) -> None:
    case = CASES[name]
    folder.mkdir(parents=True, exist_ok=True)
    build(case).save_pretrained(folder)

    model = reload(folder)
    ids = tokens(case, model.config.vocab_size, BATCH, SEQUENCE)
    if case.latent:
        write_inference(case, model, folder, ids)
        return
    out = model(input_ids=ids, labels=ids)
    with torch.no_grad():
        assert torch.equal(out.logits, build(case)(input_ids=ids).logits), "the saved model is not the built one"
        by_hand = next_token_nll(out.logits, ids) / (BATCH * (SEQUENCE - 1))
        assert torch.allclose(out.loss, by_hand, rtol=1e-6), (out.loss, by_hand)
    out.loss.backward()
    golden = {
        "input_ids": ids,
        "labels": ids.clone(),
        "logits": out.logits.detach().clone(),
        "loss": out.loss.detach().clone(),
        **gradients(case, model, folder),
    }
    save_file(golden, folder / "golden.safetensors")
    (folder / "greedy.json").write_text(json.dumps(greedy(reload(folder), ids)) + "\n")
    if case.packed:
        save_file(packed(case, model, folder), folder / "packed.safetensors")

    ten = losses(reload(folder), ids)
    assert ten[0] == out.loss.item() and ten[-1] < ten[0], ten
    moved = prove_visible(case, folder, ids, golden["logits"])
    condition = prove_conditioned(folder, ids, ten)
    record = {
        "optimizer": "adamw",
        **ADAMW,
        "weight_decay_applies_to": "tensors of two dimensions in the saved file (embeddings, head, projections, routers, experts)",
        "weight_decay_form": "decoupled: w -= lr * weight_decay * w, then w -= lr * m_hat / (sqrt(v_hat) + eps)",
        "bias_correction": True,
        "gradient_clipping": None,
        "steps": STEPS,
        "batch": "input_ids of golden.safetensors, the same at each step",
        "losses_are": "before each update",
        "losses": ten,
    }
    (folder / "losses.json").write_text(json.dumps(record, indent=2) + "\n")
    size = sum(f.stat().st_size for f in folder.iterdir())
    least = min(moved, key=moved.get)
    print(
        f"{name:15} {size / 1e3:6.0f} kB  loss {ten[0]:.5f} -> {ten[-1]:.5f}  condition {condition:.1e}"
        f"  least visible of {len(moved)}: {least} {moved[least]:.2g}"
    )


def write_inference(case: Case, model, folder: Path, ids: torch.Tensor) -> None:
    """The folder of a model that WuDao reads and does not train."""
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        assert torch.equal(logits, build(case)(input_ids=ids).logits), "the saved model is not the built one"
    save_file({"input_ids": ids, "logits": logits}, folder / "golden.safetensors")
    (folder / "greedy.json").write_text(json.dumps(greedy(model, ids)) + "\n")
    moved = prove_visible(case, folder, ids, logits)
    size = sum(f.stat().st_size for f in folder.iterdir())
    least = min(moved, key=moved.get)
    print(f"{folder.name:15} {size / 1e3:6.0f} kB  least visible of {len(moved)}: {least} {moved[least]:.2g}")


# Rotary scalings as published models have them: (rope_parameters, head_dim).
ROPE = {
    "linear": (dict(rope_type="linear", rope_theta=1e4, factor=8.0), 16),
    "llama3": (
        dict(rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192),
        128,
    ),
    "yarn": (dict(rope_type="yarn", rope_theta=1e6, factor=4.0, original_max_position_embeddings=32768), 128),
    "yarn_mscale": (
        dict(rope_type="yarn", rope_theta=1e4, factor=40.0, beta_fast=32, beta_slow=1, mscale=0.707, mscale_all_dim=1.0, original_max_position_embeddings=4096),
        64,
    ),
    "yarn_untruncated": (
        dict(rope_type="yarn", rope_theta=1.5e5, factor=32.0, beta_fast=32.0, beta_slow=1.0, truncate=False, original_max_position_embeddings=4096),
        64,
    ),
}


def rope() -> None:
    """Frequencies at every eighth of the pairs, and the factor of cosines and sines."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    for name, (parameters, head_dim) in ROPE.items():
        sizes = {"hidden_size": 4 * head_dim, "num_attention_heads": 4, "head_dim": head_dim}
        longest = int(parameters["factor"] * parameters.get("original_max_position_embeddings", 1024))
        config = AutoConfig.for_model("llama", **sizes, max_position_embeddings=longest, rope_parameters=parameters)
        frequency, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config)
        step = max(1, len(frequency) // 8)
        print(name, head_dim, f"{factor:.9g}", [float(f"{x:.7g}") for x in frequency[::step].tolist()])


# --- weights of 8 bits ---------------------------------------------------------------------------------------------

BLOCK = 128
FP8 = {
    "hidden_size": 256,  # two blocks wide
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
    "rope_parameters": theta(10000.0),
}


def write_fp8(folder: Path) -> None:
    """A qwen3 whose projections are e4m3 with a scale for each block of 128 x 128, and its logits: golden.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    case = Case("qwen3", seed=9, config=FP8)
    build(case).to(torch.bfloat16).save_pretrained(folder)
    tensors, draw = {}, torch.Generator().manual_seed(10)
    for name, w in load_file(folder / "model.safetensors").items():
        # So wide a model would have large logits, and small ones among them are then noise.
        w = w if name.endswith("norm.weight") else w / 4
        if not name.endswith("_proj.weight"):
            tensors[name] = w
            continue
        rows, columns = w.shape
        grid = -(-rows // BLOCK), -(-columns // BLOCK)
        # Blocks of very different size, so that a scale in the wrong place shows.
        sizes = torch.exp(torch.randn(grid, generator=draw))
        unit = w.abs().max().float() / torch.finfo(torch.float8_e4m3fn).max
        tensors[name] = (w.float() / unit).to(torch.float8_e4m3fn)
        tensors[name + "_scale_inv"] = sizes * unit
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [BLOCK, BLOCK],
        "modules_to_not_convert": ["lm_head"],
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    # transformers opens such a folder only with accelerate, which nothing else here needs: its operation alone, then.
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    wide = {}
    for name, q in tensors.items():
        if name.endswith("_scale_inv"):
            continue
        wide[name] = q.float()
        if name.endswith("_proj.weight"):
            scale = tensors[name + "_scale_inv"]
            wide[name] = Fp8Dequantize(None)._dequantize_one(q, scale, torch.float32)
            spread = scale.repeat_interleave(BLOCK, 0)[: q.shape[0]].repeat_interleave(BLOCK, 1)[:, : q.shape[1]]
            assert torch.equal(wide[name], q.float() * spread), name
    model = build(case)
    kept = model.load_state_dict(wide, strict=False)
    assert kept.missing_keys == ["lm_head.weight"] and not kept.unexpected_keys, kept
    model.tie_weights()
    ids = tokens(case, model.config.vocab_size, 1, 12)
    with torch.no_grad():
        save_file({"input_ids": ids, "logits": model(input_ids=ids).logits}, folder / "golden.safetensors")
    print(f"{folder.name:15} {sum(f.stat().st_size for f in folder.iterdir()) / 1e3:6.0f} kB")


def differences(old: Path, new: Path) -> list[str]:
    """What differs between two folders, beyond the tolerance."""
    found = []
    for name in sorted({f.name for f in old.iterdir()} | {f.name for f in new.iterdir()}):
        a, b = old / name, new / name
        if not a.exists() or not b.exists():
            found.append(f"{name} is only in one of the two")
        elif a.read_bytes() == b.read_bytes():
            continue
        elif name == "losses.json":
            x, y = (json.loads(f.read_text()) for f in (a, b))
            worst = max(abs(p - q) / abs(p) for p, q in zip(x.pop("losses"), y.pop("losses"), strict=True))
            if worst > TOLERANCE or x != y:
                found.append(f"{name}: differs (losses by {worst:.2g})")
        elif name.endswith(".json"):
            x, y = (json.loads(f.read_text()) for f in (a, b))
            x.pop("transformers_version", None), y.pop("transformers_version", None)
            if x != y:
                found.append(f"{name}: differs in {[k for k in x.keys() | y.keys() if x.get(k) != y.get(k)]}")
        else:
            x, y = ({n: t.float() if t.dtype == torch.float8_e4m3fn else t for n, t in load_file(f).items()} for f in (a, b))
            if x.keys() != y.keys():
                found.append(f"{name}: other tensors: {sorted(x.keys() ^ y.keys())}")
            for t in sorted(x.keys() & y.keys()):
                if x[t].shape != y[t].shape or x[t].dtype != y[t].dtype:
                    found.append(f"{name}: {t} has another shape or type")
                    continue
                scale = max(1.0, x[t].abs().max().item())
                worst = (x[t].double() - y[t].double()).abs().max().item()
                if not worst <= TOLERANCE * scale:
                    found.append(f"{name}: {t} differs by {worst:.2g}")
    return found


KNOWN = [*CASES, "fp8"]


def main() -> int:
    parser = argparse.ArgumentParser(description="Write, or check, the golden values.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"any of: {', '.join(KNOWN)} (default: all)")
    parser.add_argument("--check", action="store_true", help="compare with the committed files instead of writing")
    parser.add_argument("--rope", action="store_true", help="print the numbers that the tests of rope.rs hold")
    args = parser.parse_args()
    if args.rope:
        rope()
        return 0
    unknown = [c for c in args.cases if c not in KNOWN]
    if unknown:
        parser.error(f"no such case: {', '.join(unknown)}")

    # One thread and deterministic kernels: the same bytes on every run.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    failed = False
    for name in args.cases or KNOWN:
        make = write_fp8 if name == "fp8" else lambda folder, name=name: write(name, folder)
        if not args.check:
            make(GOLDEN / name)
            continue
        with tempfile.TemporaryDirectory() as scratch:
            fresh = Path(scratch) / name
            make(fresh)
            found = differences(GOLDEN / name, fresh)
            same = all((GOLDEN / name / f.name).read_bytes() == f.read_bytes() for f in fresh.iterdir()) if not found else False
        for line in found:
            print(f"{name}: {line}", file=sys.stderr)
        print(f"{name}: {'differs' if found else 'same bytes' if same else 'equal within tolerance'}")
        failed |= bool(found)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
