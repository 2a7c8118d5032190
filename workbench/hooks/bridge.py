"""TransformerLens in both directions: a bridge of a model, and the plain model inside a bridge.

A TransformerBridge replaces the attention of the model it is booted on, so that the recorder would not be called any
more. It is therefore booted on a twin: other modules, the same parameters; unmerged adapters are merged on the twin. In
the other direction, the bridge's model is copied in the same way and the wrappers are removed from the copy; the bridge
stays as it is.
"""

from __future__ import annotations

import tempfile
import weakref
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from workbench.heads import WorkbenchError
from workbench.hooks.effective_weights import check_weights, has_adapters, twin_of
from workbench.hooks.taps.shared_taps import is_under_interventions

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# The copies of each bridge's model that were opened.
_copies: weakref.WeakKeyDictionary[nn.Module, weakref.WeakSet[PreTrainedModel]] = weakref.WeakKeyDictionary()
# Of logits. A bridge computes eager attention; the same model in sdpa differs by rounding, another by far more.
_TOLERANCE = 1e-3


def is_bridge(source: object) -> bool:
    """True for a TransformerBridge; does not import TransformerLens."""
    return any(
        cls.__name__ == "TransformerBridge" and cls.__module__.startswith("transformer_lens")
        for cls in type(source).__mro__
    )


def bridge_twin(model: PreTrainedModel, tokenizer: Any) -> TransformerBridge:
    """A TransformerBridge on a twin of the model that shares its parameters, those of merged adapters apart.

    A model without a tokenizer gets a placeholder, whose token i is the word `i`. In the bridge, a tokenizer that
    refuses unknown words encodes them as its first token.

    Raises:
        WorkbenchError: if TransformerLens does not know the architecture, or a map's output is not that of its weight.
    """
    from transformer_lens.model_bridge import TransformerBridge

    twin = twin_of(model)
    check_weights(twin)
    if has_adapters(model):
        _check_merged(model, twin)
    twin.config.architectures = [type(model).__name__]
    try:
        # TransformerLens looks up configuration and tokenizer by the model's name; a folder as name avoids the network.
        with tempfile.TemporaryDirectory() as folder:
            twin.config.save_pretrained(folder)
            bridge = TransformerBridge.boot_transformers(
                folder,
                hf_model=twin,
                tokenizer=_local_tokenizer(tokenizer, int(model.config.get_text_config().vocab_size), folder),
                device=str(model.device),
                dtype=model.dtype,
            )
        bridge.cfg.model_name = model.config.name_or_path or type(model).__name__
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise WorkbenchError(
            f"TransformerLens cannot open a {type(model).__name__}: {str(error)[:200]}. Recording, scores and "
            "interventions of the workbench do not need it"
        ) from error
    return bridge.eval()


def unbridged(bridge: TransformerBridge) -> PreTrainedModel:
    """The Hugging Face model inside a bridge, as a copy without wrappers that shares the bridge's parameters.

    Raises:
        WorkbenchError: if the copy does not compute what the bridge does, as after `enable_compatibility_mode`, which
            rewrites the weights; or while interventions are in force on an earlier copy, which this one would be free
            of.
    """
    copies = _copies.setdefault(bridge, weakref.WeakSet())
    if any(map(is_under_interventions, copies)):
        raise WorkbenchError(
            "interventions are in force on a model that was opened from this bridge, and a new copy would be free of "
            "them; pass the opened model instead of the bridge, or end the block first"
        )
    plain = twin_of(bridge.original_model)
    if not isinstance(plain, PreTrainedModel):
        raise WorkbenchError(f"the bridge holds a {type(plain).__name__}; expected a transformers model")
    _unwrap(plain)
    tokens = _some_tokens(plain)
    with torch.no_grad():
        of_bridge, of_plain = bridge(tokens), plain(input_ids=tokens, use_cache=False).logits
    if of_bridge.shape != of_plain.shape or float((of_bridge - of_plain).abs().max()) > _TOLERANCE:
        raise WorkbenchError(
            "the model inside this bridge does not compute what the bridge does; expected a bridge with the weights as "
            "Hugging Face has them: boot it again without enable_compatibility_mode() or process_weights()"
        )
    copies.add(plain)
    return plain


class BridgeOf:
    """The bridge of a model, made when it is first asked for and again when the model has other weights.

    Most weights are shared, so that a bridge follows them. Where it holds copies, of merged adapters or of parts of a
    fused projection, it is made anew after they changed.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any):
        self._model, self._tokenizer = model, tokenizer
        self._bridge: TransformerBridge | None = None
        self._copied: list[str] = []
        self._state: tuple[Any, ...] = ()

    def get(self) -> TransformerBridge:
        """The bridge of the model as it is now.

        Raises:
            WorkbenchError: as `bridge_twin`.
        """
        if self._bridge is None or self._state != self._now():
            self._bridge = bridge_twin(self._model, self._tokenizer)
            held = {p.data_ptr() for p in self._bridge.original_model.parameters()}
            self._copied = [n for n, p in self._model.named_parameters() if p.data_ptr() not in held]
            self._state = self._now()
        return self._bridge

    def _now(self) -> tuple[Any, ...]:
        parameters = dict(self._model.named_parameters())
        versions = [parameters[n]._version for n in self._copied if n in parameters]  # pyright: ignore[reportPrivateUsage]
        adapters = [
            (name, str(getattr(m, "active_adapters", "")), str(m.merged_adapters), bool(m.disable_adapters))
            for name, m in self._model.named_modules()
            if hasattr(m, "merged_adapters") and hasattr(m, "disable_adapters")
        ]
        return [(n, id(p)) for n, p in parameters.items()], versions, adapters


def _check_merged(model: PreTrainedModel, twin: PreTrainedModel) -> None:
    tokens = _some_tokens(model)
    with torch.no_grad():
        own, merged = (x(input_ids=tokens, use_cache=False).logits.float() for x in (model, twin))
    tolerance = _TOLERANCE if model.dtype in (torch.float32, torch.float64) else 5e-2
    if not float((own - merged).abs().max()) <= tolerance * float(own.abs().max()):
        raise WorkbenchError(
            f"the adapters of this {type(model).__name__} cannot be merged without changing what it computes; scores "
            "of weights need merged weights: merge them with merge_and_unload() and open the model again"
        )


def _some_tokens(model: PreTrainedModel) -> Int[Tensor, "1 t"]:
    return torch.arange(5, device=model.device)[None] % int(model.config.get_text_config().vocab_size)


def _unwrap(module: nn.Module) -> None:
    from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

    for name, child in list(module.named_children()):
        inner: Any = child
        while isinstance(inner, GeneralizedComponent):
            inner = inner.original_component
        module._modules[name] = inner  # pyright: ignore[reportPrivateUsage]  # setattr would run the wrapper's method
        _unwrap(inner)


def _local_tokenizer(tokenizer: Any, vocab_size: int, folder: str) -> Any:
    """A tokenizer saved in `folder`; TransformerLens loads it again from there to set special tokens."""
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
        copied = type(tokenizer).from_pretrained(folder)
        if not _refuses_words(copied):
            return copied
        # TransformerLens encodes "a" to see which special tokens surround a text.
        copied.backend_tokenizer.model.unk_token = copied.convert_ids_to_tokens(0)
        copied.save_pretrained(folder)
        return type(tokenizer).from_pretrained(folder)
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = Tokenizer(WordLevel({str(i): i for i in range(vocab_size)}, unk_token="0"))
    special = {"unk_token": "0", "bos_token": "0", "eos_token": "0", "pad_token": "0"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _refuses_words(tokenizer: Any) -> bool:
    """Whether an unknown word is an error, because the token for unknown words is not in the vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    unknown = None if backend is None else getattr(backend.model, "unk_token", None)
    return backend is not None and unknown is not None and backend.token_to_id(unknown) is None
