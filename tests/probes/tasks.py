"""The tasks that have a solver, and how the tests write them small."""

from tests.probes import solvers
from tests.probes.models import bare_model, bpe_model
from workbench import probes
from workbench.probes.needles import RULER_NEEDLES

TEXT_SOLVERS = {
    "passkey": solvers.passkey_text,
    "needle": solvers.niah_text,
    **dict.fromkeys(RULER_NEEDLES, solvers.niah_text),
    "multi_passkey": solvers.multi_passkey_text,
    "variable_tracking": solvers.variable_tracking_text,
    "common_words": solvers.common_words_text,
    "frequent_words": solvers.frequent_words_text,
}
FORMS = {"text": bpe_model, "tokens": bare_model}
# Answers are several tokens each in text; how many of them one sequence has.
SMALL = {"multi_passkey": {"n_passkeys": 3, "n_words": 6}, "majority": {"k": "1+2+3"}}
TASKS = [*TEXT_SOLVERS, "majority", "mqar", "abfill"]


def make(form, name, **more):
    return probes.build(FORMS[form](), written(name, **more))


def written(name, **more):
    keywords = {"n_sequences": 2} | SMALL.get(name, {}) | more
    return f"{name}:" + ",".join(f"{key}={value}" for key, value in keywords.items())
