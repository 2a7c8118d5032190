"""Open a checkpoint strictly: every weight in its place and finite, or a BadCheckpoint that says why not.

Hugging Face's own loading fills a missing tensor with random numbers, casts int8 to float, drops layers that
the config does not count, and passes NaN. Here each of them is refused. Nothing is executed, downloaded or
asked: no code beside the weights, no pickle, no network, no prompt.
"""

from __future__ import annotations

import errno
import logging
import os
import warnings
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import AutoConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
from transformers.models.auto.tokenization_auto import AutoTokenizer
from transformers.utils import logging as transformers_logging

from workbench.checkpoints import WeightsInfo, checkpoint_format, inspect_weights
from workbench.checkpoints.configs import read_config
from workbench.checkpoints.own_files import refuse_foreign
from workbench.heads import BadCheckpoint
from workbench.loading.lightning_decay import restore_decay
from workbench.loading.pickles import READABLE, pickled_info, read_pickled
from workbench.loading.refusals import why_no_language_model, why_unknown

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Buffers that older releases saved and none reads back: causal masks, rotary frequencies, positions.
_UNREAD = (".attn.bias", ".attention.bias", ".masked_bias", ".bias_mask", "position_ids")
_ROTARY = "rotary_emb.inv_freq"
# What torch's allocator and the system say, the latter through whoever mapped a file.
_NO_MEMORY = ("DefaultCPUAllocator", os.strerror(errno.ENOMEM))
# Buffers that follow from the config; `restore_decay` computes them.
_DECAY = (".slope_rate", ".query_decay", ".key_decay", ".diagonal_decay")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
)
# What transformers raises on a broken config or weight file; a config of odd numbers fails in a model's
# arithmetic.
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
    `weights` is what the files' headers say, the dtype on disk among it.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    no_tokenizer: str
    weights: WeightsInfo


def load_pretrained(
    path: Path,
    *,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    allow_pickle: bool = False,
    allow_nonfinite: bool = False,
) -> LoadedModel:
    """Load a Hugging Face folder with safetensors weights.

    Args:
        dtype: None is float32 on the CPU and the weights' own elsewhere. The state and the decay of lightning
            attention are float32 whatever it is: in bfloat16 slow heads would never forget.
        allow_pickle: where there are no safetensors, read pickled weights, tensors alone; see `hooks.pickles`.
        allow_nonfinite: also load weights with NaN or infinity in them; `nonfinite_tensors` then says in which.

    Raises:
        BadCheckpoint: naming the file or tensors and the reason.
    """
    path, device = Path(path), torch.device(device)
    if allow_pickle and checkpoint_format(path) in READABLE:
        shell = _shell(path)
        with quiet():
            state = read_pickled(path, shell.state_dict())
        weights, given = pickled_info(path, state), _Given(type(shell), state)
    else:
        weights, given = inspect_weights(path), None
    dtype_or_auto = _dtype(weights, device) if dtype is None else dtype
    with quiet():
        config = load_config(path)
        if getattr(config, "quantization_config", None) is None:
            # Without data first, so that a config of enormous numbers is refused before memory is taken for it.
            _load(path, config, torch.device("meta"), dtype_or_auto, given)
        model = _load(path, config, device, dtype_or_auto, given)
        tokenizer, no_tokenizer = load_tokenizer(path)
    if not allow_nonfinite:
        _refuse_nonfinite(path, model)
    restore_decay(model)
    return LoadedModel(model.eval(), tokenizer, no_tokenizer, weights)


def _dtype(weights: WeightsInfo, device: torch.device) -> torch.dtype | str:
    """The dtype to load in where none was asked for; the config says what float8 weights unpack to."""
    return torch.float32 if device.type == "cpu" else _DTYPES.get(weights.dtype, "auto")


@dataclass(frozen=True, slots=True)
class _Given:
    """Weights that have been read already, and the class of their model."""

    model_class: type[PreTrainedModel]
    state: dict[str, Tensor]


def _shell(path: Path) -> PreTrainedModel:
    """A model of the folder's configuration without data."""
    with quiet(), torch.device("meta"):
        config = load_config(path)
        try:
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        except FAILURES as error:
            raise BadCheckpoint(f"{path}: config.json makes no model: {_reason(error)}") from error


def _load(
    path: Path,
    config: PreTrainedConfig,
    device: torch.device,
    dtype: torch.dtype | str,
    given: _Given | None,
) -> PreTrainedModel:
    """The model with all of its weights and no other; any error of transformers as BadCheckpoint."""
    config.fusion_config = None
    try:
        loader: Any = AutoModelForCausalLM if given is None else given.model_class
        model, report = loader.from_pretrained(
            path if given is None else None,
            state_dict=None if given is None else dict(given.state),
            config=config,
            dtype=dtype,
            device_map={"": device},
            # A config may ask for kernels from the hub, as for fused modules: other code for the same model.
            attn_implementation=None,
            experts_implementation=None,
            use_safetensors=True,
            weights_only=True,
            ignore_mismatched_sizes=True,  # so that they are reported by name; they are refused below
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
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
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except FAILURES as error:
        why = why_unknown(read_config(path)) or f"describes no known model: {_reason(error)}"
        raise BadCheckpoint(f"{path / 'config.json'}: {why}") from error
    why = why_no_language_model(config)
    if why:
        raise BadCheckpoint(f"{path / 'config.json'}: {why}")
    return config


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether the machine is too small, which is not the checkpoint's fault; also where another error came of that."""
    if error is None:
        return False
    is_it = isinstance(error, MemoryError | torch.OutOfMemoryError) or any(told in str(error) for told in _NO_MEMORY)
    return is_it or is_out_of_memory(error.__cause__)


def _reason(error: Exception) -> str:
    """The first lines of a message that may run to pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])[:400]}"


def _refuse_misfits(path: Path, report: dict[str, Any]) -> None:
    """Refuse a model that has other weights than its files. Tied weights are not in the report."""
    missing = [key for key in report["missing_keys"] if not key.endswith(_DECAY)]
    unexpected = [key for key in report["unexpected_keys"] if not (key.endswith(_UNREAD) or _ROTARY in key)]
    mismatched = [
        f"{key} ({list(disk)} in the file, {list(model)} by config.json)"
        for key, disk, model in report["mismatched_keys"]
    ]
    wrong = {
        "tensors missing from the files": missing,
        "tensors that config.json has no place for": unexpected,
        "tensors of another shape": mismatched,
        "tensors that cannot be converted": report["error_msgs"],
    }
    told = "; ".join(f"{what}: {_some(keys)}" for what, keys in wrong.items() if keys)
    if told:
        raise BadCheckpoint(f"{path}: {told}. Fetch the checkpoint again, or mend config.json")


def _refuse_nonfinite(path: Path, model: PreTrainedModel) -> None:
    """Refuse NaN and infinity in a parameter or saved buffer: an infinite v leaves attention finite."""
    bad = nonfinite_tensors(model)
    if bad:
        raise BadCheckpoint(
            f"{path}: non-finite numbers in {_some(bad)}; a diverged run or a damaged file. --allow-nonfinite "
            "(allow_nonfinite=True) scores what is left of it"
        )


def nonfinite_tensors(model: PreTrainedModel) -> list[str]:
    """The parameters and saved buffers that have NaN or infinity in them, by name."""
    return [name for name, tensor in _saved_tensors(model) if not _is_finite(tensor)]


def _saved_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the state, a tied one once."""
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.numel() and tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            yield name, tensor


def _is_finite(tensor: Tensor) -> bool:
    # The extremes carry NaN and infinity and need no mask the size of the tensor; float8 has no aminmax.
    lo, hi = torch.aminmax(tensor if tensor.element_size() > 1 else tensor.float())
    return bool(torch.isfinite(lo) & torch.isfinite(hi))


def _some(names: Iterable[str], shown: int = 3) -> str:
    """A few names and the count of the rest."""
    names = sorted(map(str, names))
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest


def load_tokenizer(path: Path) -> tuple[PreTrainedTokenizerBase | None, str]:
    """The tokenizer, or None and the reason: attention can be scored without one."""
    if not any((path / name).exists() for name in TOKENIZER_FILES):
        return None, "there are no tokenizer files in the folder"
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False), ""
    except Exception as error:  # the tokenizers library raises no narrower one; the reason is kept
        return None, f"the tokenizer cannot be read: {_reason(error)}"


@contextmanager
def quiet() -> Generator[None]:
    """No progress bars, log lines or warnings of transformers, whose settings are restored."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    hub_bars = not are_progress_bars_disabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
        (enable_progress_bars if hub_bars else disable_progress_bars)()
