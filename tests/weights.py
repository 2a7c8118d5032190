"""Every head's matrices in float64, cut out of a family's own parameters by hand, norms multiplied in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.families import GROUPS, HEADS

# Families whose heads have no weights of their own in TransformerLens, or that it cannot open.
UNREADABLE = (
    "cwm",
    "minimax",
    "granite_swa",
    "inkling",
    "inkling2",
    "mimo_v2_flash",
    "gemma4",
    "gemma4_shared",
    "deepseek_v3",
)


@dataclass(frozen=True)
class HeadMatrices:
    """By layer and query head: q, k, v from the residual, o to it; the embedding, and the unembedding."""

    q: list[list[np.ndarray]]
    k: list[list[np.ndarray]]
    v: list[list[np.ndarray]]
    o: list[list[np.ndarray]]
    embed: np.ndarray
    unembed: np.ndarray


def head_matrices(family, model):
    state = {name: x.double().numpy() for name, x in model.state_dict().items()}
    n = model.config.num_hidden_layers
    layers = [_LAYERS[family](state, i) for i in range(n)]
    q, k, v, o = ([layer[j] for layer in layers] for j in range(4))
    embed, unembed, final = _ENDS[family](state)
    return HeadMatrices(q, k, v, o, embed, final @ unembed)


def _rms(gain):
    return np.diag(gain)


def _layer_norm(gain):
    return (np.eye(len(gain)) - 1 / len(gain)) @ np.diag(gain)


def _split(stacked, n, *, repeat=1):
    """Rows of an output-by-input matrix as n heads' residual-by-head matrices, each `repeat` times."""
    return [head.T for head in np.split(stacked, n) for _ in range(repeat)]


def _after(norm, heads):
    return [norm @ head for head in heads]


def _llama_like(state, i, *, reading, writing=None):
    at = f"model.layers.{i}.self_attn"
    q = _split(state[f"{at}.q_proj.weight"], HEADS)
    k, v = (_split(state[f"{at}.{x}_proj.weight"], GROUPS, repeat=HEADS // GROUPS) for x in "kv")
    o = np.split(state[f"{at}.o_proj.weight"].T, HEADS)
    if reading is not None:
        q, k, v = (_after(reading, x) for x in (q, k, v))
    return q, k, v, o if writing is None else [x @ writing for x in o]


def _llama(state, i):
    return _llama_like(state, i, reading=_rms(state[f"model.layers.{i}.input_layernorm.weight"]))


def _gemma2(state, i):
    reading, writing = (_rms(1 + state[f"model.layers.{i}.{x}_layernorm.weight"]) for x in ("input", "post_attention"))
    return _llama_like(state, i, reading=reading, writing=writing)


def _olmo2(state, i):
    return _llama_like(state, i, reading=None, writing=_rms(state[f"model.layers.{i}.post_attention_layernorm.weight"]))


def _phi3(state, i):
    at = f"model.layers.{i}.self_attn"
    fused, norm = state[f"{at}.qkv_proj.weight"], _rms(state[f"model.layers.{i}.input_layernorm.weight"])
    d = fused.shape[0] // (HEADS + 2 * GROUPS)
    q, k, v = np.split(fused, [HEADS * d, (HEADS + GROUPS) * d])
    repeat = HEADS // GROUPS
    heads = (_split(q, HEADS), _split(k, GROUPS, repeat=repeat), _split(v, GROUPS, repeat=repeat))
    return *(_after(norm, x) for x in heads), np.split(state[f"{at}.o_proj.weight"].T, HEADS)


def _centred(heads):
    return [head - head.mean(-1, keepdims=True) for head in heads]


def _gpt2(state, i):
    at = f"transformer.h.{i}"
    norm = _layer_norm(state[f"{at}.ln_1.weight"])
    q, k, v = (_after(norm, _split(x.T, HEADS)) for x in np.split(state[f"{at}.attn.c_attn.weight"], 3, axis=1))
    return q, k, v, _centred(np.split(state[f"{at}.attn.c_proj.weight"], HEADS))


def _gpt_neox(state, i):
    at = f"gpt_neox.layers.{i}"
    norm = _layer_norm(state[f"{at}.input_layernorm.weight"])
    by_head = np.split(state[f"{at}.attention.query_key_value.weight"], HEADS)
    q, k, v = (_after(norm, [np.split(head, 3)[j].T for head in by_head]) for j in range(3))
    return q, k, v, _centred(np.split(state[f"{at}.attention.dense.weight"].T, HEADS))


def _llama_ends(state, *, shift=0.0):
    return state["model.embed_tokens.weight"], state["lm_head.weight"].T, _rms(shift + state["model.norm.weight"])


def _gpt2_ends(state):
    embed = state["transformer.wte.weight"]
    return embed, state["lm_head.weight"].T, _layer_norm(state["transformer.ln_f.weight"])


def _gpt_neox_ends(state):
    out = "embed_out.weight" if "embed_out.weight" in state else "lm_head.weight"
    return (
        state["gpt_neox.embed_in.weight"],
        state[out].T,
        _layer_norm(state["gpt_neox.final_layer_norm.weight"]),
    )


_LAYERS = {
    "llama": _llama,
    "gemma2": _gemma2,
    "olmo2": _olmo2,
    "phi3": _phi3,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
}
_ENDS = {
    "llama": _llama_ends,
    "gemma2": lambda state: _llama_ends(state, shift=1.0),
    "olmo2": _llama_ends,
    "phi3": _llama_ends,
    "gpt2": _gpt2_ends,
    "gpt_neox": _gpt_neox_ends,
}
