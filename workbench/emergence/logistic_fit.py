"""A logistic rise in the logarithm of training, fitted to every curve at once by least squares.

y = floor + amplitude / (1 + exp(-(x - middle) / width)), x = ln tokens (or ln steps):
1. On a grid of (middle, width) the best floor and amplitude are linear least squares: three matrix products.
2. From the best node, Levenberg-Marquardt on (middle, ln width), floor and amplitude projected out at every step
   (variable projection, Golub and Pereyra 1973, with Kaufman's simplification).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

Positions = Float[np.ndarray, " points"] | Float[np.ndarray, "heads points"]  # the same for all curves, or their own

FEWEST = 6  # scored checkpoints: four parameters fit fewer whatever they are
TEN_TO_NINETY = 2 * np.log(9)  # widths from 10 to 90 % of the rise
_CHUNK = 256
_PER_WIDTH = 2.0
_WIDTHS = 14


class Limits(NamedTuple):
    """The range of middles, and of widths: below the narrowest a rise is a step anywhere between two checkpoints."""

    first: float
    last: float
    narrowest: float
    widest: float


@dataclass(frozen=True, slots=True)
class Logistics:
    """The fit of each curve; NaN where fewer than `FEWEST` scores are. `middle` and `width` are in units of x.

    `sse` is the sum of squared residuals. `middle` never leaves the range of x.
    """

    floor: Float[np.ndarray, " heads"]
    amplitude: Float[np.ndarray, " heads"]
    middle: Float[np.ndarray, " heads"]
    width: Float[np.ndarray, " heads"]
    sse: Float[np.ndarray, " heads"]

    def rows(self, some: Int[np.ndarray, " some"]) -> Logistics:
        """The fits of some curves."""
        return Logistics(*(getattr(self, f.name)[some] for f in fields(self)))

    def values(self, x: Positions) -> Float[np.ndarray, "heads points"]:
        """The fitted curves at these x."""
        return self.floor[:, None] + self.amplitude[:, None] * rise(x, self.middle, self.width)


def fit_logistic(
    x: Float[np.ndarray, " ckpts"],
    score: Float[np.ndarray, "heads ckpts"],
    *,
    falling: bool = False,
) -> Logistics:
    """The least-squares logistic of every curve; NaN scores are gaps.

    Args:
        x: in order; see `workbench.emergence.score_curves.logarithm`.
        falling: whether a fall may be fitted too (amplitude below 0), or only rises.
    """
    parameters = np.full((5, len(score)), np.nan)
    distinct = _distinct(x)
    enough = (~np.isnan(score)).sum(1) >= FEWEST
    if len(distinct) >= 3 and enough.any():
        score = score[enough]
        weight = (~np.isnan(score)).astype(np.float64)
        y = np.nan_to_num(score)
        start = np.stack(_best_nodes(x, y, weight, _grid(distinct), falling=falling))
        chunks = [slice(i, i + _CHUNK) for i in range(0, len(y), _CHUNK)]
        refined = [refine(x, y[some], weight[some], start=start[:, some], bounds=limits(x)) for some in chunks]
        parameters[:, enough] = np.concatenate(refined, axis=1)
    return Logistics(*parameters)


def rise(x: Positions, middle: Any, width: Any) -> Any:
    """The logistic of each (middle, width) at each x."""
    z = (x - middle[:, None]) / width[:, None]
    return 1 / (1 + np.exp(-np.clip(z, -80, 80)))


def partials(x: Positions, fit: Logistics) -> Float[np.ndarray, "heads 4 points"]:
    """The change of each fitted curve with floor, amplitude, middle in widths, and ln width."""
    g = rise(x, fit.middle, fit.width)
    steepness = -fit.amplitude[:, None] * g * (1 - g)
    z = (x - fit.middle[:, None]) / fit.width[:, None]
    return np.stack([np.ones_like(g), g, steepness, steepness * np.clip(z, -80, 80)], axis=1)


def refine(
    x: Positions,
    y: Float[np.ndarray, "heads points"],
    weight: Float[np.ndarray, "heads points"],
    *,
    start: Float[np.ndarray, "2 heads"],
    bounds: Limits,
    most: int = 40,
) -> Float[np.ndarray, "5 heads"]:
    """Descend from a start; rows are floor, amplitude, middle, width, sum of squared residuals.

    Args:
        weight: of each point's squared residual; 0 for a gap.
        start: middle and width.
        bounds: of middle and width.
        most: steps.
    """
    x = np.broadcast_to(x, y.shape)
    root = np.sqrt(weight)
    middle, width = start.copy()
    best = _projected(x, y, root, middle=middle, width=width)
    damping = np.full(len(y), 1e-3)
    active = np.arange(len(y))
    low, high = np.array([bounds.first, np.log(bounds.narrowest)]), np.array([bounds.last, np.log(bounds.widest)])
    for _ in range(most):
        current = best.take(active)
        origin = np.stack([current.middle, np.log(current.width)], axis=1)
        step = np.clip(_step(current, damping[active]), [-2, -0.7], [2, 0.7])
        step[:, 0] *= current.width
        trial = np.clip(origin + step, low, high)
        moved = np.abs(trial - origin) / np.stack([current.width, np.ones(len(active))], axis=1)
        data = x[active], y[active], root[active]
        tried = _projected(*data, middle=trial[:, 0], width=np.exp(trial[:, 1]))
        better = tried.sse < current.sse
        best.put(active[better], tried.take(np.flatnonzero(better)))
        gain = current.sse - tried.sse
        settled = (moved.max(1) < 1e-6) | (better & (gain <= 1e-9 * current.sse)) | (damping[active] > 1e8)
        damping[active] *= np.where(better, 0.1, 8.0)
        active = active[~settled]
        if not len(active):
            break
    return np.stack([best.floor, best.amplitude, best.middle, best.width, best.sse])


def limits(x: Float[np.ndarray, " ckpts"]) -> Limits:
    """Middles from the first to the last x; widths from a tenth of the smallest gap to twice the range."""
    distinct = _distinct(x)
    span = float(distinct[-1] - distinct[0])
    return Limits(float(distinct[0]), float(distinct[-1]), float(np.diff(distinct).min() / 10), 2 * span)


@dataclass(slots=True)
class _Projection:
    """The best floor and amplitude at (middle, ln width), with the normal matrix and gradient of a step from there."""

    middle: np.ndarray
    width: np.ndarray
    floor: np.ndarray
    amplitude: np.ndarray
    sse: np.ndarray
    normal: np.ndarray  # 2 x 2 normal matrix of (middle / width, ln width)
    gradient: np.ndarray

    def take(self, rows: Int[np.ndarray, " some"]) -> _Projection:
        return _Projection(*(getattr(self, f.name)[rows] for f in fields(self)))

    def put(self, rows: Int[np.ndarray, " some"], other: _Projection) -> None:
        for f in fields(self):
            getattr(self, f.name)[rows] = getattr(other, f.name)


def _projected(x: Any, y: Any, root: Any, *, middle: Any, width: Any) -> _Projection:
    """Inner products of [1, g, dg/dm, dg/dlnw, y], with 1 and g projected out of the rest."""
    z = ((x - middle[:, None]) / width[:, None]).astype(y.dtype)
    np.clip(z, -80, 80, out=z)
    basis = np.empty((len(y), 5, y.shape[1]), dtype=y.dtype)
    g = np.reciprocal(1 + np.exp(-z), out=basis[:, 1])
    np.multiply(g, g - 1, out=basis[:, 2])  # dg / d(middle in widths) = -g (1 - g)
    np.multiply(basis[:, 2], z, out=basis[:, 3])
    basis[:, 0], basis[:, 4] = 1, y
    basis *= root[:, None]
    gram = np.matmul(basis, basis.transpose(0, 2, 1)).astype(np.float64)
    n = gram[:, 0, 0]
    means = gram[:, 0] / n[:, None]
    gram = gram - n[:, None, None] * means[:, :, None] * means[:, None, :]
    spread = np.maximum(gram[:, 1, 1], 1e-12)
    amplitude = gram[:, 1, 4] / spread
    rest = gram[:, 2:, 2:] - gram[:, 1, 2:, None] * gram[:, 1, None, 2:] / spread[:, None, None]
    return _Projection(
        middle=middle,
        width=width,
        floor=means[:, 4] - amplitude * means[:, 1],
        amplitude=amplitude,
        sse=np.maximum(rest[:, 2, 2], 0),
        normal=rest[:, :2, :2] * (amplitude**2)[:, None, None],
        gradient=rest[:, :2, 2] * amplitude[:, None],
    )


def _step(current: _Projection, damping: Float[np.ndarray, " some"]) -> Float[np.ndarray, "some 2"]:
    """The damped Gauss-Newton step in (middle / width, ln width)."""
    a, c = (current.normal[:, i, i] * (1 + damping) + 1e-300 for i in (0, 1))
    b = current.normal[:, 0, 1]
    p, q = current.gradient.T
    det = np.maximum(a * c - b * b, 1e-300)
    return np.stack([c * p - b * q, a * q - b * p], axis=1) / det[:, None]


def _distinct(x: Float[np.ndarray, " ckpts"]) -> Float[np.ndarray, " distinct"]:
    """The positions on the log scale, each once, without that of step 0."""
    return np.unique(x[x > x[-1] - 1e3]) if len(x) and np.isfinite(x).all() else np.empty(0)


def _grid(x: Float[np.ndarray, " distinct"]) -> tuple[Float[np.ndarray, " nodes"], Float[np.ndarray, " nodes"]]:
    """Middles at checkpoints and half way between, thinned to half a width, for widths from gap to range."""
    candidates = np.unique(np.concatenate([x, (x[1:] + x[:-1]) / 2]))
    middles: list[np.ndarray] = []
    widths: list[np.ndarray] = []
    for width in np.geomspace(np.diff(x).min() / 4, (x[-1] - x[0]) / 2, _WIDTHS):
        thinned = [candidates[0]]
        for candidate in candidates[1:]:
            if candidate - thinned[-1] >= width / _PER_WIDTH:
                thinned.append(candidate)
        middles.append(np.array(thinned))
        widths.append(np.full(len(thinned), width))
    return np.concatenate(middles), np.concatenate(widths)


def _best_nodes(x: Any, y: Any, weight: Any, grid: tuple[Any, Any], *, falling: bool) -> tuple[Any, Any]:
    """The middle and width of the grid that explain most of each curve."""
    middles, widths = grid
    g = rise(x, middles, widths).astype(np.float32)  # a node is a start: half the bytes are precise enough
    n = weight.sum(1)
    centred = np.where(weight > 0, y - ((weight * y).sum(1) / n)[:, None], 0).astype(np.float32)
    if weight.all():
        spread = (g.var(1) * g.shape[1])[:, None]
    else:
        counted = weight.astype(np.float32)
        spread = (g**2) @ counted.T - (g @ counted.T) ** 2 / n.astype(np.float32)
    along = g @ centred.T
    gain = np.where((spread > 1e-4) & (falling | (along > 0)), along**2 / np.maximum(spread, 1e-4), 0)
    node = gain.argmax(0)
    return middles[node], widths[node]
