"""A checkpoint's configuration and tokenizer without its weights, for probes: resuming a scan loads no model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.checkpoints.own_files import refuse_foreign
from workbench.loading.pretrained import TOKENIZER_FILES, load_config, load_tokenizer, quiet


@dataclass(frozen=True, slots=True)
class ModelWords:
    """A checkpoint's configuration and tokenizer (None if it has none)."""

    config: Any
    tokenizer: Any


def model_words(path: Path) -> ModelWords:
    """Read configuration and tokenizer of a checkpoint's folder, offline and without running any code in it.

    Raises:
        BadCheckpoint: if config.json is missing or describes no known model.
    """
    with quiet():
        config = load_config(path)
        tokenizer, _ = load_tokenizer(path)
    return ModelWords(config, tokenizer)


def words_digest(path: Path) -> str:
    """Digest of the files that `model_words` reads; equal digests make equal probes, without loading a tokenizer."""
    refuse_foreign(path)
    digest = hashlib.blake2b(digest_size=16)
    for name in ("config.json", *TOKENIZER_FILES):
        file = path / name
        digest.update(name.encode() + (file.read_bytes() if file.is_file() else b""))
    return digest.hexdigest()
