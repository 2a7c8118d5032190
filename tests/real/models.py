"""Published models on this disk, each beside the same weights in plain transformers with eager attention."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

import workbench as wb
from workbench.hub.published_models import models_folder


@dataclass(frozen=True)
class Pair:
    """A model as the workbench opens it, and as plain transformers does."""

    folder: Path
    m: wb.HookedModel
    plain: Any

    def attentions(self, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Probabilities of every layer by transformers' eager attention."""
        with torch.no_grad():
            return self.plain(tokens, output_attentions=True).attentions


def folder_of(name: str) -> Path:
    folder = models_folder() / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not in {models_folder()}; `workbench get {name}` fetches it")
    return folder


@cache
def opened(name: str) -> Pair:
    folder = folder_of(name)
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", local_files_only=True)
    return Pair(folder, wb.open_model(folder), plain.eval())


def repeated(pair: Pair, n: int = 50, n_sequences: int = 3) -> torch.Tensor:
    """The probe `repeats`: twice the same n random tokens, after <bos> where the tokenizer has one."""
    return wb.probes.repeats(pair.m, n=n, n_sequences=n_sequences).tokens


def induction(pattern: torch.Tensor, tokens: list[int]) -> float:
    """The mean, over rows with an earlier occurrence of their token, of attention on what followed it there."""
    rows = []
    for i, token in enumerate(tokens):
        after = [j for j in range(1, i + 1) if tokens[j - 1] == token and j - 1 < i]
        if after:
            rows.append(sum(float(pattern[i, j]) for j in after))
    return sum(rows) / len(rows)


def previous_token(pattern: torch.Tensor, tokens: list[int]) -> float:
    """The mean attention on the token before."""
    return sum(float(pattern[i, i - 1]) for i in range(1, len(tokens))) / (len(tokens) - 1)


def sink(pattern: torch.Tensor, tokens: list[int]) -> float:
    """The mean attention on the first token."""
    return sum(float(pattern[i, 0]) for i in range(len(tokens))) / len(tokens)


MEASURES = {"induction": induction, "previous_token": previous_token, "sink": sink}
