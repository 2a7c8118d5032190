"""docs/models.md says of each family what opening one and trying shows."""

import difflib
from pathlib import Path

import pytest

from tests.models_table import COMMAND, NAMES, SOURCES, document

COMMITTED = Path(__file__).parent.parent / "docs" / "models.md"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_table_of_models_is_what_trying_them_shows():
    found, committed = document().splitlines(), COMMITTED.read_text(encoding="utf-8").splitlines()
    changed = "\n".join(difflib.unified_diff(committed, found, "committed", "found", lineterm="", n=0))
    assert found == committed, f"docs/models.md is out of date; run `{COMMAND}`\n{changed}"


def test_every_family_of_the_table_has_a_name_that_people_know_it_by():
    families = {family for configs, _ in SOURCES for family in configs}
    assert NAMES.keys() == families
