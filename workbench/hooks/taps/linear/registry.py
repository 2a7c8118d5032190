"""The registry of mixers: how the linear layers of each class of modules are read.

Built-in mixers and those of other packages register in the same way, with the decorator `mixer` on the function that
reads a layer. A package names its modules in the entry point group `workbench.mixers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from workbench.extensions import Registry
from workbench.hooks.taps.linear.linear_layer import LinearCall, LinearLayer

# (the module, the outputs of its taps by name, False on padding) → the layer's call.
LayerReader = Callable[[Any, Mapping[str, Tensor], Bool[Tensor, "b t"]], LinearCall]


@dataclass(frozen=True, slots=True)
class Adapter:
    """How to read one class of linear layers: the arguments of `mixer`, and the decorated function as `read`."""

    describe: Callable[[Any], LinearLayer]
    taps: tuple[str, ...]
    read: LayerReader
    norm: str
    projection: str
    keywords: tuple[str, ...] = ()


# By class name of the module.
MIXERS: Registry[Adapter] = Registry("workbench.mixers", noun="mixer", builtin="workbench.hooks.taps.linear")


def mixer(
    class_name: str,
    *more_class_names: str,
    describe: Callable[[Any], LinearLayer],
    taps: Iterable[str],
    norm: str,
    projection: str,
    keywords: Iterable[str] = (),
) -> Callable[[LayerReader], LayerReader]:
    """Register the decorated function as the reader of linear layers whose module has this class name.

    The function takes the module, the outputs of `taps` by name and a mask that is False on padding, and returns a
    `LinearCall`. When a model is opened, the rows times v that this call implies are compared with what the heads
    hand on; a layer that differs is refused.

    Args:
        describe: makes a `LinearLayer` of a module. Its index, and the layer of the call, may be negative where the
            module does not know its number: they are then that of the block it is in.
        taps: the submodules whose outputs are kept until the output projection runs; those that a module does not
            have are left out.
        norm: the submodule that takes the heads' outputs first; `projection` again where there is no norm.
        projection: the submodule that is the output projection.
        keywords: arguments of the module itself, passed by name, that are kept beside the outputs of the taps: a
            tensor, or a tuple of tensors of one shape, which are stacked.

    Raises:
        WorkbenchError: for a function without a docstring, or a class name that another function holds.
    """

    def register(read: LayerReader) -> LayerReader:
        adapter = Adapter(
            describe=describe,
            taps=tuple(taps),
            read=read,
            norm=norm,
            projection=projection,
            keywords=tuple(keywords),
        )
        for name in (class_name, *more_class_names):
            MIXERS.add(name, adapter, function=read)
        return read

    return register
