"""Text to train on: files -> documents -> a byte-pair tokenizer trained on them -> one array of tokens on disk.

1. Documents are shuffled with the seed and taken until `max_bytes`. The last ones, at most a hundredth of the bytes,
   are held out as text (`held_out.txt`), for probes.
2. A byte-level byte-pair tokenizer of `vocabulary` tokens is trained on the first documents. Token 0 is `<bos>`.
3. Every document becomes `<bos>` and its tokens. `tokens.npy` concatenates all documents, and `starts.npy` holds the
   index at which each begins.

The folder appears whole or not at all. Its digest covers tokens and tokenizer: equal digests mean equal training data.
"""

from __future__ import annotations

import hashlib
import json
import random
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64, UInt16
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from workbench.files.atomic import replacing_folder
from workbench.heads import WorkbenchError, brief

BOS_TOKEN = "<bos>"
_SMALLEST_VOCABULARY, _LARGEST_VOCABULARY = 257, 1 << 16  # every byte and <bos>; the range of 16 bits
_N_TOKENIZER_DOCUMENTS = 600  # the tokenizer is trained on these
_HELD_OUT_SHARE = 100  # one byte in so many
_BATCH = 500  # documents tokenized together
_PACKAGES = ("torch", "transformers", "sympy", "pandas", "numpy", "networkx")
_FILE_BYTES = (500, 200_000)


@dataclass(frozen=True, slots=True)
class CorpusSettings:
    """The source of documents, the vocabulary's number of tokens, the bytes of text at most, the shuffle's seed."""

    source: Literal["text", "python"] = "python"
    vocabulary: int = 1024
    max_bytes: int = 40_000_000
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Corpus:
    """Tokenized text. `tokens`: of all documents; `starts`: index of each document; `vocabulary`: number of tokens."""

    folder: Path
    digest: str
    vocabulary: int
    tokens: UInt16[np.ndarray, " n_tokens"]
    starts: Int64[np.ndarray, " n_documents"]

    def __repr__(self) -> str:
        return brief(self)

    @property
    def held_out(self) -> Path:
        """The text file of the documents that are not trained on."""
        return self.folder / "held_out.txt"

    def tokenizer(self, length: int) -> PreTrainedTokenizerFast:
        """The Hugging Face tokenizer for sequences of `length` tokens; it puts `<bos>` first."""
        return PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_file(str(self.folder / "tokenizer.json")),
            bos_token=BOS_TOKEN,
            model_max_length=length,
        )


def python_sources() -> list[Path]:
    """The Python files of the standard library and of the large packages installed beside it, 500 B to 200 kB each."""
    library = Path(sysconfig.get_path("stdlib"))
    # If an environment shares the interpreter's folder, its packages are inside the library.
    files = [p for p in library.rglob("*.py") if "site-packages" not in p.relative_to(library).parts]
    for package in _PACKAGES:
        files += (Path(sysconfig.get_path("purelib")) / package).rglob("*.py")
    return [p for p in sorted(files) if _FILE_BYTES[0] <= p.stat().st_size <= _FILE_BYTES[1]]


def text_files(paths: Iterable[Path]) -> list[Path]:
    """The files among the paths, and all files in the folders among them.

    Raises:
        WorkbenchError: if a path does not exist.
    """
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise WorkbenchError(f"{path} does not exist; give a text file or a folder of them")
        files += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return files


def prepare_corpus(files: Sequence[Path], folder: Path, settings: CorpusSettings | None = None) -> Corpus:
    """Make a corpus of these files, one document each, in `folder`; an existing one with equal settings is opened.

    Raises:
        WorkbenchError: if no file holds text, the vocabulary is out of range or larger than the text supports, or the
            folder holds a corpus with other settings.
        StoreNotWritable: if the folder cannot be written.
    """
    settings = settings or CorpusSettings()
    if not _SMALLEST_VOCABULARY <= settings.vocabulary <= _LARGEST_VOCABULARY:
        raise WorkbenchError(
            f"vocabulary {settings.vocabulary}: expected {_SMALLEST_VOCABULARY} to {_LARGEST_VOCABULARY} tokens"
        )
    if (folder / "corpus.json").exists():
        return open_corpus(folder, settings)
    documents, held_out = _documents(files, settings)
    tokenizer = _train_tokenizer(documents[:_N_TOKENIZER_DOCUMENTS], settings.vocabulary)
    tokens, starts = _tokenize(tokenizer, documents)
    description = {
        **asdict(settings),
        "digest": _digest(tokenizer, tokens),
        "documents": len(documents),
        "tokens": len(tokens),
        "bytes": sum(len(d.encode()) for d in documents),
        "held_out_documents": len(held_out),
    }
    with replacing_folder(folder) as partial:
        np.save(partial / "tokens.npy", tokens)
        np.save(partial / "starts.npy", starts)
        tokenizer.save(str(partial / "tokenizer.json"))
        (partial / "held_out.txt").write_text("\n".join(held_out), encoding="utf-8")
        (partial / "corpus.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return open_corpus(folder, settings)


def open_corpus(folder: Path, settings: CorpusSettings | None = None) -> Corpus:
    """Open a folder that `prepare_corpus` made; with settings, only if they are equal.

    Raises:
        WorkbenchError: if the folder is no corpus, or has other settings.
    """
    path = folder / "corpus.json"
    if not path.exists():
        raise WorkbenchError(f"{folder} is no corpus: it has no corpus.json")
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    expected = stored if settings is None else asdict(settings)
    differences = [f"{k} {stored[k]!r}, asked for {expected[k]!r}" for k in expected if stored[k] != expected[k]]
    if differences:
        raise WorkbenchError(f"{folder} holds another corpus: {'; '.join(differences)}. Choose another folder")
    return Corpus(
        folder,
        stored["digest"],
        vocabulary=stored["vocabulary"],
        tokens=np.load(folder / "tokens.npy", mmap_mode="r"),
        starts=np.load(folder / "starts.npy"),
    )


def _documents(files: Sequence[Path], settings: CorpusSettings) -> tuple[list[str], list[str]]:
    """The documents to train on and those held out, in shuffled order."""
    shuffled = list(files)
    random.Random(settings.seed).shuffle(shuffled)
    texts: list[str] = []
    n_bytes = 0
    for path in shuffled:
        content = _read(path)
        texts += [content] if content else []
        n_bytes += len(content.encode())
        if n_bytes >= settings.max_bytes:
            break
    if not texts:
        raise WorkbenchError(f"no text was found in {len(files)} files; give files of UTF-8 text")
    held_out: list[str] = []
    room = n_bytes // _HELD_OUT_SHARE
    for content in reversed(texts[1:]):
        room -= len(content.encode())
        if room < 0:
            break
        held_out.append(content)
    return texts[: len(texts) - len(held_out)], held_out


def _read(path: Path) -> str:
    """The text of a file; empty if it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        return ""
    except OSError as error:
        raise WorkbenchError(f"cannot read {path}: {error.strerror}") from error


def _train_tokenizer(documents: Sequence[str], vocabulary: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    if tokenizer.get_vocab_size() < vocabulary:
        raise WorkbenchError(
            f"the text is too small for a vocabulary of {vocabulary}: it supports {tokenizer.get_vocab_size()} tokens; "
            "give more text or a smaller vocabulary"
        )
    tokenizer.post_processor = TemplateProcessing(single=f"{BOS_TOKEN} $A", special_tokens=[(BOS_TOKEN, 0)])
    return tokenizer


def _tokenize(tokenizer: Tokenizer, documents: Sequence[str]) -> tuple[Any, Any]:
    """The tokens of all documents in one array, and the index at which each document begins."""
    pieces = [np.array(ids, dtype=np.uint16) for ids in _encoded(tokenizer, documents)]
    lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
    return np.concatenate(pieces), np.cumsum(lengths) - lengths


def _encoded(tokenizer: Tokenizer, documents: Sequence[str]) -> Iterable[list[int]]:
    for i in range(0, len(documents), _BATCH):
        for encoding in tokenizer.encode_batch(list(documents[i : i + _BATCH])):
            yield encoding.ids


def _digest(tokenizer: Tokenizer, tokens: UInt16[np.ndarray, " n"]) -> str:
    digest = hashlib.blake2b(tokenizer.to_str().encode(), digest_size=16)
    digest.update(tokens.tobytes())
    return digest.hexdigest()
