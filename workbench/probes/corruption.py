"""The same probe with its answers taken out of the text: what is left of a score, or of a head, without them."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from workbench.heads import WorkbenchError
from workbench.probes.known_answers import Probe
from workbench.probes.token_ids import HasVocabulary, Vocabulary, vocabulary


def corrupted(source: HasVocabulary | Vocabulary | int, probe: Probe, *, seed: int = 0) -> Int[Tensor, "b t"]:
    """The probe's tokens with every token that a target cell points at replaced by another ordinary token at random.

    What is asked for can then no longer be read off the context: the source of a patch, not a probe of its own.

    Raises:
        WorkbenchError: if the probe has no target cells, or there are fewer than two ordinary tokens.
    """
    if probe.target_cells is None or len(probe.target_cells) == 0:
        raise WorkbenchError(f"probe {probe.name!r} has no target cells; expected a probe that knows where answers are")
    ids = vocabulary(source).ids
    if len(ids) < 2:
        raise WorkbenchError(f"{len(ids)} ordinary tokens leave none to put in an answer's place; expected 2 or more")
    generator = torch.Generator().manual_seed(seed)
    sequence, _, key = probe.target_cells.unbind(-1)
    place = torch.unique(torch.stack([sequence, key], -1), dim=0)
    tokens = probe.tokens.clone()
    at = (place[:, 0], place[:, 1])
    drawn = torch.randint(len(ids), (len(place),), generator=generator)
    is_same = ids[drawn] == tokens[at]
    tokens[at] = ids[torch.where(is_same, (drawn + 1) % len(ids), drawn)]
    return tokens
