"""Attention statistics and linear attention: the float64 reference, blocked torch and Triton."""

from workbench.kernels.linear.band_rows import BandRows
from workbench.kernels.linear.channel_decay_rows import ChannelDecayRows
from workbench.kernels.linear.decay_rows import DecayRows
from workbench.kernels.linear.delta_rows import DeltaRows
from workbench.kernels.linear.difference_rows import DifferenceRows
from workbench.kernels.linear.mlstm_rows import MlstmRows
from workbench.kernels.linear.signed_rows import ChannelRows, SignedRows, signed_crop, signed_pattern, signed_statistics
from workbench.kernels.masks import CausalMask, Hidden, SelectedMask, TileMask, hidden_runs
from workbench.kernels.softmax.crops import attention_crop, attention_crops
from workbench.kernels.softmax.recorder_statistics import attention_statistics
from workbench.kernels.softmax.softmax_tiles import SoftmaxLayer
from workbench.kernels.softmax.statistics_request import Cells, Far, Request, RowStatistics

__all__ = [
    "BandRows",
    "CausalMask",
    "Cells",
    "ChannelDecayRows",
    "ChannelRows",
    "DecayRows",
    "DeltaRows",
    "DifferenceRows",
    "Far",
    "Hidden",
    "MlstmRows",
    "Request",
    "RowStatistics",
    "SelectedMask",
    "SignedRows",
    "SoftmaxLayer",
    "TileMask",
    "attention_crop",
    "attention_crops",
    "attention_statistics",
    "hidden_runs",
    "signed_crop",
    "signed_pattern",
    "signed_statistics",
]
