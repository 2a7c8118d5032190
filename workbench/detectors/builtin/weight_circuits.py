"""Scores of the weights: copying of the output-value circuit, composition of a head with earlier heads.

No text is run, and the attention pattern has no part in these scores.

Reference:
    Elhage et al. 2021, A Mathematical Framework for Transformer Circuits, "Summarizing OV/QK Matrices" and "Virtual
    Attention Heads and Composition". Here norms are folded in first, see `workbench.hooks.head_weights`.
"""

from __future__ import annotations

from functools import cache
from typing import Literal, get_args

import pandas as pd
import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor, nn

from workbench.detectors.registry import PerHead, weight_detector
from workbench.heads import WorkbenchError
from workbench.hooks import HookedModel, open_model
from workbench.hooks.head_weights import HeadWeights, Weights, read_weights

Into = Literal["K", "Q", "V"]

_VOCABULARY_BLOCK = 8192
_DRAWS = 64
_SEED = 0


@weight_detector("copying", units="eigenvalue ratio")
def copying(weights: Weights) -> PerHead:
    """Copying by the output-value circuit, Σλ / Σ|λ| over the eigenvalues of W_E W_V W_O W_U; 1 copies, −1 removes.

    The non-zero ones are those of the d_head × d_head matrix W_O (W_U W_E) W_V. The expected value for random weights
    is 0 whatever their shapes, for W_V is as likely as −W_V: there is nothing to subtract. n counts the eigenvalues.
    """
    through = _unembedded_embedding(weights.embed, weights.unembed)
    scores = empty_scores(weights)
    for layer_slot, heads in enumerate(weights.heads):
        if heads is None:
            continue
        small = einsum(heads.o, through, heads.v, "h d m, m n, h n e -> h d e").cpu().double()
        size = torch.linalg.eigvals(small).abs().sum(-1)
        ratio = torch.diagonal(small, dim1=-2, dim2=-1).sum(-1) / size
        scores.score[layer_slot, : len(ratio)] = torch.where(size > 0, ratio, torch.nan).float()
        scores.n[layer_slot, : len(ratio)] = torch.where(size > 0, small.shape[-1], 0)
    return scores


@weight_detector("k_composition", units="norm ratio above random")
def k_composition(weights: Weights) -> PerHead:
    """Composition of the strongest earlier head into this head's keys, ‖W_QK W_OV‖ / (‖W_QK‖ ‖W_OV‖) above random.

    The subtracted baseline is the mean ratio of 64 draws of Gaussian matrices of the same shapes, near 1/√d_model. n
    counts the earlier heads; heads of the first layer and heads of zeros have no score.
    """
    scores = empty_scores(weights)
    for later, ratios in _ratios(weights, "K"):
        above = torch.cat(
            [r - _baseline(weights, earlier, later, into="K", seed=_SEED) for earlier, r in ratios.items()], dim=1
        )
        n = above.isfinite().sum(1)
        best = above.nan_to_num(nan=-torch.inf).max(1).values
        scores.score[later, : len(n)] = torch.where(n > 0, best, torch.nan)
        scores.n[later, : len(n)] = n
    return scores


def composition(m: HookedModel | nn.Module, into: str = "K", *, seed: int = _SEED) -> pd.DataFrame:
    """Composition of every pair of heads of two layers: how much the later one reads of what the earlier one writes.

    Args:
        m: an opened model, or one in memory that `open_model` takes, such as a TransformerBridge.
        into: the later head's keys (previous-token heads into induction heads), queries or values.
        seed: of the random matrices.

    Returns:
        layer, head; from_layer, from_head, the earlier one; ratio = ‖product‖ / (‖factor‖ ‖factor‖) in Frobenius
        norms, NaN where a factor is 0; baseline, its mean for random matrices of these shapes; score = ratio −
        baseline. Strongest first.

    Raises:
        WorkbenchError: if TransformerLens cannot open the model or gives no weights per head.
    """
    known: tuple[Into, ...] = get_args(Into)
    if into not in known:
        raise WorkbenchError(f"into is {into!r}; expected one of {', '.join(known)}")
    weights = read_weights(m if isinstance(m, HookedModel) else open_model(m))
    return composition_table(weights, known[known.index(into)], seed=seed)


def composition_table(weights: Weights, into: Into = "K", *, seed: int = _SEED) -> pd.DataFrame:
    """`composition` of given weights."""
    columns = ("layer", "head", "from_layer", "from_head", "ratio", "baseline")
    rows = [
        (weights.layers[later].index, head, weights.layers[earlier].index, source, float(ratio[head, source]), baseline)
        for later, by_layer in _ratios(weights, into)
        for earlier, ratio in by_layer.items()
        for baseline in [_baseline(weights, earlier, later, into=into, seed=seed)]
        for head in range(ratio.shape[0])
        for source in range(ratio.shape[1])
    ]
    table = pd.DataFrame(rows, columns=pd.Index(columns))
    table["score"] = table["ratio"] - table["baseline"]
    return table.sort_values("score", ascending=False, kind="stable", ignore_index=True)


def empty_scores(weights: Weights) -> PerHead:
    """NaN and 0 for every head."""
    shape = (len(weights.layers), max(info.n_heads for info in weights.layers))
    return PerHead(torch.full(shape, torch.nan), torch.zeros(shape, dtype=torch.long))


def _unembedded_embedding(
    embed: Float[Tensor, "vocab d_model"], unembed: Float[Tensor, "d_model vocab"]
) -> Float[Tensor, "d_model d_model"]:
    """W_U W_E, the sum over the vocabulary taken in float64 block by block."""
    total = torch.zeros(embed.shape[1], embed.shape[1], dtype=torch.float64, device=embed.device)
    for rows, columns in zip(embed.split(_VOCABULARY_BLOCK), unembed.split(_VOCABULARY_BLOCK, dim=1), strict=True):
        total += einsum(columns, rows, "m vocab, vocab n -> m n")
    return total.float()


def _ratios(weights: Weights, into: Into) -> list[tuple[int, dict[int, Float[Tensor, "later earlier"]]]]:
    """By layer slot of each softmax layer that has an earlier one: the ratio of each pair of heads, by earlier slot."""
    softmax_slots = [slot for slot, heads in enumerate(weights.heads) if heads is not None]
    writing: dict[int, Tensor] = {}
    ratios: list[tuple[int, dict[int, Tensor]]] = []
    for later in softmax_slots:
        heads = weights.heads[later]
        assert heads is not None
        reading = _unit(_reading(heads, into))
        by_layer = {earlier: _product_norms(reading, written) for earlier, written in writing.items()}
        if by_layer:
            ratios.append((later, by_layer))
        writing[later] = _unit(_collapsed(heads.v) @ heads.o)
    return ratios


def _reading(heads: HeadWeights, into: Into) -> Float[Tensor, "h d d_model"]:
    """A matrix as wide as the residual; its products have the norms of products with W_QK or W_OV."""
    match into:
        case "K":
            return _collapsed(heads.q) @ heads.k.mT
        case "Q":
            return _collapsed(heads.k) @ heads.q.mT
        case "V":
            return _collapsed(heads.o.mT) @ heads.v.mT


def _collapsed(outer: Float[Tensor, "h d_model d"]) -> Float[Tensor, "h r d"]:
    """R of outer = QR: multiplication by Q changes no norm, so the residual-sized side can be dropped."""
    return torch.linalg.qr(outer, mode="r").R


def _unit(matrices: Float[Tensor, "h d d_model"]) -> Float[Tensor, "h d d_model"]:
    return matrices / torch.linalg.matrix_norm(matrices, keepdim=True)


def _product_norms(
    reading: Float[Tensor, "later d d_model"], written: Float[Tensor, "earlier e d_model"]
) -> Float[Tensor, "later earlier"]:
    by_head = [torch.linalg.matrix_norm(einsum(head, written, "d m, s e m -> s d e")) for head in reading]
    return torch.stack(by_head).cpu()


def _baseline(weights: Weights, earlier: int, later: int, *, into: Into, seed: int) -> float:
    reader, writer = weights.heads[later], weights.heads[earlier]
    assert reader is not None
    assert writer is not None
    inner = reader.v.shape[-1] if into == "V" else reader.k.shape[-1]
    return random_ratio(weights.embed.shape[1], inner, writer.v.shape[-1], seed=seed)


@cache
def random_ratio(d_model: int, d_reading: int, d_writing: int, *, seed: int) -> float:
    """Mean of ‖A Bᵀ C D‖ / (‖A Bᵀ‖ ‖C D‖) over 64 draws of Gaussian A, B, C, D of a head's shapes; near 1/√d_model."""
    generator = torch.Generator().manual_seed(seed)
    total = 0.0
    for _ in range(_DRAWS):
        a, b = torch.randn(2, 1, d_model, d_reading, generator=generator)
        c, d = torch.randn(2, 1, d_model, d_writing, generator=generator)
        total += float(_product_norms(_unit(_collapsed(a) @ b.mT), _unit(_collapsed(c) @ d.mT)))
    return total / _DRAWS
