"""Choosing early: what is kept is what a checkpoint's scores say, and what it is worth is what the final model does."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from workbench.checkpoints import find_checkpoints
from workbench.cli.main import app
from workbench.demo import demo_probes
from workbench.experiments import early_choices
from workbench.figures import early_choices as drawn
from workbench.heads import KVHead, WorkbenchError
from workbench.hooks import open_model
from workbench.probes import copy_needle
from workbench.runs import open_run

WINDOW = 8


@pytest.fixture(scope="module")
def needles():
    return next(p for p in demo_probes() if p.name == "copy_needle")


@pytest.fixture(scope="module")
def final(demo):
    return open_model(find_checkpoints(demo / "checkpoints" / "full").checkpoints[-1].path)


@pytest.fixture(scope="module")
def found(demo, final, needles):
    run = open_run(demo / "runs" / "full")
    return early_choices(final, run, [needles], on="repeats", window=WINDOW)


def test_the_last_choice_keeps_the_best_heads_and_loses_nothing_against_itself(found, demo):
    last = found.table.iloc[-1]
    scores = open_run(demo / "runs" / "full").scores(detector="induction", probe="repeats", step="last")
    best = scores.nlargest(2, "score")
    assert set(last.heads.split()) == {str(KVHead(r.layer, r.kv_head)) for r in best.itertuples()}
    assert (last.n_kept, last.in_common, last.lost, last.lost_lo, last.lost_hi) == (2, 2, 0, 0, 0)


def test_a_choice_is_worth_what_the_final_model_does_with_the_other_heads_windowed(found, final, needles):
    row = found.table.iloc[0]
    kept = set(row.heads.split())
    windowed = [KVHead(i.index, h) for i in final.layers for h in range(4) if str(KVHead(i.index, h)) not in kept]
    with final.restrict(windowed, WINDOW):
        seen = final.answers(needles)
    sequence = needles.answer_rows[:, 0]
    nats = [seen.loss_nats[sequence == s].double().mean() for s in range(len(needles.tokens))]
    assert row.nats == pytest.approx(float(torch.stack(nats).mean()), abs=1e-6)
    assert row.accuracy == pytest.approx(float(seen.is_right.double().mean()), abs=1e-9), "four answers each"
    assert row.n_seq == len(needles.tokens)


def test_heads_chosen_from_an_untrained_model_are_not_safe_and_those_of_a_later_one_are(found):
    table = found.table
    assert table.lost_lo.iloc[0] > 0.5, "the untrained model's choice costs half a nat at least"
    (safe,) = found.safe_since(0.1).to_dict("records")
    at = table.index[table.ckpt == safe["ckpt"]][0]
    assert (table.lost_hi.iloc[at:] <= 0.1).all()
    assert table.lost_hi.iloc[at - 1] > 0.1
    assert safe["share"] == pytest.approx(table.tokens.iloc[at] / table.tokens.iloc[-1])
    assert f"from {safe['ckpt']} on ({safe['share']:.0%} of training)" in found.sentences(0.1)[0]


def test_random_choices_lie_between_all_and_none(found):
    nats = found.references.set_index("choice").nats
    assert nats["all"] < nats["random"] <= nats["none"]
    assert nats["all"] < found.table.nats.iloc[-1] < nats["random"]


def test_with_too_few_sequences_nothing_is_called_safe(final, demo):
    few = copy_needle(final, 24, length=64, n_sequences=3)
    found = early_choices(final, open_run(demo / "runs" / "full"), [few], on="repeats", window=WINDOW)
    assert np.isnan(found.table.lost_hi).all()
    assert found.safe_since().ckpt.isna().all()


def test_the_figure_has_a_line_per_probe_with_its_interval(found):
    figure = drawn(found)
    (line,) = figure.data
    assert np.allclose(line.y, found.table.accuracy)
    assert np.allclose(np.array(line.y) + line.error_y.array, found.table.accuracy_hi)
    assert "chosen by induction" in figure.layout.xaxis.title.text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"on": None}, "induction was scored on .*repeats, repeats_near; name one"),
        ({"keep": 1.5}, "keep is 1.5; expected a share above 0 and below 1 of 8 heads"),
    ],
)
def test_what_cannot_be_chosen_is_refused(final, demo, needles, changes, said):
    given = {"on": "repeats", "window": WINDOW, **changes}
    with pytest.raises(WorkbenchError, match=said):
        early_choices(final, open_run(demo / "runs" / "full"), [needles], **given)


def test_a_model_without_full_attention_has_nothing_to_keep(demo, needles):
    sliding = open_model(find_checkpoints(demo / "checkpoints" / "sliding").checkpoints[-1].path)
    with pytest.raises(WorkbenchError, match="no layer of full attention"):
        early_choices(sliding, open_run(demo / "runs" / "full"), [needles], on="repeats", window=WINDOW)


def test_the_command_says_it_and_writes_the_figure(demo, tmp_path):
    words = ["experiment", "early", demo / "checkpoints" / "full", "--run", demo / "runs" / "full"]
    words += ["--window", WINDOW, "--on", "repeats", "--figure", tmp_path / "early.html", "--json"]
    words += ["--probe", "copy_needle:distance=24,length=64,n_sequences=12"]
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["says"][0].startswith("copy_needle: windowing every head costs")
    assert len(document["choices"]) == 12
    assert (tmp_path / "early.html").stat().st_size > 10**6
