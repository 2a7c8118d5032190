"""Tables as plotly figures, the same in a notebook and in the app. Each function returns a plain `go.Figure`."""

from workbench.figures.checkpoint_scatter import rank_agreement, scores_against
from workbench.figures.choice_over_training import EarlyLike, early_choices
from workbench.figures.conversion_effects import heads_before_and_after, recall_by_distance, window_against_linear
from workbench.figures.distributions import ridgelines
from workbench.figures.head_curves import emergence, history, metrics
from workbench.figures.linear_layers import crossover, state_precision
from workbench.figures.lock_in_curves import lock_in
from workbench.figures.onsets import compare, onset
from workbench.figures.panels import heads, place, strips
from workbench.figures.phase_marks import mark_phases
from workbench.figures.plan_figures import PlanLike, pareto, plan, waterfall
from workbench.figures.trajectories import RunLike

__all__ = [
    "EarlyLike",
    "PlanLike",
    "RunLike",
    "compare",
    "crossover",
    "early_choices",
    "emergence",
    "heads",
    "heads_before_and_after",
    "history",
    "lock_in",
    "mark_phases",
    "metrics",
    "onset",
    "pareto",
    "place",
    "plan",
    "rank_agreement",
    "recall_by_distance",
    "ridgelines",
    "scores_against",
    "state_precision",
    "strips",
    "waterfall",
    "window_against_linear",
]
