"""The detectors that come with the workbench; importing this registers them."""

from workbench.detectors import answers, circuits, ladder, matches, shape, sinks, values

__all__ = ["answers", "circuits", "ladder", "matches", "shape", "sinks", "values"]
