"""Token sequences with known answers, deterministic by seed, for any tokenizer or bare vocabulary size."""

from workbench.probes.aggregation import frequent_words, majority
from workbench.probes.copying import abfill, copy_needle, repeats
from workbench.probes.corruption import corrupted
from workbench.probes.gold_documents import gold_document
from workbench.probes.key_value_recall import key_value, mqar
from workbench.probes.known_answers import Probe, make_probe, part, split
from workbench.probes.multi_hop import variable_tracking
from workbench.probes.natural_text import text, text_file, token_sequences
from workbench.probes.needles import Niah, needle, niah, passkey
from workbench.probes.ngrams import repeated_ngrams
from workbench.probes.passkeys import multi_passkey
from workbench.probes.registry import build, default
from workbench.probes.token_ids import Vocabulary, vocabulary
from workbench.probes.word_lists import common_words

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
