"""Archives that are larger than they look: torch stores tensors as they are, so a packed one is a trap."""

from __future__ import annotations

import io
import zipfile
from typing import IO, cast

_ZIP = b"PK\x03\x04"


def is_zip(stream: io.BufferedIOBase) -> bool:
    """Whether it begins as an archive does; the stream is where it was at first."""
    start = stream.read(len(_ZIP))
    stream.seek(0)
    return start == _ZIP


def refuse_packed(stream: io.BufferedIOBase) -> None:
    """Refuse an archive that is larger unpacked; the stream is at its beginning, before and after.

    Raises:
        ValueError: naming the first such entry.
        BadZipFile: if it is no archive.
    """
    with zipfile.ZipFile(cast("IO[bytes]", stream)) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise ValueError(
                    f"{entry.filename} takes {entry.compress_size} bytes and would become {entry.file_size}; torch "
                    "packs nothing"
                )
    stream.seek(0)
