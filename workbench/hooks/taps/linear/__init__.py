"""Linear and recurrent layers of every family behind one interface; the import registers the built-in mixers."""

from workbench.hooks.taps.linear import (
    difference,
    gated_delta,
    kimi_delta,
    lightning,
    mamba1,
    mamba2,
    mlstm,
    rg_lru,
    rwkv4,
    short_convolution,
)
from workbench.hooks.taps.linear.linear_layer import LinearCall, LinearLayer
from workbench.hooks.taps.linear.linear_reading import head_outputs, linear_layers, reading_linear
from workbench.hooks.taps.linear.reach import Reach, decay_reach, measured_reach
from workbench.hooks.taps.linear.registry import MIXERS, mixer

__all__ = [
    "MIXERS",
    "LinearCall",
    "LinearLayer",
    "Reach",
    "decay_reach",
    "difference",
    "gated_delta",
    "head_outputs",
    "kimi_delta",
    "lightning",
    "linear_layers",
    "mamba1",
    "mamba2",
    "measured_reach",
    "mixer",
    "mlstm",
    "reading_linear",
    "rg_lru",
    "rwkv4",
    "short_convolution",
]
