"""The answers of a probe that stand far away, and several probes as one.

A window leaves an answer that stands within it as it was. What is asked of the far context is asked of the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from workbench.heads import LayerInfo, WorkbenchError
from workbench.probes.known_answers import Probe, make_probe
from workbench.probes.registry import build, probe
from workbench.probes.token_ids import HasVocabulary, Vocabulary


@probe("far_answers")
def far_answers(
    source: HasVocabulary | Vocabulary | int,
    *,
    of: str = "niah_multikey_1",
    window: int = 256,
    sink: int = 0,
    n_sequences: int = 0,
    name: str = "",
) -> Probe:
    """The far answers of another probe, in its notation: `far_answers:of="niah_multikey_1:length=528",window=128`.

    Raises:
        WorkbenchError: as the other probe, or `only_far`.
    """
    return only_far(build(source, of), window, sink=sink, n_sequences=n_sequences, name=name)


def only_far(probe: Probe, window: int, *, sink: int = 0, n_sequences: int = 0, name: str = "") -> Probe:
    """The answers that a head with this window and these sinks sees nowhere; sequences without any are left out.

    Args:
        n_sequences: keep so many, evenly spaced among them; 0 keeps all.
        name: default: the probe's.

    Raises:
        WorkbenchError: if the probe does not say where answers stand, or too few sequences have a far one.
    """
    if probe.answer_rows is None or probe.target_cells is None or len(probe.target_cells) == 0:
        raise WorkbenchError(f"probe {probe.name!r} has no target cells; expected one that knows where answers stand")
    is_far = _is_far(probe, window, sink)
    chosen = torch.unique(probe.answer_rows[is_far, 0])
    if len(chosen) < max(1, n_sequences):
        raise WorkbenchError(
            f"probe {probe.name!r}: {len(chosen)} of {len(probe.tokens)} sequences have an answer outside of a window "
            f"of {window} tokens; expected {max(1, n_sequences)}: pass a larger length or n_sequences, or a smaller "
            "window"
        )
    if n_sequences:
        chosen = chosen[torch.linspace(0, len(chosen) - 1, n_sequences, dtype=torch.float64).round().long()]
    number = torch.full((len(probe.tokens),), -1)
    number[chosen] = torch.arange(len(chosen))
    is_kept = is_far & (number[probe.answer_rows[:, 0]] >= 0)
    rows = probe.answer_rows[is_kept]

    def of_rows(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[is_kept]

    cells = probe.target_cells[_is_among(probe.target_cells[:, :2], rows, probe.tokens.shape[1])]
    return make_probe(
        name or probe.name,
        probe.tokens[chosen],
        attention_mask=None if probe.attention_mask is None else probe.attention_mask[chosen],
        answer_rows=_renumbered(rows, number),
        target_cells=_renumbered(cells, number),
        classes=of_rows(probe.classes),
        class_name=probe.class_name,
        metric=probe.metric,
        needles=of_rows(probe.needles),
    )


def joined(probes: Sequence[Probe], *, name: str = "") -> Probe:
    """The sequences of several probes as those of one, in their order; each sequence weighs the same in its loss.

    Answers and target cells stay; classes are left out, since they mean something else in each probe. The default name
    is those of the probes, joined by `+`.

    Raises:
        WorkbenchError: if there is none, one has no answers, their lengths differ, or one has packed documents.
    """
    if not probes:
        raise WorkbenchError("no probe was given; expected one or more")
    lengths = sorted({p.tokens.shape[1] for p in probes})
    if len(lengths) > 1:
        raise WorkbenchError(
            f"the probes have sequences of {' and '.join(map(str, lengths))} tokens; expected one length"
        )
    for p in probes:
        if p.answer_rows is None or len(p.answer_rows) == 0:
            raise WorkbenchError(f"probe {p.name!r} has no answers; expected one with answer_rows")
        if p.attention_mask is not None and int(p.attention_mask.max()) > 1:
            raise WorkbenchError(f"probe {p.name!r} has packed documents; expected one document to a sequence")
    starts = [sum(len(p.tokens) for p in probes[:i]) for i in range(len(probes))]
    is_padded = any(p.attention_mask is not None for p in probes)
    masks = [_valid(p) for p in probes]
    cells = [_moved(p.target_cells, start) for p, start in zip(probes, starts, strict=True)]
    metrics = {p.metric for p in probes}
    return make_probe(
        name or "+".join(p.name for p in probes),
        torch.cat([p.tokens for p in probes]),
        attention_mask=torch.cat(masks) if is_padded else None,
        answer_rows=torch.cat([_moved(p.answer_rows, start) for p, start in zip(probes, starts, strict=True)]),
        target_cells=torch.cat(cells) if any(p.target_cells is not None for p in probes) else None,
        metric=metrics.pop() if len(metrics) == 1 else None,
    )


def widest_window(layers: Sequence[LayerInfo]) -> int:
    """The widest window of a hybrid model's own layers, in tokens; 0 where no layer has one, or none sees everything.

    What stands within it, layers with a window find as well as the full ones.
    """
    softmax = [info for info in layers if info.mixer == "softmax"]
    if not any(info.window is None for info in softmax):
        return 0
    return max((info.window for info in softmax if info.window is not None), default=0)


def _is_far(probe: Probe, window: int, sink: int) -> Bool[Tensor, " n_rows"]:
    """Whether a row's answer stands in some cell, and in none that a windowed head sees."""
    assert probe.answer_rows is not None
    assert probe.target_cells is not None
    width = probe.tokens.shape[1]
    codes = probe.answer_rows[:, 0] * width + probe.answer_rows[:, 1]
    sequence, row, key = probe.target_cells.unbind(-1)
    is_seen = (row - key < window) | (key < sink)
    has_cell, has_near = (
        torch.isin(codes, (sequence * width + row)[chosen]) for chosen in (torch.ones_like(is_seen), is_seen)
    )
    return has_cell & ~has_near


def _is_among(pairs: Int[Tensor, "n 2"], rows: Int[Tensor, "m 2"], width: int) -> Bool[Tensor, " n"]:
    return torch.isin(pairs[:, 0] * width + pairs[:, 1], rows[:, 0] * width + rows[:, 1])


def _renumbered(x: Int[Tensor, "n w"], number: Int[Tensor, " b"]) -> Int[Tensor, "n w"]:
    return torch.cat([number[x[:, :1]], x[:, 1:]], 1)


def _moved(x: Int[Tensor, "n w"] | None, start: int) -> Int[Tensor, "n w"]:
    """Entries that begin with a sequence, with `start` added to it; none for None."""
    if x is None:
        return torch.zeros(0, 3, dtype=torch.long)
    return torch.cat([x[:, :1] + start, x[:, 1:]], 1)


def _valid(probe: Probe) -> Bool[Tensor, "b t"]:
    if probe.attention_mask is None:
        return torch.ones_like(probe.tokens, dtype=torch.bool)
    return probe.attention_mask.bool()
