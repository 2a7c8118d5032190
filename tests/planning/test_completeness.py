"""On really trained models the gates account for the whole loss of windowing: the quick demo's, at its last step."""

from pathlib import Path

import numpy as np
import pytest
import torch

from workbench import open_model, window_gates
from workbench.planning import Game
from workbench.pretrain import Language
from workbench.probes import Vocabulary, copy_needle

DISTANCES = (24, 32, 40)


def last_checkpoint(folder: Path) -> Path:
    return max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def needles():
    language = Language()
    filler = language.backbone(8 * len(DISTANCES), 64, np.random.default_rng(5))
    words = Vocabulary(torch.tensor(language.words), bos=language.bos)
    return copy_needle(words, DISTANCES, n_sequences=8, filler=torch.from_numpy(filler))


@pytest.mark.parametrize("variant", ["full", "sliding"])
@pytest.mark.parametrize("objective", ["loss", "kl"])
def test_the_worth_of_all_heads_is_the_loss_of_windowing_them_within_two_percent(demo, variant, objective):
    m, probe = open_model(last_checkpoint(demo / "checkpoints" / variant)), needles()
    found = window_gates(m, probe, 8, nodes=8, objective=objective)
    game = Game(m, probe, 8, objective=objective)
    gap = float((game.nats(game.heads) - game.nats()).mean())
    assert found.windowed - found.full == pytest.approx(gap, abs=1e-5)
    assert found.completeness_error < 0.02
    assert abs(found.scores.sum() - gap) < 0.02 * abs(gap)
    assert variant != "full" or gap > 1
