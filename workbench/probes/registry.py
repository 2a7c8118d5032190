"""Probes by name: what is used when nobody chooses, and how a command line or a job file writes one."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from workbench.heads import WorkbenchError
from workbench.probes.aggregation import frequent_words, majority
from workbench.probes.copying import NEEDLE, abfill, copy_needle, repeats
from workbench.probes.gold_documents import gold_document
from workbench.probes.key_value_recall import key_value, mqar
from workbench.probes.known_answers import Probe
from workbench.probes.multi_hop import variable_tracking
from workbench.probes.natural_text import text_file
from workbench.probes.needles import RULER_NEEDLES, needle, niah, passkey
from workbench.probes.ngrams import repeated_ngrams
from workbench.probes.passkeys import multi_passkey
from workbench.probes.token_ids import HasVocabulary, Vocabulary, context, vocabulary
from workbench.probes.word_lists import common_words

BY_NAME: dict[str, Callable[..., Probe]] = {
    "repeats": repeats,
    "copy_needle": copy_needle,
    "abfill": abfill,
    "key_value": key_value,
    "mqar": mqar,
    "passkey": passkey,
    "needle": needle,
    **{task: partial(niah, task=task) for task in RULER_NEEDLES},
    "multi_passkey": multi_passkey,
    "variable_tracking": variable_tracking,
    "common_words": common_words,
    "frequent_words": frequent_words,
    "majority": majority,
    "gold_document": gold_document,
    "text": text_file,
    "repeated_ngrams": repeated_ngrams,
}


def default(source: HasVocabulary) -> list[Probe]:
    """Repeated random tokens, and needles copied over 16, 32 and 64 tokens: as much as vocabulary and context allow."""
    words = vocabulary(source)
    longest = context(source) or 1 << 20
    n = min(50, len(words.ids), (longest - 1) // 2)
    distances = [d for d in (16, 32, 64) if d + NEEDLE + 2 <= longest]
    probes = [repeats(source, n=n)] if n >= 2 else []
    if distances and len(words.ids) >= NEEDLE:
        probes.append(copy_needle(source, distances, length=min(longest, 96)))
    if not probes:
        raise WorkbenchError(
            f"no default probe fits {len(words.ids)} ordinary tokens and {longest} positions; pass probes="
        )
    return probes


def build(source: HasVocabulary | Vocabulary | int, written: str) -> Probe:
    """Make the probe that `written` names: `repeats`, `needle:length=4096,depth=0+50+100`, `text:path=FILE`.

    Values are numbers, lists of whole numbers joined by `+`, or text.

    Raises:
        WorkbenchError: for an unknown name, an unknown or missing argument, or what the probe itself refuses.
    """
    name, _, arguments = written.partition(":")
    maker = BY_NAME.get(name)
    if maker is None:
        raise WorkbenchError(f"unknown probe {name!r}; expected one of {', '.join(BY_NAME)}")
    given: dict[str, Any] = {}
    for piece in filter(None, arguments.split(",")):
        key, is_pair, value = piece.partition("=")
        if not is_pair:
            raise WorkbenchError(f"probe {written!r}: {piece!r} is not of the form key=value")
        given[key.strip()] = _value(value.strip())
    try:
        return maker(source, **given)
    except TypeError as error:
        raise WorkbenchError(f"probe {written!r}: {error}") from error


def _value(written: str) -> int | float | list[int] | str:
    parts = written.split("+")
    if all(p.isdigit() for p in parts):
        return int(parts[0]) if len(parts) == 1 else [int(p) for p in parts]
    if re.fullmatch(r"\d*\.\d+", written):
        return float(written)
    return written
