"""The text of single tokens, to be shown: a piece of a character is shown as its bytes, `<0xE4>`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_REPLACEMENT = "\ufffd"
# Where Python's surrogateescape puts bytes that are no text.
_ESCAPED = range(0xDC80, 0xDD00)


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
    return tuple(pieces)


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
