"""Read a GGUF model: its configuration as transformers makes it, and its tensors dequantised, each with its place.

1. transformers' reader of settings makes the configuration. It runs on the file's settings alone, without the words
   and the data, which take it up to 20 s.
2. Settings that it does not pass on, or passes on otherwise, are refused (`loading.gguf_settings`).
3. Names are compared on a model without data: a tensor of the file without a place, or a parameter of the model without
   a tensor, is refused before anything is dequantised.
4. Tensors are dequantised one at a time by the package gguf and put into transformers' order by its own processors, so
   the weights are those of `from_pretrained(folder, gguf_file=name)`, bit for bit.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import AutoConfig

from workbench.checkpoints import TensorInfo, WeightsInfo
from workbench.checkpoints.configs import DEQUANTISED_FROM
from workbench.checkpoints.gguf_headers import GgufHeader, GgufTensor, read_gguf_header
from workbench.checkpoints.weight_headers import weights_info
from workbench.heads import BadCheckpoint, WorkbenchError
from workbench.loading.gguf_settings import why_unlike
from workbench.loading.refusals import language_model_class

# GGUF's names of the architectures that transformers' reader knows and that are language models of its own.
ARCHITECTURES = (
    "bloom", "falcon", "gemma2", "gemma3", "gpt2", "gpt-oss", "llama", "minimax-m2", "nemotron", "phi3",
    "qwen2", "qwen2moe", "qwen3", "qwen3moe", "stablelm", "starcoder2",
)  # fmt: skip
# The quantised types of each layer, in the model's configuration beside `DEQUANTISED_FROM`.
DEQUANTISED_LAYERS = "dequantised_layers"
_INSTALL = "pip install 'attention-workbench[gguf]' (or pip install gguf)"
_CONVERT = (
    "Convert it where it was trained, or load it with transformers, compare it with its origin, and pass the model to "
    "open_model"
)
_FEW = 3
# More than any model has.
_MANY_LAYERS = 1000
_ROW = 1 << 16


def require_gguf() -> None:
    """Refuse to go on where the package gguf is missing.

    Raises:
        WorkbenchError: with what to install.
    """
    try:
        import gguf  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise WorkbenchError(
            f"GGUF weights are dequantised by the package gguf, which is missing: {_INSTALL}"
        ) from error


def gguf_weights_info(path: Path) -> WeightsInfo:
    """The same description of a GGUF model that `inspect_weights` gives of safetensors files.

    Quantised tensors are F32, which is what they are once they are numbers.

    Raises:
        BadCheckpoint: for a damaged file.
    """
    header = read_gguf_header(path)
    infos = {
        name: TensorInfo(tensor.type if tensor.type in ("F16", "BF16") else "F32", tensor.shape, tensor.file.name)
        for name, tensor in header.tensors.items()
    }
    return weights_info(header.files, infos)


def read_gguf_config(path: Path) -> PreTrainedConfig:
    """The configuration of a GGUF model, with the name of its quantisation and the quantised types of each layer.

    Raises:
        BadCheckpoint: for a damaged file, an architecture that transformers does not read, or settings that it does not
            pass on.
        WorkbenchError: if the package gguf is missing.
    """
    header = read_gguf_header(path)
    require_gguf()
    _refuse_unknown_architecture(path, header)
    _refuse_absurd_depth(path, header)
    settings = _transformers_settings(path, header)
    try:
        config = AutoConfig.for_model(**settings)
    except Exception as error:  # a setting of another type than the model's configuration takes
        raise BadCheckpoint(f"{path}: its settings make no configuration: {type(error).__name__}: {error}") from error
    if fault := why_unlike(header, config):
        raise BadCheckpoint(f"{path}: {fault}. {_CONVERT}")
    if header.quantisation:
        setattr(config, DEQUANTISED_FROM, header.quantisation)
        layers = range(int(config.get_text_config().num_hidden_layers))
        setattr(config, DEQUANTISED_LAYERS, [header.types_of_layer(i) for i in layers])
    return config


def read_gguf_tensors(path: Path, config: PreTrainedConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every tensor of a GGUF model under the model's own names, on the CPU, dequantised in float32 and cast to `dtype`.

    Raises:
        BadCheckpoint: naming the tensors that have no place in the model, and the parameters that have no tensor.
    """
    header = read_gguf_header(path)
    places = Places(path, header, config)
    places.require_complete()
    state: dict[str, Tensor] = {}
    maps = {file: np.memmap(file, dtype=np.uint8, mode="r") for file in header.files}
    for name, tensor in header.tensors.items():
        if (placed := places.of(name, _dequantised(maps[tensor.file], tensor))) is not None:
            state[placed[0]] = placed[1].to(dtype)
    return state | {name: values.to(dtype) for name, values in places.of_several().items()}


def _refuse_unknown_architecture(path: Path, header: GgufHeader) -> None:
    if header.architecture not in ARCHITECTURES:
        raise BadCheckpoint(
            f"{path}: is of the architecture {header.architecture!r}, which is not read from GGUF; expected "
            f"{', '.join(ARCHITECTURES)}. Pass its folder with safetensors instead"
        )


def _refuse_absurd_depth(path: Path, header: GgufHeader) -> None:
    """Layers are made one by one, before their tensors are missed: for hours where a damaged header names 2³¹."""
    name = f"{header.architecture}.block_count"
    n_layers = header.settings.get(name)
    if isinstance(n_layers, int) and n_layers > max(len(header.tensors), _MANY_LAYERS):
        raise BadCheckpoint(
            f"{path}: {name} is {n_layers:,}, and it holds {len(header.tensors)} tensors; truncated or damaged, fetch "
            "the file again"
        )


def _transformers_settings(path: Path, header: GgufHeader) -> dict[str, Any]:
    """The configuration's settings by transformers' own reader, from a file of the settings and names alone."""
    from gguf import GGUFWriter
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    with tempfile.TemporaryDirectory(prefix="workbench-gguf-") as folder:
        file = Path(folder) / "settings.gguf"
        writer: Any = GGUFWriter(file, header.architecture)
        for name, value in _plain_settings(header).items():
            _add(writer, name, value)
        for name in header.tensors:
            writer.add_tensor(name, np.zeros(1, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        try:
            read = dict(load_gguf_checkpoint(str(file), return_tensors=False)["config"])
        except Exception as error:  # its errors have no common class
            raise BadCheckpoint(
                f"{path}: transformers does not read its settings: {type(error).__name__}: {error}"
            ) from error
    vocab_size = header.settings.get("tokenizer.ggml.tokens", header.settings.get(f"{header.architecture}.vocab_size"))
    return {"vocab_size": vocab_size, **read} if vocab_size is not None else read


def _plain_settings(header: GgufHeader) -> dict[str, Any]:
    """The settings without the words; the size of the vocabulary stands in for them."""
    vocab_size = header.settings.get("tokenizer.ggml.tokens")
    left_out = ("general.architecture", "GGUF.", "split.", "quantize.", "tokenizer.chat_template")
    settings = {name: value for name, value in header.settings.items() if not name.startswith(left_out)}
    words = ("tokens", "merges", "scores", "token_type", "precompiled_charsmap")
    settings = {name: value for name, value in settings.items() if name.removeprefix("tokenizer.ggml.") not in words}
    if vocab_size is not None:
        settings.setdefault(f"{header.architecture}.vocab_size", vocab_size)
    return settings


def _add(writer: Any, name: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        (writer.add_uint32 if 0 <= value < 1 << 32 else writer.add_int64)(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    elif value:
        writer.add_array(name, value)


def _dequantised(file: NDArray[np.uint8], tensor: GgufTensor) -> NDArray[np.float32]:
    from gguf import GGMLQuantizationType, dequantize

    data = file[tensor.start : tensor.start + tensor.n_bytes]
    shape = tensor.shape or (1,)
    n_rows = math.prod(shape[:-1])
    # gguf goes through 16 rows at a time. Blocks do not know of rows, so that longer rows give the same numbers, and
    # ten times faster.
    joined = max(k for k in range(1, n_rows + 1) if n_rows % k == 0 and (k == 1 or k * shape[-1] <= _ROW))
    values = dequantize(data.reshape(n_rows // joined, -1), GGMLQuantizationType[tensor.type])
    return values.reshape(tensor.shape)


class Places:
    """Where the tensors of a file belong in the model, by transformers' tables of names and its processors."""

    def __init__(self, path: Path, header: GgufHeader, config: PreTrainedConfig) -> None:
        from transformers.modeling_gguf_pytorch_utils import (
            TENSOR_PROCESSORS,
            TensorProcessor,
            get_gguf_hf_weights_map,
        )

        self._path, self._header = path, header
        with torch.device("meta"):
            self.model: PreTrainedModel = language_model_class(config)(config)
        kind = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)
        self._processor = kind(config=config.to_dict() | {"n_head": getattr(config, "n_head", None)})
        self.names: Mapping[str, str] = get_gguf_hf_weights_map(_Outer(self.model, self.model.config), self._processor)
        # Tensors that a processor puts into place itself.
        self._placed: dict[str, dict[str, Tensor]] = {"tensors": {}}

    def require_complete(self) -> None:
        """Refuse names without a counterpart, on either side."""
        own = self.model.state_dict()
        tied = set(getattr(self.model, "all_tied_weights_keys", None) or {})
        # The tables have names of experts without their ending.
        present = {name: name if name in self.names else name.removesuffix(".weight") for name in self._header.tensors}
        keys = set(present.values())
        without_place = [name for name, key in present.items() if key not in self.names and not self._is_own(name)]
        filled = {self.names[key] for key in present.values() if key in self.names}
        filled |= {"lm_head.weight" for name in present if self._is_own(name)}
        # Matrices of experts are made of two tensors.
        halves = {own_name for key, own_name in self.names.items() if key not in keys} & filled
        missing = [name for name in own if (name not in filled or name in halves) and name not in tied]
        faults = {"tensors that the model has no place for": without_place, "parameters without a tensor": missing}
        message = "; ".join(f"{fault}: {_some(names)}" for fault, names in faults.items() if names)
        if message:
            raise BadCheckpoint(f"{self._path}: {message}. Fetch the file again; {_CONVERT[0].lower()}{_CONVERT[1:]}")

    def of(self, name: str, values: NDArray[np.float32]) -> tuple[str, Tensor] | None:
        """The model's name and tensor of a tensor of the file; None for a part of one, see `of_several`."""
        processed: Any = self._processor.process(
            weights=values, name=name, tensor_key_mapping=self.names, parsed_parameters=self._placed
        )
        return None if processed.name is None else (self.names[processed.name], _tensor(processed.weights))

    def of_several(self) -> dict[str, Tensor]:
        """The tensors that processors made of several, as of experts, once all of them were given to `of`."""
        return self._placed["tensors"]

    def _is_own(self, name: str) -> bool:
        """Whether a processor places this tensor under a name of its own."""
        return self._header.architecture == "gpt2" and name == "output.weight"


class _Outer:
    """A model to transformers' tables, with its base model as its only part.

    They name every part of every layer anew, which takes 20 s for 30 layers; names begin at the model or its base.
    """

    def __init__(self, module: nn.Module, config: Any, *, is_base: bool = False) -> None:
        self._module, self.config, self._is_base = module, config, is_base

    def state_dict(self) -> Mapping[str, Tensor]:
        return self._module.state_dict()

    def named_children(self) -> list[tuple[str, _Outer]]:
        base = getattr(self._module, "base_model_prefix", "")
        inner = None if self._is_base else getattr(self._module, base, None)
        return [] if inner is None else [(base, _Outer(inner, self.config, is_base=True))]


def _tensor(values: NDArray[np.float32]) -> Tensor:
    """The values as a tensor of their own; those of a mapped file are copied."""
    is_own = values.flags.writeable and values.flags.c_contiguous
    return torch.from_numpy(values if is_own else np.array(values, order="C"))


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return ", ".join(sorted(names)[:_FEW]) + rest
