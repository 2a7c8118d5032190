"""Rows of scores over checkpoints -> when heads emerged, since when a model's heads are what they are. No torch.

A `Run` calls these with its own tables; they take any rows of the same columns. Definitions: docs/emergence.md.
"""

from workbench.emergence.across_runs import aligned, compare, counts, same_heads
from workbench.emergence.agreement_matrix import rank_agreement
from workbench.emergence.early_heads import chosen_at
from workbench.emergence.half_rise import onsets
from workbench.emergence.hand_over import handovers
from workbench.emergence.head_histories import VERDICTS, trace
from workbench.emergence.head_pairs import Matching, paired
from workbench.emergence.lineages import parents_of, with_past
from workbench.emergence.lock_in_table import lock_in
from workbench.emergence.model_metrics import align, icl_score, metric_by, phase_changes
from workbench.emergence.rank_statistics import Agreement, agreement
from workbench.emergence.score_curves import HEAD, LINEAGE, Curves, curves_of
from workbench.emergence.sentences import lock_in_sentence

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
