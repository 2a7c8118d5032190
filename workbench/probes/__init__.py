"""Token sequences with known answers, deterministic by seed, for any tokenizer or bare vocabulary size."""

from collections.abc import Callable

# Importing a module registers its probes. Messages and listings keep this order, from copying to natural text.
# isort: off
from workbench.probes.copying import abfill, copy_needle, default, repeats
from workbench.probes.key_value_recall import key_value, mqar
from workbench.probes.needles import Niah, needle, niah, passkey
from workbench.probes.passkeys import multi_passkey
from workbench.probes.multi_hop import variable_tracking
from workbench.probes.aggregation import common_words, frequent_words, majority
from workbench.probes.gold_documents import gold_document
from workbench.probes.natural_text import repeated_ngrams, text, text_file, token_sequences
from workbench.probes.controls import control, without_answers
from workbench.probes.far_rows import far_answers, joined, only_far
from workbench.probes.for_one_model import one_model

# isort: on
from workbench.probes.known_answers import Probe, corrupted, make_probe, part, split
from workbench.probes.registry import PROBES, build, probe
from workbench.probes.token_ids import HasVocabulary, Vocabulary, beginning, vocabulary, with_beginning

__all__ = [
    "HasVocabulary",
    "Niah",
    "Probe",
    "Vocabulary",
    "abfill",
    "beginning",
    "build",
    "common_words",
    "control",
    "copy_needle",
    "corrupted",
    "default",
    "far_answers",
    "frequent_words",
    "gold_document",
    "joined",
    "key_value",
    "majority",
    "make_probe",
    "mqar",
    "multi_passkey",
    "needle",
    "niah",
    "one_model",
    "only_far",
    "part",
    "passkey",
    "probe",
    "repeated_ngrams",
    "repeats",
    "split",
    "text",
    "text_file",
    "token_sequences",
    "variable_tracking",
    "vocabulary",
    "with_beginning",
    "without_answers",
]


def __getattr__(name: str) -> Callable[..., Probe]:
    """The maker of a registered probe that stands in another file or package."""
    makers = {} if name.startswith("__") else PROBES.all()
    if name not in makers:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return makers[name]
