"""What a run trains on, step by step: documents of the synthetic language, or windows of a corpus.

Step s trains on the same tokens whether or not the run was interrupted before it. Windows of text begin with the
beginning-of-sequence token, in the place of their first: at random places of the whole corpus (`packed`), where a
window may run over the end of a document, or at random places within documents that are long enough (`plain`).
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
from workbench.pretrain.language import Language
from workbench.pretrain.recipes import Recipe
from workbench.pretrain.variants import BOS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Material:
    """A recipe with the text it names: its batches, and the tokenizer that wrote them.

    Raises:
        WorkbenchError: if the corpus is missing, another one, too short for one window, or of more tokens than the
            model has.
    """

    def __init__(self, recipe: Recipe, corpus: Corpus | None) -> None:
        digest = "" if corpus is None else corpus.digest
        if digest != recipe.corpus:
            raise WorkbenchError(f"the recipe trains on {_said(recipe.corpus)}, and was given {_said(digest)}")
        self.recipe = recipe
        self.corpus = corpus
        if corpus is not None:
            self._places = _places(recipe, corpus)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """What turns text into the tokens of this material."""
        return word_tokenizer(self.recipe.length) if self.corpus is None else self.corpus.tokenizer(self.recipe.length)

    def batches(self, first: int) -> Iterator[Int[Tensor, "b t"]]:
        """The training batches from step `first` on."""
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
            starts = self._places[rng.integers(0, len(self._places), recipe.batch)]
            tokens = corpus.tokens[starts[:, None] + np.arange(recipe.length)].astype(np.int64)
            tokens[:, 0] = BOS
            yield torch.from_numpy(tokens)


def _places(recipe: Recipe, corpus: Corpus) -> Int[np.ndarray, " n"]:
    """Where a window may begin."""
    length, n_tokens = recipe.length, len(corpus.tokens)
    if corpus.vocabulary > recipe.dimensions.vocabulary:
        raise WorkbenchError(
            f"the corpus has {corpus.vocabulary} different tokens and the model {recipe.dimensions.vocabulary}; "
            "give the shape a vocabulary of that size"
        )
    if recipe.windows == "packed":
        places = np.arange(max(0, n_tokens - length + 1))
    else:
        ends = np.append(corpus.starts[1:], n_tokens)
        places = np.concatenate(
            [np.arange(s, e - length + 1) for s, e in zip(corpus.starts, ends, strict=True) if e - s >= length]
            or [np.zeros(0, dtype=np.int64)]
        )
    if not len(places):
        raise WorkbenchError(
            f"the text is too small: {n_tokens} tokens in {len(corpus.starts)} documents hold no {recipe.windows} "
            f"window of {length} tokens; give more text or a smaller length"
        )
    return places


def _said(digest: str) -> str:
    return f"the corpus {digest}" if digest else "the synthetic language"
