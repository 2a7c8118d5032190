"""Describe one model: its scores, what it gets right, and the heads that it has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import nn

from workbench.detectors.measuring import OnTokens, score_and_measure
from workbench.emergence import ModelSummary, summarise_model
from workbench.heads import brief
from workbench.hooks import HookedModel, open_model
from workbench.hooks.recording.forward_pass import Rows
from workbench.probes import Probe, control
from workbench.probes.token_inputs import read_probes


@dataclass(frozen=True, slots=True)
class Description:
    """`scores`: as of `score`. `metrics`: the model's own numbers on the probes. `summary`: what both support."""

    scores: pd.DataFrame
    metrics: pd.DataFrame
    summary: ModelSummary

    def __repr__(self) -> str:
        return brief(self)

    def __str__(self) -> str:
        return "\n".join(self.summary.sentences())


def describe(  # noqa: PLR0913  (keywords of `score`)
    m: HookedModel | nn.Module | Any,
    detectors: Iterable[str] | None = None,
    probes: Probe | str | Iterable[Probe | str] | None = None,
    *,
    rows: Rows = "all",
    seed: int = 0,
    prefill: int | None = None,
    on_progress: OnTokens | None = None,
) -> Description:
    """What one model gets right on probes that it can do, and its retrieval, induction, previous-token and sink heads.

    Arguments as in `score`. Default probes: `probes.one_model(m)`. Each probe, named ones too, has its control beside
    it. `on_progress` is called with the name of the next probe, the tokens done, and all tokens.

    Raises:
        WorkbenchError: as `score`.
    """
    model = m if isinstance(m, HookedModel) else open_model(m)
    chosen = None if probes is None else _with_controls(model, read_probes(model, probes))
    scores, metrics = score_and_measure(
        model, detectors, None, None, chosen, rows, seed, prefill=prefill, on_progress=on_progress
    )
    return Description(scores, metrics, summarise_model(scores, metrics))


def _with_controls(model: HookedModel, probes: Sequence[Probe]) -> list[Probe]:
    """The probes, and behind each whose answers can be looked up its control, if it is not among them."""
    names = {probe.name for probe in probes}
    both: list[Probe] = []
    for probe in probes:
        both.append(probe)
        has_cells = probe.target_cells is not None and len(probe.target_cells) > 0
        if has_cells and probe.metric is not None and not probe.is_control:
            made = control(model, probe)
            both += [] if made.name in names else [made]
    return both
