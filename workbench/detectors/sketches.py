"""A count-sketch of the attention on keys of a row's own class, for many classes, such as the tokens of a vocabulary.

1. Each class c gets R random signs φ_c ∈ {±1}^R / √R, so that φ_c · φ_c = 1 and E φ_c · φ_d = 0.
2. Attention averages the signs of its keys. Their product with the signs of the row's class is the mass on keys of
   this class plus noise of mean 0 and standard deviation at most √(Σ A² / R) a row.

Memory is R numbers for every token of a batch. A list of cells (`CellSum`) is exact, but its size is the number of
equal pairs, which on natural text grows with the square of the length.

Reference:
    Alon, Matias and Szegedy 1996, The Space Complexity of Approximating the Frequency Moments: random signs.
    Charikar, Chen and Farach-Colton 2002, Finding Frequent Items in Data Streams: the count-sketch.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.heads import WorkbenchError
from workbench.hooks import Sequences
from workbench.hooks.recording.needs import FeatureSum


def token_sketch(name: str, keys: Literal["same", "after"] = "same", *, width: int = 1024, seed: int = 0) -> FeatureSum:
    """An unbiased estimate of the attention on keys that hold the row's token, or on the keys after those.

    A need to record: per sequence, the estimate summed over all rows. `same` counts the row itself; `after` is what
    `induction` sums, over all rows.

    Args:
        width: R, the number of signs; four times as many halve the error.
        seed: of the signs; estimates of different seeds are independent.

    Raises:
        WorkbenchError: if width < 1.
    """
    if width < 1:
        raise WorkbenchError(f"width is {width}; expected at least 1")

    def readout(batch: Sequences) -> Float[Tensor, "b t f"]:
        return _signs(batch, width, seed)

    def after(batch: Sequences) -> Float[Tensor, "b t f"]:
        signs = _signs(batch, width, seed).roll(1, dims=1)
        signs[batch.positions() == 0] = 0  # nothing stands before the first token of a document
        return signs

    return FeatureSum(name, readout if keys == "same" else after, readout)


def _signs(batch: Sequences, width: int, seed: int) -> Float[Tensor, "b t f"]:
    """Each token's signs, drawn anew for each batch."""
    tokens, index = torch.unique(batch.tokens.cpu(), return_inverse=True)
    drawn = torch.randint(2, (len(tokens), width), generator=torch.Generator().manual_seed(seed))
    return ((2 * drawn - 1) / width**0.5)[index].to(batch.tokens.device)
