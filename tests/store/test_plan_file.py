"""A plan on disk: what is saved is what is loaded, other tools' files, sizes of caches, and files that are no plan."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from tests.planning.plans import FULL, LINEAR, NAN, SLIDING, layers_of, plan_of
from workbench import KVHead, LinearAttention, Plan, WorkbenchError
from workbench.store.cache_sizes import bytes_under, kv_bytes, kv_saved, saved_under
from workbench.store.conversions import Window
from workbench.store.length_verdict import LengthVerdict, VerdictCell
from workbench.store.plan_file import HeadCosts, RankedHead

TWO = layers_of(FULL, FULL)
FORM = LinearAttention("elu", 2.0, 0.5)


def mixed(**others):
    """One head full, one linear, two with a window of 16 tokens behind 4 sinks."""
    costs = (HeadCosts(1, 0, 0.5, 0.004, 0.2, "", FORM), HeadCosts(0, 0, 0.0, NAN, NAN, "ladder_end"))
    settings = dict(sink=4, conversions={KVHead(1, 0): FORM}, costs=costs, remarks=("on one sequence",))
    return plan_of(TWO, [(0, 1)], **{**settings, **others})


def same(a, b):
    """Equal, NaN to NaN."""
    return repr(asdict(a)) == repr(asdict(b))


def test_a_saved_plan_is_loaded_as_it_was_with_its_missing_numbers(tmp_path):
    plan = plan_of(layers_of(FULL, LINEAR, SLIDING), [(0, 1), (2, 0)], sink=4, model="größer")
    plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert same(loaded, plan)
    assert np.isnan(loaded.ranking[0].ci_lo)
    assert np.isnan(loaded.evidence["gap"])
    assert loaded.windowed == plan.windowed == (KVHead(0, 0), KVHead(2, 1))
    assert "NaN" not in (tmp_path / "plan.json").read_text()


def test_every_head_has_a_choice_and_the_file_has_them_all(tmp_path):
    plan = mixed()
    window = Window(16, 4)
    assert plan.choices == {KVHead(0, 0): window, KVHead(0, 1): "full", KVHead(1, 0): FORM, KVHead(1, 1): window}
    assert plan.windowed == (KVHead(0, 0), KVHead(1, 1))
    assert plan.linear == {KVHead(1, 0): FORM}
    plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert same(loaded, plan)
    assert loaded.choices == plan.choices
    document = json.loads((tmp_path / "plan.json").read_text())
    assert document["version"] == 2
    assert document["conversions"] == [[1, 0, {"form": "linear", "features": "elu", "sharpness": 2.0, "decay": 0.5}]]


def test_the_table_has_each_heads_choice_what_either_costs_and_what_it_holds():
    table = mixed().table().set_index(["layer", "kv_head"])
    assert table.choice.to_dict() == {(0, 1): "full", (0, 0): "window", (1, 0): "linear", (1, 1): "window"}
    assert table.bytes.to_dict() == {(0, 1): 64 * 64, (0, 0): 64 * 20, (1, 0): 4 * 16 * 17, (1, 1): 64 * 20}
    assert table.loc[(1, 0), ["window_nats", "linear_nats", "sharpness", "decay"]].tolist() == [0.5, 0.004, 2.0, 0.5]
    assert table.loc[(0, 0), "linear_flags"] == "ladder_end"
    assert np.isnan(table.loc[(1, 1), "window_nats"])


def test_other_heads_may_be_kept_and_a_head_that_was_full_gets_its_own_conversion():
    plan = mixed(conversions={KVHead(1, 0): FORM, KVHead(0, 1): FORM})
    assert plan.linear == {KVHead(1, 0): FORM}  # L0KV1 is kept
    other = plan.keeping([KVHead(1, 1), KVHead(1, 0)])
    assert [name for name, choice in other.choices.items() if choice == "full"] == [KVHead(1, 0), KVHead(1, 1)]
    assert other.windowed == (KVHead(0, 0),)
    assert other.linear == {KVHead(0, 1): FORM}
    assert other.keeping(plan.keep) == plan


def test_a_file_of_version_1_gives_every_head_that_is_not_kept_the_window(tmp_path):
    path = tmp_path / "plan.json"
    plan = plan_of(TWO, [(0, 0)])
    plan.save(path)
    document = json.loads(path.read_text())
    older = {name: value for name, value in document.items() if name not in ("conversions", "costs", "remarks")}
    path.write_text(json.dumps({**older, "version": 1}))
    assert same(Plan.load(path), plan)
    path.write_text(json.dumps(older))
    with pytest.raises(WorkbenchError, match="is no plan of this version: 'conversions'"):
        Plan.load(path)


def test_heads_whose_own_window_is_no_wider_need_no_place_in_the_ranking():
    layers = layers_of(SLIDING, FULL)
    plan = plan_of(layers, [(1, 0)], window=8)
    players = tuple(r for r in plan.ranking if r.layer == 1)
    only = plan_of(layers, [(1, 0)], window=8, ranking=players)
    only.check(layers)
    assert only.windowed == (KVHead(1, 1),)
    assert only.kv_saved == plan.kv_saved
    with pytest.raises(WorkbenchError, match="ranks 2 heads, which are not the 4 softmax heads"):
        plan_of(layers, [(1, 0)], window=7, ranking=players).check(layers)


def test_layers_that_are_not_ranked_stay_what_they_are():
    layers = layers_of(SLIDING, FULL)
    plan = plan_of(layers, [(1, 0), (1, 1)], window=8)
    only = plan_of(layers, [(1, 0), (1, 1)], window=8, ranking=tuple(r for r in plan.ranking if r.layer == 1))
    assert only.to_layer_types() == plan.to_layer_types()
    assert only.to_layer_types() == {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}


@pytest.mark.parametrize(
    "write", [lambda plan, path: plan.to_duo_attention(path), lambda plan, _: plan.to_layer_types()]
)
def test_files_of_others_that_know_no_linear_heads_are_refused(write, tmp_path):
    with pytest.raises(WorkbenchError, match=r"gives L1KV0 linear attention, and .*choices=\('window',\)"):
        write(mixed(), tmp_path / "heads")
    assert list(tmp_path.iterdir()) == []


def test_curves_are_a_table_of_every_point():
    table = plan_of(TWO, [(0, 0)]).curves()
    columns = ["method", "probe", "n_kept", "nats", "recovered", "accuracy", "kv_saved", "ci_lo", "ci_hi"]
    assert list(table.columns) == columns
    assert table.n_kept.tolist() == [0, 1, 2, 3, 4]
    assert table.nats.tolist() == [4, 3.5, 3, 2.5, 2]


def test_duo_attention_reads_a_row_per_layer_and_a_column_per_head(tmp_path):
    plan = plan_of(layers_of(FULL, LINEAR, FULL), [(0, 1), (2, 0), (2, 1)])
    plan.to_duo_attention(tmp_path / "full_attention_heads.tsv")
    read = np.loadtxt(tmp_path / "full_attention_heads.tsv", dtype=float, delimiter="\t")
    assert read.tolist() == [[0, 1], [0, 0], [1, 1]]


@pytest.mark.parametrize("write", [Plan.save, Plan.to_duo_attention])
def test_a_file_that_cannot_be_written_is_named(tmp_path, write):
    sentence = r"nowhere.*: (the plan cannot be written: No such file|its folder does not exist)"
    with pytest.raises(WorkbenchError, match=sentence):
        write(plan_of(TWO, []), tmp_path / "nowhere" / "plan")


def test_layer_types_say_which_layers_are_full_and_which_slide():
    plan = plan_of(layers_of(FULL, LINEAR, FULL, FULL), [(2, 0), (2, 1)])
    types = ["sliding_attention", "linear_attention", "full_attention", "sliding_attention"]
    assert plan.to_layer_types() == {"layer_types": types, "sliding_window": 16}


def test_a_sliding_layer_stays_one_and_its_narrower_window_stays():
    kept = plan_of(layers_of(SLIDING, FULL), [(0, 0), (0, 1), (1, 0), (1, 1)])
    assert kept.to_layer_types() == {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
    windowed = plan_of(layers_of(SLIDING, FULL), [(1, 0), (1, 1)])
    assert windowed.to_layer_types() == kept.to_layer_types()
    everything = plan_of(TWO, [(0, 0), (0, 1), (1, 0), (1, 1)])
    assert everything.to_layer_types() == {"layer_types": ["full_attention"] * 2}


def test_a_layer_of_two_mixers_is_written_once_as_what_its_attention_is():
    both = plan_of((FULL, LINEAR), [(0, 0), (0, 1)])
    assert both.to_layer_types() == {"layer_types": ["full_attention"]}


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        (plan_of(TWO, [(1, 0)]), r"layers \[1\] keep some heads and not others.*unit='layer'"),
        (plan_of(TWO, [(1, 0), (1, 1)], sink=4), "know no sinks, and the plan keeps 4; make it with sink=0"),
        (plan_of(layers_of(SLIDING, FULL), []), "need 8 and 16; make it with window=8"),
    ],
)
def test_what_layer_types_cannot_say_is_refused(plan, told):
    with pytest.raises(WorkbenchError, match=told):
        plan.to_layer_types()


def test_cache_sizes_are_counted_by_hand():
    """Two heads of 16 numbers, keys and values, two bytes each: 128 bytes a token, half of it for one head."""
    one = layers_of(FULL)
    assert kv_bytes(one, {KVHead(0, 0), KVHead(0, 1)}, window=16, sink=4, context=100) == 100 * 128
    assert kv_bytes(one, {KVHead(0, 0)}, window=16, sink=4, context=100) == (100 + 20) * 64
    assert kv_saved(one, {KVHead(0, 0)}, window=16, sink=4, context=100) == pytest.approx(0.4)
    assert kv_bytes(layers_of(SLIDING, LINEAR), set(), window=16, sink=4, context=100) == 8 * 128
    assert kv_saved(layers_of(LINEAR), set(), window=16, sink=4, context=100) == 0
    assert plan_of(one, [(0, 1)]).kv_saved == pytest.approx((64 - 16) / 128)


def test_a_linear_head_holds_a_state_in_float32_however_long_the_context_is():
    """16 elu features of 16 values and a weight: 272 numbers of 4 bytes."""
    one, linear = layers_of(FULL), {KVHead(0, 1): FORM}
    for context in (100, 10_000):
        assert bytes_under(one, linear, context=context) == context * 64 + 272 * 4
    assert mixed().kv_bytes == 64 * 64 + 2 * 20 * 64 + 272 * 4
    assert mixed().kv_saved == pytest.approx(1 - mixed().kv_bytes / (4 * 64 * 64))
    # A state may be larger than the cache of a short context.
    assert saved_under(one, linear, context=4) < 0


def edited(tmp_path, change):
    """A saved plan with something else in it."""
    path = tmp_path / "plan.json"
    mixed(sink=0).save(path)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: d.update(version=99), "written by a newer workbench; upgrade"),
        (lambda d: d.pop("version"), "is no plan; expected a file saved by plan.save"),
        (lambda d: d.update(keep=[[7, 0]]), "keeps L7KV0, which its ranking does not have"),
        (lambda d: d.update(keep=[[0, 0], [0, 0]]), "keeps a head twice"),
        (lambda d: d.update(keep=[[0.0, 0]]), "keep holds 0.0; expected whole numbers"),
        (lambda d: d.update(keep=[["0", 0]]), "keep holds '0'; expected whole numbers"),
        (lambda d: d.update(window=10**30), "window of 1000000"),
        (lambda d: d.update(context=-1), "a context of -1 tokens"),
        (lambda d: d["ranking"].pop(), "ranks 3 heads, which are not the 4 softmax heads of its layers"),
        (lambda d: d.update(unit="row"), "is no plan|unit 'row'"),
        (lambda d: d.update(window=0), "window of 0"),
        (lambda d: d.update(window="16"), "is no plan of this version"),
        (lambda d: d.update(window=None), r"is no plan of this version(.|\n)*window(.|\n)*None"),
        (lambda d: d["layers"][0].update(window="8"), r"is no plan of this version(.|\n)*window(.|\n)*'8'"),
        (lambda d: d["ranking"][0].update(layer="0"), "is no plan of this version"),
        (lambda d: d["curve"][0].update(nats="much"), r"is no plan of this version(.|\n)*nats(.|\n)*'much'"),
        (lambda d: d.pop("curve"), "is no plan of this version: 'curve'"),
        (lambda d: d.pop("model"), "is no plan of this version: .*model"),
        (lambda d: d.update(colour="red"), "is no plan of this version: .*colour"),
        (lambda d: d.update(keep=3), "is no plan of this version"),
        (lambda d: d["layers"][0].pop("window"), "is no plan of this version: .*window"),
        (lambda d: d["ranking"].append(d["ranking"][0]), "ranks 5 heads"),
        (lambda d: d.update(version=1), "is no plan of version 1, which has no conversions"),
        (
            lambda d: d["conversions"][0].__setitem__(1, 7),
            "gives L1KV7 linear attention, which its ranking does not have",
        ),
        (lambda d: d["conversions"][0].__setitem__(0, "1"), "keep holds '1'; expected whole numbers"),
        (
            lambda d: d["layers"][1].update(kind="sliding", window=32),
            "gives L1KV0 linear attention, whose layer is sliding and does not see its whole past",
        ),
        (lambda d: d["conversions"][0][2].update(sharpness=None), "sharpness is nan; expected a number above 0"),
        (lambda d: d["conversions"][0][2].update(sharpness=1e999), "sharpness is inf; expected a number above 0"),
        (lambda d: d["conversions"][0][2].update(decay=2.0), "decay is 2.0; expected a number above 0 and at most 1"),
        (
            lambda d: d["conversions"][0][2].update(features="relu"),
            r"is no plan of this version(.|\n)*features(.|\n)*'relu'",
        ),
        (lambda d: d["conversions"][0][2].update(form="delta"), "a form 'delta'; expected 'linear'"),
        (lambda d: d["conversions"][0][2].update(colour=1), "is no plan of this version: .*colour"),
        (lambda d: d["costs"][0].update(layer=9), "has costs of L9KV0, which its ranking does not have"),
        (
            lambda d: d["costs"][0].update(window_nats="much"),
            r"is no plan of this version(.|\n)*window_nats(.|\n)*'much'",
        ),
        (lambda d: d.update(remarks=[3]), "remarks hold 3; expected texts"),
        (lambda d: d.pop("conversions"), "is no plan of this version: 'conversions'"),
    ],
)
def test_a_file_that_is_no_plan_is_refused_with_what_is_wrong(tmp_path, change, told):
    with pytest.raises(WorkbenchError, match=told):
        Plan.load(edited(tmp_path, change))


def test_a_file_that_is_missing_a_folder_or_no_json_is_refused(tmp_path):
    with pytest.raises(WorkbenchError, match="no plan can be read: No such file"):
        Plan.load(tmp_path / "none.json")
    with pytest.raises(WorkbenchError, match="no plan can be read: Is a directory"):
        Plan.load(tmp_path)
    (tmp_path / "text").write_bytes(b"keep all heads\xff")
    with pytest.raises(WorkbenchError, match=r"is not JSON.*expected a plan saved by plan.save"):
        Plan.load(tmp_path / "text")
    (tmp_path / "list").write_text("[1, 2]")
    with pytest.raises(WorkbenchError, match="is no plan"):
        Plan.load(tmp_path / "list")


def test_a_plan_knows_its_model_by_its_layers():
    plan = plan_of(TWO, [(0, 0)])
    plan.check(TWO)
    with pytest.raises(WorkbenchError, match=r"for small, whose layer 1 is .*make a plan for it"):
        plan.check(layers_of(FULL, SLIDING))
    with pytest.raises(WorkbenchError, match="for small with 2 layers; this model has 3"):
        plan.check(layers_of(FULL, FULL, FULL))


def test_a_ranked_head_is_a_head():
    assert RankedHead(3, 1, 0.5, NAN, NAN).head == KVHead(3, 1)


def test_a_plan_holds_its_verdict_over_length_and_one_without_has_no_such_field(tmp_path):
    cells = (VerdictCell("needles", 64, "planned", *(0.5, NAN, NAN), *(1.0,) * 6, 8, 2),)
    plan = plan_of(layers_of(FULL), [(0, 1)])
    judged = replace(plan, verdict=LengthVerdict(0.05, 128, cells))
    judged.save(tmp_path / "judged.json")
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "judged.json").verdict
    assert (again.tolerance, again.context, again.state(64)) == (0.05, 128, "loses")
    assert math.isnan(again.cells[0].right_lo)
    assert "verdict" not in json.loads((tmp_path / "plan.json").read_text())
    assert Plan.load(tmp_path / "plan.json").verdict is None
    torn = json.loads((tmp_path / "judged.json").read_text())
    torn["verdict"]["cells"][0]["length"] = "64"
    (tmp_path / "torn.json").write_text(json.dumps(torn))
    with pytest.raises(WorkbenchError, match=r"is no plan of this version(.|\n)*length(.|\n)*'64'"):
        Plan.load(tmp_path / "torn.json")
