"""Rows of scores over checkpoints -> when heads emerged, since when a model's heads are what they are. No torch.

A `Run` calls these with its own tables; they take any rows of the same columns. Definitions: docs/emergence.md.
"""

from workbench.emergence.across import aligned, compare, counts, same_heads
from workbench.emergence.agreeing import Agreement, agreement
from workbench.emergence.choosing import chosen_at
from workbench.emergence.curves import HEAD, LINEAGE, Curves, curves_of
from workbench.emergence.half_rise import onsets
from workbench.emergence.handing_over import handovers
from workbench.emergence.lineages import parents_of, with_past
from workbench.emergence.locking import lock_in
from workbench.emergence.matrices import rank_agreement
from workbench.emergence.model_level import align, icl_score, metric_by, phase_changes
from workbench.emergence.pairing import Matching, paired
from workbench.emergence.tracing import VERDICTS, trace
from workbench.emergence.wording import lock_in_sentence

__all__ = [
    "HEAD",
    "LINEAGE",
    "VERDICTS",
    "Agreement",
    "Curves",
    "Matching",
    "agreement",
    "align",
    "aligned",
    "chosen_at",
    "compare",
    "counts",
    "curves_of",
    "handovers",
    "icl_score",
    "lock_in",
    "lock_in_sentence",
    "metric_by",
    "onsets",
    "paired",
    "parents_of",
    "phase_changes",
    "rank_agreement",
    "same_heads",
    "trace",
    "with_past",
]
