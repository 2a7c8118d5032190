"""Which heads must keep the whole context: rankings, keep-sets, and what a conversion costs."""

from workbench.planning.choosing_forms import SafeForms, in_safe_forms, safe_forms
from workbench.planning.curves import area_under, first_at
from workbench.planning.game import Game
from workbench.planning.integrated import WindowGates, window_gates
from workbench.planning.ladder import WindowLadder, window_ladder, windowed_each
from workbench.planning.linear_fit import LinearFit, fit_linear_attention
from workbench.planning.methods import METHODS, rank
from workbench.planning.need import need_global
from workbench.planning.planner import Evaluation, default_evaluation, evaluation_on, plan
from workbench.planning.rankings import Ranking

__all__ = [
    "METHODS",
    "Evaluation",
    "Game",
    "LinearFit",
    "Ranking",
    "SafeForms",
    "WindowGates",
    "WindowLadder",
    "area_under",
    "default_evaluation",
    "evaluation_on",
    "first_at",
    "fit_linear_attention",
    "in_safe_forms",
    "need_global",
    "plan",
    "rank",
    "safe_forms",
    "window_gates",
    "window_ladder",
    "windowed_each",
]
