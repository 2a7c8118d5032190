"""Weights as a model uses them: adapters merged, and whatever else stands between a weight and its product refused.

A wrapped linear map, such as an unmerged LoRA, has the base model's `.weight` and another output. Adapters of PEFT are
merged on a copy by PEFT itself. Every other map of a class of its own is run on vectors and must give what its weight
gives.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from workbench.heads import WorkbenchError

_MERGE = "merge the adapter with merge_and_unload() and open the model again"
# Relative to the largest output, in the model's dtype.
_TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-6}
_SELF_MADE = 2e-2
_PLAIN = (nn.Linear, Conv1D)


def twin_of(model: Any) -> Any:
    """A deep copy that shares every parameter and buffer, and holds merged copies where adapters are unmerged.

    Raises:
        WorkbenchError: if the model cannot be copied, or an adapter cannot be merged into the weights.
    """
    adapters = list(_adapters(model))
    changed = {id(x) for _, adapter in adapters for x in (*adapter.parameters(), *adapter.buffers())}
    shared: dict[int, Any] = {id(x): x for x in (*model.parameters(), *model.buffers()) if id(x) not in changed}
    try:
        twin = copy.deepcopy(model, shared)
    except (RuntimeError, TypeError) as error:
        raise WorkbenchError(
            f"{type(model).__name__} cannot be copied: {str(error)[:200]}. Take out what holds tensors made by a "
            "computation, as torch.nn.utils.remove_weight_norm does"
        ) from error
    if adapters:
        _merge(twin)
    return twin


def has_adapters(model: nn.Module) -> bool:
    """True if a map of the model has an adapter beside its weight."""
    return any(True for _ in _adapters(model))


def check_weights(model: PreTrainedModel) -> None:
    """Refuse a model with a linear map, of its attention or its unembedding, whose output is not its weight's.

    Raises:
        WorkbenchError: naming the module.
    """
    attention = [m for m in model.modules() if "attention" in type(m).__name__.lower()]
    read = {id(x) for m in attention for x in m.modules()} | {id(model.get_output_embeddings())}
    for name, module in model.named_modules():
        if id(module) in read and (_may_differ(module) or _has_matrix(module)) and not _gives_its_weight(module):
            raise WorkbenchError(
                f"{name} is a {type(module).__name__} whose output is not that of its weight, so that scores of "
                f"weights would be of another model; expected plain linear maps: {_MERGE}, remove hooks that change "
                "its output, or load the weights without quantisation"
            )


def effective_weight(module: nn.Module, d_in: int, like: Tensor) -> Float[Tensor, "d_in d_out"] | None:
    """The matrix that a module multiplies its input with, found by running it; None if it is no affine map."""
    with torch.no_grad():
        zero = module(like.new_zeros(1, d_in))
        if not isinstance(zero, Tensor) or zero.ndim != 2:
            return None
        weight = module(torch.eye(d_in, dtype=like.dtype, device=like.device)) - zero
        x = _vectors(d_in, like)
        return weight.float() if _is_close(module(x) - zero, x.float() @ weight.float()) else None


def is_plain(module: nn.Module) -> bool:
    """True if a module's output is certainly that of its weight."""
    return isinstance(module, _PLAIN) and not _may_differ(module)


def _adapters(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The outermost modules that hold an adapter beside a base layer, or replace one while training."""
    for name, child in module.named_children():
        if _is_adapter(child):
            yield name, child
        else:
            yield from _adapters(child)


def _is_adapter(module: Any) -> bool:
    has_base = isinstance(getattr(module, "base_layer", None), nn.Module) and callable(getattr(module, "merge", None))
    return has_base or callable(getattr(module, "unload_and_optionally_merge_module", None))


def _merge(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if not _is_adapter(child):
            _merge(child)
            continue
        adapter: Any = child
        try:
            with torch.no_grad():
                if hasattr(adapter, "unload_and_optionally_merge_module"):
                    merged = adapter.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
                else:
                    if not adapter.disable_adapters:
                        adapter.merge(safe_merge=True)
                    elif getattr(adapter, "merged_adapters", None):
                        adapter.unmerge()
                    merged = adapter.get_base_layer()
        except (ValueError, NotImplementedError, RuntimeError, AttributeError, TypeError) as error:
            raise WorkbenchError(
                f"{name}, a {type(child).__name__}, has an adapter that cannot be merged into its weight: "
                f"{str(error)[:200]}. Scores of weights need merged weights: {_MERGE}"
            ) from error
        setattr(module, name, merged)


def _may_differ(module: Any) -> bool:
    """True for a map with a weight matrix that is more than a plain `nn.Linear` or `Conv1D`."""
    weight, kind = getattr(module, "weight", None), type(module).__name__.lower()
    is_map = isinstance(module, _PLAIN) or ("linear" in kind and "norm" not in kind and weight is not None)
    if not is_map or isinstance(module, nn.Embedding) or _is_adapter(module):
        return _is_adapter(module)
    has_hooks = bool(module._forward_hooks or module._forward_pre_hooks)  # pyright: ignore[reportPrivateUsage]
    is_own = type(module) not in _PLAIN or "forward" in vars(module) or type(weight) is not nn.Parameter
    return has_hooks or is_own or is_parametrized(module)


def _has_matrix(module: Any) -> bool:
    """True for a module of a class of its own with a matrix that may be taken for that of a linear map."""
    weight, name = getattr(module, "weight", None), type(module).__name__.lower()
    is_matrix = isinstance(weight, Tensor) and weight.ndim == 2
    return is_matrix and type(module) not in _PLAIN and "norm" not in name and "embedding" not in name


def _gives_its_weight(module: Any) -> bool:
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(0))
    rows = [x for name in ("in_features", "nx") if isinstance(x := getattr(module, name, None), int)]
    if not rows and _has_matrix(module):
        rows = [int(module.weight.shape[1])]
    if not rows or _is_adapter(module):
        return False
    try:
        with torch.no_grad():
            x = _vectors(rows[0], like)
            out = module(x)  # first, as hooks may make the weight
            weight = module.weight
            weight = weight if isinstance(module, Conv1D) else weight.T
            expected = x.float() @ weight.float()
            bias = getattr(module, "bias", None)
            return _is_close(out, expected if bias is None else expected + bias.float())
    except (RuntimeError, TypeError, AttributeError, NotImplementedError):
        return False


def _vectors(d_in: int, like: Tensor) -> Float[Tensor, "3 d_in"]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, d_in, generator=generator).to(like)


def _is_close(out: Tensor, expected: Tensor) -> bool:
    tolerance = _TOLERANCES.get(out.dtype, _SELF_MADE) * float(expected.abs().max())
    return out.shape == expected.shape and bool((out.float() - expected).abs().max() <= tolerance)
