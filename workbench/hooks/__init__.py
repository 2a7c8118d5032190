"""Models whose attention can be recorded: open one, see its layers, record a pass, look at a crop of a pattern."""

from workbench.hooks.interventions.fresh_caches import WholeCacheWarning, cache_bytes
from workbench.hooks.interventions.patching import PatchEffect, PatchEffects, patch_effects
from workbench.hooks.model import DEFAULT_FAR, HookedModel
from workbench.hooks.opening import open_model
from workbench.hooks.recording.cells import CellSum, Sequences
from workbench.hooks.recording.needs import NEEDS, Answers, FarSum, FeatureSum, PerSequence, Recording
from workbench.hooks.recording.row_readings import Reading, RowReading
from workbench.hooks.taps.linear.linear_layer import LinearCall, LinearLayer
from workbench.hooks.taps.linear.registry import mixer
from workbench.store.conversions import LinearAttention, SparseAttention

__all__ = [
    "DEFAULT_FAR",
    "NEEDS",
    "Answers",
    "CellSum",
    "FarSum",
    "FeatureSum",
    "HookedModel",
    "LinearAttention",
    "LinearCall",
    "LinearLayer",
    "PatchEffect",
    "PatchEffects",
    "PerSequence",
    "Reading",
    "Recording",
    "RowReading",
    "Sequences",
    "SparseAttention",
    "WholeCacheWarning",
    "cache_bytes",
    "mixer",
    "open_model",
    "patch_effects",
]
