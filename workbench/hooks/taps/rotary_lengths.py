"""Rotary frequencies that depend on the length of the text: longrope, and dynamic NTK beyond the positions of training.

transformers takes the length of the running pass, that is the largest position in the batch, and writes the frequencies
into the model. A piece of a text, a batch of unequal texts and an earlier longer pass then give other numbers than the
text alone. While a model is recorded, its rotary modules

1. start every pass from the frequencies that they were made with, and are put back afterwards;
2. rotate each token for the length of its own document, which the recorder knows (`rotating_for`), whatever piece of it
   runs and whatever else is in the batch;
3. refuse a pass of the user's that continues a cache whose keys were rotated with other frequencies.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.heads import WorkbenchError
from workbench.hooks.taps.replaced_forward import another_forward

# "su" is longrope's name in older configurations.
_BY_LENGTH = ("dynamic", "longrope", "su")
_FRESH = "original_inv_freq"

_lengths: ContextVar[Tensor | None] = ContextVar("workbench_document_lengths", default=None)


@contextmanager
def steady_rotation(model: PreTrainedModel) -> Generator[None]:
    """Inside the block, rotation depends on the texts alone; afterwards the rotary modules are as they were."""
    with ExitStack() as stack:
        for module in _rotary_modules(model):
            stack.enter_context(_as_it_was(module))
            stack.enter_context(another_forward(module, _SteadyForward(module)))
        yield


@contextmanager
def rotating_for(lengths: Int[Tensor, "b q"]) -> Generator[None]:
    """Inside the block, each token of the pass is rotated for a document of this many tokens."""
    token = _lengths.set(lengths)
    try:
        yield
    finally:
        _lengths.reset(token)


def rotates_by_length(model: PreTrainedModel) -> bool:
    """True if some rotary frequencies depend on the length of the text."""
    return any(True for _ in _rotary_modules(model))


def has_other_rotation(model: PreTrainedModel, before: int, after: int) -> bool:
    """True if texts of `before` and of `after` tokens are rotated with other frequencies."""
    return any(_class_of(module, before) != _class_of(module, after) for module in _rotary_modules(model))


def extends_positions(model: PreTrainedModel) -> bool:
    """True if all rotary frequencies follow the length beyond `max_position_embeddings`, as dynamic NTK's do."""
    types = _types(model.config.get_text_config())
    return bool(types) and rotates_by_length(model) and all("dynamic" in rope_type for rope_type in types)


def uncontrolled_type(model: PreTrainedModel) -> str | None:
    """The rope type of the configuration that depends on the length and that no known rotary module applies."""
    by_length = [t for t in _types(model.config.get_text_config()) if _depends_on_length(t)]
    return None if not by_length or rotates_by_length(model) else by_length[0]


class _SteadyForward:
    """The forward of a rotary module, each time from fresh frequencies and for the lengths of the documents."""

    def __init__(self, module: Any):
        self._module, self._forward = module, module.forward
        self._lock = threading.Lock()  # the frequencies of a pass stand in the module, for passes of all threads

    def __call__(self, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        lengths = _lengths.get()
        if lengths is None:
            self._refuse_continuing(position_ids)
            return self._rotated(x, position_ids, *args, **kwargs)
        longest = {_class_of(self._module, n): n for n in sorted(torch.unique(lengths).tolist())}
        rotated: Any = None
        shorter = 0
        for length in longest.values():
            # transformers reads the length off the largest position: one more column holds it.
            positions = position_ids.clamp(max=length - 1)
            last = positions.new_full((*positions.shape[:-1], 1), length - 1)
            own = self._rotated(x, torch.cat([positions, last], -1), *args, **kwargs)
            own = _each(lambda out: out[..., :-1, :], own)
            rotated = own if rotated is None else _each(_choosing((lengths > shorter)[..., None]), own, rotated)
            shorter = length
        return rotated

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # A copy made while the model is recorded, such as a bridge's twin, rotates as transformers does.
        return copy.deepcopy(self._forward, memo)

    def _rotated(self, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            _start_anew(self._module)
            return self._forward(x, position_ids, *args, **kwargs)

    def _refuse_continuing(self, position_ids: Tensor) -> None:
        n_cached, n_tokens = int(position_ids[..., 0].max()), int(position_ids.max()) + 1
        if int(position_ids.min()) > 0 and _class_of(self._module, n_cached) != _class_of(self._module, n_tokens):
            raise WorkbenchError(
                f"rope type {_name(self._module)!r} rotates {n_tokens} tokens with other frequencies than the "
                f"{n_cached} in the cache, whose keys are rotated already; expected one set of frequencies for all "
                "tokens: run the whole text at once, or generate with use_cache=False"
            )


def _choosing(is_longer: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda own, other: torch.where(is_longer, own, other)


def _each(change: Callable[..., Tensor], *rotations: Any) -> Any:
    """Cosines and sines, or one complex tensor, each changed."""
    if isinstance(rotations[0], Tensor):
        return change(*rotations)
    return tuple(change(*parts) for parts in zip(*rotations, strict=True))


def _rotary_modules(model: PreTrainedModel) -> Iterator[Any]:
    for module in model.modules():
        types = _types_of(module)
        if any(map(_depends_on_length, types)) and any(name.endswith(_FRESH) for name, _ in module.named_buffers()):
            yield module


def _types_of(module: Any) -> list[str]:
    """The rope types of a module: one, or one for each kind of layer."""
    # Not by getattr, with which a module without the attribute looks for it among its weights first.
    rope_type = vars(module).get("rope_type", getattr(type(module), "rope_type", None))
    types = list(rope_type.values()) if isinstance(rope_type, Mapping) else [rope_type]
    return [t for t in types if isinstance(t, str)]


def _name(module: Any) -> str:
    return next(t for t in _types_of(module) if _depends_on_length(t))


def _types(config: Any) -> list[str]:
    """All rope types of a configuration, of one or of several kinds of layers."""
    waiting: list[Any] = [getattr(config, "rope_parameters", None), getattr(config, "rope_scaling", None)]
    types: list[str] = []
    while waiting:
        entry = waiting.pop()
        if isinstance(entry, Mapping):
            types += [t for key in ("rope_type", "type") if isinstance(t := entry.get(key), str)]
            waiting += list(entry.values())
    return list(dict.fromkeys(types))


def _depends_on_length(rope_type: str) -> bool:
    return any(name in rope_type for name in _BY_LENGTH[:2]) or rope_type == _BY_LENGTH[2]


def _class_of(module: Any, length: int) -> tuple[int, ...]:
    """Equal for texts that are rotated with the same frequencies."""
    rope_type = module.rope_type
    by_layers = rope_type if isinstance(rope_type, Mapping) else {None: rope_type}
    classes: list[int] = []
    for layers, name in by_layers.items():
        if "dynamic" in name:
            classes.append(max(length, int(module.original_max_seq_len)))
        elif _depends_on_length(name):
            parameters = module.config.rope_parameters
            parameters = parameters if layers is None else parameters[layers]
            classes.append(int(length > parameters["original_max_position_embeddings"]))
    return tuple(classes)


def _start_anew(module: Any) -> None:
    """Give a module copies of the frequencies that it was made with, as if no text had passed through it."""
    for name, buffer in list(module.named_buffers(recurse=False)):
        if name.endswith(_FRESH):
            module.register_buffer(name.removesuffix(_FRESH) + "inv_freq", buffer.clone(), persistent=False)
    for name in [n for n in vars(module) if n.endswith("_max_seq_len_cached")]:
        delattr(module, name)
    module.max_seq_len_cached = module.original_max_seq_len


@contextmanager
def _as_it_was(module: nn.Module) -> Generator[None]:
    """Put the buffers and the plain attributes of a module back; their tensors are not written into meanwhile."""
    buffers = dict(module.named_buffers(recurse=False))
    attributes = {name: x for name, x in vars(module).items() if not name.startswith("_") and name != "forward"}
    try:
        yield
    finally:
        for name in [n for n in vars(module) if not n.startswith("_") and n != "forward" and n not in attributes]:
            delattr(module, name)
        vars(module).update(attributes)
        for name, buffer in buffers.items():
            module.register_buffer(name, buffer, persistent=name not in module._non_persistent_buffers_set)  # pyright: ignore[reportPrivateUsage]
