"""Plotly figures of tables, the same in a notebook and in the app. Each function returns a plain `go.Figure`."""

from workbench.figures.checkpoint_agreement import lock_in, rank_agreement, scores_against
from workbench.figures.conversion_effects import (
    CostsLike,
    EarlyLike,
    early_choices,
    heads_before_and_after,
    lost_by_length,
    recall_by_distance,
    recovered_by_kept,
    window_against_linear,
)
from workbench.figures.distributions import ridgelines
from workbench.figures.head_curves import emergence, history, metrics
from workbench.figures.head_marks import mark_heads
from workbench.figures.head_panels import heads, place, strips
from workbench.figures.length_scores import JudgedPlan, VerdictLike, verdict
from workbench.figures.linear_layers import crossover, state_precision
from workbench.figures.onsets import compare, mark_phases, onset, onset_shares
from workbench.figures.plan_figures import PlanLike, pareto, plan, waterfall
from workbench.figures.ranked_heads import ranked
from workbench.figures.run_groups import emergence_of_groups, group_names, metrics_of_groups
from workbench.figures.token_patterns import PatternModel, pattern
from workbench.figures.trajectories import RunLike

__all__ = [
    "CostsLike",
    "EarlyLike",
    "JudgedPlan",
    "PatternModel",
    "PlanLike",
    "RunLike",
    "VerdictLike",
    "compare",
    "crossover",
    "early_choices",
    "emergence",
    "emergence_of_groups",
    "group_names",
    "heads",
    "heads_before_and_after",
    "history",
    "lock_in",
    "lost_by_length",
    "mark_heads",
    "mark_phases",
    "metrics",
    "metrics_of_groups",
    "onset",
    "onset_shares",
    "pareto",
    "pattern",
    "place",
    "plan",
    "rank_agreement",
    "ranked",
    "recall_by_distance",
    "recovered_by_kept",
    "ridgelines",
    "scores_against",
    "state_precision",
    "strips",
    "verdict",
    "waterfall",
    "window_against_linear",
]
