"""The machine's memory around a scan: how much can be had, the next checkpoint read ahead, the last one let go."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import torch

from workbench.checkpoints.formats import weight_files

# Of the memory that is free, what the next checkpoint's files may take in the page cache.
_READ_AHEAD_SHARE = 0.5


def available_memory() -> int:
    """Bytes that can be had without swapping, as the system counts them."""
    meminfo = Path("/proc/meminfo")
    for line in meminfo.read_text().splitlines() if meminfo.is_file() else ():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def read_ahead(checkpoint: Path) -> None:
    """Ask the system to read a checkpoint's files into its page cache, unless they would fill it."""
    try:
        files = weight_files(checkpoint)
        if sum(file.stat().st_size for file in files) > _READ_AHEAD_SHARE * available_memory():
            return
        for file in files:
            with file.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
    except OSError:
        return  # the checkpoint's own turn will tell what is wrong with it


def give_memory_back() -> None:
    """Let go of what only a knot of references keeps, and of the memory that CUDA keeps for later."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
