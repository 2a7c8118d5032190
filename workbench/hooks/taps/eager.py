"""Read softmax layers of older families, without AttentionInterface, where they turn scores into probabilities.

While a decoder block runs, a tap intercepts its torch function calls. The softmax over [batch, head, query, key] gives
the scores, with bias, scale and mask as the model made them; the product with the values that follows gives v, and the
handler's output replaces its result, so that an intervention needs nothing else. The model's own implementation is
read, because transformers' eager and sdpa implementations of one family do not always agree.

One layer's scores exist at a time, T × T: that is why T is limited.
"""

from __future__ import annotations

import copy
import inspect
import sys
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.functional import dropout, scaled_dot_product_attention, softmax
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function

from workbench.heads import WorkbenchError
from workbench.hooks.taps import attention_interface
from workbench.hooks.taps.attention_call import OWN_PROBABILITIES, Handler, LazyMask
from workbench.hooks.taps.evaluation_mode import evaluating, warn_of_dropout
from workbench.hooks.taps.finite_values import note_attention
from workbench.hooks.taps.layer_lists import blocks
from workbench.hooks.taps.replaced_forward import another_forward
from workbench.hooks.taps.rotary_lengths import steady_rotation
from workbench.hooks.taps.scored_call import MAX_TOKENS, grouped_scores, scored_call
from workbench.hooks.taps.shared_taps import one_thread, placed_once, standing_handlers

# Passes as short as the one that opens a model receive the true probabilities, and must pass them on unchanged.
_CHECKED_ROWS = 16
_SOFTMAX = {softmax, torch.softmax, Tensor.softmax}
_PRODUCT = {torch.matmul, torch.bmm, Tensor.matmul, Tensor.bmm, Tensor.__matmul__}

_handler: ContextVar[Handler | None] = ContextVar("workbench_eager_handler", default=None)


@contextmanager
def handling(model: PreTrainedModel, handler: Handler, *, leaves_mode: bool = False) -> Generator[None]:
    """Send every softmax layer of `model` to `handler`; afterwards the model is as it was, mode and all.

    `leaves_mode`: a model that is training goes on to, with its dropout and gradient checkpointing; else it is in
    evaluation mode inside the block.

    Raises:
        WorkbenchError: inside, for more tokens than MAX_TOKENS where the family gives no other way than T × T scores.
    """
    own = _handler if is_without_interface(model) else attention_interface.handler_of_pass
    mode = nullcontext() if leaves_mode else evaluating(model)
    with one_thread(model), mode, tapped(model):
        token = own.set(handler)
        try:
            yield
        finally:
            own.reset(token)


@contextmanager
def tapped(model: PreTrainedModel) -> Generator[None]:
    """Inside the block, softmax layers go to the pass's handler, or to the one that stands on the model."""
    with placed_once(model, partial(_taps, model)):
        yield


def is_without_interface(model: PreTrainedModel) -> bool:
    """True if no module of the model comes from a file that uses transformers' AttentionInterface."""
    files = (sys.modules.get(type(module).__module__) for module in model.modules())
    return not any(hasattr(file, "ALL_ATTENTION_FUNCTIONS") for file in files)


@contextmanager
def _taps(model: PreTrainedModel) -> Generator[None]:
    own = _tapping_scores if is_without_interface(model) else attention_interface.tapping
    with steady_rotation(model), own(model):
        yield


@contextmanager
def _tapping_scores(model: PreTrainedModel) -> Generator[None]:
    inputs = _Inputs(model)
    with ExitStack() as stack:
        stack.enter_context(inputs.noting())
        for layer, block in blocks(model):
            stack.enter_context(another_forward(block, _TappedForward(layer, block, inputs)))
        yield


class _Inputs(threading.local):
    """The inputs of the forward pass that runs in this thread: its padding mask, and a check of its length."""

    def __init__(self, model: PreTrainedModel):
        self._model = model
        self._mask: Tensor | None = None
        self._n_sequences = 0

    @property
    def config(self) -> Any:
        """The configuration of the model's text."""
        return self._model.config.get_text_config()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Inputs:
        return _Inputs(copy.deepcopy(self._model, memo))

    @contextmanager
    def noting(self) -> Generator[None]:
        """Record the inputs of every forward pass inside the block."""
        models = [m for m in self._model.modules() if isinstance(m, PreTrainedModel)]
        handles = [m.register_forward_pre_hook(self._note, with_kwargs=True) for m in models]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        arguments = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
        tokens = next((arguments[x] for x in ("input_ids", "inputs_embeds") if arguments.get(x) is not None), None)
        self._n_sequences, n_tokens = (0, 0) if tokens is None else tokens.shape[:2]
        family = type(self._model).__name__
        if n_tokens > MAX_TOKENS:
            raise WorkbenchError(
                f"{n_tokens} tokens are too many for {family}: its attention goes through no interface and is read off "
                f"its full score matrix, of tokens² cells per head; pass sequences of at most {MAX_TOKENS} tokens"
            )
        longest = getattr(self.config, "max_seq_len", None)  # MPT's name for it
        if longest is not None and n_tokens > longest:
            raise WorkbenchError(f"{n_tokens} tokens exceed the {longest} positions of this model; pass fewer")
        self._mask = arguments.get("attention_mask")

    def by_head(self, scores: Float[Tensor, "..."]) -> Float[Tensor, "b h q k"] | None:
        """Scores over [batch, head, query, key], also of families that have batch and head on one axis; else None."""
        if scores.ndim == 3 and len(scores) == self._n_sequences * getattr(self.config, "num_attention_heads", 0):
            return rearrange(scores, "(b h) q k -> b h q k", b=self._n_sequences)
        return scores if scores.ndim == 4 else None

    def mask(self, layer: int, n_queries: int, n_keys: int) -> LazyMask:
        """The mask of a layer: causal, with the window of the configuration where it has one, without padding."""
        valid = self._mask
        if valid is not None:
            if valid.ndim != 2 or valid.shape[1] != n_keys:
                raise WorkbenchError(
                    f"attention_mask has shape {tuple(valid.shape)} for {n_keys} keys; expected [batch, keys]"
                )
            valid = None if bool(valid.all()) else valid.bool()
        window = _window(self.config, layer)
        function: Any = causal_mask_function if window is None else sliding_window_causal_mask_function(window)
        return LazyMask(
            function=function,
            n_queries=n_queries,
            n_keys=n_keys,
            query_offset=n_keys - n_queries,
            key_offset=0,
            window=window,
            valid=valid,
        )


def _window(config: Any, layer: int) -> int | None:
    """The window of GPT-Neo, the only family without the interface that has windows."""
    kinds = getattr(config, "attention_layers", None)
    return int(config.window_size) if kinds and kinds[layer] == "local" else None


class _TappedForward:
    """A block's forward with a tap on the functions it calls."""

    def __init__(self, layer: int, block: nn.Module, inputs: _Inputs):
        self._tap = partial(_Tap, layer, block, inputs)
        self._forward = block.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._tap() as tap:
            out = self._forward(*args, **kwargs)
            tap.finish()
        return out

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # A copy made inside `handling`, such as a bridge's twin, has no tap.
        return copy.deepcopy(self._forward, memo)


class _Tap(TorchFunctionMode):
    """Intercepts a softmax of scores, then the product of its result with the values, which the handler replaces."""

    def __init__(self, layer: int, block: nn.Module, inputs: _Inputs):
        super().__init__()
        self._layer, self._block, self._inputs = layer, id(block), inputs
        self._name = f"{type(block).__name__} of layer {layer}"
        self._scores: Tensor | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _SOFTMAX and (scores := self._inputs.by_head(args[0])) is not None:
            return self._on_softmax(scores, args[0].shape, lambda: func(*args, **kwargs))
        if func in _PRODUCT and self._scores is not None and args[0].shape[-2:] == self._scores.shape[-2:]:
            return self._on_product(args[0], args[1])
        if func is dropout and self._scores is not None and args[0].shape[-2:] == self._scores.shape[-2:]:
            return self._on_dropout(*args, **kwargs)
        if func is scaled_dot_product_attention:
            return self._on_sdpa(*args, **kwargs)
        return func(*args, **kwargs)

    def finish(self) -> None:
        """Raises:
        WorkbenchError: if the product with the last probabilities did not come.
        """
        if self._scores is not None:
            raise WorkbenchError(
                f"{self._name} makes attention probabilities that are not multiplied with the values in one product; "
                "it cannot be recorded exactly. Expected one softmax and then one matmul with the values in a layer. "
                f"Leave this model out; {OWN_PROBABILITIES}"
            )

    def _on_softmax(
        self, scores: Float[Tensor, "b h q k"], shape: torch.Size, probabilities: Callable[[], Tensor]
    ) -> Float[Tensor, "*bh q k"]:
        self.finish()
        self._scores = scores
        if scores.shape[-2] <= _CHECKED_ROWS:
            return probabilities()
        # Any use of these outside of the product shows as NaN.
        return torch.full((), torch.nan, dtype=scores.dtype, device=scores.device).expand(shape)

    def _on_product(self, used: Float[Tensor, "*bh q k"], v: Float[Tensor, "*bv k d"]) -> Float[Tensor, "*bo q d"]:
        scores, self._scores = self._scores, None
        assert scores is not None
        if scores.shape[-2] <= _CHECKED_ROWS and not _are_probabilities(used.reshape(scores.shape), scores):
            raise WorkbenchError(
                f"{self._name} multiplies its values with something else than the softmax of its scores over the keys; "
                f"it cannot be recorded exactly. Leave this model out; {OWN_PROBABILITIES}"
            )
        is_flat = v.ndim == 3
        out = self._handled(scores, rearrange(v, "(b h) k d -> b h k d", b=len(scores)) if is_flat else v)
        return rearrange(out, "b q h d -> (b h) q d" if is_flat else "b q h d -> b h q d").contiguous()

    def _on_dropout(
        self, probabilities: Float[Tensor, "*bh q k"], p: float | int = 0.5, training: bool = True, **_: Any
    ) -> Float[Tensor, "*bh q k"]:
        if training and p > 0:
            warn_of_dropout(self._name, p)
        return probabilities

    def _on_sdpa(  # noqa: PLR0913, PLR0917  # the arguments of torch's function
        self,
        query: Float[Tensor, "b h q d"],
        key: Float[Tensor, "b kv k d"],
        value: Float[Tensor, "b kv k d_v"],
        attn_mask: Shaped[Tensor, "#b #h q k"] | None = None,
        dropout_p: float | int = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **_: Any,
    ) -> Float[Tensor, "b h q d_v"]:
        if dropout_p > 0:
            warn_of_dropout(self._name, dropout_p)
        scores = grouped_scores(query, key) * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, torch.finfo(torch.float32).min)
        elif attn_mask is not None:
            scores = scores + attn_mask
        return rearrange(self._handled(scores, value), "b q h d -> b h q d").contiguous()

    def _handled(
        self, scores: Float[Tensor, "b h q k"], v: Float[Tensor, "#b n_v_heads k d"]
    ) -> Float[Tensor, "b q h d"]:
        call = scored_call(
            self._layer,
            scores,
            v,
            self._inputs.mask(self._layer, *scores.shape[-2:]),
            n_kv_heads=getattr(self._inputs.config, "num_kv_heads", None),
            name=self._name,
        )
        note_attention(self._layer, (call.v,), None, call.mask.valid)
        handler = _handler.get() or standing_handlers().get(self._block)
        out = (call.output() if handler is None else handler(call)).to(v.dtype)
        note_attention(self._layer, (), out, None)
        return out


def _are_probabilities(used: Float[Tensor, "b h q k"], scores: Float[Tensor, "b h q k"]) -> bool:
    """Equal to the softmax of the scores, rounded to the model's dtype at most."""
    tolerance = 1e-5 if used.dtype in (torch.float32, torch.float64) else 1e-2
    # Finiteness of the weights is checked by loading.pretrained.
    return not bool((used.float() - softmax(scores.float(), -1)).abs().max() > tolerance)
