"""Key-value recall: pairs first, queries later; the answer to a key is the value that followed it.

Reference:
    Arora et al. 2023, Zoology: multi-query associative recall and its power law of gaps.
"""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange, repeat

from workbench.heads import WorkbenchError
from workbench.probes.known_answers import Probe, looked_up, make_probe
from workbench.probes.registry import probe
from workbench.probes.token_ids import HasVocabulary, Vocabulary, check_context, check_sizes, vocabulary, with_bos


@probe("key_value")
def key_value(  # noqa: PLR0913  (keywords of job files)
    source: HasVocabulary | Vocabulary | int,
    *,
    n_pairs: int = 16,
    n_queries: int = 4,
    gap: int = 16,
    n_sequences: int = 20,
    seed: int = 0,
    name: str = "key_value",
) -> Probe:
    """`n_pairs` pairs of key and value, `gap` tokens of filler, then `n_queries` of the keys, each with its value.

    Keys come from the first half of the ordinary tokens, values and filler from the second; keys are all different.
    Answers: the values after the queried keys. Target cells: the values of the pairs. Classes: the distance from the
    queried key to that value.

    Raises:
        WorkbenchError: if there are fewer keys than pairs, more queries than pairs, or the sequences exceed the model's
            context.
    """
    if n_queries > n_pairs:
        raise WorkbenchError(f"n_queries is {n_queries}; expected at most n_pairs = {n_pairs}")
    words = vocabulary(source)
    n_tokens = 2 * n_pairs + gap + 2 * n_queries + (words.bos is not None)
    check_context(source, n_tokens, smaller="n_pairs, gap or n_queries")
    half = len(words.ids) // 2
    if n_pairs > half:
        raise WorkbenchError(f"n_pairs is {n_pairs}; the vocabulary has {half} tokens for keys")
    generator = torch.Generator().manual_seed(seed)

    def different(n: int) -> torch.Tensor:
        return torch.stack([torch.randperm(n, generator=generator) for _ in range(n_sequences)])

    def any_value(n: int) -> torch.Tensor:
        return words.ids[half + torch.randint(len(words.ids) - half, (n_sequences, n), generator=generator)]

    keys, values = words.ids[different(half)[:, :n_pairs]], any_value(n_pairs)
    queried = different(n_pairs)[:, :n_queries]
    pairs = rearrange([keys, values], "two b n -> b (n two)")
    queries = rearrange([keys.gather(1, queried), values.gather(1, queried)], "two b n -> b (n two)")
    tokens = with_bos(words, torch.cat([pairs, any_value(gap), queries], 1))
    first_pair = tokens.shape[1] - pairs.shape[1] - gap - queries.shape[1]
    row = repeat(tokens.shape[1] - queries.shape[1] + 2 * torch.arange(n_queries), "q -> (b q)", b=n_sequences)
    sequence = repeat(torch.arange(n_sequences), "b -> (b q)", q=n_queries)
    key = first_pair + 2 * rearrange(queried, "b q -> (b q)") + 1
    return make_probe(
        name,
        tokens,
        answer_rows=torch.stack([sequence, row], -1),
        target_cells=torch.stack([sequence, row, key], -1),
        classes=row - key,
        metric="recall",
    )


@probe("mqar")
def mqar(  # noqa: PLR0913  (keywords of job files)
    source: HasVocabulary | Vocabulary | int,
    *,
    n_pairs: int = 8,
    length: int = 128,
    power: int | float = 0.01,
    n_sequences: int = 20,
    seed: int = 0,
    name: str = "mqar",
) -> Probe:
    """Multi-query associative recall: `n_pairs` pairs, then every key once more, at gaps that follow a power law.

    Keys come from the first half of the ordinary tokens, values from the second, all different in a sequence. After the
    pairs, slot x = 1, 2, … of two tokens holds a key and its value with probability ∝ power · x^(power − 1), else
    filler, which is any token but the sequence's keys. (In Zoology the value is a label beside the sequence.)

    Answers: the values after the queried keys. Target cells: the values of the pairs. Classes: the distance between
    them, rounded down to a power of two. Sequences have exactly `length` tokens.

    Raises:
        WorkbenchError: if the length exceeds the model's context or is less than 4 n_pairs (and the beginning of the
            sequence), there are fewer keys than pairs, or power is not positive.
    """
    check_sizes(source, length=length, n_pairs=n_pairs, n_sequences=n_sequences)
    words = vocabulary(source)
    ids, start = words.ids.numpy(), int(words.bos is not None)
    half = len(ids) // 2
    if n_pairs > half:
        raise WorkbenchError(f"n_pairs is {n_pairs}; the vocabulary has {half} tokens for keys")
    if 4 * n_pairs > length - start:
        raise WorkbenchError(f"length {length} is too short for {n_pairs} pairs; pass length={4 * n_pairs + start}")
    if power <= 0:
        raise WorkbenchError(f"power is {power}; expected a positive number")
    n_slots = (length - start - 2 * n_pairs) // 2
    weight = power * np.arange(1, n_slots + 1, dtype=np.float64) ** (power - 1)
    tokens = np.empty((n_sequences, length), dtype=np.int64)
    rows, sources = np.empty((2, n_sequences, n_pairs), dtype=np.int64)
    for i, sequence in enumerate(tokens):
        rng = np.random.default_rng([seed, i])
        keys, values = rng.choice(half, n_pairs, replace=False), rng.choice(len(ids) - half, n_pairs, replace=False)
        is_filler = np.ones(len(ids), dtype=np.bool_)
        is_filler[keys] = False
        sequence[:] = rng.choice(ids[is_filler], length)
        sequence[:start] = 0 if words.bos is None else words.bos
        sources[i] = start + 2 * np.arange(n_pairs) + 1
        rows[i] = start + 2 * (n_pairs + rng.choice(n_slots, n_pairs, replace=False, p=weight / weight.sum()))
        sequence[sources[i] - 1] = sequence[rows[i]] = ids[keys]
        sequence[sources[i]] = sequence[rows[i] + 1] = ids[half + values]
    sequence = repeat(np.arange(n_sequences), "b -> (b n)", n=n_pairs)
    cells = torch.from_numpy(np.stack([sequence, rows.ravel(), sources.ravel()], -1))
    return looked_up(name, torch.from_numpy(tokens), cells, metric="recall")
