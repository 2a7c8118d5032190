"""The probes that one model is scored on where nobody chose any: such as a trained model can do, each with its control.

A series of checkpoints has others, `default`: they need no tokenizer, so that the curves of all series are of the same
probes. Random words say little of a trained model, which was not trained on them.
"""

from __future__ import annotations

import warnings

from workbench.heads import WorkbenchError
from workbench.probes.controls import control
from workbench.probes.copying import default, written_default
from workbench.probes.far_rows import widest_window
from workbench.probes.known_answers import Probe
from workbench.probes.registry import build
from workbench.probes.token_ids import HasVocabulary, context

# Long enough for far rows; a longer context is the user's to ask for. Six and five sequences give an interval, and the
# whole costs one and a half times what the probes of a series do.
_LENGTH, _LENGTH_OF_TEXT = 512, 384
# Its first occurrences are a control already.
_OWN_CONTROL = "repeated_ngrams"


class LeftOut(UserWarning):
    """A default probe cannot be made for a model, with the reason."""


def one_model(source: HasVocabulary) -> dict[str, Probe]:
    """The default probes of one model by their notation for `build`, each followed by its control.

    With a tokenizer: `repeats`, a needle of RULER's in natural text, and rare n-grams of natural text that stand again.
    In a model with full layers and layers that have a window, the text around the needle is twice as long as the widest
    window, so that half of the needles stand beyond it.
    Without one, or where no needle can be written with it: those of `default`.

    Warns:
        LeftOut: for a probe that the tokenizer or the context does not allow, with the reason.
        BareTokens: as `default`.

    Raises:
        WorkbenchError: if none can be made.
    """
    probes = _of_text(source) if source.tokenizer is not None else {}
    if not any(written.startswith("niah") for written in probes):
        bare = dict(zip(written_default(source), default(source), strict=True))
        probes = bare | {written: probe for written, probe in probes.items() if probe.name == _OWN_CONTROL}
    with_controls: dict[str, Probe] = {}
    for written, probe in probes.items():
        with_controls[written] = probe
        if probe.name != _OWN_CONTROL:
            with_controls[f'without_answers:of="{written}"'] = control(source, probe)
    return with_controls


def _of_text(source: HasVocabulary) -> dict[str, Probe]:
    longest = context(source) or _LENGTH
    length = min(_LENGTH, longest)
    # Within the windows of a hybrid, needles say nothing of its full layers.
    around_needle = min(max(_LENGTH, 2 * widest_window(getattr(source, "layers", ()))), longest)
    made: dict[str, Probe] = {}
    for written in (
        f"repeats:n={min(50, (length - 1) // 2)}",
        f"niah_single_2:length={around_needle},n_sequences=6",
        f"repeated_ngrams:length={min(_LENGTH_OF_TEXT, longest)},n_sequences=5",
    ):
        try:
            made[written] = build(source, written)
        except WorkbenchError as error:
            warnings.warn(f"the default probe {written} is left out: {error}", LeftOut, stacklevel=3)
    return made
