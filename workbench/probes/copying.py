"""Probes of copying: repeated random tokens, a needle of eight words copied at a chosen distance, one pair."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Int
from torch import Tensor

from workbench.heads import WorkbenchError
from workbench.probes.known_answers import Probe, looked_up, make_probe
from workbench.probes.registry import build, probe
from workbench.probes.token_ids import (
    BareTokens,
    HasVocabulary,
    Vocabulary,
    check_context,
    check_sizes,
    context,
    draw,
    draw_one,
    vocabulary,
    why_no_tokenizer,
    with_bos,
)

NEEDLE = 8
# Of the copy, the rows that follow enough of it to identify the needle and still have a next word.
_ANSWERING = (3, 4, 5, 6)


@probe("repeats")
def repeats(
    source: HasVocabulary | Vocabulary | int,
    *,
    n: int = 50,
    copies: int = 2,
    n_sequences: int = 20,
    seed: int = 0,
    name: str = "repeats",
) -> Probe:
    """`copies` copies of `n` random tokens, all different within a copy, after the beginning-of-sequence token.

    Answers: every token of the later copies but the first of the second copy, which cannot be predicted. Target cells:
    the same token one copy earlier. Classes: n, the distance between a token and its copy.

    Raises:
        WorkbenchError: if the vocabulary has fewer than n ordinary tokens, copies < 2, or n × copies tokens exceed the
            model's context.
    """
    if copies < 2:
        raise WorkbenchError(f"copies is {copies}; expected at least 2")
    words = vocabulary(source)
    generator = torch.Generator().manual_seed(seed)
    once = draw(words, (n_sequences, n), generator, purpose=f"a repeat of n = {n}")
    check_context(source, copies * n + (words.bos is not None), smaller="n or fewer copies")
    tokens = with_bos(words, repeat(once, "b n -> b (c n)", c=copies))
    first = tokens.shape[1] - (copies - 1) * n
    rows = torch.arange(first, tokens.shape[1] - 1)
    return _copying(name, tokens, repeat(rows, "r -> b r", b=n_sequences), n)


@probe("copy_needle")
def copy_needle(  # noqa: PLR0913  (keywords of job files)
    source: HasVocabulary | Vocabulary | int,
    distance: int | Sequence[int] = 32,
    *,
    length: int | None = None,
    n_sequences: int = 20,
    filler: Int[Tensor, "b t"] | None = None,
    seed: int = 0,
    name: str = "copy_needle",
) -> Probe:
    """Eight random words in filler, and a copy of them at the end.

    Answers: the words after positions 3 to 6 of the copy. `distance` is from each word of the copy to the same word of
    the needle, so that the source of an answer lies distance − 1 tokens behind its row. Each of several distances has
    `n_sequences` sequences.

    Args:
        length: tokens per sequence; default: the largest distance and half as much again, at least 24.
        filler: sequences to write needle and copy into, beginning-of-sequence token included; default: random words.

    Raises:
        WorkbenchError: if a distance leaves no room for the needle, filler has the wrong number of sequences, or the
            sequences exceed the model's context.
    """
    distances = [distance] if isinstance(distance, int) else list(distance)
    words = vocabulary(source)
    generator = torch.Generator().manual_seed(seed)
    total = n_sequences * len(distances)
    if filler is None:
        length = length or max(24, max(distances) * 3 // 2, max(distances) + NEEDLE + 1)
        n_filler = length - (words.bos is not None)
        picks = torch.randint(len(words.ids), (total, n_filler), generator=generator)
        filler = with_bos(words, words.ids[picks])
    if len(filler) != total:
        raise WorkbenchError(f"filler has {len(filler)} sequences; expected {n_sequences} for each distance: {total}")
    t = filler.shape[1]
    check_context(source, t, smaller="distance or length")
    start = t - NEEDLE
    for d in distances:
        if not NEEDLE <= d <= start - 1:
            raise WorkbenchError(
                f"distance {d} does not fit: expected {NEEDLE} to {start - 1} in sequences of {t} tokens; pass length="
            )
    needle = draw(words, (total, NEEDLE), generator, purpose=f"a needle of {NEEDLE} words")
    each = repeat(torch.tensor(distances), "d -> (d n)", n=n_sequences)
    tokens = filler.clone()
    tokens[torch.arange(total)[:, None], start - each[:, None] + torch.arange(NEEDLE)] = needle
    tokens[:, start:] = needle
    rows = repeat(start + torch.tensor(_ANSWERING), "r -> b r", b=total)
    return _copying(name, tokens, rows, each)


@probe("abfill")
def abfill(
    source: HasVocabulary | Vocabulary | int,
    *,
    length: int = 257,
    n_sequences: int = 200,
    seed: int = 0,
    name: str = "abfill",
) -> Probe:
    """Filler, A, B, filler, A, B: the shortest induction task, at a random distance.

    A and B stand nowhere else. Answer: the B that ends the sequence, so that `length` = 257 is the 256 tokens of the
    source and the answer; the source has 2000 sequences. Target cells: the first B. Classes: the distance from the last
    A to it, rounded down to a power of two.

    Raises:
        WorkbenchError: if the length exceeds the model's context or is below 6, or the vocabulary has fewer than 3
            ordinary tokens.

    Reference:
        The spectral-probe repository of skydancerosel, its `ABfill` input; there the ids are 100 to 10000.
    """
    check_sizes(source, length=length, n_sequences=n_sequences)
    if length < 6:
        raise WorkbenchError(f"length is {length}; filler, A, B, filler, A and B take at least 6 tokens")
    words = vocabulary(source)
    start = int(words.bos is not None)
    tokens = np.empty((n_sequences, length), dtype=np.int64)
    first = np.empty(n_sequences, dtype=np.int64)  # positions of A
    for i, sequence in enumerate(tokens):
        rng = np.random.default_rng([seed, i])
        pair, filler = draw_one(words, 2, rng, purpose="a pair")
        sequence[:] = filler[rng.integers(len(filler), size=length)]
        sequence[:start] = 0 if words.bos is None else words.bos
        first[i] = rng.integers(start, length - 4)
        sequence[first[i] : first[i] + 2] = sequence[-2:] = pair
    row = np.full(n_sequences, length - 2)
    cells = torch.from_numpy(np.stack([np.arange(n_sequences), row, first + 1], -1))
    return looked_up(name, torch.from_numpy(tokens), cells, metric="copy_accuracy")


def default(source: HasVocabulary) -> list[Probe]:
    """Repeated random tokens, and needles copied over 16, 32 and 64 tokens, as far as vocabulary and context allow.

    Warns:
        BareTokens: where the tokenizer of a checkpoint's folder could not be read.

    Raises:
        WorkbenchError: if none of them fits.
    """
    if source.tokenizer is None and (reason := why_no_tokenizer(source)):
        warnings.warn(f"default probes are token ids drawn without words{reason}", BareTokens, stacklevel=2)
    return [build(source, written) for written in written_default(source)]


def written_default(source: HasVocabulary) -> list[str]:
    """The probes of `default` in the notation of `build`.

    Raises:
        WorkbenchError: if none of them fits.
    """
    words = vocabulary(source)
    longest = context(source) or 1 << 20
    n = min(50, len(words.ids), (longest - 1) // 2)
    distances = [d for d in (16, 32, 64) if d + NEEDLE + 2 <= longest]
    written = [f"repeats:n={n}"] if n >= 2 else []
    if distances and len(words.ids) >= NEEDLE:
        written.append(f"copy_needle:distance={'+'.join(map(str, distances))},length={min(longest, 96)}")
    if not written:
        raise WorkbenchError(
            f"no default probe fits {len(words.ids)} ordinary tokens and {longest} positions; pass probes="
        )
    return written


def _copying(name: str, tokens: Int[Tensor, "b t"], rows: Int[Tensor, "b r"], period: int | Tensor) -> Probe:
    """Rows whose answer stands `period` tokens before the answer itself."""
    n_sequences, n_rows = rows.shape
    period = torch.as_tensor(period).expand(n_sequences)
    sequence = repeat(torch.arange(n_sequences), "b -> (b r)", r=n_rows)
    row = rearrange(rows, "b r -> (b r)")
    back = period[sequence]
    return make_probe(
        name,
        tokens,
        answer_rows=torch.stack([sequence, row], -1),
        target_cells=torch.stack([sequence, row, row + 1 - back], -1),
        classes=back,
        metric="copy_accuracy",
    )
