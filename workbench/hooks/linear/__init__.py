"""Linear and recurrent layers of every family behind one interface: implied patterns, head outputs, reach."""

from workbench.hooks.linear.layer import LinearCall, LinearLayer
from workbench.hooks.linear.reach import Reach, decay_reach, measured_reach
from workbench.hooks.linear.reading import head_outputs, linear_layers, reading_linear

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
