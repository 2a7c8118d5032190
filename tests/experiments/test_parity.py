"""Our scores beside published ones: correlation and overlap are exact, models are told by their shape."""

import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.families import CONFIGS, tiny
from workbench import open_model, probes, score
from workbench.cli.main import app
from workbench.experiments.parity.own_scores import hold_against
from workbench.experiments.parity.parity_scores import OwnScores, compare
from workbench.experiments.parity.published import Figure, Published, Shape, choose, published_models, read_published
from workbench.heads import Head, WorkbenchError
from workbench.planning import METHODS, Game, rank

PROBE = "repeats:n=12,n_sequences=6"


def figure(heads, kind="scores", **fields):
    return Figure(
        **{"detector": "induction", "kind": kind, "probe": PROBE, "source": "made up", "heads": heads, **fields}
    )


def own(*scores, half_a=None, half_b=None):
    places = tuple((i // 4, i % 4) for i in range(len(scores)))
    one, a, b = (np.array(x if x is not None else scores, dtype=np.float64) for x in (scores, half_a, half_b))
    return OwnScores(places, one, a, b)


def labels(order):
    return [f"L{i // 4}H{i % 4}" for i in order]


def textbook_spearman(a, b):
    """1 − 6 Σd² / (n (n² − 1)), for scores without ties."""
    ranks = [np.argsort(np.argsort(x)) for x in (a, b)]
    n = len(a)
    return 1 - 6 * ((ranks[0] - ranks[1]) ** 2).sum() / (n * (n * n - 1))


def test_all_scores_correlate_as_the_textbook_says():
    rng = np.random.default_rng(0)
    ours, theirs = rng.random(8), rng.random(8)
    found = compare(figure(dict(zip(labels(range(8)), theirs.tolist(), strict=True))), own(*ours))
    assert found.spearman == pytest.approx(textbook_spearman(ours, theirs))
    assert found.ceiling == pytest.approx(1)
    assert math.isnan(found.auroc)


def test_a_list_of_the_best_is_compared_where_it_is_an_order():
    ours = own(0.9, 0.8, 0.7, 0.6, 0.1, 0.2, 0.3, 0.4)
    same = compare(figure(labels([0, 1, 2]), "ranked"), ours)
    assert (same.spearman, same.overlap, same.auroc, same.n_best) == (pytest.approx(1), 1, 1, 3)
    turned = compare(figure(labels([2, 1, 0]), "ranked"), ours)
    # Ranks of the three best are 6, 7, 8 and of the five that tie 3; their deviations from 4.5 are 1.5, 2.5, 3.5, −1.5.
    assert turned.spearman == pytest.approx(
        (2 * 1.5 * 3.5 + 2.5**2 + 5 * 1.5**2) / (1.5**2 + 2.5**2 + 3.5**2 + 5 * 1.5**2)
    )
    none = compare(figure(labels([4, 5, 6]), "ranked"), ours)
    assert (none.overlap, none.auroc) == (0, 0)
    assert none.overlap_chance == 3 / 8


def test_a_set_has_no_order_and_a_share_no_heads():
    of_set = compare(figure(labels([0, 5]), "set"), own(0.9, 0.8, 0.1, 0.1, 0.1, 0.7, 0.1, 0.1))
    assert math.isnan(of_set.spearman)
    assert (of_set.n_best, of_set.overlap, of_set.overlap_chance) == (2, 0.5, 0.25)
    assert of_set.auroc == 11 / 12
    share = compare(figure([], "share", value=0.5), own(1, 0, 1, 1))
    assert (share.published, share.ours, share.n_listed) == (0.5, 0.75, 0)


def test_the_ceiling_is_the_stepped_up_correlation_of_our_halves():
    a, b = [1, 2, 3, 4, 5, 6, 7, 8], [2, 1, 4, 3, 6, 5, 8, 7]
    heads = dict(zip(labels(range(8)), map(float, a), strict=True))
    found = compare(figure(heads), own(*a, half_a=a, half_b=b))
    r = textbook_spearman(a, b)
    assert found.ceiling == pytest.approx(2 * r / (1 + r))
    of_two = compare(figure(labels([7, 6]), "ranked"), own(*a, half_a=a, half_b=[8, *a[1:7], 0]))
    assert (of_two.overlap, of_two.overlap_ceiling) == (1, 0.5)


def test_heads_without_a_score_of_ours_are_left_out():
    found = compare(figure(labels([0, 1, 2]), "ranked"), own(math.nan, 0.5, 0.4, 0.1))
    assert (found.n_heads, found.n_listed, found.overlap, found.spearman) == (3, 2, 1, pytest.approx(1))
    nothing = compare(figure(labels([0, 1]), "ranked"), own(math.nan, math.nan))
    assert (nothing.n_heads, nothing.n_listed) == (0, 0)
    assert math.isnan(nothing.spearman)
    assert math.isnan(nothing.overlap)


def test_the_figures_that_come_along_name_sources_and_known_detectors_and_probes():
    from workbench.detectors import all_detectors
    from workbench.probes.registry import PROBES

    models = published_models()
    assert len({p.name for p in models}) == len(models)
    for published in models:
        for one in published.figures:
            assert one.detector in (all_detectors() if one.of == "head" else METHODS)
            assert one.probe.partition(":")[0] in PROBES.all()
            assert len(set(one.layers_and_heads())) == len(one.layers_and_heads())
    by_name = {p.name: p for p in models}
    wu = next(f for f in by_name["llama-2-7b-80k"].figures if f.detector == "retrieval_wu")
    assert wu.layers_and_heads()[:4] == [(16, 19), (11, 15), (8, 26), (6, 9)]  # of the paper's own file
    assert [round(x, 2) for x in wu.scores()[:4]] == [0.94, 0.92, 0.8, 0.62]


def test_a_model_is_known_by_its_shape_or_by_name():
    gpt2 = Shape(model_type="gpt2", n_layers=12, n_heads=12, n_kv_heads=12, d_model=768)
    assert choose(gpt2, published_models()).name == "gpt2"
    twins = gpt2.model_copy(
        update={"model_type": "llama", "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "d_model": 4096}
    )
    with pytest.raises(WorkbenchError, match=r"llama-3-8b, .*pass --against with the one"):
        choose(twins, published_models())
    assert choose(twins, published_models(), "llama-3.1-8b-instruct").name == "llama-3.1-8b-instruct"
    derived = gpt2.model_copy(update={"d_model": 512})
    with pytest.raises(WorkbenchError, match=r"nothing is published here about a gpt2 .* known: gpt2, "):
        choose(derived, published_models())
    assert choose(derived, published_models(), "gpt2").name == "gpt2"
    with pytest.raises(WorkbenchError, match="layers and heads must be as many"):
        choose(twins, published_models(), "gpt2")
    with pytest.raises(WorkbenchError, match="no published figures are called 'gpt3'; expected one of gpt2"):
        choose(gpt2, published_models(), "gpt3")


SHAPE = dict(model_type="llama", n_layers=2, n_heads=4, n_kv_heads=2, d_model=32)


def write(path, figures, name="tiny", shape=SHAPE):
    path.write_text(json.dumps({"models": [{"name": name, "shape": shape, "figures": figures}]}))
    return path


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"heads": ["L0H0"]}, "scores are heads with a number each"),
        ({"heads": {"L0H9": 1.0}}, "names layer and head .0, 9. of a llama of 2 layers"),
        ({"heads": {"0-1": 1.0}}, "is no label of a head; expected L3H7"),
        ({"heads": {}}, "a share has a value and no heads"),
        ({"source": ""}, "source"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_file_of_figures_that_is_wrong_says_where(tmp_path, change, told):
    one = {"detector": "induction", "kind": "scores", "probe": PROBE, "source": "mine", "heads": {"L0H0": 1.0}}
    path = write(tmp_path / "mine.json", [{**one, **change}])
    with pytest.raises(WorkbenchError, match=told):
        read_published(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("parity") / "model"
    tiny("llama").save_pretrained(path)
    return path


def test_a_real_model_against_scores_planted_in_a_file(folder, tmp_path):
    m = open_model(folder)
    table = score(m, ["induction", "entropy"], probes=probes.build(m, PROBE))
    planted = {}
    for name in ("induction", "entropy"):
        mine = table[table.detector == name].sort_values("score", ascending=False)
        planted[name] = [str(Head(*place)) for place in zip(mine["layer"], mine["head"], strict=True)]
    best = planted["induction"]
    swapped = [best[1], best[0], *best[2:]]
    groups = rank(Game(m, probes.build(m, PROBE), 256, sink=128), "mean_distance").order
    common = {"probe": PROBE, "source": "planted"}
    path = write(
        tmp_path / "mine.json",
        [
            {"detector": "induction", "kind": "ranked", "heads": best, **common},
            {"detector": "induction", "kind": "ranked", "heads": swapped, **common},
            {"detector": "entropy", "kind": "ranked", "heads": planted["entropy"][::-1], **common},
            {"detector": "induction", "kind": "set", "heads": best[:2] + best[-2:], **common},
            {"detector": "mean_distance", "kind": "ranked", "of": "kv_head", "heads": list(map(str, groups)), **common},
        ],
    )
    done = CliRunner().invoke(app, ["experiment", "parity", str(folder), "--against", str(path), "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert (document["against"], document["shape"]) == ("tiny", SHAPE)
    same, nearly, turned, of_set, of_groups = document["figures"]
    assert same["spearman"] == pytest.approx(1)
    assert nearly["spearman"] == pytest.approx(1 - 6 * 2 / (8 * 63))
    assert turned["spearman"] == pytest.approx(-1)
    assert (of_set["overlap"], of_set["auroc"]) == (0.5, 0.5)
    assert of_groups["spearman"] == pytest.approx(1)
    assert same["ceiling"] == nearly["ceiling"]
    half_a, half_b = (table[table.detector == "induction"][h].to_numpy() for h in ("half_a", "half_b"))
    r = textbook_spearman(half_a, half_b)
    assert same["ceiling"] == pytest.approx(2 * r / (1 + r))
    told = CliRunner().invoke(
        app, ["experiment", "parity", str(folder), "--against", str(path), "--detector", "induction", "--seed", "3"]
    )
    assert told.exit_code == 0
    assert "spearman" in told.stdout


def test_an_unpublished_model_and_an_unknown_detector_are_told(folder, tmp_path):
    done = CliRunner().invoke(app, ["experiment", "parity", str(folder)])
    assert isinstance(done.exception, WorkbenchError)
    assert "nothing is published here about a llama of 2 layers" in str(done.exception)
    path = write(tmp_path / "mine.json", [figure({"L0H0": 1.0}).model_dump(mode="json")])
    named = CliRunner().invoke(app, ["experiment", "parity", str(folder), "--against", str(path), "--detector", "sink"])
    assert "no figures of sink about tiny; there are: induction" in str(named.exception)
    empty = CliRunner().invoke(app, ["experiment", "parity", str(tmp_path)])
    assert "expected a config.json" in str(empty.exception)


def test_groups_need_a_ranking_method_and_two_sequences(folder):
    m = open_model(folder)
    wrong = figure({"L0KV0": 1.0, "L1KV1": 0.5}, of="kv_head")
    few = wrong.model_copy(update={"detector": "far_mass", "probe": "repeats:n=12,n_sequences=1"})
    unknown = wrong.model_copy(update={"detector": "entropy"})
    for one, told in ((few, "its halves take at least 2"), (unknown, "ranks no key/value heads")):
        with pytest.raises(WorkbenchError, match=told):
            hold_against(m, Published(name="x", shape=Shape(**SHAPE), figures=(one,)))


def test_gpt2_says_its_shape_in_other_words(tmp_path):
    from workbench.experiments.parity.published import shape_of

    CONFIGS["gpt2"]().save_pretrained(tmp_path)
    assert shape_of(tmp_path).heads == (2, 4, 4)
