"""The text of single tokens, to be shown: never a replacement character.

A character that is cut into tokens is shown with the number of the piece, `注 1/3`, `注 2/3`, `注 3/3`. Bytes that make
no character are shown as they are, `<0xE4>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_REPLACEMENT = "\ufffd"
# Where Python's surrogateescape puts bytes that are no text.
_ESCAPED = range(0xDC80, 0xDD00)


class _Byte(NamedTuple):
    """A byte that is no text by itself: its value, and where it stands: the piece, and the place in its text."""

    value: int
    piece: int
    start: int


def pieces_of(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...] | None:
    """The text of each token with its leading space; None without a tokenizer."""
    if tokenizer is None:
        return None
    words = tokenizer.convert_ids_to_tokens(list(ids))
    is_byte_level = _is_byte_level(tokenizer)
    added: set[int] = set(getattr(tokenizer, "added_tokens_decoder", ()))
    pieces: list[str] = []
    for i, word in zip(ids, words, strict=True):
        if i in added and isinstance(word, str):
            pieces.append(word)
            continue
        raw = _bytes_of(word, is_byte_level=is_byte_level) if isinstance(word, str) else None
        pieces.append(_decoded(tokenizer, i, word) if raw is None else _shown(raw))
    return joined(pieces)


def joined(pieces: Sequence[str]) -> tuple[str, ...]:
    """Pieces in which bytes, `<0xE4>`, are put together to characters where neighbours make one: `今 1/3`.

    A character without a glyph of its own is shown by its number, `U+200D 2/3`.
    """
    shown = list(pieces)
    for run in _byte_runs(pieces):
        for character, of_character in reversed(list(_characters(run))):
            holders = list(dict.fromkeys(byte.piece for byte in of_character))
            glyph = character if character.isprintable() else f"U+{ord(character):04X}"
            for number, piece in reversed(list(enumerate(holders, start=1))):
                starts = [byte.start for byte in of_character if byte.piece == piece]
                part = f"{glyph} {number}/{len(holders)}" if len(holders) > 1 else character
                shown[piece] = shown[piece][: starts[0]] + part + shown[piece][starts[-1] + len("<0x00>") :]
    return tuple(shown)


def _byte_runs(pieces: Sequence[str]) -> Iterator[list[_Byte]]:
    """The bytes that stand next to each other, over the borders of pieces; the last ones first."""
    runs: list[list[_Byte]] = []
    follows = False
    for i, piece in enumerate(pieces):
        end = 0
        for match in _BYTE.finditer(piece):
            follows = follows and match.start() == end
            if not follows:
                runs.append([])
            runs[-1].append(_Byte(int(match[1], 16), i, match.start()))
            follows, end = True, match.end()
        follows = follows and end == len(piece)
    yield from reversed(runs)


def _characters(run: Sequence[_Byte]) -> Iterator[tuple[str, Sequence[_Byte]]]:
    """The characters that a run of bytes holds, each with its bytes."""
    start = 0
    while start < len(run):
        for end in range(start + 2, min(start + 4, len(run)) + 1):
            try:
                character = bytes(byte.value for byte in run[start:end]).decode("utf-8")
            except UnicodeDecodeError:
                continue
            yield character, run[start:end]
            start = end
            break
        else:
            start += 1


def _bytes_of(word: str, *, is_byte_level: bool) -> bytes | None:
    """The bytes that a vocabulary's entry stands for; None where it is text itself."""
    if match := _BYTE.fullmatch(word):
        return bytes([int(match[1], 16)])
    alphabet = _byte_level_alphabet()
    if is_byte_level and all(character in alphabet for character in word):
        return bytes(alphabet[character] for character in word)
    return None


def _shown(raw: bytes) -> str:
    """Bytes as text; those that are a piece of a character in hexadecimal."""
    text = raw.decode("utf-8", errors="surrogateescape")
    return "".join(f"<0x{ord(c) - 0xDC00:02X}>" if ord(c) in _ESCAPED else c for c in text)


def _decoded(tokenizer: Any, i: int, word: Any) -> str:
    text = tokenizer.decode([i], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if _REPLACEMENT in text:
        return f"<token {i}>"  # a piece of a character in a form that is not known here
    has_lost_space = isinstance(word, str) and word.startswith("▁") and not text.startswith(" ")
    return " " + text if has_lost_space else text


def _is_byte_level(tokenizer: Any) -> bool:
    """Whether the vocabulary writes bytes in GPT-2's alphabet, in which `Ġ` is a space."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = [getattr(backend, name, None) for name in ("pre_tokenizer", "decoder")]
    return any("ByteLevel" in repr(part) for part in parts) or type(tokenizer).__name__ in ("GPT2Tokenizer",)


@cache
def _byte_level_alphabet() -> dict[str, int]:
    """Character -> byte. Printable bytes of Latin-1 are themselves, the others follow from U+0100.

    Reference:
        Radford et al. 2019, GPT-2: `bytes_to_unicode` of its encoder.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
