"""Two forms of a probe under one name are never added together, whoever reads their rows."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from tests.synthetic_run import DEMO, write_run
from workbench import emergence
from workbench.heads import WorkbenchError
from workbench.runs import open_run

FEW = replace(DEMO["full"], steps=(0, 8, 64, 256, 1024), detectors=("induction", "entropy"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return open_run(write_run(tmp_path_factory.mktemp("runs") / "full", FEW))


def twice(rows):
    """The rows, and again as if another form of the probe had been scored later."""
    return pd.concat([rows, rows.assign(probe_digest="f" * 32)], ignore_index=True)


READERS = {
    "compare": lambda scores, _: emergence.compare({"a": emergence.trace(scores)}),
    "counts": lambda scores, _: emergence.counts({"a": emergence.trace(scores)}),
    "aligned": lambda scores, _: emergence.aligned({"a": emergence.trace(scores)}),
    "chosen_at": lambda scores, _: emergence.chosen_at(scores, "step1024", k=2),
    "lock_in": lambda scores, _: emergence.lock_in(scores),
    "rank_agreement": lambda scores, _: emergence.rank_agreement(scores, scores),
    "paired": lambda scores, _: emergence.paired(scores, scores, by="rank"),
    "phase_changes": lambda _, metrics: emergence.phase_changes(metrics),
    "metric_by": lambda _, metrics: emergence.metric_by(metrics, "loss_nats", "position"),
    "icl_score": lambda _, metrics: emergence.icl_score(metrics),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_rows_on_two_forms_of_a_probe_are_refused_and_those_of_one_are_read(run, read):
    scores, pooled = run.scores(detector="induction"), run.metrics(probe="text")
    metrics = pd.concat([pooled.assign(position=p, value=pooled["value"] / p) for p in (50, 500)], ignore_index=True)
    read(scores, metrics)
    with pytest.raises(WorkbenchError, match=r"2 forms of the probe .* \(digests .*ffffffff.*\).*select=\"newest\""):
        read(twice(scores), twice(metrics))
