"""Small, real pretraining runs: four attention variants that form induction heads in seconds of one CPU core.

The default models have 120,000 to 190,000 parameters and train on a synthetic language of 32 words that copies from
itself. Step counts are tuned to that language and not typical of others. The optimiser (Muon) and the initialisation
(zero output projections) are required: with AdamW or the usual small initialisation, induction does not form within
these budgets. In these models the heads that retrieve a needle are the induction heads: one population, not two.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.pretrain.corpus import Corpus, prepare_corpus, python_sources
    from workbench.pretrain.recipes import VARIANTS, Recipe, Shape, recipe, text_recipe
    from workbench.pretrain.synthetic_language import Language
    from workbench.pretrain.training import TrainingProgress, pretrain_run

__all__ = [
    "VARIANTS",
    "Corpus",
    "Language",
    "Recipe",
    "Shape",
    "TrainingProgress",
    "prepare_corpus",
    "pretrain_run",
    "python_sources",
    "recipe",
    "text_recipe",
]

_HOME = {
    "Corpus": "corpus",
    "prepare_corpus": "corpus",
    "python_sources": "corpus",
    "Language": "synthetic_language",
    "Recipe": "recipes",
    "Shape": "recipes",
    "text_recipe": "recipes",
    "VARIANTS": "recipes",
    "recipe": "recipes",
    "TrainingProgress": "training",
    "pretrain_run": "training",
}


def __getattr__(name: str) -> Any:
    # Importing torch and transformers takes seconds, and reading a recipe or the language must not.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
