"""Rankings of one's own: registered by a decorator or an entry point, and used by name as built-in ones are."""

import json
import os
import runpy
import sys
from pathlib import Path

import pytest

from tests.children import run_child
from tests.families import tiny
from workbench import WorkbenchError, open_model, plan, probes
from workbench.planning import METHODS, Evaluation, Game, Ranking, rank, ranking
from workbench.planning.rankings.registry import RANKINGS

EXAMPLE = Path(__file__).parents[2] / "examples" / "extensions" / "own_ranking.py"
WINDOW = 6
BUILTIN = (
    *("window_gates", "leave_one_windowed", "restore_one", "greedy", "duo_gates", "duo_gates_annealed"),
    *("joint_gates", "restore_one_aligned", "first_order", "gradient_at_zero"),
    *("output_error", "output_error_all", "far_mass", "mean_distance", "retrieval", "induction"),
    *("ablate_zero", "ablate_mean", "ablate_uniform", "ablate_accuracy", "random", "random_in_layer"),
)


def needles(seed=0):
    return probes.copy_needle(97, 20, length=36, n_sequences=5, seed=seed, name=f"needles_{seed}")


@pytest.fixture
def registered():
    """The example's ranking, for one test."""
    runpy.run_path(str(EXAMPLE))
    yield
    RANKINGS.remove("shapley")


def test_built_in_rankings_are_listed_in_their_order():
    assert tuple(METHODS) == BUILTIN
    assert len(METHODS) == len(BUILTIN)


def test_the_examples_ranking_scores_the_whole_gap_and_plans_a_model(registered):
    m = open_model(tiny("llama"))
    assert tuple(METHODS) == (*BUILTIN, "shapley")
    game = Game(m, needles(), WINDOW, sink=1)
    scores = rank(game, "shapley").scores
    assert scores.sum() == pytest.approx(float((game.nats(game.heads) - game.nats()).mean()))
    evaluation = Evaluation(needles(), (needles(1),), context=64, baselines=())
    made = plan(m, WINDOW, 1, 0.5, "shapley", evaluation=evaluation)
    assert (made.method, made.units, len(made.keep)) == ("shapley", "nats", 2)
    assert [r.head for r in made.ranking] == rank(game, "shapley").order
    assert all(r.ci_lo <= r.score <= r.ci_hi for r in made.ranking)
    baseline = Evaluation(needles(), (needles(1),), context=64, baselines=("shapley",))
    assert "shapley" in set(plan(m, WINDOW, 1, 0.5, "far_mass", evaluation=baseline).curves().method)


def test_the_example_runs_as_it_stands(capsys):
    try:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    finally:
        RANKINGS.remove("shapley")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("keeps L")
    assert printed[1].split() == ["method", "shapley", "window_gates"]


def test_a_name_that_is_taken_and_a_function_without_a_docstring_are_refused():
    def undocumented(game: Game) -> Ranking:
        return METHODS["random"](game)

    with pytest.raises(WorkbenchError, match=r"method 'mine' has no docstring"):
        ranking("mine")(undocumented)
    undocumented.__doc__ = "Any order."
    with pytest.raises(WorkbenchError, match=r"method 'greedy' of .* is already registered by workbench\.planning"):
        ranking("greedy")(undocumented)
    assert tuple(METHODS) == BUILTIN


@pytest.mark.slow
def test_the_command_plans_with_a_ranking_that_an_installed_package_names(tmp_path):
    site, model = tmp_path / "site", tmp_path / "model"
    info = site / "mine-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "my_rankings.py").write_text(EXAMPLE.read_text())
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[workbench.rankings]\nmine = my_rankings\n")
    tiny("llama").save_pretrained(model)
    needle = "copy_needle:distance=20,length=36,n_sequences=3"
    words = ["--window", "6", "--method", "shapley", "--probe", needle, "--held-out", f"{needle},seed=1", "--json"]
    paths = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = run_child(
        [sys.executable, "-m", "workbench.cli", "plan", str(model), *words],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {point["method"] for point in json.loads(done.stdout)["curve"]} >= {"shapley"}
    assert "ranking 4 heads by shapley" in done.stderr
