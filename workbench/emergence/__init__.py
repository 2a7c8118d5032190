"""When heads emerge and since when they stay, from rows of scores over checkpoints; which heads one has. No torch.

A `Run` calls these functions with its own tables; they take any rows of the same columns. Definitions:
docs/emergence.md.
"""

from workbench.emergence.across_runs import aligned, compare, counts, same_heads
from workbench.emergence.checkpoint_pairs import Matching, paired, rank_agreement
from workbench.emergence.head_histories import VERDICTS, handovers, trace
from workbench.emergence.lineages import parents_of, with_past
from workbench.emergence.lock_in_table import lock_in, lock_in_sentence
from workbench.emergence.model_metrics import align, icl_score, metric_by, phase_changes
from workbench.emergence.model_summary import ModelSummary, summarise_model
from workbench.emergence.onset_definitions import onsets
from workbench.emergence.rank_statistics import Agreement, agreement, chosen_at
from workbench.emergence.right_answers import abilities
from workbench.emergence.score_curves import HEAD, LINEAGE, Curves, curves_of

__all__ = [
    "HEAD",
    "LINEAGE",
    "VERDICTS",
    "Agreement",
    "Curves",
    "Matching",
    "ModelSummary",
    "abilities",
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
    "summarise_model",
    "trace",
    "with_past",
]
