"""Rows of scores over checkpoints -> when each head emerged, and since when a model's heads are what they are."""

from workbench.emergence.curves import HEAD, LINEAGE, Curves, curves_of
from workbench.emergence.half_rise import onsets
from workbench.emergence.tracing import VERDICTS, trace

__all__ = ["HEAD", "LINEAGE", "VERDICTS", "Curves", "curves_of", "onsets", "trace"]
