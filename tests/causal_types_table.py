"""The part of docs/models.md on every type of causal language model that transformers has: opens, or is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.causal_types import ENCODERS, NOT_MADE, TYPES, tiny, tiny_config
from tests.families import random_tokens
from workbench import KVHead, WorkbenchError, open_model
from workbench.hooks import HookedModel
from workbench.hooks.taps.eager import is_without_interface
from workbench.loading.refusals import why_no_language_model

OPENS = ("type", "class", "how it is read", "layers", "record", "restrict", "ablate", "prefill", "generate")
REFUSED = ("type", "class", "what the workbench says")
_TOKENS = 13
_LONG = 160  # longer than a block of any attention that selects blocks of keys

_HEADER = f"""
## Every type of causal language model
The {len(TYPES)} types that transformers {transformers.__version__} lists as causal language models, each tried on \
a tiny random model with a layer of every kind that its configuration has. Where the tests have no configuration of \
its own for a type, it is the type's default with all sizes made small.

- **how it is read**: *interface*, through transformers' AttentionInterface; *softmax*, at the softmax of one layer \
at a time; of linear layers the mixer.
- **record**: the entropy of every head. **prefill**: the same numbers with `prefill=`, piece by piece. **generate**: \
`m.model.generate` inside of `m.restrict` gives, with its cache, what it gives without one. `minimax` is refused \
there: transformers makes the mask of a step after the first for the length of the first layer's cache, which is that \
of a linear layer and empty, so that 1 query has a mask of 1 key. Without `restrict` the mask of a single query is not \
read, and what it generates with its cache is right; inside of it, pass `use_cache=False`. What `rwkv` generates with \
a cache differs in transformers itself.
- ¹ an encoder by default, opened with `is_decoder=True` in its configuration; without, it is refused. ² the decoder \
of an encoder-decoder by itself; the whole is refused.
"""


def section() -> str:
    """The whole part, every type tried."""
    rows = [row(model_type) for model_type in TYPES]
    opened = [cells for cells in rows if len(cells) == len(OPENS)]
    refused = [cells for cells in rows if len(cells) == len(REFUSED)]
    made = [cells for cells in refused if cells[0].strip("`") not in NOT_MADE]
    others = [cells for cells in refused if cells[0].strip("`") in NOT_MADE]
    parts = [
        (f"### {len(opened)} open", OPENS, opened),
        (f"### {len(made)} are refused", REFUSED, made),
        (f"### {len(others)} were not tried", ("type", "class", "why"), others),
    ]
    return _HEADER + "".join(f"\n{title}\n{_table(columns, cells)}" for title, columns, cells in parts)


def row(model_type: str) -> list[str]:
    """The cells of a type: those of `OPENS`, or those of `REFUSED` with the sentence of its refusal."""
    first = [f"`{model_type}`", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]]
    if model_type in NOT_MADE:
        return [*first, NOT_MADE[model_type]]
    try:
        model = tiny(model_type)
    except AttributeError:  # transformers makes none of the configuration of the whole
        return [*first, _one_line(why_no_language_model(tiny_config(model_type)))]
    try:
        m = open_model(model)
    except WorkbenchError as error:
        return [*first, _one_line(str(error))]
    first[0] += "¹" if model_type in ENCODERS else "²" if _is_of_two(model_type) else ""
    return [*first, _how_read(m), _layers(m), *(_answer(trial, m) for trial in _TRIALS)]


def listed(document: str) -> list[str]:
    """The types that a document lists, in the order of its tables."""
    part = document.partition("## Every type of causal language model")[2]
    return [line.split("`")[1] for line in part.splitlines() if line.startswith("| `")]


def _is_of_two(model_type: str) -> bool:
    return bool(getattr(tiny_config(model_type), "is_encoder_decoder", False))


def _how_read(m: HookedModel) -> str:
    mixers = dict.fromkeys(info.mixer for info in m.layers)
    softmax = "softmax" if is_without_interface(m.model) else "interface"
    return ", ".join(softmax if mixer == "softmax" else mixer for mixer in mixers)


def _layers(m: HookedModel) -> str:
    return ", ".join(dict.fromkeys(info.kind for info in m.layers))


def _answer(trial: Callable[[HookedModel], bool | None], m: HookedModel) -> str:
    """What a trial shows; a refusal is a no."""
    try:
        works = trial(m)
    except WorkbenchError:
        works = False
    return "–" if works is None else "yes" if works else "no"


def _record(m: HookedModel) -> bool:
    recorded = m.record(random_tokens(1, _LONG), {"entropy"})["entropy"]
    entropy = recorded.total[recorded.rows > 0]
    return bool(torch.isfinite(entropy).all()) and bool((entropy > 0).any())


def _restrict(m: HookedModel) -> bool | None:
    heads = _kv_heads(m)
    if not heads:
        return None
    plain = _logits(m)
    with m.restrict(heads, window=2):
        return _differs(_logits(m), plain)


def _ablate(m: HookedModel) -> bool:
    plain = _logits(m)
    works: list[bool] = []
    for info in m.layers[-1:]:
        with m.ablate([(info.index, head) for head in range(info.n_heads)], mixer=info.mixer):
            works.append(_differs(_logits(m), plain))
    return all(works)


def _prefill(m: HookedModel) -> bool:
    return torch.allclose(_entropy(m, prefill=5), _entropy(m), atol=1e-3, rtol=1e-3, equal_nan=True)


def _generate(m: HookedModel) -> bool:
    heads = _kv_heads(m)
    if not heads:
        return _cache_agrees(m)
    with m.restrict(heads, window=4):
        return _cache_agrees(m)


_TRIALS = (_record, _restrict, _ablate, _prefill, _generate)


def _cache_agrees(m: HookedModel) -> bool:
    options: dict[str, Any] = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "num_beams": 1}
    tokens = _tokens(m)
    with torch.no_grad():
        both = [
            m.model.generate(tokens, attention_mask=torch.ones_like(tokens), use_cache=use_cache, **options)
            for use_cache in (True, False)
        ]
    return torch.equal(*both)


def _entropy(m: HookedModel, **options: Any) -> torch.Tensor:
    recorded = m.record(_tokens(m), {"entropy"}, **options)["entropy"]
    return (recorded.total / recorded.rows.clamp(min=1)).float()


def _kv_heads(m: HookedModel) -> list[KVHead]:
    return [KVHead(info.index, i) for info in m.layers if info.mixer == "softmax" for i in range(info.n_kv_heads)]


def _tokens(m: HookedModel) -> torch.Tensor:
    return random_tokens(2, _TOKENS)


def _logits(m: HookedModel) -> torch.Tensor:
    with torch.no_grad():
        return m.model(input_ids=_tokens(m), use_cache=False).logits


def _differs(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() > 1e-4)


def _one_line(sentence: str) -> str:
    return " ".join(sentence.split()).replace("|", "\\|")


def _table(columns: Iterable[str], rows: Iterable[list[str]]) -> str:
    columns = list(columns)
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
