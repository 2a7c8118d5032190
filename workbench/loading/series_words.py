"""The words that all checkpoints of a series share: one tokenizer and one vocabulary, for probes that are the same.

A Trainer may save the tokenizer beside its last checkpoint only, or add a padding token half way. Probes made for each
checkpoint by itself would be other tokens, and their scores no curve.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from workbench.checkpoints import checkpoint_format
from workbench.checkpoints.configs import CONFIG, read_config
from workbench.checkpoints.gguf_headers import read_gguf_header
from workbench.checkpoints.own_files import refuse_foreign
from workbench.heads import BadCheckpoint, WorkbenchError, some_of
from workbench.loading.pretrained import load_config
from workbench.loading.quiet_transformers import quiet
from workbench.loading.tokenizer_files import (
    BESIDE_THEM,
    TOKENIZER_FILES,
    check_fit,
    has_tokenizer_files,
    load_tokenizer,
    open_tokenizer,
    tokenizer_folder,
)
from workbench.loading.tokenizers import ModelWords

_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")

Named = tuple[str, Path]


@dataclass(frozen=True, slots=True)
class SeriesWords:
    """Where the words of a series come from; can be pickled, so that every worker makes the same probes.

    `configs`: a checkpoint for each different configuration. `tokenizer`: where the one is that all share, None without
    one, and `no_tokenizer` then says why. `remarks`: sentences for the user.
    """

    configs: tuple[Path, ...]
    tokenizer: Path | str | None
    no_tokenizer: str
    remarks: tuple[str, ...]

    def words(self) -> ModelWords:
        """Configuration and tokenizer. `max_position_embeddings` is that of the checkpoint with the most.

        Raises:
            BadCheckpoint: if no checkpoint has a configuration that can be read.
        """
        configs = _configs(self.configs)
        if not configs:
            raise BadCheckpoint("no checkpoint has a config.json that describes a known model")
        tokenizer = None if self.tokenizer is None else _opened(self.tokenizer, _stamps(self.tokenizer))
        return ModelWords(_shared_config(configs), tokenizer, self.no_tokenizer)


@lru_cache(maxsize=1)
def _opened(source: Path | str, stamps: tuple[tuple[str, int, int], ...]) -> Any:  # noqa: ARG001  # a changed one is read anew
    """A tokenizer, which a scan needs several times; one of 262,144 words takes seconds to read."""
    return open_tokenizer(source)


def _stamps(source: Path | str) -> tuple[tuple[str, int, int], ...]:
    """Names, times and sizes of the files of a folder."""
    folder = Path(source)
    files = [file for file in sorted(folder.iterdir()) if file.is_file()] if folder.is_dir() else [folder]
    return tuple(
        (file.name, stat.st_mtime_ns, stat.st_size) for file in files if file.exists() and (stat := file.stat())
    )


def series_words(checkpoints: Sequence[Named], root: Path, tokenizer: Path | str | None) -> SeriesWords:
    """Find the words that checkpoints, given as (name, folder), share; `root` is the folder that they lie in.

    Without `tokenizer`, which the user named, it is the one that some or all have; tokenizers that differ in special
    and added tokens alone count as one, and the smallest is taken. Else it is the one in `root`.

    Raises:
        WorkbenchError: naming the checkpoints if their tokenizers differ in ordinary words, or if the tokenizer cannot
            be read or has words that a checkpoint does not have.
    """
    configs = _representatives(checkpoints, (CONFIG,))
    folders = tuple(path for path, _ in configs)
    vocab_size = min((int(c.get_text_config().vocab_size) for c in _configs(folders)), default=None)
    if tokenizer is not None:
        if vocab_size is not None:
            check_fit(open_tokenizer(tokenizer), vocab_size, name="these checkpoints")
        return SeriesWords(folders, tokenizer, "", (f"the tokenizer of {tokenizer} is used for all checkpoints",))
    own = [(name, path) for name, path in checkpoints if tokenizer_folder(path) == path]
    readable, reasons = _readable(own)
    above = _folder_above(checkpoints, root)
    if not readable and above is not None and above not in [path for _, path in own]:
        readable, of_root = _readable([(str(above), above)])
        reasons, own = [*reasons, *of_root], [] if readable else own
    fitting, misfits = _fitting(readable, vocab_size)
    if not fitting:
        reason = "; ".join([*reasons, *misfits]) or f"there are no tokenizer files in the checkpoints or in {root}"
        return SeriesWords(folders, None, reason, ())
    chosen = _smallest(fitting)
    if vocab_size is not None:
        check_fit(chosen.tokenizer, vocab_size, name="the checkpoint with the smallest one")
    remarks = [*reasons, *misfits, *_remarks(checkpoints, own, fitting, chosen)]
    return SeriesWords(folders, chosen.folder, "", tuple(remarks))


def _folder_above(checkpoints: Sequence[Named], root: Path) -> Path | None:
    """The folder with tokenizer files that the checkpoints lie in; None without."""
    if has_tokenizer_files(root):
        return root
    folders = [(path, tokenizer_folder(path)) for _, path in checkpoints]
    return next((folder for path, folder in folders if folder not in (None, path)), None)


@dataclass(frozen=True, slots=True)
class _Tokenizer:
    """A tokenizer, its folder, and the checkpoints that have these files."""

    tokenizer: Any
    folder: Path
    names: tuple[str, ...]


def _readable(own: Sequence[Named]) -> tuple[list[_Tokenizer], list[str]]:
    """The different tokenizers that can be read, and why others cannot."""
    tokenizers: list[_Tokenizer] = []
    reasons: list[str] = []
    for folder, names in _representatives(own, (*TOKENIZER_FILES, *BESIDE_THEM)):
        tokenizer, reason = load_tokenizer(folder)
        if tokenizer is None:
            more = f" (also {_some(names[1:])})" if len(names) > 1 else ""
            reasons.append(reason + more)
        else:
            tokenizers.append(_Tokenizer(tokenizer, folder, names))
    return tokenizers, reasons


def _fitting(tokenizers: Sequence[_Tokenizer], vocab_size: int | None) -> tuple[list[_Tokenizer], list[str]]:
    """The tokenizers whose words their own checkpoint has, and why others are none."""
    fitting: list[_Tokenizer] = []
    reasons: list[str] = []
    for each in tokenizers:
        own = _configs([each.folder])
        size = int(own[0].get_text_config().vocab_size) if own else vocab_size
        try:
            if size is not None:
                check_fit(each.tokenizer, size, name="the model")
            fitting.append(each)
        except WorkbenchError as error:
            reasons.append(f"{_some(each.names)}: {error}")
    return fitting, reasons


def _smallest(tokenizers: Sequence[_Tokenizer]) -> _Tokenizer:
    """The tokenizer with the fewest tokens, of those that spell alike.

    Raises:
        WorkbenchError: if they do not spell alike.
    """
    groups: dict[str, list[_Tokenizer]] = {}
    for each in tokenizers:
        groups.setdefault(_spelling(each.tokenizer), []).append(each)
    if len(groups) > 1:
        parts = [
            f"{_some([name for each in group for name in each.names])} ({len(group[0].tokenizer.get_vocab())} tokens)"
            for group in groups.values()
        ]
        raise WorkbenchError(
            f"the checkpoints have different tokenizers: {' and '.join(parts)}; a probe would be other tokens for "
            "some. Pass --tokenizer FOLDER (tokenizer=) to use one for all, or scan them into runs of their own, with "
            "skip = true for the others in series.toml"
        )
    return min(tokenizers, key=lambda each: len(each.tokenizer.get_vocab()))


def _spelling(tokenizer: Any) -> str:
    """A digest of how ordinary text becomes tokens: without special and added tokens, templates, and settings."""
    added = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", ()))
    words = sorted((i, word) for word, i in tokenizer.get_vocab().items() if i not in added)
    parts: list[Any] = [words]
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and hasattr(backend, "to_str"):
        described = json.loads(backend.to_str())
        model = {name: value for name, value in described["model"].items() if name != "vocab"}
        parts += [model, described.get("normalizer"), described.get("pre_tokenizer")]
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _remarks(
    checkpoints: Sequence[Named], own: Sequence[Named], fitting: Sequence[_Tokenizer], chosen: _Tokenizer
) -> list[str]:
    """What the user should know of the choice; nothing where every checkpoint has this very tokenizer."""
    if not own:
        return [f"the tokenizer in {chosen.folder} is used for all checkpoints: they have none of their own"]
    without = [name for name, _ in checkpoints if name not in {name for name, _ in own}]
    remarks: list[str] = []
    if without:
        remarks.append(f"{_some(without)}: no tokenizer files; the tokenizer of {chosen.names[0]} is used for all")
    if len(fitting) > 1:
        others = [name for each in fitting if each is not chosen for name in each.names]
        remarks.append(
            f"{_some(others)}: the tokenizer has other special tokens or settings than that of {chosen.names[0]}, "
            "which is used for all; ordinary words are the same"
        )
    return remarks


def _representatives(checkpoints: Sequence[Named], files: Sequence[str]) -> list[tuple[Path, tuple[str, ...]]]:
    """The first folder with each different content of these files, and the names of all that have it."""
    groups: dict[str, list[Named]] = {}
    for name, path in checkpoints:
        try:
            refuse_foreign(path)
            digest = hashlib.blake2b(_of_gguf(path, files), digest_size=16)
            for file in (path / file for file in files):
                digest.update(file.name.encode() + (file.read_bytes() if file.is_file() else b""))
        except (BadCheckpoint, OSError):  # the scan refuses such a checkpoint when it comes to it
            continue
        groups.setdefault(digest.hexdigest(), []).append((name, path))
    return [(group[0][1], tuple(name for name, _ in group)) for group in groups.values()]


def _of_gguf(path: Path, files: Sequence[str]) -> bytes:
    """What a GGUF model has in place of these files, its settings or its words; nothing for another checkpoint."""
    if checkpoint_format(path) != "gguf":
        return b""
    return repr(read_config(path)).encode() if CONFIG in files else read_gguf_header(path).words.encode()


def _configs(folders: Sequence[Path]) -> list[Any]:
    """The configurations that can be read."""
    configs: list[Any] = []
    for folder in folders:
        try:
            with quiet():
                configs.append(load_config(folder))
        except BadCheckpoint:
            continue
    return configs


def _shared_config(configs: Sequence[Any]) -> Any:
    """One configuration with the vocabulary that all have: its size, and every special token of any of them."""
    texts = [config.get_text_config() for config in configs]
    first = texts[0]
    names = ("vocab_size", "max_position_embeddings", *_SPECIAL)
    if all(getattr(text, name, None) == getattr(first, name, None) for text in texts for name in names):
        return configs[0]
    special = {name: [getattr(text, name, None) for text in texts] for name in _SPECIAL}
    bos = special["bos_token_id"]
    every = {
        i for values in special.values() for value in values for i in (value if isinstance(value, list) else [value])
    }
    longest = [getattr(text, "max_position_embeddings", None) for text in texts]
    return _SharedConfig(
        first,
        vocab_size=min(int(text.vocab_size) for text in texts),
        # A beginning that some do not know is none that all can share.
        bos_token_id=bos[0] if all(value == bos[0] for value in bos) else None,
        eos_token_id=sorted(i for i in every if isinstance(i, int)),
        max_position_embeddings=None if None in longest else max(filter(None, longest)),
    )


class _SharedConfig:
    """A configuration with some values replaced."""

    def __init__(self, config: Any, **values: Any) -> None:
        self._config = config
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> Any:
        if name == "_config":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self._config, name)

    def get_text_config(self) -> _SharedConfig:
        return self


def _some(names: Sequence[str]) -> str:
    return some_of(names, 3)
