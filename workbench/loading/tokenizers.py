"""A checkpoint's configuration and tokenizer without its weights, for probes: resuming a scan loads no model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.loading.pretrained import load_config, load_fitting
from workbench.loading.quiet_transformers import quiet


@dataclass(frozen=True, slots=True)
class ModelWords:
    """A checkpoint's configuration and tokenizer; None if it has none, and `no_tokenizer` then says why."""

    config: Any
    tokenizer: Any
    no_tokenizer: str = ""


def model_words(path: Path) -> ModelWords:
    """Read configuration and tokenizer of a checkpoint's folder, offline and without running any code in it.

    Raises:
        BadCheckpoint: if config.json is missing or describes no known model.
    """
    with quiet():
        config = load_config(path)
    return ModelWords(config, *load_fitting(path, config))
