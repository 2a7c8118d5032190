"""The heads that detectors name are the heads that recall needs: give them a window and what lies beyond it is lost."""

from dataclasses import replace
from itertools import combinations

import pytest

from workbench.demo import DISTANCES, demo_probes
from workbench.detectors import score
from workbench.heads import KVHead
from workbench.hooks import open_model
from workbench.pretrain import pretrain_run, recipe

WINDOW = 16
NAMED = 0.4  # the threshold of induction heads; see docs/detectors.md
BEYOND = max(d for d in DISTANCES if d <= WINDOW)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("variant", ["full", "hybrid"])
def test_windows_on_the_heads_named_destroy_recall_and_on_others_do_not(tmp_path, variant, seed):
    trained = replace(recipe(variant, seed=seed), n_checkpoints=4)
    pretrain_run(trained, tmp_path)
    m = open_model(tmp_path / f"checkpoint-{trained.steps}")
    by_name = {p.name: p for p in demo_probes()}
    needles = by_name["copy_needle"]
    is_beyond = needles.classes > BEYOND

    def recall(heads):
        with m.restrict([KVHead(*head) for head in heads], WINDOW):
            return float(m.answers(needles).is_right[is_beyond].float().mean())

    everything = recall([])
    assert everything > 0.8
    for detector, probe in (("retrieval", needles), ("induction", by_name["repeats"])):
        table = score(m, [detector], probes=probe).sort_values("score", ascending=False)
        heads = list(zip(table["layer"], table["kv_head"], strict=True))
        k = max(2, int((table["score"] > NAMED).sum()))
        named, others = heads[:k], list(combinations(heads[k:], k))
        assert others
        recalls = [recall(some) for some in others]
        print(
            f"{variant} seed {seed} {detector}: {k} of {len(heads)} heads named; recall {everything:.2f}, without them "
            f"{recall(named):.2f}, without {k} others {min(recalls):.2f} to {max(recalls):.2f}"
        )
        assert recall(named) <= 0.2
        assert min(recalls) >= 0.7 * everything
