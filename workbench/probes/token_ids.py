"""The token ids that a probe may draw: ordinary tokens only, of any tokenizer, model or bare vocabulary size."""

from __future__ import annotations

import warnings
import weakref
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from workbench.heads import WorkbenchError, brief

# Settings of a configuration whose model rotates queries and keys.
_ROTARY = (
    *("rope_parameters", "rope_scaling", "rope_theta", "rotary_dim", "rotary_emb_base"),
    *("partial_rotary_factor", "rotary_pct"),
)
# Models that look their rotations up in a table of max_position_embeddings rows.
_TABLE_OF_ROTATIONS = frozenset({"gptj", "codegen"})
# Models with max_position_embeddings that compute nothing from a position.
_WITHOUT_TABLE = frozenset({"bloom", "jamba", "kimi_linear", "nemotron_h", "zamba", "rwkv", "xlnet"})


# The configurations that a warning was given of, by subject and id: Python's own record of warnings is cleared by any
# `catch_warnings`, and a configuration has no hash.
_SAID: dict[tuple[str, int], weakref.ref[Any]] = {}
# The ordinary tokens of tokenizers, by id: finding them takes a second where there are 262,144.
_ORDINARY: dict[int, tuple[weakref.ref[Any], tuple[object, ...], Int[Tensor, " n_ids"]]] = {}


class BareTokens(UserWarning):
    """Probes are token ids drawn without words, because a tokenizer could not be read."""


class BeyondContext(UserWarning):
    """Sequences are longer than what a model's configuration names, and it can take them all the same."""


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

    def __repr__(self) -> str:
        return brief(self)


Source: TypeAlias = "HasVocabulary | Vocabulary | int"


@dataclass(frozen=True, slots=True)
class Beginning:
    """A model whose probes begin with the token `bos`, or with none, whatever its tokenizer says: `with_beginning`."""

    source: HasVocabulary
    bos: int | None

    @property
    def tokenizer(self) -> Any:
        """The model's."""
        return self.source.tokenizer

    @property
    def config(self) -> Any:
        """The model's."""
        return self.source.config

    @property
    def no_tokenizer(self) -> str:
        """Why the model has no tokenizer."""
        return getattr(self.source, "no_tokenizer", "")


def with_beginning(source: Source, bos: int | str | None) -> HasVocabulary | Vocabulary:
    """The same source of tokens, whose probes begin with another token than by the rule of `beginning`.

    Args:
        bos: a token's id; None or "none": sequences begin with no such token.

    Raises:
        WorkbenchError: if it is not an id of the vocabulary.
    """
    chosen = None if bos == "none" else bos
    size = None
    if not isinstance(source, Vocabulary):
        size = source if isinstance(source, int) else int(source.config.get_text_config().vocab_size)
    is_id = isinstance(chosen, int) and not isinstance(chosen, bool) and chosen >= 0 and (size is None or chosen < size)
    if chosen is not None and not is_id:
        among = "" if size is None else f" of the vocabulary 0 … {size - 1}"
        raise WorkbenchError(f"bos is {bos!r}; expected a token's id{among}, or none")
    token = None if chosen is None else int(chosen)
    if isinstance(source, Vocabulary | int):
        return replace(vocabulary(source), bos=token)
    return Beginning(source, token)


def beginning(source: Source) -> int | None:
    """The token that every probe's sequences begin with; None without one.

    It is the tokenizer's beginning-of-sequence token, else the configuration's if the vocabulary has it, whether the
    tokenizer puts it before a text by itself or not.

    Warns:
        UserWarning: once for a model whose configuration and tokenizer name different ones.
    """
    if isinstance(source, int):
        return None
    if isinstance(source, Vocabulary | Beginning):
        return source.bos
    return _beginning(source.config.get_text_config(), source.tokenizer)


def vocabulary(source: HasVocabulary | Vocabulary | int) -> Vocabulary:
    """The ordinary tokens of a model, or of a vocabulary given by its size.

    Left out are special and added tokens, byte-fallback tokens, and ids that the tokenizer does not know; of a model
    without a tokenizer, its beginning, end and padding tokens. Tokenizers order ids by merge rank, so the first and
    last hundredth, the most and least frequent tokens, are left out too. `bos` is that of `beginning`.

    Warns:
        UserWarning: where configuration and tokenizer name different beginning-of-sequence tokens.

    Raises:
        WorkbenchError: if fewer than two ordinary tokens remain.
    """
    if isinstance(source, Vocabulary):
        return source
    if isinstance(source, int):
        return _checked(list(range(source)), None)
    config = source.config.get_text_config()
    vocab_size, bos = int(config.vocab_size), beginning(source)
    if source.tokenizer is None:
        special: set[Any] = set()
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(config, name, None)
            special |= set(value) if isinstance(value, list) else {value}
        return _checked([i for i in range(vocab_size) if i not in special], bos)
    return Vocabulary(_ordinary(source.tokenizer, vocab_size), bos)


def why_no_tokenizer(source: Any) -> str:
    """The reason, to be put behind a message, why a model of a folder has no tokenizer; "" where none is known."""
    reason = getattr(source, "no_tokenizer", "")
    return f" ({reason})" if reason else ""


def check_sizes(source: HasVocabulary | Vocabulary | int, *, length: object, **sizes: object) -> None:
    """Refuse sizes that are not whole numbers, and sequences that a model cannot take; see `check_context`.

    Raises:
        WorkbenchError: if a size is not a whole number of at least 1, or `length` exceeds a model's table of positions.
    """
    for name, value in {"length": length, **sizes}.items():
        if not isinstance(value, int) or value < 1:
            raise WorkbenchError(f"{name} is {value!r}; expected a whole number of at least 1")
    if not isinstance(source, Vocabulary | int) and isinstance(length, int):
        check_positions(source.config.get_text_config(), length, next_step=f"pass length={context(source)}")


def check_context(source: HasVocabulary | Vocabulary | int, n_tokens: int, *, smaller: str) -> None:
    """Refuse sequences that a model cannot take. `smaller` names the arguments that determine `n_tokens`.

    Warns:
        BeyondContext: where the model can take them, and its rotary positions are not meant for so many.

    Raises:
        WorkbenchError: if the model has a table of fewer positions than `n_tokens`.
    """
    if isinstance(source, Vocabulary | int):
        return
    check_positions(source.config.get_text_config(), n_tokens, next_step=f"pass a smaller {smaller}")


def check_positions(config: Any, n_tokens: int, *, next_step: str) -> None:
    """As `check_context`, from a text configuration."""
    longest = getattr(config, "max_position_embeddings", None)
    kind = positions_of(config)
    if longest is None or n_tokens <= longest or kind == "relative":
        return
    if kind == "table":
        raise WorkbenchError(f"{n_tokens} tokens exceed the {longest} positions of this model; {next_step}")
    if _is_said("positions", config):
        return
    warnings.warn(
        f"sequences of {n_tokens} tokens are longer than the {longest} positions that the model's configuration names: "
        "its rotary positions go on, beyond what it was trained for",
        BeyondContext,
        stacklevel=3,
    )


def _is_said(subject: str, config: Any) -> bool:
    """Whether a warning of this configuration has been given; it counts as given from now on."""
    known = _SAID.get((subject, id(config)))
    if known is not None and known() is config:
        return True
    _SAID[subject, id(config)] = weakref.ref(config)
    return False


def positions_of(config: Any) -> Literal["table", "rotary", "relative"]:
    """How a model knows positions: from a table with an end, by rotation, or by distances alone or not at all."""
    model_type = getattr(config, "model_type", "")
    has_none = (
        getattr(config, "use_mem_rope", True) is False
    )  # Zamba2, whose configuration names rotations all the same
    if getattr(config, "alibi", False) or has_none or model_type in _WITHOUT_TABLE:
        return "relative"
    is_rotary = any(getattr(config, name, None) is not None for name in _ROTARY)
    return "rotary" if is_rotary and model_type not in _TABLE_OF_ROTATIONS else "table"


def context(source: HasVocabulary | Vocabulary | int) -> int | None:
    """The number of positions that the model's configuration names; None where it is unbounded or unknown."""
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


def _beginning(config: Any, tokenizer: Any) -> int | None:
    """The token that begins a sequence: the tokenizer's, else the configuration's; never one outside the vocabulary."""
    vocab_size = int(config.vocab_size)
    of_config, of_tokenizer = getattr(config, "bos_token_id", None), getattr(tokenizer, "bos_token_id", None)
    of_config = of_config[0] if isinstance(of_config, list) and of_config else of_config
    usable = [i for i in (of_tokenizer, of_config) if isinstance(i, int) and 0 <= i < vocab_size]
    bos = usable[0] if usable else None
    differ = tokenizer is not None and of_config is not None and of_config != of_tokenizer
    if differ and not _is_said("beginning", config):
        has_none = "the tokenizer has none" if of_tokenizer is None else f"the tokenizer's is {of_tokenizer}"
        chosen = "none" if bos is None else str(bos)
        warnings.warn(
            f"bos_token_id of the configuration is {of_config}, {has_none} (vocabulary 0 … {vocab_size - 1}): "
            f"sequences of probes begin with {chosen}",
            stacklevel=5,
        )
    return bos


def _ordinary(tokenizer: Any, vocab_size: int) -> Int[Tensor, " n_ids"]:
    """The ordinary tokens of a tokenizer below `vocab_size`, found once as long as it stays as it is."""
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    state = (vocab_size, len(tokenizer), frozenset(special))
    known = _ORDINARY.get(id(tokenizer))
    if known is not None and known[0]() is tokenizer and known[1] == state:
        return known[2]
    words: dict[str, int] = tokenizer.get_vocab()
    ids = sorted(i for token, i in words.items() if i < vocab_size and i not in special and not _is_byte(token))
    cut = len(ids) // 100
    ordinary = _checked(ids[cut : len(ids) - cut], None).ids
    key = id(tokenizer)
    _ORDINARY[key] = (weakref.ref(tokenizer, lambda _: _ORDINARY.pop(key, None)), state, ordinary)
    return ordinary


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _checked(ids: list[int], bos: int | None) -> Vocabulary:
    if len(ids) < 2:
        raise WorkbenchError(f"the vocabulary has {len(ids)} ordinary tokens; a probe needs at least 2")
    return Vocabulary(torch.tensor(ids), bos)
