"""Hand-built heads that look up what followed the last token, one of them only so far back; texts to ask them on."""

from __future__ import annotations

from contextlib import contextmanager

import torch

from tests.planted import (
    BOS,
    GAIN,
    LENGTH,
    POSITION,
    TOKEN,
    VOCABULARY,
    PlantedModel,
    induction_head,
    previous_token_head,
)
from workbench import KVHead, open_model
from workbench.probes import make_probe, probe
from workbench.probes.registry import PROBES

# Tokens back that the near head sees.
REACH = 30
NEAR, FAR = KVHead(1, 0), KVHead(1, 1)
_FIRST_FILLER = 20


def look_up(reach=None):
    """Copies what followed the current token earlier; `reach`: from no further back."""
    head = induction_head()
    head.ov[TOKEN, TOKEN] = 12 * torch.eye(VOCABULARY)
    if reach is not None:
        head.k[POSITION, POSITION] = torch.eye(LENGTH)
        back = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
        head.q[POSITION, POSITION] = -2.0 * GAIN * (back > reach).float()
    return head


def model_of_two_reaches():
    """Either head alone finds what is near; only the second finds what is far."""
    return open_model(PlantedModel([[previous_token_head(), previous_token_head()], [look_up(REACH), look_up()]]))


def far_pairs(source, *, length=64, n_sequences=4, seed=0, name="far_pairs"):
    """Two pairs of tokens that stand nowhere else, and again half of the text later; the second of each is asked."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(_FIRST_FILLER, VOCABULARY, (n_sequences, length), generator=generator)
    tokens[:, 0] = BOS
    start, again = length // 2 - 6, length - 6
    for text in tokens:
        pairs = torch.randperm(_FIRST_FILLER - 1, generator=generator)[:4] + 1
        text[start : start + 4] = text[again : again + 4] = pairs
    rows = [(i, row) for i in range(n_sequences) for row in (again, again + 2)]
    cells = [(i, row, row + 1 - length // 2) for i, row in rows]
    return make_probe(name, tokens, answer_rows=torch.tensor(rows), target_cells=torch.tensor(cells), metric="recall")


@contextmanager
def registered_pairs():
    """Inside the block, `far_pairs` is a probe by its name."""
    probe("far_pairs")(far_pairs)
    try:
        yield
    finally:
        PROBES.remove("far_pairs")
