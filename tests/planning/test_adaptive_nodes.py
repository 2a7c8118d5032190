"""Nodes where a path bends: the error of each interval is known, and the worst is halved until little is lost."""

import numpy as np
import pytest

from workbench import WorkbenchError
from workbench.planning import AdaptiveNodes
from workbench.planning.rankings.adaptive_nodes import PathNode, adapted, node_weights
from workbench.planning.rankings.window_gates import path_nodes

SHARES = np.array([0.7, 0.4, -0.1])


def bent(at, width):
    """A path that falls by about 1 within `width` of `at`, and is flat elsewhere; three heads share the fall."""

    def take(a):
        taken.append(a)
        fall = (1 - np.tanh((a - at) / width / 2)) / 2
        slope = -fall * (1 - fall) / width
        return PathNode(np.array([fall, fall]), slope * np.stack([SHARES, SHARES]))

    taken = []
    return take, taken


def lost(path, weights):
    """The share of the gap that the heads' integrals do not account for, and their distance from the right scores."""
    nodes = list(path.values())
    scores = -np.tensordot(weights, [node.gradients.mean(0) for node in nodes], axes=1)
    ends = bent(*BEND)[0]
    gap = (ends(0.0).nats - ends(1.0).nats).mean()
    return abs(scores.sum() - gap) / gap, np.abs(scores - gap * SHARES).max()


BEND = (0.3, 0.03)


def test_a_bent_path_gets_its_nodes_where_it_bends_and_loses_little():
    take, taken = bent(*BEND)
    path = adapted(take, AdaptiveNodes(most=12))
    completeness, wrong = lost(path, node_weights(np.array(list(path))))
    assert completeness < 0.05
    assert wrong < 0.05
    assert len(taken) == len(path) <= 12
    assert sum(0.2 <= a <= 0.4 for a in path) >= 4
    for quadrature, n in (("midpoint", 3), ("gauss", 5)):
        positions, weights = path_nodes(n, quadrature)
        assert lost({a: take(a) for a in positions}, weights)[0] > 0.2


def test_a_straight_path_needs_no_more_than_its_ends_and_middle():
    take, taken = bent(0.5, 5.0)
    adapted(take, AdaptiveNodes())
    assert taken == [0.0, 0.5, 1.0]


def test_no_more_nodes_are_taken_than_there_may_be():
    take, taken = bent(0.123, 0.0005)
    assert list(adapted(take, AdaptiveNodes(most=7, error=1e-9))) == sorted(taken)
    assert len(taken) == 7


@pytest.mark.parametrize("positions", [[0, 0.5, 1], [0, 0.25, 0.375, 0.5, 1], [0, 0.01, 0.02, 0.5, 0.9, 1]])
def test_parabolas_are_integrated_exactly_whatever_the_nodes(positions):
    x = np.array(positions, dtype=float)
    weights = node_weights(x)
    assert [weights @ x**power for power in range(3)] == pytest.approx([1, 1 / 2, 1 / 3], abs=1e-12)


@pytest.mark.parametrize(
    ("arguments", "told"), [(dict(most=2), "at most 2 nodes: expected at least 3"), (dict(error=0.0), "error of 0")]
)
def test_what_cannot_adapt_is_refused(arguments, told):
    with pytest.raises(WorkbenchError, match=told):
        AdaptiveNodes(**arguments)
