"""The machine that a scan runs on: memory, cores and GPUs, and the environment of worker processes."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import torch

from workbench.checkpoints.formats import weight_files, weights_size
from workbench.heads import WorkbenchError
from workbench.scanning.job import Job
from workbench.store import DEFAULT_DTYPE, OWN_DTYPE

# The share of free memory that the next checkpoint's files may take in the page cache.
_READ_AHEAD_SHARE = 0.5
# A model on the CPU is float32, twice the bytes of most files, and its activations come on top.
_MEMORY_PER_FILE_BYTE = 3


def n_workers(job: Job, sizes: list[int]) -> int:
    """How many checkpoints a job processes at a time: its own number, or what GPUs, cores and memory allow.

    `sizes`: bytes of the weights of each checkpoint.
    """
    if job.engine == "inline":
        return 1
    if job.workers is not None:
        return job.workers
    if job.engine == "local" and on_cuda(job):
        return len(_gpus())
    largest = max(sizes, default=0)
    fits_memory = available_memory() // max(1, _MEMORY_PER_FILE_BYTE * largest)
    return max(1, min(_n_cores(), fits_memory, len(sizes)))


def worker_environments(job: Job, workers: int) -> list[dict[str, str]]:
    """Environment variables of each worker process: its share of the threads, and one GPU unless the job names one."""
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, _n_cores() // workers)))
    gpus = _gpus() if on_cuda(job) and job.device in (None, "cuda") else []
    return [
        {"OMP_NUM_THREADS": threads} | ({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {})
        for i in range(workers)
    ]


def on_cuda(job: Job) -> bool:
    """Whether a job runs on a GPU."""
    return torch.cuda.is_available() if job.device is None else job.device.startswith("cuda")


def dtype_of(name: str | None) -> torch.dtype | None:
    """The torch dtype of a name; None for None.

    Raises:
        WorkbenchError: if no floating-point dtype has this name.
    """
    if name is None:
        return None
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise WorkbenchError(
            f"dtype {name!r} is not a floating-point torch dtype; expected float32, bfloat16 or float16"
        )
    return dtype


def dtype_in_words(job: Job) -> str:
    """The dtype of a job's models as `Settings` has it: one name for each, `own` for the checkpoint's own.

    Raises:
        WorkbenchError: if the job's is no floating-point dtype.
    """
    dtype = dtype_of(job.dtype)
    if dtype is not None:
        return str(dtype).removeprefix("torch.")
    is_elsewhere = on_cuda(job) or (job.device or "cpu").partition(":")[0] != "cpu"
    return OWN_DTYPE if is_elsewhere else DEFAULT_DTYPE


def available_memory() -> int:
    """Bytes that can be allocated without swapping, as the system counts them."""
    meminfo = Path("/proc/meminfo")
    for line in meminfo.read_text().splitlines() if meminfo.is_file() else ():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def read_ahead(checkpoint: Path) -> None:
    """Ask the system to read a checkpoint's files into its page cache, unless they would fill it."""
    try:
        if weights_size(checkpoint) > _READ_AHEAD_SHARE * available_memory():
            return
        for file in weight_files(checkpoint):
            with file.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
    except OSError:
        return  # the error will be stored when the checkpoint itself is opened


def free_memory() -> None:
    """Free objects that only reference cycles hold, and the memory that torch caches on CUDA."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
