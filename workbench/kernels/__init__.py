"""Attention statistics and linear attention: float64 reference and row-blocked torch."""

from workbench.kernels.blockwise import attention_statistics, decay_statistics
from workbench.kernels.crops import attention_crop, decay_crop
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
    "attention_crop",
    "attention_statistics",
    "decay_crop",
    "decay_statistics",
    "hidden_runs",
]
