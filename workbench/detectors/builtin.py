"""The detectors that come with the workbench; importing this registers them."""

from workbench.detectors import answers, matches, shape, sinks

__all__ = ["answers", "matches", "shape", "sinks"]
