"""The report of `workbench doctor`: versions, devices, and the kernel of each operation with the reason."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from workbench.analysis.state_precision import lost_decay_table, slopes_of_config, state_precision_table
from workbench.checkpoints.fetched_models import obtain_configuration
from workbench.kernels.dispatch import SETTING, explain, explain_routes, setting

_PACKAGES = ("attention-workbench", "torch", "transformers", "transformer-lens", "triton", "pyarrow", "dash", "plotly")


def examine() -> dict[str, dict[str, str]]:
    """The report: facts by heading."""
    return {"versions": _versions(), "machine": _machine(), "kernels": _kernels()}


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


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
    return {SETTING: setting(), **explain(), **explain_routes()}


def examine_states(source: str | Path, *, tokens: int = 4096) -> StateReport:
    """Compute what the linear layers of a model lose with a state of fewer bits, from the configuration alone.

    Raises:
        HubError: if the source is an id, and the hub has no such model or cannot be reached.
        WorkbenchError: if the model has no layer whose decay is known without data.
    """
    slopes = slopes_of_config(obtain_configuration(source))
    return StateReport(lost_decay_table(slopes), state_precision_table(slopes, tokens=tokens))


class StateReport(NamedTuple):
    """`lost`: per precision, shares of heads whose decay is lost to rounding. `growth`: per head, error by length."""

    lost: pd.DataFrame
    growth: pd.DataFrame

    def by_layer(self) -> pd.DataFrame:
        """Per layer, precision and tokens: median_error, worst_error, worst_head."""
        groups = self.growth.groupby(["layer", "precision", "tokens"], sort=False)
        worst = self.growth.loc[groups.error.idxmax()].set_index(["layer", "precision", "tokens"])
        table = groups.error.agg(median_error="median", worst_error="max")
        return table.assign(worst_head=worst["head"]).reset_index()
