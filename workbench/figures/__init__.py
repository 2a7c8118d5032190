"""Tables as plotly figures, the same in a notebook and in the app. Each function returns a plain `go.Figure`."""

from workbench.figures.curves import emergence, history, metrics
from workbench.figures.panels import heads, place, strips
from workbench.figures.plans import PlanLike, pareto, plan, waterfall
from workbench.figures.trajectories import RunLike

__all__ = [
    "PlanLike",
    "RunLike",
    "emergence",
    "heads",
    "history",
    "metrics",
    "pareto",
    "place",
    "plan",
    "strips",
    "waterfall",
]
