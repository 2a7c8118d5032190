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


class _Question(NamedTuple):
    """Tokens that ask for the value of a name which is `hops` assignments away from it, and the value's own.

    The value stands in the first assignment of its chain, `offset` tokens in.
    """

    tokens: Ids
    value: Ids
    chain: int
    offset: int
    hops: int


class _Chains(NamedTuple):
    """`links[c][h]`: assignment h of chain c."""

    head: Ids
    links: list[list[Ids]]
    questions: list[_Question]
    haystack: Callable[[int], Hay]


@probe("variable_tracking")
def variable_tracking(  # noqa: PLR0913  (keywords of job files)
    source: HasVocabulary | Vocabulary | int,
    *,
    hops: int | Sequence[int] = (1, 2, 3, 4),
    n_chains: int = 4,
    n_asked: int = 1,
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

    Args:
        n_asked: the chains that a text asks about, in turn: more answers from as many tokens. From 2 on the chains are
            as long as the most hops, the numbers of hops take turns within a text, and there are `n_sequences` texts.

    Raises:
        WorkbenchError: if the length exceeds the model's context or does not hold the chains, more chains are asked
            about than there are, or the vocabulary is too small.
    """
    n_hops = [hops] if isinstance(hops, int) else list(hops)
    if not n_hops or min(n_hops) < 1:
        raise WorkbenchError(f"hops is {hops}; expected whole numbers of at least 1")
    check_sizes(source, length=length, n_chains=n_chains, n_asked=n_asked, n_sequences=n_sequences)
    if n_asked > n_chains:
        raise WorkbenchError(f"n_asked is {n_asked}; expected at most n_chains = {n_chains}: each is asked about once")
    speller, words = speller_of(source, form), vocabulary(source)
    in_turn = [[h] for h in n_hops] if n_asked == 1 else [[n_hops[i % len(n_hops)] for i in range(n_asked)]]
    drafts = []
    for hops_in_turn in in_turn:
        for i in range(n_sequences):
            rng = np.random.default_rng([seed, max(hops_in_turn), i])
            sizes = max(n_hops) if n_asked > 1 else hops_in_turn[0], n_chains
            chains = (
                _in_tokens(words, sizes, hops_in_turn, rng)
                if speller is None
                else _in_text(speller, sizes, hops_in_turn, rng)
            )
            drafts.append(_sequence(chains, length=length, bos=words.bos, rng=rng))
    return assemble(name, drafts, class_name="hops")


def _sequence(chains: _Chains, *, length: int, bos: int | None, rng: np.random.Generator) -> Draft:
    draft = Draft(bos)
    draft.add(chains.head)
    links = [link for chain in chains.links for link in chain]
    n_asked = sum(len(question.tokens) + len(question.value) for question in chains.questions)
    n_written = draft.n_tokens + sum(map(len, links)) + n_asked
    hay = chains.haystack(tokens_left(length, n_written, "assignments, question and answer"))
    inside = hay.breaks[1:]  # not at the very start, where a name would follow the beginning of the sequence
    if len(inside) < len(links):
        raise WorkbenchError(
            f"length {length} is too short: {len(links)} assignments need as many places, the noise around them has "
            f"{len(inside)}; pass a larger length, or fewer n_chains"
        )
    starts = plant(draft, hay, links, rng.choice(inside, len(links), replace=False).tolist())
    n_links = len(chains.links[0])
    for question in chains.questions:
        draft.add(question.tokens)
        draft.answer(question.value, [starts[question.chain * n_links] + question.offset], question.hops)
    return draft


def _in_text(
    speller: Speller, sizes: tuple[int, int], hops_in_turn: Sequence[int], rng: np.random.Generator
) -> _Chains:
    """Chains of so many links, and so many of them; the questions are about the first ones."""
    n_links, n_chains = sizes
    names = np.array(letters(n_chains * n_links, 5, rng)).reshape(n_chains, n_links)
    names = np.char.upper(names).tolist()
    numbers = [str(number) for number in rng.choice(90_000, n_chains, replace=False) + 10_000]
    links: list[list[Ids]] = []
    offsets: list[int] = []
    for chain, number in zip(names, numbers, strict=True):
        contents = [number, *(f"VAR {content}" for content in chain[:-1])]
        rows = [(f" VAR {name} =", f" {content}", ".") for name, content in zip(chain, contents, strict=True)]
        spelled = speller.many(rows)
        offsets.append(len(spelled[0][0]))
        links.append([np.concatenate(row) for row in spelled])
    questions: list[_Question] = []
    for i, hops in enumerate(hops_in_turn):
        name, stop = names[i][hops - 1], "." if questions else ""
        ask = f"{stop} Question: What number is the value of VAR {name}? Answer: The value of VAR {name} is"
        tokens, value = speller.pieces(ask, f" {numbers[i]}")
        questions.append(_Question(tokens, value, i, offsets[i], hops))
    hay = noise(speller)
    head = speller.first("Variables are assigned in the text that follows. Remember what each of them is.")
    return _Chains(head, links, questions, lambda n: hay(n, rng))


def _in_tokens(
    words: Vocabulary, sizes: tuple[int, int], hops_in_turn: Sequence[int], rng: np.random.Generator
) -> _Chains:
    n_links, n_chains = sizes
    n_drawn = 1 + n_chains * (n_links + 1)
    drawn, filler = draw_one(words, n_drawn, rng, purpose=f"{n_chains} chains of {n_links} hops")
    cue, chains = drawn[:1], drawn[1:].reshape(n_chains, n_links + 1)
    links = [[chain[[h + 1, h]] for h in range(n_links)] for chain in chains]
    questions = [
        _Question(np.concatenate([cue, chains[i, [hops]]]), chains[i, :1], i, 1, hops)
        for i, hops in enumerate(hops_in_turn)
    ]
    return _Chains(cue[:0], links, questions, lambda n: random_tokens(filler, n, rng))
