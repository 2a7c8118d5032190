"""Gates trained under a budget, on junctions whose best choice is known."""

import pytest

from tests.planning.junction import AND, OR, SUM, JunctionModel, far_answer
from workbench import KVHead, WorkbenchError, open_model
from workbench.planning import Game
from workbench.planning.rankings.joint_gates import joint_gates


def trained(junction, *, steps=60, **kwargs):
    return joint_gates(Game(open_model(JunctionModel(junction)), far_answer(), 4), steps=steps, **kwargs)


def test_under_a_budget_of_one_of_two_the_head_that_says_more_stays():
    ranking = trained(SUM, budget=0.5)
    assert ranking.order == [KVHead(0, 1), KVHead(0, 0)]
    assert ranking.evidence["mean_open"] == pytest.approx(0.5, abs=0.15)


def test_of_two_that_stand_in_for_each_other_one_closes_and_of_two_that_need_each_other_none_is_left_alone():
    either = sorted(trained(OR, budget=0.5).scores)
    assert either[0] < 0 < either[1]
    both = sorted(trained(AND, budget=0.5).scores)
    assert abs(both[1] - both[0]) < 0.5 * (either[1] - either[0])


def test_equal_seeds_draw_equal_gates():
    assert trained(SUM, steps=5).scores.tolist() == trained(SUM, steps=5).scores.tolist()


@pytest.mark.parametrize(("kwargs", "sentence"), [({"steps": 0}, "steps is 0"), ({"budget": 1.0}, "budget is 1")])
def test_impossible_settings_are_refused(kwargs, sentence):
    with pytest.raises(WorkbenchError, match=sentence):
        trained(SUM, **kwargs)
