"""`workbench app MODEL`: what is a model and no run, and the head that its page shows first."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.checkpoints.formats import checkpoint_format
from workbench.checkpoints.hub_references import cached_checkpoint, locate_checkpoint
from workbench.checkpoints.other_contents import why_no_weights
from workbench.cli.arguments import open_named_model
from workbench.console import fixed, warn
from workbench.heads import Head, WorkbenchError
from workbench.hub.local_cache import is_repository
from workbench.hub.named_models import did_you_mean
from workbench.hub.published_models import PUBLISHED
from workbench.hub.references import HubReference, parse_reference

if TYPE_CHECKING:
    from workbench.app.state.opened_model import OpenedModel

_NOTES = (".md", ".txt", ".rst")
# Probes of one sequence after the other, in the order in which a detector takes the first that it fits.
_PROBES = ("repeats:n=28,n_sequences=6", "copy_needle:distance=16+32,n_sequences=6", "gold_document")


def without_notes(named: list[str]) -> list[str]:
    """What was named, without text files such as the README.md that `FOLDER/*` names beside runs; it is said."""
    runs = [text for text in named if (Path(text) / "run.json").exists()]
    notes = [text for text in named if Path(text).suffix.lower() in _NOTES and Path(text).is_file()] if runs else []
    if notes:
        warn(f"left out: {', '.join(notes)}, no run")
    return [text for text in named if text not in notes]


def is_model(text: str) -> bool:
    """Whether an argument names a model; False for a run and for a folder of runs.

    Raises:
        WorkbenchError: if it is neither: with what it is, and the next step.
    """
    path = Path(text)
    if path.exists():
        if (path / "run.json").exists() or next(path.glob("*/run.json"), None) is not None:
            return False
        if is_repository(path) or checkpoint_format(path) in ("safetensors", "gguf"):
            return True
        raise WorkbenchError(
            f"neither a run nor a model: {why_no_weights(path)}. A run is made with `workbench scan {text} --out RUN`"
        )
    if text in PUBLISHED:
        return True
    reference = parse_reference(text, exists=False)
    if reference is not None and not reference.is_glob and _is_meant(text, reference):
        return True
    near = did_you_mean(text)
    raise WorkbenchError(
        f"{text} is neither a run nor a model: there is no such folder; {near}{' Or ' if near else ''}make a run with "
        f"`workbench scan DIR --out {text}`, or name a model: its folder, {', '.join(PUBLISHED)}, or its id (org/name)"
    )


def _is_meant(text: str, reference: HubReference) -> bool:
    """Whether a text that could be an id is one: not a run's folder with a mistake in its name."""
    if cached_checkpoint(reference) is not None:
        return True
    return "/" in text and (not Path(text).parent.exists() or "@" in text)


def strongest_head(named: str, detector: str, probe: str | None, tokenizer: str | None) -> OpenedModel:
    """A model with the strongest head of a detector, scored on a probe of a few sequences.

    Raises:
        WorkbenchError: if it must not be opened, there is no such detector or probe, or they do not go together.
    """
    from workbench.app.state.opened_model import OpenedModel
    from workbench.detectors import Detector, find_detectors, score
    from workbench.probes import build

    (of_detector,) = find_detectors([detector])
    m = open_named_model(named, None, tokenizer)
    if probe is None:
        fits = (w for w in _PROBES if not isinstance(of_detector, Detector) or of_detector.fits(build(m, w)))
        probe = next(fits, _PROBES[0])
    table = score(m, [detector], probes=build(m, probe), progress=False)
    scored = table.loc[table["score"].notna()]
    if scored.empty:
        raise WorkbenchError(f"{detector} has no score of any head of {m.name} on {probe}; pass another --detector")
    best: dict[str, Any] = scored.nlargest(1, "score").to_dict("records")[0]
    head = Head(int(best["layer"]), int(best["head"]))
    interval = "" if best["ci_lo"] != best["ci_lo"] else f" ({fixed(best['ci_lo'])} to {fixed(best['ci_hi'])})"
    about = f"{m.name}: {head} has the highest {detector} of {len(scored)} heads, {fixed(best['score'])}{interval}"
    opened = OpenedModel(m.name, _folder(named), tokenizer, probe, head, best["kind"], f"{about} on {best['probe']}")
    del m, table  # the page runs the model in a process of its own, beside which a second copy need not lie
    gc.collect()
    return opened


def _folder(named: str) -> Path:
    """The folder or file of a model that has just been opened."""
    return Path(named) if Path(named).is_file() else locate_checkpoint(named).folder
