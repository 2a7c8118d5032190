"""Multi-hop recall: the value of a name that is several assignments away from it.

Reference:
    Hsieh et al. 2024, RULER, variable tracking: `VAR XXXXX = 12345.`, `VAR YYYYY = VAR XXXXX.` in noise. RULER asks for
    all names of a value, in the order of the chain; with the answer given, each of them is one look-up away from the
    one before. Here the question is about the value of the last name, so that the answer needs all of the chain, and
    the assignments are shuffled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from workbench.heads import WorkbenchError
from workbench.probes.draft import Draft, Ids, Speller, assemble
from workbench.probes.filler_text import Hay, noise, plant, random_tokens
from workbench.probes.known_answers import Probe
from workbench.probes.lexicon import letters
from workbench.probes.registry import probe
from workbench.probes.text_modes import TextMode, speller_of
from workbench.probes.token_ids import HasVocabulary, Vocabulary, check_sizes, draw_one, tokens_left, vocabulary


class _Chains(NamedTuple):
    """`links[c][h]`: assignment h of chain c; the value stands in `links[c][0]`, `value_offset` tokens in."""

    head: Ids
    links: list[list[Ids]]
    question: Ids
    value: Ids
    value_offset: int
    haystack: Callable[[int], Hay]


@probe("variable_tracking")
def variable_tracking(  # noqa: PLR0913  (keywords of job files)
    source: HasVocabulary | Vocabulary | int,
    *,
    hops: int | Sequence[int] = (1, 2, 3, 4),
    n_chains: int = 4,
    length: int = 1024,
    n_sequences: int = 10,
    seed: int = 0,
    form: TextMode = "auto",
    name: str = "variable_tracking",
) -> Probe:
    """The value of a name that is `hops` assignments away from it, among chains of the same length.

    One hop: the name is assigned the value itself; h hops: RULER's num_hops is h − 1. The assignments stand in random
    order at random positions in noise, never side by side. Without a tokenizer an assignment is the name's token and
    the token assigned to it; the question is a cue token and the name.

    Answer: the value. Target cells: the value where it is assigned. Classes: hops, `n_sequences` of each. Sequences
    have exactly `length` tokens.

    Raises:
        WorkbenchError: if the length exceeds the model's context or does not hold the chains, or the vocabulary is too
            small.
    """
    n_hops = [hops] if isinstance(hops, int) else list(hops)
    if not n_hops or min(n_hops) < 1:
        raise WorkbenchError(f"hops is {hops}; expected whole numbers of at least 1")
    check_sizes(source, length=length, n_chains=n_chains, n_sequences=n_sequences)
    speller, words = speller_of(source, form), vocabulary(source)
    drafts = []
    for h in n_hops:
        for i in range(n_sequences):
            rng = np.random.default_rng([seed, h, i])
            chains = _in_tokens(words, h, n_chains, rng) if speller is None else _in_text(speller, h, n_chains, rng)
            drafts.append(_sequence(chains, h, length=length, bos=words.bos, rng=rng))
    return assemble(name, drafts, class_name="hops")


def _sequence(chains: _Chains, hops: int, *, length: int, bos: int | None, rng: np.random.Generator) -> Draft:
    draft = Draft(bos)
    draft.add(chains.head)
    links = [link for chain in chains.links for link in chain]
    n_written = draft.n_tokens + sum(map(len, links)) + len(chains.question) + len(chains.value)
    hay = chains.haystack(tokens_left(length, n_written, "assignments, question and answer"))
    inside = hay.breaks[1:]  # not at the very start, where a name would follow the beginning of the sequence
    if len(inside) < len(links):
        raise WorkbenchError(
            f"length {length} is too short: {len(links)} assignments need as many places, the noise around them has "
            f"{len(inside)}; pass a larger length, or fewer n_chains"
        )
    starts = plant(draft, hay, links, rng.choice(inside, len(links), replace=False).tolist())
    draft.add(chains.question)
    draft.answer(chains.value, [starts[0] + chains.value_offset], hops)
    return draft


def _in_text(speller: Speller, hops: int, n_chains: int, rng: np.random.Generator) -> _Chains:
    """The chain of the question comes first."""
    names = np.array(letters(n_chains * hops, 5, rng)).reshape(n_chains, hops)
    names = np.char.upper(names).tolist()
    numbers = [str(number) for number in rng.choice(90_000, n_chains, replace=False) + 10_000]
    links: list[list[Ids]] = []
    pieces: list[Ids] = []
    for chain, number in zip(names, numbers, strict=True):
        contents = [number, *(f"VAR {content}" for content in chain[:-1])]
        rows = [(f" VAR {name} =", f" {content}", ".") for name, content in zip(chain, contents, strict=True)]
        spelled = speller.many(rows)
        pieces = pieces or spelled[0]
        links.append([np.concatenate(row) for row in spelled])
    last = names[0][-1]
    ask = f" Question: What number is the value of VAR {last}? Answer: The value of VAR {last} is"
    question, value = speller.pieces(ask, f" {numbers[0]}")
    hay = noise(speller)
    head = speller.first("Variables are assigned in the text that follows. Remember what each of them is.")
    return _Chains(head, links, question, value, len(pieces[0]), lambda n: hay(n, rng))


def _in_tokens(words: Vocabulary, hops: int, n_chains: int, rng: np.random.Generator) -> _Chains:
    drawn, filler = draw_one(words, 1 + n_chains * (hops + 1), rng, purpose=f"{n_chains} chains of {hops} hops")
    cue, chains = drawn[:1], drawn[1:].reshape(n_chains, hops + 1)
    links = [[chain[[h + 1, h]] for h in range(hops)] for chain in chains]
    question = np.concatenate([cue, chains[0, -1:]])
    return _Chains(cue[:0], links, question, chains[0, :1], 1, lambda n: random_tokens(filler, n, rng))
