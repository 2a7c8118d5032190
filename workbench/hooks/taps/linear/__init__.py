"""Linear and recurrent layers of every family behind one interface: implied patterns, head outputs, reach."""

from workbench.hooks.taps.linear.linear_layer import LinearCall, LinearLayer
from workbench.hooks.taps.linear.linear_reading import head_outputs, linear_layers, reading_linear
from workbench.hooks.taps.linear.reach import Reach, decay_reach, measured_reach

__all__ = [
    "LinearCall",
    "LinearLayer",
    "Reach",
    "decay_reach",
    "head_outputs",
    "linear_layers",
    "measured_reach",
    "reading_linear",
]
