"""The batches of a run, step by step: documents of the synthetic language, or windows of a corpus.

Step s has the same tokens in every call, so that a run can be resumed. The first token of a text window is replaced by
the beginning-of-sequence token. `packed` windows start anywhere in the corpus and may cross the end of a document;
`plain` windows lie within one document.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from workbench.heads import WorkbenchError
from workbench.pretrain.checkpoint_writer import word_tokenizer
from workbench.pretrain.corpus import Corpus
from workbench.pretrain.recipes import Recipe
from workbench.pretrain.synthetic_language import Language
from workbench.pretrain.variants import BOS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class TrainingBatches:
    """The batches of a recipe and its text, and the tokenizer of their tokens.

    Raises:
        WorkbenchError: if the corpus is missing, not the recipe's, too short for one window, or has more different
            tokens than the model.
    """

    def __init__(self, recipe: Recipe, corpus: Corpus | None) -> None:
        digest = "" if corpus is None else corpus.digest
        if digest != recipe.corpus:
            raise WorkbenchError(
                f"the recipe trains on {_data_name(recipe.corpus)}, and was given {_data_name(digest)}"
            )
        self.recipe = recipe
        self.corpus = corpus
        if corpus is not None:
            self._starts = _window_starts(recipe, corpus)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer that a checkpoint of this run needs."""
        return word_tokenizer(self.recipe.length) if self.corpus is None else self.corpus.tokenizer(self.recipe.length)

    def batches(self, first: int) -> Iterator[Int[Tensor, "b t"]]:
        """The batches from step `first` on."""
        return self._documents(first) if self.corpus is None else self._windows(self.corpus, first)

    def _documents(self, first: int) -> Iterator[Int[Tensor, "b t"]]:
        recipe = self.recipe
        rng = np.random.default_rng(1 + recipe.seed)
        documents = Language().documents(recipe.batch * recipe.steps, recipe.length, rng)
        yield from rearrange(torch.from_numpy(documents), "(step b) t -> step b t", b=recipe.batch)[first:]

    def _windows(self, corpus: Corpus, first: int) -> Iterator[Int[Tensor, "b t"]]:
        recipe = self.recipe
        for step in range(first, recipe.steps):
            rng = np.random.default_rng([1 + recipe.seed, step])
            starts = self._starts[rng.integers(0, len(self._starts), recipe.batch)]
            tokens = corpus.tokens[starts[:, None] + np.arange(recipe.length)].astype(np.int64)
            tokens[:, 0] = BOS
            yield torch.from_numpy(tokens)


def _window_starts(recipe: Recipe, corpus: Corpus) -> Int[np.ndarray, " n"]:
    """The indices at which a window can begin."""
    length, n_tokens = recipe.length, len(corpus.tokens)
    if corpus.vocabulary > recipe.dimensions.vocabulary:
        raise WorkbenchError(
            f"the corpus has {corpus.vocabulary} different tokens and the model {recipe.dimensions.vocabulary}; "
            "give the shape a vocabulary of that size"
        )
    if recipe.windows == "packed":
        starts = np.arange(max(0, n_tokens - length + 1))
    else:
        ends = np.append(corpus.starts[1:], n_tokens)
        starts = np.concatenate(
            [np.arange(s, e - length + 1) for s, e in zip(corpus.starts, ends, strict=True) if e - s >= length]
            or [np.zeros(0, dtype=np.int64)]
        )
    if not len(starts):
        raise WorkbenchError(
            f"the text is too small: {n_tokens} tokens in {len(corpus.starts)} documents hold no {recipe.windows} "
            f"window of {length} tokens; give more text or a smaller length"
        )
    return starts


def _data_name(digest: str) -> str:
    return f"the corpus {digest}" if digest else "the synthetic language"
