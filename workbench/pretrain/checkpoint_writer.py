"""Write a checkpoint: an ordinary Hugging Face directory that appears whole or not at all."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, TrainerState
from transformers.utils import logging as transformers_logging

from workbench.files.atomic import replacing_folder
from workbench.pretrain.recipes import Recipe
from workbench.pretrain.synthetic_language import N_RESERVED, Language

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def checkpoint_path(out: Path, step: int) -> Path:
    """The folder of a step's checkpoint."""
    return out / f"checkpoint-{step}"


def save_checkpoint(
    model: PreTrainedModel,
    recipe: Recipe,
    out: Path,
    *,
    step: int,
    log_history: list[dict[str, float]],
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> Path:
    """Write out/checkpoint-<step>: weights, configuration, tokenizer and trainer state.

    `tokenizer`: None is that of the synthetic language. An existing checkpoint stays, because the same recipe writes
    the same bytes.

    Raises:
        StoreNotWritable: if the disk is full or cannot be written.
    """
    path = checkpoint_path(out, step)
    if path.exists():
        return path
    with replacing_folder(path) as partial:
        with _without_progress_bars():
            model.save_pretrained(partial)
        (tokenizer or word_tokenizer(recipe.length)).save_pretrained(partial)
        _trainer_state(recipe, step, log_history).save_to_json(str(partial / "trainer_state.json"))
    return path


def word_tokenizer(length: int) -> PreTrainedTokenizerFast:
    """A tokenizer of words between spaces, `w00` to `w31`; it puts `<bos>` first and refuses other words."""
    language = Language()
    reserved = [f"<reserved{i}>" for i in range(1, N_RESERVED)]
    words = [f"w{i:02d}" for i in range(len(language.words))]
    tokens = ["<bos>", *reserved, *words]
    tokenizer = Tokenizer(WordLevel({token: i for i, token in enumerate(tokens)}))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", language.bos)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        additional_special_tokens=reserved,
        model_max_length=length,
    )


def _trainer_state(recipe: Recipe, step: int, log_history: list[dict[str, float]]) -> TrainerState:
    return TrainerState(
        epoch=step / recipe.steps,
        global_step=step,
        max_steps=recipe.steps,
        num_train_epochs=1,
        train_batch_size=recipe.batch,
        num_input_tokens_seen=step * recipe.tokens_per_step,
        log_history=log_history,
    )


@contextmanager
def _without_progress_bars() -> Generator[None]:
    """Keep save_pretrained from drawing one bar per checkpoint."""

    def silent(_factory: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return transformers_logging.EmptyTqdm(*args, **kwargs)

    previous = transformers_logging.set_tqdm_hook(silent)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(previous)
