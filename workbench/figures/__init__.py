"""Tables as plotly figures, the same in a notebook and in the app. Each function returns a plain `go.Figure`."""

from workbench.figures.conversions import heads_before_and_after, recall_by_distance
from workbench.figures.curves import emergence, history, metrics
from workbench.figures.panels import heads, place, strips
from workbench.figures.trajectories import RunLike

__all__ = [
    "RunLike",
    "emergence",
    "heads",
    "heads_before_and_after",
    "history",
    "metrics",
    "place",
    "recall_by_distance",
    "strips",
]
