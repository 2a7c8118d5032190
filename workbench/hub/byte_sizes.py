"""Sizes of files and disks as people write them: 50GB, 1.5 TB, 800 MiB."""

from __future__ import annotations

import re

from workbench.heads import WorkbenchError

_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[kKMGTP]i?)?[bB]?", re.ASCII)
_POWERS = "KMGTP"


def parse_bytes(text: str) -> int:
    """The number of bytes that a text gives: decimal units (GB) or binary ones (GiB), a bare number of bytes.

    Raises:
        WorkbenchError: if it is no positive size.
    """
    match = _SIZE.fullmatch(text.strip())
    n_bytes = 0
    if match is not None:
        unit = (match["unit"] or "").upper()
        base, power = (1024 if unit.endswith("I") else 1000), _POWERS.find(unit[:1]) + 1 if unit else 0
        n_bytes = int(float(match["number"]) * base**power)
    if n_bytes <= 0:
        raise WorkbenchError(f"{text!r} is no size of a disk; expected e.g. 50GB, 1.5TB or 800MiB")
    return n_bytes


def bytes_in_words(n_bytes: int) -> str:
    """A number of bytes in the decimal unit in which it has one to three digits before the point."""
    size, unit = float(n_bytes), "B"
    for larger in _POWERS:
        if size < 999.5:
            break
        size, unit = size / 1000, f"{larger if larger != 'K' else 'k'}B"
    return f"{size:.3g} {unit}"
