"""Which heads must keep the whole context: rankings, keep-sets, and what a conversion costs."""

from workbench.planning.curves import area_under, first_at
from workbench.planning.game import Game
from workbench.planning.integrated import WindowGates, window_gates
from workbench.planning.planner import Evaluation, default_evaluation, plan
from workbench.planning.rankings import METHODS, Ranking, rank

__all__ = [
    "METHODS",
    "Evaluation",
    "Game",
    "Ranking",
    "WindowGates",
    "area_under",
    "default_evaluation",
    "first_at",
    "plan",
    "rank",
    "window_gates",
]
