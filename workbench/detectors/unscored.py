"""Why a detector has no score for any head on a probe: one sentence, from what the detector reads and the probe is."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from workbench.detectors.registry import Detector
from workbench.heads import NO_LEARNED_SINK, NO_ROWS, WorkbenchError
from workbench.hooks import FarSum, HookedModel
from workbench.hooks.recording.cells import sequences
from workbench.hooks.recording.selected_keys import SELECTION_NEEDS
from workbench.kernels import Far
from workbench.probes import Probe


class UnscoredWarning(UserWarning):
    """A detector has no score for any head of any layer on a probe: its rows hold NaN, and n is 0."""


def why_unscored(d: Detector, probe: Probe, m: HookedModel, far: Far, *, counted: str = "") -> str:
    """The reason in a few words, without semicolons; `counted`: how many replies of how many counted, as `0/10`."""
    longest = int(sequences(probe.tokens, probe.attention_mask).lengths().max())
    windows = [need.window for need in d.needs if isinstance(need, FarSum)]
    windows += [far.window] if "far_mass" in d.needs else []
    own = [info.window for info in m.layers if info.kind == "sliding" and info.window is not None]
    if d.decoding is not None and counted:
        return _why_no_reply(d, counted)
    if d.needs_answers and (probe.target_cells is None or not len(probe.target_cells)):
        return "the probe does not say where its answers can be read in the text"
    if windows and min(windows) >= longest:
        return f"no row has {min(windows)} tokens before it, its longest text has {longest} tokens"
    if "learned_sink_mass" in d.needs and not any(info.has_sinks for info in m.layers):
        return NO_LEARNED_SINK
    if "window_saturation" in d.needs and not own:
        return "no layer of the model has a sliding window"
    if "window_saturation" in d.needs and min(own) >= longest:
        return f"the smallest window has {min(own)} tokens, its longest text has {longest} tokens"
    return _why_nothing_selected(d, m, longest) or "no row of the probe is one that it is defined on"


def flag_of(reason: str) -> str:
    """The flag of rows without a score."""
    return f"{NO_ROWS}={reason}"


def in_flags(error: Exception) -> str:
    """The message of an error as a reason: no semicolon, which flags are joined by, and one line."""
    message = str(error) if isinstance(error, WorkbenchError) else f"{type(error).__name__}: {error}"
    return " ".join(message.replace(";", ",").split())


def warn_of_unscored(reasons: Mapping[tuple[str, str], str], *, stacklevel: int) -> None:
    """Say which detectors have no score on which probes; `reasons` by detector and probe.

    Warns:
        UnscoredWarning: a sentence for each.
    """
    if reasons:
        sentences = (f"{name} has no score on {probe!r} (all NaN): {why}" for (name, probe), why in reasons.items())
        warnings.warn("; ".join(sentences) + _next_step(reasons), UnscoredWarning, stacklevel=stacklevel)


def _next_step(reasons: Mapping[tuple[str, str], str]) -> str:
    """What helps, where a smaller window of far mass would."""
    return "; pass a smaller far=wb.Far(window)" if any(name == "far_mass" for name, _ in reasons) else ""


def _why_nothing_selected(d: Detector, m: HookedModel, longest: int) -> str | None:
    """The reason of a detector of selected keys; None for others."""
    if not any(name in d.needs for name in SELECTION_NEEDS):
        return None
    selected = [info.n_selected for info in m.layers if info.n_selected is not None]
    if not selected:
        return "no layer of the model selects keys"
    if min(selected) >= longest:
        return f"the layers select {min(selected)} keys of a row, its longest text has {longest} tokens"
    is_of_two = "selection_overlap" in d.needs
    return "only one layer selects keys" if is_of_two and len(selected) == 1 else None


def _why_no_reply(d: Detector, counted: str) -> str:
    assert d.decoding is not None
    n_counted, n_replies = counted.split("/")
    gates = {
        "recall": "a reply must hold more than half of the needle's words",
        "f1": "the words of a reply must be the needle's with an F1 above one half, so that a model which answers and "
        "talks on does not count (retrieval_wu counts it)",
        "none": "every reply counts",
    }
    return f"{n_counted} of {n_replies} decoded replies counted, {gates[d.decoding.gate]}"
