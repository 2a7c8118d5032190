"""The detectors that come with the workbench; importing this registers them."""

from workbench.detectors import answers, circuits, matches, shape, sinks

__all__ = ["answers", "circuits", "matches", "shape", "sinks"]
