"""Models whose attention can be recorded: open one, see its layers, record a pass, look at a crop of a pattern."""

from workbench.hooks.cells import CellSum, Sequences
from workbench.hooks.linearised import LinearAttention
from workbench.hooks.model import DEFAULT_FAR, HookedModel
from workbench.hooks.opening import open_model
from workbench.hooks.patching import PatchEffect, patch_effects
from workbench.hooks.readings import Reading, RowReading
from workbench.hooks.recording import NEEDS, Answers, FarSum, FeatureSum, PerSequence, Recording

__all__ = [
    "DEFAULT_FAR",
    "NEEDS",
    "Answers",
    "CellSum",
    "FarSum",
    "FeatureSum",
    "HookedModel",
    "LinearAttention",
    "PatchEffect",
    "PerSequence",
    "Reading",
    "Recording",
    "RowReading",
    "Sequences",
    "open_model",
    "patch_effects",
]
