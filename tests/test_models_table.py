"""docs/models.md says of each family, and of each type of causal language model, what opening one and trying shows."""

import difflib
from pathlib import Path

import pytest
import transformers

from tests.causal_types import NOT_MADE, TYPES
from tests.causal_types_table import listed, row, section
from tests.models_table import COMMAND, NAMES, SOURCES, families_part

COMMITTED = Path(__file__).parent.parent / "docs" / "models.md"
# One of each way to be read and of each reason for a refusal.
SAMPLE = ("deepseek_v2", "deepseek_v4", "doge", "glm4", "mamba", "mixtral", "roberta", "smollm3", "zamba")

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{category}")
    for category in ("DeprecationWarning", "UserWarning", "FutureWarning", "RuntimeWarning")
]


def changes(committed, tried):
    return "\n".join(difflib.unified_diff(committed, tried, "committed", "tried", lineterm="", n=0))


def is_of_this_version(document):
    return f"transformers {transformers.__version__} lists" in document


def test_the_table_of_families_is_what_trying_them_shows():
    tried = families_part().splitlines()
    committed = COMMITTED.read_text(encoding="utf-8").splitlines()[: len(tried)]
    assert tried == committed, f"docs/models.md is out of date; run `{COMMAND}`\n{changes(committed, tried)}"


def test_every_family_of_the_table_has_a_name_that_people_know_it_by():
    families = {family for configs, _ in SOURCES for family in configs}
    assert NAMES.keys() == families


def test_every_type_of_causal_language_model_is_listed_once():
    document = COMMITTED.read_text(encoding="utf-8")
    if not is_of_this_version(document):
        pytest.skip("docs/models.md is of another version of transformers, which has other types")
    assert sorted(listed(document)) == sorted(TYPES), f"docs/models.md is out of date; run `{COMMAND}`"
    assert set(NOT_MADE) < set(TYPES)


@pytest.mark.parametrize("model_type", SAMPLE)
def test_a_type_is_listed_as_trying_it_shows(model_type):
    document = COMMITTED.read_text(encoding="utf-8")
    if not is_of_this_version(document):
        pytest.skip("docs/models.md is of another version of transformers")
    assert f"| {' | '.join(row(model_type))} |" in document.splitlines()


@pytest.mark.slow
def test_every_type_is_listed_as_trying_it_shows():
    document = COMMITTED.read_text(encoding="utf-8")
    if not is_of_this_version(document):
        pytest.skip("docs/models.md is of another version of transformers")
    tried = section().splitlines()
    committed = document.splitlines()[-len(tried) :]
    assert tried == committed, f"docs/models.md is out of date; run `{COMMAND}`\n{changes(committed, tried)}"
