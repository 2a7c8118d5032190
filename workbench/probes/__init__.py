"""Token sequences with known answers, deterministic by seed, for any tokenizer or bare vocabulary size."""

from workbench.probes.chains import variable_tracking
from workbench.probes.copying import abfill, copy_needle, repeats
from workbench.probes.corruption import corrupted
from workbench.probes.counting import frequent_words, majority
from workbench.probes.natural import text, text_file, token_sequences
from workbench.probes.needles import Niah, needle, niah, passkey
from workbench.probes.paired import gold_document
from workbench.probes.passkeys import multi_passkey
from workbench.probes.probe import Probe, make_probe, part, split
from workbench.probes.recall import key_value, mqar
from workbench.probes.repetition import repeated_ngrams
from workbench.probes.standard import build, default
from workbench.probes.wordlists import common_words
from workbench.probes.words import Vocabulary, vocabulary

__all__ = [
    "Niah",
    "Probe",
    "Vocabulary",
    "abfill",
    "build",
    "common_words",
    "copy_needle",
    "corrupted",
    "default",
    "frequent_words",
    "gold_document",
    "key_value",
    "majority",
    "make_probe",
    "mqar",
    "multi_passkey",
    "needle",
    "niah",
    "part",
    "passkey",
    "repeated_ngrams",
    "repeats",
    "split",
    "text",
    "text_file",
    "token_sequences",
    "variable_tracking",
    "vocabulary",
]
