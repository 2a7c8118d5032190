"""Which heads must keep the whole context: rankings, keep-sets, and what a conversion costs."""

from workbench.planning.context_length_effect import need_global
from workbench.planning.conversion_objective import Game
from workbench.planning.coverage_by_blocks import block_coverage
from workbench.planning.evaluation_tasks import CompleteEvaluation, Evaluation, default_evaluation, evaluation_on
from workbench.planning.harness_tasks import HarnessSettings, TaskScore, evaluate_tasks, table_of_tasks
from workbench.planning.keep_curves import area_under, first_at
from workbench.planning.linear_fit import LinearFit, fit_linear_attention
from workbench.planning.plan_work import PlanCost
from workbench.planning.planner import plan, plan_cost
from workbench.planning.rankings.adaptive_nodes import AdaptiveNodes
from workbench.planning.rankings.registry import METHODS, Ranking, rank, ranking
from workbench.planning.rankings.window_gates import WindowGates, window_gates
from workbench.planning.verdict_over_length import verdict
from workbench.planning.window_sizes import WindowLadder, window_ladder, windowed_each
from workbench.store.conversions import Window
from workbench.store.length_verdict import LengthVerdict

__all__ = [
    "METHODS",
    "AdaptiveNodes",
    "CompleteEvaluation",
    "Evaluation",
    "Game",
    "HarnessSettings",
    "LengthVerdict",
    "LinearFit",
    "PlanCost",
    "Ranking",
    "TaskScore",
    "Window",
    "WindowGates",
    "WindowLadder",
    "area_under",
    "block_coverage",
    "default_evaluation",
    "evaluate_tasks",
    "evaluation_on",
    "first_at",
    "fit_linear_attention",
    "need_global",
    "plan",
    "plan_cost",
    "rank",
    "ranking",
    "table_of_tasks",
    "verdict",
    "window_gates",
    "window_ladder",
    "windowed_each",
]
