"""Tables as plotly figures, the same in a notebook and in the app. Each function returns a plain `go.Figure`."""

from workbench.figures.curves import emergence, history, metrics
from workbench.figures.linear_layers import crossover, state_precision
from workbench.figures.locking import lock_in
from workbench.figures.onsets import compare, onset
from workbench.figures.panels import heads, place, strips
from workbench.figures.trajectories import RunLike

__all__ = [
    "RunLike",
    "compare",
    "crossover",
    "emergence",
    "heads",
    "history",
    "lock_in",
    "metrics",
    "onset",
    "place",
    "state_precision",
    "strips",
]
