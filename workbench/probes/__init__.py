"""Token sequences with known answers, deterministic by seed, for any tokenizer or bare vocabulary size."""

from workbench.probes.copying import copy_needle, repeats
from workbench.probes.corruption import corrupted
from workbench.probes.natural import text, text_file, token_sequences
from workbench.probes.probe import Probe, make_probe, part
from workbench.probes.recall import key_value
from workbench.probes.standard import build, default
from workbench.probes.words import Vocabulary, vocabulary

__all__ = [
    "Probe",
    "Vocabulary",
    "build",
    "copy_needle",
    "corrupted",
    "default",
    "key_value",
    "make_probe",
    "part",
    "repeats",
    "text",
    "text_file",
    "token_sequences",
    "vocabulary",
]
