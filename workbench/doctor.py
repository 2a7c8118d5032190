"""What this machine offers the workbench: versions, devices, and the kernel that each operation will use and why."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

_PACKAGES = (
    "attention-workbench",
    "torch",
    "transformers",
    "transformer-lens",
    "triton",
    "pyarrow",
    "dash",
    "plotly",
)


def examine() -> dict[str, dict[str, str]]:
    """The report, by heading."""
    return {"versions": _versions(), "machine": _machine(), "kernels": _kernels()}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _machine() -> dict[str, str]:
    facts = {
        "cpu cores": str(os.cpu_count()),
        "torch threads": str(torch.get_num_threads()),
        "cuda": "none" if not torch.cuda.is_available() else "",
    }
    if torch.cuda.is_available():
        facts["cuda"] = ", ".join(
            f"{torch.cuda.get_device_name(i)} ({torch.cuda.get_device_properties(i).total_memory >> 30} GiB)"
            for i in range(torch.cuda.device_count())
        )
    return facts


def _kernels() -> dict[str, str]:
    why = "exact, any device; the only form of this operation in this version"
    return {
        "attention_statistics": f"row-blocked torch ({why})",
        "signed_statistics": f"row-blocked torch ({why})",
        "attention output without statistics": "torch sdpa for plain causal layers, else row-blocked torch",
    }
