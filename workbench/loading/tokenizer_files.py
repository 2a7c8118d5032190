"""Read a tokenizer: a checkpoint's own, that of the Trainer's folder above it, or one that the user names.

A GGUF model's own is the one in its file. No code of a folder is run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import AutoTokenizer

from workbench.checkpoints import checkpoint_format, parse_name
from workbench.checkpoints.fetched_models import obtain_small_files
from workbench.checkpoints.hub_references import cached_files
from workbench.heads import WorkbenchError
from workbench.hub.hub_errors import is_offline
from workbench.hub.named_models import resolve_model
from workbench.hub.references import HubReference
from workbench.loading.gguf_words import gguf_tokenizer, has_gguf_words
from workbench.loading.quiet_transformers import quiet

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
)
# Files that change what those say.
BESIDE_THEM = ("merges.txt", "special_tokens_map.json", "added_tokens.json")

_NO_WORDS = "its files are damaged, or tokenizer.model needs `pip install sentencepiece`"


def has_tokenizer_files(folder: Path) -> bool:
    """Whether there are files of a tokenizer in a folder, readable or not."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def tokenizer_folder(checkpoint: Path) -> Path | None:
    """The folder of a checkpoint's tokenizer: its own, else the one above, where a Trainer writes it; None without.

    Of a GGUF model with words in it, the model itself.
    """
    if checkpoint_format(checkpoint) == "gguf":
        return checkpoint if has_gguf_words(checkpoint) else None
    if has_tokenizer_files(checkpoint):
        return checkpoint
    above = checkpoint.absolute().parent
    is_of_a_run = parse_name(checkpoint.absolute().name).gives_position
    return above if is_of_a_run and has_tokenizer_files(above) else None


def load_tokenizer(checkpoint: Path) -> tuple[Any, str]:
    """The tokenizer of a checkpoint's folder, or None and the reason why there is none.

    Attention can be scored without one.
    """
    folder = tokenizer_folder(checkpoint)
    if folder is None:
        return None, "there are no tokenizer files in the folder"
    try:
        tokenizer = _from_folder(folder)
    except Exception as error:  # the tokenizers library raises plain Exceptions; the reason is returned
        return None, f"the tokenizer in {folder} cannot be read: {_reason(error)}"
    if highest_word(tokenizer) < 0:  # transformers makes one of special tokens alone where a file is damaged
        return None, f"the tokenizer in {folder} cannot be read: it has no words; {_NO_WORDS}"
    return tokenizer, ""


def open_tokenizer(source: Any) -> Any:
    """A tokenizer that the user names: a folder, a tokenizer.json, the id of a model at a hub, or an object.

    That of a model which is not in the Hugging Face cache is fetched into it, without the model's weights.

    Raises:
        HubError: if the hub has no such model, does not show it, or cannot be reached.
        WorkbenchError: if it cannot be read, or is none.
    """
    if not isinstance(source, str | Path):
        return _checked_object(source)
    named = resolve_model(source)
    source = named if isinstance(named, Path) else _at_hub(named) or source
    path = Path(source).expanduser()
    is_gguf = path.exists() and checkpoint_format(path) == "gguf"
    if path.is_dir() and not is_gguf and not has_tokenizer_files(path):
        raise WorkbenchError(
            f"the tokenizer {path}: there are no tokenizer files in it; expected e.g. {', '.join(TOKENIZER_FILES[:3])}"
        )
    try:
        with quiet():
            if (
                path.is_file()
                and path.name == "tokenizer.json"
                and not (path.parent / "tokenizer_config.json").exists()
            ):
                return PreTrainedTokenizerFast(tokenizer_file=str(path))
            if path.is_file() and path.suffix == ".json" and path.name not in TOKENIZER_FILES:
                return PreTrainedTokenizerFast(tokenizer_file=str(path))
            is_file_of_folder = path.is_file() and not is_gguf
            tokenizer = _from_folder(path.parent if is_file_of_folder else path if path.exists() else str(source))
            if highest_word(tokenizer) < 0:
                raise ValueError(f"it has no words; {_NO_WORDS}")
            return tokenizer
    except Exception as error:  # as above
        place = "" if path.exists() else ", which is neither a folder nor a model in the hub's cache,"
        raise WorkbenchError(
            f"the tokenizer {source}{place} cannot be read: {_reason(error)}; pass the folder of one, with a "
            "tokenizer.json"
        ) from error


def _at_hub(reference: HubReference) -> Path | None:
    """The folder of a tokenizer that the id of a model names; None where no hub may be asked."""
    if reference.is_glob:
        return None
    folder = cached_files(reference)
    if folder is not None and has_tokenizer_files(folder):
        return folder
    return None if is_offline() else obtain_small_files(reference)


def check_fit(tokenizer: Any, vocab_size: int, *, name: str) -> None:
    """Refuse a tokenizer whose words a model does not have. Special and added tokens may lie outside.

    Raises:
        WorkbenchError: if an ordinary token's id is not below `vocab_size`; `name` says whose vocabulary that is.
    """
    highest = highest_word(tokenizer)
    if highest >= vocab_size:
        raise WorkbenchError(
            f"the tokenizer has words up to id {highest}, and the vocabulary of {name} is 0 … {vocab_size - 1}; pass "
            "the tokenizer that the model was trained with"
        )


def highest_word(tokenizer: Any) -> int:
    """The highest id of an ordinary token; -1 without one. Special and added tokens do not count."""
    added = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", ()))
    return max((i for i in tokenizer.get_vocab().values() if i not in added), default=-1)


def _from_folder(source: Path | str) -> Any:
    with quiet():
        if isinstance(source, Path) and checkpoint_format(source) == "gguf":
            return gguf_tokenizer(source)
        return AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)


def _checked_object(tokenizer: Any) -> Any:
    if type(tokenizer).__module__.partition(".")[0] == "tokenizers":
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    if callable(tokenizer) and all(hasattr(tokenizer, name) for name in ("get_vocab", "decode", "all_special_ids")):
        return tokenizer
    raise WorkbenchError(
        f"tokenizer is a {type(tokenizer).__name__}; expected the folder of one, or a transformers or tokenizers object"
    )


def _reason(error: Exception) -> str:
    """The first lines of a message that may run to pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])[:400]}"
