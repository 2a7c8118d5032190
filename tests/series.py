"""A small directory of real checkpoints: one tiny model, its weights nudged from step to step."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch

from tests.families import tiny

STEPS = (0, 2, 16, 100)


def write_series(directory: Path, family: str = "cwm", steps=STEPS) -> Path:
    """Write `checkpoint-N` folders as transformers' Trainer does; returns the directory."""
    model = copy.deepcopy(tiny(family))
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        folder = directory / f"checkpoint-{step}"
        model.save_pretrained(folder)
        state = {"global_step": step, "num_input_tokens_seen": step * 2048, "log_history": []}
        (folder / "trainer_state.json").write_text(json.dumps(state))
    return directory
