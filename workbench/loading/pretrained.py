"""Load a checkpoint strictly: every weight in its place and finite, or a BadCheckpoint that says why not.

Hugging Face's loading fills a missing tensor with random numbers, casts int8 to float, drops layers that the config
does not count, and passes NaN. Here each of these is refused. No code of the checkpoint is run, no pickle is read
unless allowed, and there is no network access and no prompt.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import AutoConfig

from workbench.checkpoints import WeightsInfo, checkpoint_format, inspect_weights
from workbench.checkpoints.configs import read_config
from workbench.checkpoints.own_files import refuse_foreign
from workbench.heads import BadCheckpoint, WorkbenchError, some_of
from workbench.loading.gguf_weights import gguf_weights_info, read_gguf_config, read_gguf_tensors
from workbench.loading.lightning_decay import restore_decay
from workbench.loading.pickles import READABLE, pickled_info, read_pickled
from workbench.loading.quiet_transformers import quiet
from workbench.loading.refusals import language_model_class, why_no_language_model, why_unknown
from workbench.loading.tokenizer_files import check_fit, load_tokenizer
from workbench.loading.wrapped_names import proposed_names

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Buffers that older releases saved and no release reads back: causal masks, rotary frequencies, positions.
_UNREAD = (".attn.bias", ".attention.bias", ".masked_bias", ".bias_mask", "position_ids")
_ROTARY = "rotary_emb.inv_freq"
# Messages of torch's allocator and of the system; the latter also through libraries that map files.
_NO_MEMORY = ("DefaultCPUAllocator", os.strerror(errno.ENOMEM))
# More than any model has.
_MANY_LAYERS = 1000
# Buffers that are computed from the config, by `restore_decay`.
_DECAY = (".slope_rate", ".query_decay", ".key_decay", ".diagonal_decay")
# Of each `_likeness` whose tensors were seen to fit as they are named.
_FITTING: set[str] = set()
# Errors of transformers on a broken config or weight file; a config of odd numbers fails in a model's arithmetic.
FAILURES = (
    OSError,
    ValueError,
    RuntimeError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    ImportError,
    SafetensorError,
    StrictDataclassError,
)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A checkpoint in memory, in evaluation mode.

    `tokenizer` is None where the folder has none or it cannot be read; `no_tokenizer` then says why.
    `weights`: from the headers of the files, with the dtype on disk.
    """

    model: PreTrainedModel
    tokenizer: Any
    no_tokenizer: str
    weights: WeightsInfo


def load_pretrained(
    path: Path,
    *,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    tokenizer: Any = None,
    allow_pickle: bool = False,
    allow_nonfinite: bool = False,
) -> LoadedModel:
    """Load a Hugging Face folder with safetensors weights, or a GGUF file or folder.

    Args:
        tokenizer: one that is open already, for a folder without; None: the folder's own, or that of the Trainer's
            folder above it.
        dtype: None is float32 on the CPU and the weights' own elsewhere; quantised weights of GGUF are float32 once
            they are numbers. The state and the decay of lightning
            attention are always float32: in bfloat16 slow heads would never forget.
        allow_pickle: where there are no safetensors, read tensors from pickled weights; see `loading.pickles`.
        allow_nonfinite: also load weights with NaN or infinity in them; `nonfinite_tensors` names the tensors.

    Raises:
        BadCheckpoint: naming the file or tensors and the reason.
    """
    path, device = Path(path), torch.device(device)
    state: dict[str, Tensor] | None = None
    is_gguf = checkpoint_format(path) == "gguf"
    if is_gguf:
        weights = gguf_weights_info(path)
    elif allow_pickle and checkpoint_format(path) in READABLE:
        with quiet():
            load_config(path)
            state = read_pickled(path)
        weights = pickled_info(path, state)
    else:
        weights = inspect_weights(path)
    target = _Target(device, _dtype(weights, device) if dtype is None else dtype)
    with quiet():
        config = load_config(path)
        _refuse_absurd_depth(path, config, weights)
        if is_gguf:
            state = read_gguf_tensors(path, config, _float_dtype(target.dtype))
        elif getattr(config, "quantization_config", None) is None:
            # On the meta device first, so that a config of enormous numbers is refused before it takes memory.
            state = _fitting_state(path, config, weights, state, target=replace(target, device=torch.device("meta")))
        model = _load(path, config, state, target=target)
        tokenizer, no_tokenizer = load_fitting(path, model.config) if tokenizer is None else (tokenizer, "")
    if not allow_nonfinite:
        _refuse_nonfinite(path, model)
    restore_decay(model)
    return LoadedModel(model.eval(), tokenizer, no_tokenizer, weights)


def _refuse_absurd_depth(path: Path, config: PreTrainedConfig, weights: WeightsInfo) -> None:
    """Layers are made one by one, for minutes where a damaged config.json names a hundred thousand."""
    n_layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if isinstance(n_layers, int) and n_layers > max(len(weights.tensors), _MANY_LAYERS):
        raise BadCheckpoint(
            f"{path}: config.json names {n_layers:,} layers, and the files hold {len(weights.tensors)} tensors; mend "
            "config.json, or fetch the checkpoint again"
        )


def load_fitting(path: Path, config: PreTrainedConfig) -> tuple[Any, str]:
    """The tokenizer of a checkpoint's folder if the model has its words; else None and the reason."""
    tokenizer, reason = load_tokenizer(path)
    if tokenizer is None:
        return None, reason
    try:
        check_fit(tokenizer, int(config.get_text_config().vocab_size), name=path.name)
    except WorkbenchError as error:
        return None, str(error)
    return tokenizer, ""


def _float_dtype(dtype: torch.dtype | str) -> torch.dtype:
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _dtype(weights: WeightsInfo, device: torch.device) -> torch.dtype | str:
    """The dtype to load in by default; "auto" where the config says to which dtype float8 weights are unpacked."""
    return torch.float32 if device.type == "cpu" else _DTYPES.get(weights.dtype, "auto")


@dataclass(frozen=True, slots=True)
class _Target:
    """Where the weights go, and as what."""

    device: torch.device
    dtype: torch.dtype | str


def _fitting_state(
    path: Path, config: PreTrainedConfig, weights: WeightsInfo, state: dict[str, Tensor] | None, *, target: _Target
) -> dict[str, Tensor] | None:
    """The tensors to load, named so that each has its place in the model; None for those of the files as they are.

    The names of wrappers are taken out only where that makes everything fit.
    """
    likeness = _likeness(config, weights)
    if likeness in _FITTING:
        return state
    try:
        _load(path, config, state, target=target)
    except BadCheckpoint as error:
        proposals = proposed_names(weights.tensors, _shell(path, config).state_dict())
        if not proposals:
            raise
        faults = [error]
    else:
        _FITTING.add(likeness)
        return state
    tensors = _read_safetensors(weights) if state is None else state
    for renaming in proposals:
        renamed = {renaming[name]: tensor for name, tensor in tensors.items()}
        try:
            _load(path, config, renamed, target=target)
        except BadCheckpoint as error:
            faults.append(error)
        else:
            return renamed
    raise faults[1]  # of the proposal with which most names are the model's own


def _likeness(config: PreTrainedConfig, weights: WeightsInfo) -> str:
    """What the checkpoints of a series have in common, whose tensors fit if those of one of them do."""
    fields = {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}
    tensors = sorted((name, tensor.dtype, tensor.shape) for name, tensor in weights.tensors.items())
    described = json.dumps([type(config).__name__, fields, tensors], sort_keys=True, default=str)
    return hashlib.blake2b(described.encode(), digest_size=16).hexdigest()


def _read_safetensors(weights: WeightsInfo) -> dict[str, Tensor]:
    return {name: tensor for file in weights.files for name, tensor in load_file(file).items()}


def _shell(path: Path, config: PreTrainedConfig) -> PreTrainedModel:
    """A model of the configuration without data."""
    with torch.device("meta"):
        try:
            return language_model_class(config)(config)
        except FAILURES as error:
            raise BadCheckpoint(f"{path}: config.json makes no model: {_reason(error)}") from error


def _load(path: Path, config: PreTrainedConfig, state: dict[str, Tensor] | None, *, target: _Target) -> PreTrainedModel:
    """The model with exactly the weights of its files, or of `state`; any error of transformers is a BadCheckpoint."""
    config.fusion_config = None
    try:
        model, report = language_model_class(config).from_pretrained(
            path if state is None else None,
            state_dict=None if state is None else dict(state),
            config=config,
            dtype=target.dtype,
            device_map={"": target.device},
            # A config may name kernels from the hub, as for fused modules, which would be downloaded code.
            attn_implementation=None,
            experts_implementation=None,
            use_safetensors=True,
            weights_only=True,
            ignore_mismatched_sizes=True,  # so that the report names them; they are refused below
            output_loading_info=True,
            local_files_only=True,
        )
    except FAILURES as error:
        if is_out_of_memory(error):
            raise
        raise BadCheckpoint(f"{path}: config.json and weights make no model: {_reason(error)}") from error
    _refuse_misfits(path, report)
    return model


def load_config(path: Path) -> PreTrainedConfig:
    """The configuration of a checkpoint's folder.

    Raises:
        BadCheckpoint: if config.json is missing, or describes no causal language model that transformers knows, or a
            file of the folder is a link to elsewhere.
    """
    refuse_foreign(path)
    if checkpoint_format(path) == "gguf":
        return _checked_config(path, read_gguf_config(path))
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except FAILURES as error:
        fault = why_unknown(read_config(path)) or f"describes no known model: {_reason(error)}"
        raise BadCheckpoint(f"{path / 'config.json'}: {fault}") from error
    return _checked_config(path / "config.json", config)


def _checked_config(source: Path, config: PreTrainedConfig) -> PreTrainedConfig:
    fault = why_no_language_model(config)
    if fault:
        raise BadCheckpoint(f"{source}: {fault}")
    return config


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out, in this error or its cause: the machine is too small, and the checkpoint not at fault."""
    if error is None:
        return False
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in str(error) for text in _NO_MEMORY):
        return True
    return is_out_of_memory(error.__cause__)


def _reason(error: Exception) -> str:
    """The first lines of a message that may run to pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])[:400]}"


def _refuse_misfits(path: Path, report: dict[str, Any]) -> None:
    """Refuse a model whose weights are not exactly those of its files. The report leaves tied weights out."""
    missing = [key for key in report["missing_keys"] if not key.endswith(_DECAY)]
    unexpected = [key for key in report["unexpected_keys"] if not (key.endswith(_UNREAD) or _ROTARY in key)]
    mismatched = [
        f"{key} ({list(disk)} in the file, {list(model)} by config.json)"
        for key, disk, model in report["mismatched_keys"]
    ]
    faults = {
        "tensors missing from the files": missing,
        "tensors that config.json has no place for": unexpected,
        "tensors of another shape": mismatched,
        "tensors that cannot be converted": report["error_msgs"],
    }
    message = "; ".join(f"{fault}: {_some(keys)}" for fault, keys in faults.items() if keys)
    if message:
        raise BadCheckpoint(f"{path}: {message}. Fetch the checkpoint again, or mend config.json")


def _refuse_nonfinite(path: Path, model: PreTrainedModel) -> None:
    """Refuse NaN and infinity in a parameter or saved buffer; statistics may hide them, as those of an infinite v."""
    bad = nonfinite_tensors(model)
    if bad:
        raise BadCheckpoint(
            f"{path}: non-finite numbers in {_some(bad)}; a diverged run or a damaged file. --allow-nonfinite "
            "(allow_nonfinite=True) scores what is left of it"
        )


def nonfinite_tensors(model: PreTrainedModel) -> list[str]:
    """The names of the parameters and saved buffers with NaN or infinity in them."""
    return [name for name, tensor in _saved_tensors(model) if not _is_finite(tensor)]


def _saved_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Every floating point tensor of the state; tied ones once."""
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.numel() and tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            yield name, tensor


def _is_finite(tensor: Tensor) -> bool:
    # The extremes show NaN and infinity without a mask of the tensor's size; float8 has no aminmax.
    lo, hi = torch.aminmax(tensor if tensor.element_size() > 1 else tensor.float())
    return bool(torch.isfinite(lo) & torch.isfinite(hi))


def _some(names: Iterable[str], shown: int = 3) -> str:
    """A few of the names, and how many more there are."""
    return some_of(sorted(map(str, names)), shown)
