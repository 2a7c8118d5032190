"""Which files of a repository a checkpoint needs: its configuration, its tokenizer, and one form of its weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_SAFETENSORS, _PICKLE = "model.safetensors", "pytorch_model.bin"
# What is read beside the weights: configurations, tokenizers, a Trainer's state, written digests.
_BESIDE = re.compile(
    r"config.*\.json|generation_config\.json|(tokenizer|spiece|sentencepiece)[\w.-]*\.(json|model|vocab)"
    r"|(special_tokens_map|added_tokens|vocab)[\w.-]*\.json|vocab\.(txt|bpe)|merges\.txt|chat_template\.(json|jinja)"
    r"|.*\.tiktoken|adapter_config\.json|trainer_state\.json|sha256sums(\.txt)?|.*\.sha256",
    re.IGNORECASE,
)
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_PICKLE_SHARD = re.compile(r"pytorch_model-\d+-of-\d+\.bin")
_NUMBER = re.compile(r"-\d+-of-\d+")
_ADAPTER = re.compile(r"adapter.*\.(safetensors|bin)")
# Files that a training writes beside its weights.
_STATE = re.compile(
    r"(optim|scheduler|scaler|rng|random_states|training_args|sampler|dataloader|trainer|.*optim_states)"
)
_OTHERS = ((".bin", ".pt", ".pth", ".ckpt"), (".gguf",), (".h5", ".msgpack", ".onnx", ".npz", ".tflite", ".ot"))
_SAFETENSORS_ENDING = ".safetensors"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a revision. `size` in bytes. `blob`: sha256 of a large file, else the id that git has for it."""

    name: str
    size: int
    blob: str

    @property
    def is_weights(self) -> bool:
        """Whether it holds weights, in any form."""
        return self.name.endswith((_SAFETENSORS_ENDING, *(ending for endings in _OTHERS for ending in endings)))


def needed_files(files: Iterable[RemoteFile]) -> tuple[RemoteFile, ...]:
    """Of the files of a revision, those that a checkpoint is read from, by name.

    Of the weights one form alone: safetensors before pickles, whole before shards, with their index; where there is
    neither, whatever form there is. Never what a training keeps beside them, nor files in folders.
    """
    top = [file for file in files if "/" not in file.name and not file.name.startswith(".")]
    weights = _weights([file.name for file in top if file.is_weights])
    indices = {f"{_NUMBER.sub('', name)}.index.json" for name in weights if _NUMBER.search(name)}
    return tuple(
        sorted(
            (f for f in top if f.name in weights or f.name in indices or _BESIDE.fullmatch(f.name)),
            key=lambda file: file.name,
        )
    )


def _weights(names: Sequence[str]) -> set[str]:
    """One form of the weights."""
    safe = [name for name in names if name.endswith(_SAFETENSORS_ENDING)]
    model = [name for name in safe if not _ADAPTER.fullmatch(name)]
    pickles = [name for name in names if name.startswith("pytorch_model") and name.endswith(".bin")]
    for whole, shard, form in ((_SAFETENSORS, _SHARD, model), (_PICKLE, _PICKLE_SHARD, pickles)):
        if whole in form:
            return {whole}
        if form:
            return {name for name in form if shard.fullmatch(name)} or set(form)
    if adapters := [name for name in names if _ADAPTER.fullmatch(name)]:
        return {name for name in adapters if name in safe} or set(adapters)
    for endings in _OTHERS:
        if form := {name for name in names if name.endswith(endings) and not _STATE.match(name)}:
            return form
    return set()
