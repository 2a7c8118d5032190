"""The tokenizer that a GGUF file holds, as transformers builds it; with or without <bos> as the file says.

A file names how its makers split text before merges (`tokenizer.ggml.pre`). Where transformers does not know that name,
it splits as GPT-2 does, and numbers or spaces become other tokens than in training. Such a tokenizer is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerFast

from workbench.checkpoints.gguf_headers import read_gguf_header
from workbench.heads import BadCheckpoint

_WORDS = "tokenizer.ggml.tokens"
# Ways to split text, by llama.cpp's names: as GPT-2 does, and so with single digits.
_AS_GPT2 = frozenset({"gpt-2", "phi-2", "mpt", "olmo"})
_SINGLE_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell"})


def has_gguf_words(path: Path) -> bool:
    """Whether a GGUF model has the words of a tokenizer in it; False for one that cannot be read."""
    try:
        return bool(read_gguf_header(path).settings.get(_WORDS))
    except (BadCheckpoint, OSError):
        return False


def gguf_tokenizer(path: Path) -> Any:
    """Build the tokenizer of a GGUF model.

    Raises:
        BadCheckpoint: if the file is damaged, or splits text in a way that is not known here.
        Exception: what transformers raises for a kind of tokenizer that it does not build.
    """
    from transformers.integrations.gguf.gguf_tokenizer_mapping import (
        GGUF_PRE_TOKENIZER_SPLITS,
        convert_gguf_tokenizer,
        get_gguf_tokenizer,
    )

    header = read_gguf_header(path)
    splitting = header.settings.get("tokenizer.ggml.pre")
    is_byte_level = header.settings.get("tokenizer.ggml.model") == "gpt2"
    if is_byte_level and splitting not in {*_AS_GPT2, *_SINGLE_DIGITS, *GGUF_PRE_TOKENIZER_SPLITS}:
        raise BadCheckpoint(
            f"it splits text as {splitting!r}, which transformers does not know; pass the tokenizer of the model's "
            "origin (tokenizer=, --tokenizer)"
        )
    architecture, words, options = get_gguf_tokenizer(str(header.files[0]))
    backend, _ = convert_gguf_tokenizer(architecture, words)
    if is_byte_level and splitting in _SINGLE_DIGITS:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **options)
