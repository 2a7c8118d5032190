"""`workbench plan`: tables or one JSON document on stdout, files for others, and mistakes without a traceback."""

import json
import random
import time
from functools import partial

import numpy as np
import pytest

from tests.command_process import workbench
from tests.families import tiny
from workbench import Plan, open_model
from workbench.cli import plan_verbs

QUICK = ["--window", "6", "--method", "far_mass", "--probe", "copy_needle:distance=20,length=36,n_sequences=3"]
HELD_OUT = ["--held-out", "copy_needle:distance=20,length=36,n_sequences=3,seed=1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny("llama").save_pretrained(folder)
    return folder


@pytest.fixture
def run(command):
    """The command's exit code, stdout and stderr."""
    return partial(command, "plan")


def test_one_json_document_says_what_is_kept_and_what_it_is_worth(model, run, tmp_path):
    chance = ["--baseline", "random", "--baseline", "random_in_layer"]
    code, out, err = run(model, *QUICK, *HELD_OUT, *chance, "--keep", 0.5, "--json", "--out", tmp_path / "p.json")
    document = json.loads(out)
    assert code == 0
    saved = Plan.load(tmp_path / "p.json")
    assert document["keep"] == [str(head) for head in saved.keep]
    assert sorted(document["keep"] + document["windowed"]) == ["L0KV0", "L0KV1", "L1KV0", "L1KV1"]
    assert document["kv_saved"] == pytest.approx(saved.kv_saved)
    assert len(document["ranking"]) == 4
    assert document["ranking"][0]["ci_lo"] is None
    assert {point["method"] for point in document["curve"]} == {"far_mass", "random", "random_in_layer"}
    assert "ranking 4 heads by far_mass" in err
    with open_model(model).apply(saved):
        pass


def test_the_tables_name_every_head_and_the_last_line_says_what_is_saved(model, run, tmp_path):
    code, out, err = run(
        model, *QUICK, *HELD_OUT, "--sink", 1, "--keep", 0.25, "--duo", tmp_path / "full_attention_heads.tsv"
    )
    assert code == 0
    for head in ("L0KV0", "L0KV1", "L1KV0", "L1KV1"):
        assert head in out
    assert "What is left on held-out probes" in out
    assert "keeps 1 of 4 heads and saves 75% of the cache" in err
    assert np.loadtxt(tmp_path / "full_attention_heads.tsv", delimiter="\t").sum() == 1


def test_a_dry_run_says_what_it_costs_and_writes_nothing(model, run, tmp_path):
    words = [*QUICK, *HELD_OUT, "--baseline", "random", "--dry-run", "--out", tmp_path / "plan.json"]
    code, out, err = run(model, *words)
    assert code == 0
    for part in ("ranking", "curve", "random: curve"):
        assert part in out
    assert "about" in err
    code, out, err = run(model, *words, "--json")
    document = json.loads(out)
    assert [part["part"] for part in document["parts"]] == ["ranking", "curve", "random: curve"]
    assert document["tokens"] == sum(part["tokens"] for part in document["parts"]) == 3 * 36 * (1 + 5 + 3 * 5)
    assert document["seconds"] > 0
    assert document["kept_pieces"] == 0
    assert list(tmp_path.iterdir()) == []


def test_two_choices_are_in_the_table_and_in_json(model, run, tmp_path, capsys):
    both = ["--choices", "window,linear", "--tolerance", 1, "--effort", "quick", "--baseline", "random"]
    code, out, err = run(model, *QUICK, *HELD_OUT, *both, "--json", "--out", tmp_path / "p.json")
    assert code == 0, err
    document, saved = json.loads(out), Plan.load(tmp_path / "p.json")
    assert set(document["linear"]) == {str(head) for head in saved.linear}
    assert sorted(document["keep"] + document["windowed"] + list(document["linear"])) == [
        "L0KV0",
        "L0KV1",
        "L1KV0",
        "L1KV1",
    ]
    assert {costs["head"] for costs in document["costs"]} == {"L0KV0", "L0KV1", "L1KV0", "L1KV1"}
    assert document["remarks"] == list(saved.remarks)
    assert {"window_completeness_error", "linear_lost_nats"} <= set(document["evidence"])
    plan_verbs._print_plan(saved, as_json=False)
    table = capsys.readouterr()
    assert "window_nats" in table.out
    assert "linear_flags" in table.out
    for remark in saved.remarks:
        assert remark.split(":")[0] in table.err


def test_layers_and_other_budgets(model, run):
    code, out, _ = run(model, *QUICK, *HELD_OUT, "--layerwise", "--keep", 0.5, "--json")
    kept = json.loads(out)["keep"]
    assert code == 0
    assert kept in (["L0KV0", "L0KV1"], ["L1KV0", "L1KV1"])
    code, out, _ = run(model, *QUICK, *HELD_OUT, "--tolerance", 100, "--json")
    assert json.loads(out)["keep"] == []
    code, out, _ = run(model, *QUICK, *HELD_OUT, "--kv-bytes", 1 << 40, "--json")
    assert len(json.loads(out)["keep"]) == 4


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["MODEL"], "--window"),
        (["MISSING", *QUICK], "no such folder"),
        (["EMPTY", *QUICK], "holds no weights"),
        (["MODEL", *QUICK, *HELD_OUT, "--window", "0"], "window of at least 1"),
        (["MODEL", "--window", "0"], "window of at least 1"),
        (["MODEL", *QUICK, *HELD_OUT, "--window", "6.5"], "'--window': Input should be a valid integer"),
        (["MODEL", *QUICK, *HELD_OUT, "--sink", "-1"], "sink -1"),
        (["MODEL", *QUICK, *HELD_OUT, "--window", "99"], "nothing is far"),
        (["MODEL", *QUICK, *HELD_OUT, "--keep", "2"], "expected a share from 0 to 1"),
        (["MODEL", *QUICK, *HELD_OUT, "--keep", "0.1", "--layerwise"], "keeps none of 2 layers"),
        (["MODEL", *QUICK, *HELD_OUT, "--tolerance", "-1"], "expected 0 or more"),
        (["MODEL", *QUICK, *HELD_OUT, "--tolerance", "nan"], "expected 0 or more"),
        (["MODEL", *QUICK, *HELD_OUT, "--keep", "-0.1"], "expected a share from 0 to 1"),
        (["MODEL", *QUICK, *HELD_OUT, "--tolerance", "100", "--layerwise"], "keeps none of 2 layers"),
        (["MODEL", *QUICK, *HELD_OUT, "--kv-bytes", "1"], "hold no plan"),
        (["MODEL", *QUICK, *HELD_OUT, "--keep", "0.5", "--kv-bytes", "9"], "several budgets"),
        (["MODEL", *QUICK, *HELD_OUT, "--method", "luck"], "unknown method 'luck'"),
        (["MODEL", *QUICK, *HELD_OUT, "--choices", "linear"], "choices are ('linear',); expected ('window',) or"),
        (
            ["MODEL", *QUICK, *HELD_OUT, "--choices", "window,linear", "--duo", "heads.tsv"],
            "knows no linear attention; leave it out",
        ),
        (["MODEL", *QUICK, *HELD_OUT, "--baseline", "luck"], "unknown method 'luck'"),
        (["MODEL", *QUICK, *HELD_OUT, "--effort", "fast"], "effort is 'fast'; expected one of 'quick'"),
        (["MODEL", *QUICK, "--held-out", "nothing"], "unknown probe 'nothing'"),
        (["MODEL", *QUICK, "--held-out", "copy_needle:distance=20,length=36,n_sequences=3"], "ranked on"),
        (["MODEL", *QUICK, *HELD_OUT, "--out", "NOWHERE/plan.json"], "its folder does not exist"),
        (["MODEL", *QUICK, *HELD_OUT, "--duo", "NOWHERE/heads.tsv"], "its folder does not exist"),
        (["MODEL", *QUICK, *HELD_OUT, "--out", "EMPTY"], "cannot be written"),
    ],
)
def test_a_mistake_ends_with_two_and_a_message(model, run, tmp_path, arguments, told):
    (tmp_path / "empty").mkdir()
    places = {
        "MODEL": model,
        "MISSING": tmp_path / "missing",
        "EMPTY": tmp_path / "empty",
        "NOWHERE/plan.json": tmp_path / "nowhere" / "plan.json",
        "NOWHERE/heads.tsv": tmp_path / "nowhere" / "heads.tsv",
    }
    code, out, err = run(*(places.get(a, a) for a in arguments))
    assert code == 2, err
    assert told in err
    assert out == ""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_plan_that_is_killed_at_random_moments_ends_with_the_same_bytes(model, tmp_path, seed):
    moments = random.Random(seed)
    words = [*QUICK, *HELD_OUT, "--method", "window_gates", "--baseline", "random", "--effort", "quick"]
    for _ in range(2):  # the first one also warms up
        began = time.monotonic()
        assert workbench("plan", model, *words, "--out", tmp_path / "whole.json").returncode == 0
        whole_s = time.monotonic() - began
    out, n_killed = tmp_path / "plan.json", 0
    for _ in range(12):
        ended = workbench("plan", model, *words, "--out", out, killed_after=moments.uniform(0.1, 0.9) * whole_s)
        n_killed += ended.returncode == -9
        if out.exists():  # whole, also where the kill came after it was written
            assert out.read_bytes() == (tmp_path / "whole.json").read_bytes()
            out.unlink()  # so that the next one has something to do
    ended = workbench("plan", model, *words, "--out", out)
    assert (ended.returncode, "Traceback" in ended.stderr) == (0, False), ended.stderr
    assert n_killed >= 6
    assert out.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert [path.name for path in tmp_path.iterdir() if "plan.json" in path.name] == ["plan.json"]
