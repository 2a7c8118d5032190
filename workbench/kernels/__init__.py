"""Attention statistics and linear attention: float64 reference and row-blocked torch."""

from workbench.kernels.blockwise import attention_statistics, decay_statistics
from workbench.kernels.masks import CausalMask, Hidden, TileMask, hidden_runs
from workbench.kernels.statistics import Cells, Far, Request, RowStatistics

__all__ = [
    "CausalMask",
    "Cells",
    "Far",
    "Hidden",
    "Request",
    "RowStatistics",
    "TileMask",
    "attention_statistics",
    "decay_statistics",
    "hidden_runs",
]
