"""What a linear layer loses when its state has fewer bits: decays that round to none, errors that grow with length.

A state that is rounded after every token cannot shrink by less than half a unit of its last place: a head whose decay
per token is below that never forgets, and what it adds is lost too. Rounded once per chunk, a state forgives much more.
"""

from __future__ import annotations

from typing import Literal

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


def lightning_slopes(layer: int, n_layers: int, n_heads: int) -> Float[Tensor, " n_heads"]:
    """Decay per token of each head of one lightning layer, float64.

    Reference:
        MiniMax-Text-01 as released: 2^(−8(h+1)/H) · (1 − l/(L − 1 + 1e-5) + 1e-5).
    """
    head = torch.arange(1, n_heads + 1, dtype=torch.float64)
    return 2.0 ** (-8 * head / n_heads) * (1 - layer / (n_layers - 1 + 1e-5) + 1e-5)


def lost_decays(slopes: Float[Tensor, " n_heads"], precision: Precision) -> tuple[float, float]:
    """Shares of heads whose decay rounding to nearest surely undoes, and undoes for some significands.

    With p bits the spacing of numbers is 2^−(p−1) to 2^−p of their size and rounding undoes less than half of it: a
    decay below 2^−(p+1) is lost for every significand, one below 2^−p for the small ones.
    """
    bits = SIGNIFICAND_BITS[precision]
    return tuple(float((slopes < 2.0**-p).double().mean()) for p in (bits + 1, bits))  # type: ignore[return-value]


def rounded_decays(slopes: Float[Tensor, " n_heads"], precision: Precision) -> float:
    """Share of heads whose decay factor exp(−slope) itself rounds to 1: they never forget at all."""
    factor = torch.exp(-slopes.to(_DTYPES[precision]).to(torch.float64))
    return float((factor.to(_DTYPES[precision]).to(torch.float64) == 1).double().mean())


def rounded(x: Float[Tensor, "n_heads d d_v"], precision: Precision) -> Float[Tensor, "n_heads d d_v"]:
    """A state as it is read back; eight-bit formats carry one scale per head."""
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
    kept = exact.clone()
    to_end = torch.exp(-slopes[:, None] * (every - 1 - torch.arange(every)))[..., None]
    whole = torch.exp(-slopes * every)[:, None, None]
    errors: list[Tensor] = []
    for t in range(every, lengths[-1] + 1, every):
        update = einsum(normal(every) * to_end, normal(every), "h t d, h t e -> h d e")
        exact = whole * exact + update
        kept = rounded(whole * kept + update, precision)
        if t in lengths:
            wrong = rearrange(queries @ (kept - exact), "h n e -> h (n e)").norm(dim=-1)
            errors.append(wrong / rearrange(queries @ exact, "h n e -> h (n e)").norm(dim=-1))
    return torch.stack(errors)


def horizon_share(slopes: Float[Tensor, " n_heads"], window: int, mass: float = 0.01) -> float:
    """Share of heads with more than `mass` of their decay kernel beyond `window` tokens, exp(−slope · window)."""
    return float((torch.exp(-slopes.double() * window) > mass).double().mean())
