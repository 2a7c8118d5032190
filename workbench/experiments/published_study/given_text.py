"""The text of a study: one part to judge models on, the rest to train on. Files of the user, or what Python carries.

<out>/text/held_out.txt   a megabyte of the documents, or half of them where there is less
<out>/text/trained.npy    the tokens of the others, up to eight million, made when something is trained

By default the documents are the pages of Python's documentation and the Python sources that are installed. They are
shuffled, always in the same way.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from workbench.files.atomic import replace_file, replacing_file
from workbench.heads import WorkbenchError
from workbench.hooks import HookedModel
from workbench.pretrain.corpus import python_sources, text_files
from workbench.probes.token_ids import beginning
from workbench.probes.token_inputs import encode

_HELD_OUT_BYTES = 1_000_000
_MOST_TOKENS = 8_000_000
_DIGEST = 16
# Documents that are tokenized together.
_TOGETHER = 64
PYTHON = "the documentation and sources that Python carries"


@dataclass(frozen=True, slots=True)
class GivenText:
    """`documents`: texts and files, in the order in which they are used; the first `n_held_out` are held out.

    `judged`: the held-out text, as its file has it.
    """

    title: str
    folder: Path
    documents: tuple[str | Path, ...]
    n_held_out: int
    judged: bytes

    @property
    def digest(self) -> str:
        """What identifies the text that is judged."""
        return hashlib.blake2b(self.judged, digest_size=_DIGEST).hexdigest()

    @property
    def held_out(self) -> Path:
        """The text file to judge on."""
        return self.folder / "held_out.txt"

    @property
    def tokens(self) -> Path:
        """The array of tokens to train on."""
        return self.folder / "trained.npy"


def given_text(path: Path | None, folder: Path) -> GivenText:
    """Choose the documents of a file or folder, None being Python's own; nothing is written.

    Raises:
        WorkbenchError: if there is no text.
    """
    title = PYTHON if path is None else str(path)
    documents: list[str | Path] = [*_pages(), *python_sources()] if path is None else [*text_files([path])]
    if len(documents) == 1:
        documents = [*_split(_content(documents[0]))]
    random.Random(0).shuffle(documents)
    texts: list[str] = []
    n_bytes, n_used = 0, 0
    for document in documents:
        if n_bytes >= _HELD_OUT_BYTES or (n_used and 2 * n_used >= len(documents)):
            break
        content = _content(document)
        n_used, n_bytes = n_used + 1, n_bytes + len(content.encode())
        texts += [content] if content else []
    if not texts:
        raise WorkbenchError(f"{title} holds no text in {len(documents)} files; pass files of UTF-8 text")
    return GivenText(title, folder, tuple(documents), n_used, "\n\n".join(texts).encode())


def write_held_out(text: GivenText) -> None:
    """Write the held-out text, unless it is there.

    Raises:
        WorkbenchError: if another text is there.
        StoreNotWritable: if the folder cannot be written.
    """
    if not text.held_out.exists():
        replace_file(text.held_out, text.judged)
    elif text.held_out.read_bytes() != text.judged:
        raise WorkbenchError(f"{text.folder} holds another text than {text.title} is now; pass another --out")


def write_tokens(text: GivenText, m: HookedModel, *, at_least: int) -> int:
    """Write the tokens to train on, unless they are there; returns how many there are.

    Raises:
        WorkbenchError: if the model has no tokenizer, or there are fewer tokens than `at_least`.
    """
    if not text.tokens.exists():
        if m.tokenizer is None:
            raise WorkbenchError(f"{m!r} has no tokenizer, and training takes text; pass --tokenizer")
        pieces: list[list[int]] = []
        n_tokens = 0
        for ids in _encoded(m.tokenizer, text.documents[text.n_held_out :]):
            pieces.append(ids)
            n_tokens += len(ids)
            if n_tokens >= _MOST_TOKENS:
                break
        tokens = np.concatenate([np.array(ids, dtype=np.int32) for ids in pieces] or [np.zeros(0, dtype=np.int32)])
        with replacing_file(text.tokens) as stream:
            np.save(stream, tokens[:_MOST_TOKENS])
    n_tokens = len(np.load(text.tokens, mmap_mode="r"))
    if n_tokens < at_least:
        raise WorkbenchError(
            f"{text.title} leaves {n_tokens:,} tokens to train on; expected {at_least:,} at least: pass more text"
        )
    return n_tokens


def training_batch(
    tokens: Int[np.ndarray, " n"], m: HookedModel, *, seed: int, step: int, shape: tuple[int, int]
) -> Int[Tensor, "b t"]:
    """The sequences of a step: windows from anywhere in the text, each behind the beginning that all probes have.

    The same step of the same seed has the same sequences, whatever is trained.
    """
    n_sequences, length = shape
    rng = np.random.default_rng([seed, step])
    starts = rng.integers(0, len(tokens) - length + 1, n_sequences)
    batch = torch.from_numpy(tokens[starts[:, None] + np.arange(length)].astype(np.int64))
    first = beginning(m)
    if first is not None:
        batch[:, 0] = first
    return batch


def _pages() -> list[str]:
    from pydoc_data.topics import topics

    return [topics[name].strip() for name in sorted(topics)]


def _split(content: str) -> Iterator[str]:
    """A single document in paragraphs, several together, so that a part can be held out."""
    paragraphs = [p for p in content.split("\n\n") if p.strip()]
    for i in range(0, len(paragraphs), 8):
        yield "\n\n".join(paragraphs[i : i + 8])


def _content(document: str | Path) -> str:
    """The text of a document; "" where it is no UTF-8."""
    if isinstance(document, str):
        return document
    try:
        return document.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        return ""
    except OSError as error:
        raise WorkbenchError(f"cannot read {document}: {error.strerror}") from error


def _encoded(tokenizer: Any, documents: Sequence[str | Path]) -> Iterator[list[int]]:
    for i in range(0, len(documents), _TOGETHER):
        for content in map(_content, documents[i : i + _TOGETHER]):
            if content:
                yield list(encode(tokenizer, content))
