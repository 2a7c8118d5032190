"""The token ids that a probe may draw: ordinary tokens only, of any tokenizer, model or bare vocabulary size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from workbench.heads import WorkbenchError


@runtime_checkable
class HasVocabulary(Protocol):
    """A model as probes see it: its configuration, and its tokenizer if it has one (else None)."""

    @property
    def tokenizer(self) -> Any: ...

    @property
    def config(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`ids`: the ordinary tokens, ascending. `bos`: the token that starts a sequence, if there is one."""

    ids: Int[Tensor, " n_ids"]
    bos: int | None


def vocabulary(source: HasVocabulary | Vocabulary | int) -> Vocabulary:
    """The ordinary tokens of a model, or of a vocabulary given by its size.

    Left out are special and added tokens, byte-fallback tokens, and ids that the tokenizer does not know; of a model
    without a tokenizer, its beginning, end and padding tokens. Tokenizers order ids by merge rank, so the first and
    last hundredth, the most and least frequent tokens, are left out too.

    Raises:
        WorkbenchError: if fewer than two ordinary tokens remain.
    """
    if isinstance(source, Vocabulary):
        return source
    if isinstance(source, int):
        return _checked(list(range(source)), None)
    config = source.config.get_text_config()
    vocab_size = int(config.vocab_size)
    bos = getattr(config, "bos_token_id", None)
    bos = bos[0] if isinstance(bos, list) else bos
    bos = bos if isinstance(bos, int) and 0 <= bos < vocab_size else None
    if source.tokenizer is None:
        special = set()
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(config, name, None)
            special |= set(value) if isinstance(value, list) else {value}
        return _checked([i for i in range(vocab_size) if i not in special], bos)
    known: dict[str, int] = source.tokenizer.get_vocab()
    special = set(source.tokenizer.all_special_ids) | set(source.tokenizer.added_tokens_decoder)
    ids = sorted(i for token, i in known.items() if i < vocab_size and i not in special and not _is_byte(token))
    cut = len(ids) // 100
    return _checked(ids[cut : len(ids) - cut], bos)


def check_sizes(source: HasVocabulary | Vocabulary | int, *, length: object, **sizes: object) -> None:
    """Refuse sizes that are not whole numbers, and sequences longer than the model's context.

    Raises:
        WorkbenchError: if a size is not a whole number of at least 1, or `length` exceeds the model's positions.
    """
    for name, value in {"length": length, **sizes}.items():
        if not isinstance(value, int) or value < 1:
            raise WorkbenchError(f"{name} is {value!r}; expected a whole number of at least 1")
    longest = context(source)
    if longest is not None and isinstance(length, int) and length > longest:
        raise WorkbenchError(f"length {length} exceeds the {longest} positions of this model; pass length={longest}")


def check_context(source: HasVocabulary | Vocabulary | int, n_tokens: int, *, smaller: str) -> None:
    """Refuse sequences longer than the model's context. `smaller` names the arguments that determine `n_tokens`.

    Raises:
        WorkbenchError: if the model has fewer positions than `n_tokens`.
    """
    longest = context(source)
    if longest is not None and n_tokens > longest:
        raise WorkbenchError(
            f"{n_tokens} tokens exceed the {longest} positions of this model; pass a smaller {smaller}"
        )


def context(source: HasVocabulary | Vocabulary | int) -> int | None:
    """The model's number of positions; None where it is unbounded or unknown."""
    if isinstance(source, Vocabulary | int):
        return None
    return getattr(source.config.get_text_config(), "max_position_embeddings", None)


def tokens_left(length: int, n_needed: int, content: str) -> int:
    """`length` − `n_needed`, where `content` names the part of a sequence that needs tokens.

    Raises:
        WorkbenchError: if nothing remains.
    """
    if n_needed >= length:
        raise WorkbenchError(
            f"length {length} is too short: {content} take {n_needed} tokens; pass length > {n_needed}"
        )
    return length - n_needed


def draw(words: Vocabulary, shape: tuple[int, int], generator: torch.Generator, *, purpose: str) -> Int[Tensor, "b n"]:
    """Rows of ordinary tokens, all different within a row.

    Raises:
        WorkbenchError: if a row is longer than the vocabulary.
    """
    n_sequences, n = shape
    if n > len(words.ids):
        raise WorkbenchError(f"{purpose} needs {n} different tokens; the vocabulary has {len(words.ids)} ordinary ones")
    picks = [torch.randperm(len(words.ids), generator=generator)[:n] for _ in range(n_sequences)]
    return words.ids[torch.stack(picks)] if picks else torch.zeros(0, n, dtype=torch.long)


def draw_one(
    words: Vocabulary, n: int, rng: np.random.Generator, *, purpose: str
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " rest"]]:
    """`n` different ordinary tokens for one sequence, and all others as its filler.

    Raises:
        WorkbenchError: if not at least one other remains.
    """
    if n >= len(words.ids):
        raise WorkbenchError(
            f"{purpose}: needs {n} different tokens and one to fill with; "
            f"the vocabulary has {len(words.ids)} ordinary ones"
        )
    drawn, rest = np.split(rng.permutation(words.ids.numpy()), [n])
    return drawn, rest


def with_bos(words: Vocabulary, tokens: Int[Tensor, "b t"]) -> Int[Tensor, "b t2"]:
    """Put the beginning-of-sequence token first, where there is one."""
    if words.bos is None:
        return tokens
    return torch.cat([torch.full((len(tokens), 1), words.bos), tokens], 1)


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _checked(ids: list[int], bos: int | None) -> Vocabulary:
    if len(ids) < 2:
        raise WorkbenchError(f"the vocabulary has {len(ids)} ordinary tokens; a probe needs at least 2")
    return Vocabulary(torch.tensor(ids), bos)
