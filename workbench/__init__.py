"""Which attention heads need the whole context, since when in pretraining, and which may get a window."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench import figures, probes
    from workbench.app import show
    from workbench.detectors import describe, detector, score
    from workbench.heads import Head, KVHead, LayerInfo, WorkbenchError
    from workbench.hooks import HookedModel, Recording, open_model, patch_effects
    from workbench.kernels import Far
    from workbench.loading.published_folders import get
    from workbench.planning import fit_linear_attention, plan, verdict, window_gates
    from workbench.runs import Run, open_run
    from workbench.scanning import scan
    from workbench.scanning.job import Job
    from workbench.store.conversions import LinearAttention, SparseAttention
    from workbench.store.plan_file import KVBytes, LossTolerance, Plan

# The module of each public name. It is imported at the first access.
_HOMES = {
    "Far": "workbench.kernels",
    "Head": "workbench.heads",
    "HookedModel": "workbench.hooks",
    "Job": "workbench.scanning.job",
    "KVBytes": "workbench.store.plan_file",
    "KVHead": "workbench.heads",
    "LayerInfo": "workbench.heads",
    "LinearAttention": "workbench.store.conversions",
    "LossTolerance": "workbench.store.plan_file",
    "Plan": "workbench.store.plan_file",
    "Recording": "workbench.hooks",
    "Run": "workbench.runs",
    "SparseAttention": "workbench.store.conversions",
    "WorkbenchError": "workbench.heads",
    "describe": "workbench.detectors",
    "detector": "workbench.detectors",
    "figures": "workbench.figures",
    "fit_linear_attention": "workbench.planning",
    "get": "workbench.loading.published_folders",
    "open_model": "workbench.hooks",
    "open_run": "workbench.runs",
    "patch_effects": "workbench.hooks",
    "plan": "workbench.planning",
    "probes": "workbench.probes",
    "scan": "workbench.scanning",
    "score": "workbench.detectors",
    "show": "workbench.app",
    "verdict": "workbench.planning",
    "window_gates": "workbench.planning",
}

__all__ = [
    "Far",
    "Head",
    "HookedModel",
    "Job",
    "KVBytes",
    "KVHead",
    "LayerInfo",
    "LinearAttention",
    "LossTolerance",
    "Plan",
    "Recording",
    "Run",
    "SparseAttention",
    "WorkbenchError",
    "describe",
    "detector",
    "figures",
    "fit_linear_attention",
    "get",
    "open_model",
    "open_run",
    "patch_effects",
    "plan",
    "probes",
    "scan",
    "score",
    "show",
    "verdict",
    "window_gates",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("attention-workbench")
    if name not in _HOMES:
        installed = __getattr__("__version__")
        raise AttributeError(f"attention-workbench {installed} has no {name!r}; it has {', '.join(__all__)}")
    home = import_module(_HOMES[name])
    return home if home.__name__ == f"workbench.{name}" else getattr(home, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
