"""docs/models.md, made by opening a tiny model of every family and trying what the table says.

    python -m tests.models_table > docs/models.md

A family gets a row by standing in one of the `SOURCES`; a name that people know it by goes into `NAMES`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping

import torch
from transformers import PreTrainedModel, logging

from tests import channel_families, families, linear_families, more_families, older_families, selecting_families
from tests.causal_types_table import section
from workbench import Head, KVHead, LayerInfo, WorkbenchError, open_model
from workbench.hooks import HookedModel
from workbench.hooks.head_weights import read_weights

COMMAND = "python -m tests.models_table > docs/models.md"

# Configurations by family, and what makes a model of one.
SOURCES: list[tuple[Mapping[str, object], Callable[[str], PreTrainedModel]]] = [
    (families.CONFIGS, families.tiny),
    (more_families.MORE_CONFIGS, families.tiny),
    (linear_families.CONFIGS, linear_families.tiny),
    (channel_families.CONFIGS, channel_families.tiny),
    (older_families.OLDER_CONFIGS, families.tiny),
    (selecting_families.SELECTING_CONFIGS, families.tiny),
    (selecting_families.BLOCK_CONFIGS, families.tiny),
    (selecting_families.POOL_CONFIGS, families.tiny),
    (selecting_families.BIASED_CONFIGS, families.tiny),
]

NAMES = {
    "axk2": "A.X-K2",
    "bailing_hybrid": "Ling 3.0",
    "bamba": "Bamba",
    "bloom": "BLOOM",
    "codegen": "CodeGen",
    "cohere2": "Command R7B, Command A",
    "cwm": "CWM",
    "deepseek_v3": "DeepSeek-V3, R1",
    "deepseek_v32": "DeepSeek-V3.2",
    "doge": "Doge",
    "dots3_note": "dots.3 Note",
    "falcon": "Falcon-7B",
    "falcon_alibi": "Falcon-RW (ALiBi)",
    "falcon_h1": "Falcon-H1",
    "falcon_h1_plain": "Falcon-H1 without inner norm",
    "falcon_mamba": "Falcon-Mamba",
    "falcon_new": "Falcon-40B, 180B",
    "gemma2": "Gemma 2",
    "gemma3": "Gemma 3",
    "gemma4": "Gemma 4",
    "gemma4_shared": "Gemma 4 with shared keys and values",
    "glm5_next": "GLM-5-Next",
    "glm5_next_with_linear": "GLM-5-Next with linear layers",
    "glm_moe_dsa": "GLM-5",
    "gpt2": "GPT-2",
    "gpt_neo": "GPT-Neo",
    "gpt_neox": "GPT-NeoX, Pythia",
    "gpt_neox_japanese": "GPT-NeoX Japanese",
    "gpt_oss": "GPT-OSS",
    "gptj": "GPT-J",
    "granite": "Granite 4 hybrid",
    "granite_swa": "Granite with sliding windows",
    "hy_v4": "Hunyuan Hy4",
    "inkling": "Inkling",
    "inkling2": "Inkling 2",
    "jamba": "Jamba",
    "kimi_linear": "Kimi-Linear",
    "lfm2": "LFM2",
    "lfm3": "LFM3",
    "llama": "Llama 1, 2, 3, SmolLM",
    "llama4": "Llama 4",
    "mamba": "Mamba",
    "mamba2": "Mamba-2",
    "mimo_v2_flash": "MiMo-V2-Flash",
    "minimax": "MiniMax-Text-01, MiniMax-M1",
    "minimax_m2": "MiniMax-M2",
    "minimax_m3": "MiniMax-M3",
    "mistral": "Mistral",
    "mistral_large4": "Mistral Large 4",
    "mpt": "MPT",
    "nemotron_h": "Nemotron-H",
    "olmo2": "OLMo 2",
    "olmo3": "OLMo 3",
    "olmo_hybrid": "OLMo hybrid",
    "openai_gpt": "GPT",
    "phi": "Phi-1, 2",
    "phi3": "Phi-3, 4",
    "qwen2": "Qwen2, 2.5",
    "qwen3": "Qwen3",
    "qwen3_5": "Qwen3.5",
    "qwen3_5_moe": "Qwen3.5 MoE",
    "qwen3_next": "Qwen3-Next",
    "qwen4_exp": "Qwen4-Exp",
    "qwen4_exp_with_linear": "Qwen4-Exp with linear layers",
    "recurrent_gemma": "RecurrentGemma",
    "roformer": "RoFormer as a decoder",
    "rwkv": "RWKV-4",
    "starcoder2": "StarCoder2",
    "trocr": "TrOCR's decoder",
    "xglm": "XGLM",
    "xlstm": "xLSTM",
    "zamba2": "Zamba2",
}

_HEADER = f"""# Models

What the workbench does with each model family, found by opening a tiny random model of it and trying. This file \
is generated: `{COMMAND}` writes it, and tests fail when it is out of date. A model that cannot be recorded exactly is \
refused when it is opened. A GGUF file opens as the model that it holds: [published models and GGUF \
files](published-models.md). First the families whose numbers are compared with a reference in the tests; below them \
[every type](#every-type-of-causal-language-model) that transformers has. For linear layers of a new family, a \
package can register a reader with `workbench.hooks.mixer`; \
[examples/extensions/own_mixer.py](../examples/extensions/own_mixer.py) is one that runs.

- **layers**: the kinds of the tiny model's layers in order; of linear layers the mixer. `+` joins two mixers of \
one layer. *sparse*: an indexer selects keys for every row from its whole past, single ones or in blocks; \
`m.layers` says how many, `n_selected`. A real checkpoint has its own order, `m.layers`.
- **recorded**: probabilities, or the implied signed pattern of linear layers. In layers with a decay per channel \
(*mamba1*, *rg_lru*, *rwkv4*) every channel c has an implied pattern of its own, y_t[c] = Σ_s P_c[t, s] x_s[c]. A head \
is there the whole layer (Mamba-1, RWKV-4) or a block of the block-diagonal gates (RG-LRU), and its pattern is the \
mean of P_c over the head's channels, before the layer's gate. `recurrent_gemma` and `rwkv` take padding in as text, \
so that padding on the left is refused.
- **restrict, ablate**: whether a window, or zeroed outputs of heads, change the logits. Windows are for softmax \
heads. Where only the heads of some mixers can be ablated, these are named.
- **TransformerLens view**: whether `m.bridge` opens and computes the same logits; *patterns read-only*: an edit of \
`hook_pattern` does not change the logits. The workbench's own recording needs no bridge.
- **scores of weights**: whether the view has weights per head, which `copying` and `k_composition` read.

| family | models | class | layers | recorded | learned sinks | restrict | ablate | TransformerLens view | \
scores of weights |
|---|---|---|---|---|---|---|---|---|---|
"""


def document() -> str:
    """The whole file."""
    return families_part() + section()


def families_part() -> str:
    """The part on the families of the tests."""
    rows = sorted(_rows(), key=lambda cells: cells[0].strip("`"))
    return _HEADER + "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def _rows() -> Iterator[list[str]]:
    made: set[str] = set()
    for configs, make in SOURCES:
        for family in configs:
            if family not in made:
                made.add(family)
                yield row(family, make(family))


def row(family: str, model: PreTrainedModel) -> list[str]:
    """The cells of a family, each tried out on its model."""
    m = open_model(model)
    return [
        f"`{family}`",
        NAMES.get(family, family),
        type(model).__name__,
        _layers(m.layers),
        _recorded(m),
        _sinks(m.layers),
        _restricts(m),
        _ablates(m),
        _view(m),
        _weights(m),
    ]


def _layers(layers: tuple[LayerInfo, ...]) -> str:
    by_index: dict[int, list[str]] = {}
    for info in layers:
        kind = info.kind if info.mixer == "softmax" else f"{info.kind} ({info.mixer})"
        by_index.setdefault(info.index, []).append(kind)
    return ", ".join(" + ".join(kinds) for kinds in by_index.values())


def _recorded(m: HookedModel) -> str:
    entropy = m.record(_tokens(), {"entropy"})["entropy"]
    counted = [bool((entropy.rows[:, place, : info.n_heads] > 0).all()) for place, info in enumerate(m.layers)]
    if not all(counted):
        return f"{sum(counted)} of {len(counted)} mixers"
    kinds = ["probabilities"] if _softmax(m) else []
    return ", ".join(kinds + (["implied pattern"] if len(_softmax(m)) < len(m.layers) else []))


def _sinks(layers: tuple[LayerInfo, ...]) -> str:
    with_sinks = [info.kind for info in layers if info.has_sinks]
    if not with_sinks:
        return "–"
    return "all layers" if len(with_sinks) == len(layers) else f"{', '.join(dict.fromkeys(with_sinks))} layers"


def _restricts(m: HookedModel) -> str:
    if not _softmax(m):
        return "–"
    plain = _logits(m)
    heads = [KVHead(info.index, i) for info in _softmax(m) for i in range(info.n_kv_heads)]
    with m.restrict(heads, window=2):
        return _yes(_differs(_logits(m), plain))


def _ablates(m: HookedModel) -> str:
    """Which mixers' heads can be silenced, each tried alone."""
    plain = _logits(m)
    works: dict[str, bool] = {}
    for mixer in dict.fromkeys(info.mixer for info in m.layers):
        heads = [Head(info.index, 0) for info in m.layers if info.mixer == mixer]
        try:
            with m.ablate(heads, mixer=mixer):
                works[mixer] = _differs(_logits(m), plain)
        except WorkbenchError:
            works[mixer] = False
    return "yes" if all(works.values()) else ", ".join(mixer for mixer, is_so in works.items() if is_so) or "no"


def _view(m: HookedModel) -> str:
    try:
        bridge = m.bridge
    except WorkbenchError:
        return "no"
    try:
        with torch.no_grad():
            logits = bridge(_tokens())
    except RuntimeError:
        return "opens, cannot run"
    if _differs(logits, _logits(m)):
        return "opens, computes otherwise"
    names = [info.hook_name for info in _softmax(m) if info.hook_name in bridge.hook_dict]
    if not names:
        return "yes, no patterns"
    zeroed = [(name, lambda pattern, hook: torch.zeros_like(pattern)) for name in names]
    with torch.no_grad():
        edited = bridge.run_with_hooks(_tokens(), fwd_hooks=zeroed)
    return "yes" if _differs(edited, logits) else "yes, patterns read-only"


def _weights(m: HookedModel) -> str:
    if not _softmax(m):
        return "–"
    try:
        read_weights(m)
    except WorkbenchError:
        return "no"
    return "yes"


def _softmax(m: HookedModel) -> list[LayerInfo]:
    return [info for info in m.layers if info.mixer == "softmax"]


def _tokens() -> torch.Tensor:
    return families.random_tokens(2, 13)


def _logits(m: HookedModel) -> torch.Tensor:
    with torch.no_grad():
        return m.model(input_ids=_tokens(), use_cache=False).logits


def _differs(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() > 1e-3)


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


if __name__ == "__main__":
    logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        print(document(), end="")
