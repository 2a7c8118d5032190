"""Controls of probes: the same tokens, the answers gone from the context. What is still right there is chance.

It is the model's own chance: what it guesses from the form of an answer, as the digits of a number, is in it.
"""

from __future__ import annotations

import torch

from workbench.heads import WITHOUT_ANSWERS, WorkbenchError
from workbench.probes.known_answers import Probe, corrupted, make_probe
from workbench.probes.registry import build, probe
from workbench.probes.token_ids import HasVocabulary, Vocabulary

# As many as an interval takes at least.
_SEQUENCES = 5


@probe("without_answers")
def without_answers(
    source: HasVocabulary | Vocabulary | int,
    *,
    of: str = "repeats",
    n_sequences: int = _SEQUENCES,
    seed: int = 0,
    name: str = "",
) -> Probe:
    """The control of another probe, in its notation: `without_answers:of="repeats:n=50"`; see `control`.

    Raises:
        WorkbenchError: as the other probe, or `control`.
    """
    return control(source, build(source, of), n_sequences=n_sequences, seed=seed, name=name)


def control(
    source: HasVocabulary | Vocabulary | int,
    probe: Probe,
    *,
    n_sequences: int = _SEQUENCES,
    seed: int = 0,
    name: str = "",
) -> Probe:
    """Sequences of a probe, evenly spaced among them, with every target cell's token replaced by a random one.

    Its answer rows are the probe's, and it has no target cells: no detector scores heads on it, and loss and share of
    right answers are measured. The default name is the probe's with `_without_answers` behind it.

    Raises:
        WorkbenchError: if the probe has no target cells.
    """
    if n_sequences < 1:
        raise WorkbenchError(f"n_sequences is {n_sequences}; expected at least 1")
    tokens = corrupted(source, probe, seed=seed)
    assert probe.answer_rows is not None, "target cells are of answer rows"
    n = min(n_sequences, len(tokens))
    chosen = torch.linspace(0, len(tokens) - 1, n, dtype=torch.float64).round().long()
    number = torch.full((len(tokens),), -1)
    number[chosen] = torch.arange(n)
    rows = probe.answer_rows[number[probe.answer_rows[:, 0]] >= 0].clone()
    rows[:, 0] = number[rows[:, 0]]
    return make_probe(
        name or f"{probe.name}{WITHOUT_ANSWERS}",
        tokens[chosen],
        attention_mask=None if probe.attention_mask is None else probe.attention_mask[chosen],
        answer_rows=rows,
        metric=probe.metric,
        is_control=True,
    )
