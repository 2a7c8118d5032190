"""Key-value recall: pairs first, queries later; the answer to a key is the value that followed it."""

from __future__ import annotations

import torch
from einops import rearrange, repeat

from workbench.heads import WorkbenchError
from workbench.probes.probe import Probe, make_probe
from workbench.probes.words import HasVocabulary, Vocabulary, vocabulary, with_bos


def key_value(
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
        WorkbenchError: if there are fewer keys than pairs, or more queries than pairs.
    """
    if n_queries > n_pairs:
        raise WorkbenchError(f"n_queries is {n_queries}; expected at most n_pairs = {n_pairs}")
    words = vocabulary(source)
    half = len(words.ids) // 2
    if n_pairs > half:
        raise WorkbenchError(f"n_pairs is {n_pairs}; the vocabulary has {half} tokens for keys")
    generator = torch.Generator().manual_seed(seed)

    def different(n: int) -> torch.Tensor:
        return torch.stack([torch.randperm(n, generator=generator) for _ in range(n_sequences)])

    def any_value(n: int) -> torch.Tensor:
        return words.ids[half + torch.randint(len(words.ids) - half, (n_sequences, n), generator=generator)]

    keys, values = words.ids[different(half)[:, :n_pairs]], any_value(n_pairs)
    asked = different(n_pairs)[:, :n_queries]
    pairs = rearrange([keys, values], "two b n -> b (n two)")
    queries = rearrange([keys.gather(1, asked), values.gather(1, asked)], "two b n -> b (n two)")
    tokens = with_bos(words, torch.cat([pairs, any_value(gap), queries], 1))
    first_pair = tokens.shape[1] - pairs.shape[1] - gap - queries.shape[1]
    row = repeat(tokens.shape[1] - queries.shape[1] + 2 * torch.arange(n_queries), "q -> (b q)", b=n_sequences)
    sequence = repeat(torch.arange(n_sequences), "b -> (b q)", q=n_queries)
    key = first_pair + 2 * rearrange(asked, "b q -> (b q)") + 1
    return make_probe(
        name,
        tokens,
        answer_rows=torch.stack([sequence, row], -1),
        target_cells=torch.stack([sequence, row, key], -1),
        classes=row - key,
        metric="recall",
    )
