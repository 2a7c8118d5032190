"""Scan and say what was opened, started or removed meanwhile: `python scan_watched.py SERIES OUT OUTSIDE`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import workbench as wb

_WORDS = ("os.remove", "os.rename", "os.exec", "os.posix_spawn", "os.system", "subprocess.Popen", "socket.connect")


def watched(outside: Path) -> list[str]:
    """From now on: every event on a file outside, every process, every connection; Python's own audit."""
    seen: list[str] = []

    def look(event: str, arguments: tuple[object, ...]) -> None:
        if event in ("open", "os.listdir", "os.scandir") and arguments and isinstance(arguments[0], str | Path):
            if os.path.realpath(arguments[0]).startswith(str(outside)):
                seen.append(f"{event} {arguments[0]}")
        elif event in _WORDS and (event not in ("os.remove", "os.rename") or str(outside) in str(arguments)):
            seen.append(f"{event} {arguments}")

    sys.addaudithook(look)
    return seen


def main(series: str, out: str, outside: str) -> dict[str, object]:
    seen = watched(Path(outside).resolve())
    run = wb.scan(series, out, ["sink"], ["repeats:n=12,n_sequences=6"], allow_pickle=True)
    return {
        "seen": seen,
        "failures": {f["ckpt"]: f["message"] for f in run.failures().to_dict("records")},
        "scored": sorted(run.scores().ckpt.unique().tolist()),
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
