"""Muon: an optimiser that orthogonalises the momentum, so that all directions of a weight matrix move equally far.

Per matrix W with gradient G and momentum M:
1. M ← μ M + (1 − μ) G,  then N = μ M + (1 − μ) G (Nesterov).
2. O ≈ U Vᵀ of N = U S Vᵀ, by five Newton-Schulz steps X ← a X + (b X Xᵀ + c (X Xᵀ)²) X.
3. W ← W − lr · 0.2 · √max(rows, columns) · O, which has about the root mean square of an AdamW update.

Reference: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; the factor of step 3 is Liu et
al. 2025, "Muon is scalable for LLM training". `torch.optim.Muon` takes 2-D weights only, one at a time and in bfloat16.
Here stacks of expert matrices are batches, computation is float32, and all matrices of one shape share one product.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_N_STEPS = 5
_TINY = 1e-7


class Muon(torch.optim.Optimizer):
    """Muon for weights of two or more dimensions: the last two are the matrix, the others a batch."""

    def __init__(self, params: Iterable[Tensor], lr: float, *, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every weight that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            self._step_group(group)

    def _step_group(self, group: dict[str, Any]) -> None:
        by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for weight in group["params"]:
            if weight.grad is None:
                continue
            state = self.state[weight]
            if not state:
                state["momentum"] = torch.zeros_like(weight)
            momentum: Tensor = state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
            ahead = _wide(weight.grad.lerp(momentum, group["momentum"]))
            by_shape[(ahead.shape[-2], ahead.shape[-1])].append((weight, ahead))
        for (_, longest), pairs in by_shape.items():
            stacks = [rearrange(ahead, "... rows cols -> (...) rows cols") for _, ahead in pairs]
            updates = orthogonalised(torch.cat(stacks)).split([len(stack) for stack in stacks])
            for (weight, _), update in zip(pairs, updates, strict=True):
                oriented = update.mT if weight.shape[-2] > weight.shape[-1] else update
                weight.add_(oriented.reshape(weight.shape), alpha=-group["lr"] * 0.2 * longest**0.5)


def orthogonalised(matrices: Float[Tensor, "n rows cols"]) -> Float[Tensor, "n rows cols"]:
    """Move each matrix's singular values near 1 and keep its singular vectors; zero stays zero.

    The new values lie between about 0.7 and 1.2; the smallest ones of an ill-conditioned matrix lie below.
    """
    a, b, c = _NEWTON_SCHULZ
    x = _wide(matrices)
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + _TINY)
    for _ in range(_N_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if matrices.shape[-2] > matrices.shape[-1] else x


def _wide(matrices: Float[Tensor, "*n rows cols"]) -> Float[Tensor, "*n rows2 cols2"]:
    """Transpose matrices with more rows than columns, so that the products of Newton-Schulz are small."""
    return matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices
