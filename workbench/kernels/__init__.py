"""Attention statistics and linear attention: float64 reference and row-blocked torch."""

from workbench.kernels.blockwise import attention_statistics
from workbench.kernels.crops import attention_crop
from workbench.kernels.decay_rows import DecayRows
from workbench.kernels.delta_rows import DeltaRows
from workbench.kernels.implicit_attention import implicit_column_sums, implicit_feature_mass, implicit_rows
from workbench.kernels.masks import CausalMask, Hidden, TileMask, hidden_runs
from workbench.kernels.signed import SignedRows, signed_crop, signed_pattern, signed_statistics
from workbench.kernels.statistics import Cells, Far, Request, RowStatistics

__all__ = [
    "CausalMask",
    "Cells",
    "DecayRows",
    "DeltaRows",
    "Far",
    "Hidden",
    "Request",
    "RowStatistics",
    "SignedRows",
    "TileMask",
    "attention_crop",
    "attention_statistics",
    "hidden_runs",
    "implicit_column_sums",
    "implicit_feature_mass",
    "implicit_rows",
    "signed_crop",
    "signed_pattern",
    "signed_statistics",
]
