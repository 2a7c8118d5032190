"""The scores that the slider steps through, of the runs of a view, and the checkpoint that is seen where it stands."""

from __future__ import annotations

from typing import Any

from workbench.app.isolated_runs import of_those_that_can
from workbench.app.pages.overview import scored, unscored
from workbench.app.score_planes import planes
from workbench.app.state.content import Content
from workbench.app.state.slider_stops import Place, checkpoints_at, stop_of
from workbench.app.state.view import View

# The parameter of a view that is the checkpoint of its run where the slider stands; no address has it.
SEEN = "seen"


def slider_scores(view: View, content: Content) -> dict[str, Any]:
    """The scores of the chosen runs that have such, for the slider; `unscored` says why the others are not there.

    Raises:
        WorkbenchError: if no chosen run can be read.
    """
    drawn = scored(view, content.runs)
    digests = [run.fingerprint("scores", detector=view.detector, probe=view.probe) for run in drawn]
    key = ("planes", view.detector, view.probe, view.x, *(run.name for run in drawn), *digests)

    def make() -> dict[str, Any]:
        packed, unread = of_those_that_can(lambda runs: planes(runs, view.detector, view.probe, x=view.x), drawn)
        return {**packed, "unread": unread}

    made = content.made.once(key, make)
    return {**made, "probe": view.probe, "unscored": {**unscored(view, content.runs), **made["unread"]}}


def seen_checkpoint(view: View, place: Place, content: Content) -> View:
    """The view that also knows, as `SEEN`, which checkpoint of its run is seen at a place; the last is not named.

    Raises:
        WorkbenchError: if no chosen run can be read.
    """
    if not place or not scored(view, content.runs):
        return view
    scores = slider_scores(view, content)
    return view.having({SEEN: checkpoints_at(scores, stop_of(scores, place)).get(view.run, "")})
