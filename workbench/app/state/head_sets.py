"""The set of heads that a reader has pinned: carried from page to page in the address, as `heads=L5H1.L11H2`.

The heads are those of the run of the Head page (`of` in the address): heads of one name in another run are others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from workbench.app.state.view import View, heads_of
from workbench.heads import Head, WorkbenchError
from workbench.runs import Run

PARAMETER = "heads"
# So many fit into an address that every browser and server takes.
MOST = 200


def pinned(view: View, runs: Mapping[str, Run]) -> tuple[Head, ...]:
    """The pinned heads that the view's run has, in order."""
    if not view.get(PARAMETER) or view.run not in runs:
        return ()
    there = set(heads_of(runs[view.run]))
    return tuple(head for head in heads_in(view.get(PARAMETER)) if head in there)


def heads_in(text: str) -> tuple[Head, ...]:
    """The heads that a parameter of the address names, in order, each once; what names none is left out."""
    heads: set[Head] = set()
    for name in text.split("."):
        try:
            heads.add(Head.parse(name))
        except WorkbenchError:
            continue
    return tuple(sorted(heads)[:MOST])


def text_of(heads: Iterable[Head]) -> str:
    """The parameter of the address for some heads; at most `MOST` of them."""
    return ".".join(str(head) for head in sorted(set(heads))[:MOST])


def toggled(view: View, head: Head) -> str:
    """The parameter with this head pinned, or without it if it is pinned."""
    before = set(heads_in(view.get(PARAMETER)))
    return text_of(before - {head} if head in before else before | {head})


def of_same_heads(before: View, after: View, runs: Mapping[str, Run]) -> View:
    """The view after a change; without the pinned heads where it shows a run that has others.

    Branches of one training have the same heads, and keep the set.
    """
    if not after.get(PARAMETER) or before.run == after.run or after.get(PARAMETER) != before.get(PARAMETER):
        return after
    both = [runs[view.run] for view in (before, after) if view.run in runs]
    if len(both) == 2 and _share_weights(*both):
        return after
    return replace(after, more=tuple(pair for pair in after.more if pair[0] != PARAMETER))


def _share_weights(one: Run, other: Run) -> bool:
    detectors = set(one.detectors) & set(other.detectors)
    return any(
        one.weight_digests(d, trained=True) & other.weight_digests(d, trained=True) for d in sorted(detectors)[:1]
    )
