"""The loss of a linear layer whose state has fewer bits: decays that round to none, errors that grow with length.

A state that is rounded after every token cannot shrink by less than half a unit of its last place: a head whose decay
per token is below that never forgets, and what it adds is lost too. Rounded once per chunk, a state loses much less.
The tables take a model's configuration alone, which fixes the decay of lightning attention; all other linear layers of
today decay by their data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from workbench.heads import WorkbenchError

Precision = Literal["fp32", "fp16", "bf16", "e4m3", "e5m2"]
_DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
}
# Bits of the significand, the implied one included.
SIGNIFICAND_BITS = {"fp32": 24, "fp16": 11, "bf16": 8, "e4m3": 4, "e5m2": 3}
# Precisions of the tables.
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "e4m3")
_LIGHTNING = ("minimax", "minimax_text_01", "minimax_m1")
# Heads of one recurrence: four layers of MiniMax-Text-01, a minute for 4,096 tokens on one core.
_HEADS = 256


def lightning_slopes(layer: int, n_layers: int, n_heads: int) -> Float[Tensor, " n_heads"]:
    """Decay per token of each head of one lightning layer, float64.

    For a model at hand `workbench.loading.lightning_decay.stored_slopes` reads the rates that it uses.

    Reference:
        MiniMax-Text-01 as released: 2^(−8(h+1)/H) · (1 − l/(L − 1 + 1e-5) + 1e-5).
    """
    head = torch.arange(1, n_heads + 1, dtype=torch.float64)
    return 2.0 ** (-8 * head / n_heads) * (1 - layer / (n_layers - 1 + 1e-5) + 1e-5)


def slopes_of_config(source: str | Path) -> dict[int, Float[Tensor, " n_heads"]]:
    """Decay per token of each head of each lightning layer, from a checkpoint's folder or its config.json.

    Raises:
        WorkbenchError: if there is no configuration, or no layer of the model decays independently of its data.
    """
    path = Path(source)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise WorkbenchError(f"{source} has no config.json; expected a checkpoint's folder or its config.json")
    config: dict[str, Any] = json.loads(path.read_text())
    kind = config.get("model_type")
    if kind not in _LIGHTNING:
        raise WorkbenchError(
            f"{source} is a {kind} model, whose decay, if it has any, depends on the data; expected data-independent "
            f"decay: {', '.join(_LIGHTNING)}"
        )
    n_layers, n_heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
    linear = [i for i, is_linear in enumerate(_is_linear(config, n_layers)) if is_linear]
    if not linear:
        raise WorkbenchError(f"{source} is a {kind} model of {n_layers} softmax layers; expected a lightning layer")
    return {layer: lightning_slopes(layer, n_layers, n_heads) for layer in linear}


def _is_linear(config: Mapping[str, Any], n_layers: int) -> list[bool]:
    """True for lightning layers: by transformers' names, by the release's numbers, or every other one."""
    if kinds := config.get("layer_types"):
        return [kind == "linear_attention" for kind in kinds]
    if numbers := config.get("attn_type_list"):
        return [number == 0 for number in numbers]
    return [layer % 2 == 1 for layer in range(n_layers)]


def lost_decays(slopes: Float[Tensor, " n_heads"], precision: Precision) -> tuple[float, float]:
    """Shares of heads whose decay rounding to nearest undoes surely, and for some significands.

    With p bits the spacing of numbers is 2^−(p−1) to 2^−p of their size and rounding undoes less than half of it: a
    decay below 2^−(p+1) is lost for every significand, one below 2^−p for the small ones.
    """
    bits = SIGNIFICAND_BITS[precision]
    return tuple(float((slopes < 2.0**-p).double().mean()) for p in (bits + 1, bits))  # type: ignore[return-value]


def rounded_decays(slopes: Float[Tensor, " n_heads"], precision: Precision) -> float:
    """Share of heads whose decay factor exp(−slope) itself rounds to 1: they never forget at all."""
    factor = torch.exp(-slopes.to(_DTYPES[precision]).to(torch.float64))
    return float((factor.to(_DTYPES[precision]).to(torch.float64) == 1).double().mean())


def lost_decay_table(slopes: Mapping[int, Float[Tensor, " n_heads"]]) -> pd.DataFrame:
    """Per precision the shares of all heads whose decay rounding undoes surely, undoes at most, and rounds to 1.

    Columns: precision, surely_lost, at_most_lost, never_forgets.
    """
    all_heads = torch.cat(list(slopes.values()))
    rows = [(p, *lost_decays(all_heads, p), rounded_decays(all_heads, p)) for p in PRECISIONS]
    return pd.DataFrame(rows, columns=["precision", "surely_lost", "at_most_lost", "never_forgets"])


def rounded(x: Float[Tensor, "n_heads d d_v"], precision: Precision) -> Float[Tensor, "n_heads d d_v"]:
    """A state after rounding; eight-bit formats carry one scale per head."""
    dtype = _DTYPES[precision]
    if precision not in ("e4m3", "e5m2"):
        return x.to(dtype).to(x.dtype)
    scale = x.abs().amax((-1, -2), keepdim=True).clamp_min(1e-30) / torch.finfo(dtype).max
    return (x / scale).to(dtype).to(x.dtype) * scale


def state_error_growth(
    slopes: Float[Tensor, " n_heads"],
    precision: Precision,
    lengths: tuple[int, ...],
    *,
    d: int = 32,
    every: int = 1,
    seed: int = 0,
) -> Float[Tensor, "lengths n_heads"]:
    """Relative error of o = q S after each length, with the state rounded every `every` tokens; SiLU inputs, float64.

    Raises:
        WorkbenchError: if the lengths do not rise or are no multiples of `every`.
    """
    if list(lengths) != sorted(set(lengths)) or any(n % every or n < 1 for n in lengths):
        raise WorkbenchError(f"lengths {lengths} were given; expected rising multiples of every={every}")
    generator = torch.Generator().manual_seed(seed)
    slopes = slopes.double().cpu()

    def normal(n: int) -> Tensor:
        return torch.nn.functional.silu(torch.randn(len(slopes), n, d, generator=generator, dtype=torch.float64))

    queries = normal(64)
    exact = torch.zeros(len(slopes), d, d, dtype=torch.float64)
    narrow = exact.clone()
    to_end = torch.exp(-slopes[:, None] * (every - 1 - torch.arange(every)))[..., None]
    whole = torch.exp(-slopes * every)[:, None, None]
    errors: list[Tensor] = []
    for t in range(every, lengths[-1] + 1, every):
        update = einsum(normal(every) * to_end, normal(every), "h t d, h t e -> h d e")
        exact = whole * exact + update
        narrow = rounded(whole * narrow + update, precision)
        if t in lengths:
            error = rearrange(queries @ (narrow - exact), "h n e -> h (n e)").norm(dim=-1)
            errors.append(error / rearrange(queries @ exact, "h n e -> h (n e)").norm(dim=-1))
    return torch.stack(errors)


def state_precision_table(
    slopes: Mapping[int, Float[Tensor, " n_heads"]],
    *,
    tokens: int = 4096,
    every: int = 1,
    precisions: tuple[Precision, ...] = PRECISIONS,
) -> pd.DataFrame:
    """Relative error of each head's output after a quarter, a sixteenth, ... of `tokens`, and after all of them.

    Of at most four evenly spread layers where a model has more than 256 lightning heads. Random inputs, 32 channels.

    Args:
        every: tokens between two roundings of the state: 1 is decoding, 256 prefilling by chunks.

    Returns:
        Columns: layer, head, slope, precision, tokens, error.

    Raises:
        WorkbenchError: if `tokens` is no multiple of `every`.
    """
    layers = _spread(sorted(slopes), _HEADS // len(next(iter(slopes.values()))))
    lengths = tuple(sorted({n for n in (tokens // 64, tokens // 16, tokens // 4, tokens) if n and n % every == 0}))
    if tokens not in lengths:
        raise WorkbenchError(f"{tokens} tokens were given; expected a positive multiple of every={every}")
    of_layers = torch.cat([slopes[layer] for layer in layers])
    heads = [(layer, head, float(s)) for layer in layers for head, s in enumerate(slopes[layer])]
    rows: list[tuple[Any, ...]] = []
    for precision in precisions:
        errors = state_error_growth(of_layers, precision, lengths, every=every)
        for length, of_heads in zip(lengths, errors.tolist(), strict=True):
            rows += [(*head, precision, length, error) for head, error in zip(heads, of_heads, strict=True)]
    return pd.DataFrame(rows, columns=["layer", "head", "slope", "precision", "tokens", "error"])


def _spread(layers: list[int], n: int) -> list[int]:
    """At most n of them, at least the first and the last."""
    n = max(2, n)
    if len(layers) <= n:
        return layers
    return [layers[round(i * (len(layers) - 1) / (n - 1))] for i in range(n)]


def horizon_share(slopes: Float[Tensor, " n_heads"], window: int, mass: float = 0.01) -> float:
    """Share of heads with more than `mass` of their decay kernel beyond `window` tokens, exp(−slope · window)."""
    return float((torch.exp(-slopes.double() * window) > mass).double().mean())
