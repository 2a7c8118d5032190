"""Continued pretraining of an arm, which may stop after any step and goes on to the same bytes.

AdamW (β = 0.9, 0.95, no weight decay), gradients clipped to norm 1, one sequence at a time; the rate rises over the
first steps and is constant then, so that 50 steps are the first 50 of 200. Step s of a seed has the same sequences in
every arm. Weights, both moments and the losses are saved together, in one file, after every so many seconds and
when a number of steps that is measured is reached; steps since then are repeated after a crash, with the same result.

Training takes one thread: sums in another order have other last digits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from workbench.experiments.published_study.given_text import training_batch
from workbench.experiments.published_study.published_settings import Pretraining
from workbench.files.atomic import replacing_file
from workbench.hooks import HookedModel
from workbench.pretrain.training import next_token_loss

# A crash loses no more than this, beside the step that is under way.
_SAVED_EVERY_S = 300.0
BETAS = (0.9, 0.95)


@dataclass(slots=True)
class TrainedModel:
    """A model in training, with its optimiser and the loss before each finished step, in nats."""

    m: HookedModel
    training: Pretraining
    optimiser: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)

    @property
    def step(self) -> int:
        """The finished steps."""
        return len(self.losses)


def begun(m: HookedModel, training: Pretraining, path: Path) -> TrainedModel:
    """A model before its first step, or as it was saved. Its weights change in place."""
    weights = [p for p in m.model.parameters() if p.is_floating_point()]
    for p in weights:
        p.requires_grad_(True)
    optimiser = torch.optim.AdamW(weights, lr=training.rate, betas=BETAS, weight_decay=0.0)
    trained = TrainedModel(m, training, optimiser)
    if path.exists():
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        m.model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        trained.losses = state["losses"]
    return trained


def save(trained: TrainedModel, path: Path) -> None:
    """Save all that training goes on from."""
    state = {
        "model": trained.m.model.state_dict(),
        "optimiser": trained.optimiser.state_dict(),
        "losses": trained.losses,
    }
    with replacing_file(path) as stream:
        torch.save(state, stream)


def train_until(  # what is trained, until when, on what, and where it is saved
    trained: TrainedModel,
    tokens: Int[np.ndarray, " n"],
    path: Path,
    *,
    seed: int,
    steps: int,
    is_over: Callable[[], bool] = lambda: False,
) -> bool:
    """Train up to a number of steps, under the interventions in force; returns whether they are all done.

    `is_over`: asked after every step; where it says so, the state is saved and training stops.
    """
    saved_at = time.monotonic()
    while trained.step < steps:
        trained.losses.append(_update(trained, tokens, seed))
        if trained.step == steps:
            break
        if is_over():
            save(trained, path)
            return False
        if time.monotonic() - saved_at > _SAVED_EVERY_S:
            save(trained, path)
            saved_at = time.monotonic()
    save(trained, path)
    return True


def _update(trained: TrainedModel, tokens: Int[np.ndarray, " n"], seed: int) -> float:
    """Do one update; returns the loss before it."""
    training, model = trained.training, trained.m.model
    for group in trained.optimiser.param_groups:
        group["lr"] = training.rate_at(trained.step)
    shape = (training.n_sequences, training.length)
    batch = training_batch(tokens, trained.m, seed=seed, step=trained.step, shape=shape)
    total = 0.0
    for sequence in batch:
        loss = next_token_loss(model(input_ids=sequence[None], use_cache=False).logits.float(), sequence[None])
        (loss / len(batch)).backward()
        total += loss.item() / len(batch)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    trained.optimiser.step()
    trained.optimiser.zero_grad(set_to_none=True)
    return total
