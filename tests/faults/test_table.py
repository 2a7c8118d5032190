"""No row of the fault table is without a test, and none is missing from the documentation."""

import ast
import re
from pathlib import Path

import pytest

from tests.faults.table import TESTS

ROOT = Path(__file__).parents[2]


def names_in(file):
    """The names of the test functions of a file."""
    parsed = ast.parse((ROOT / file).read_text("utf-8"))
    return [node.name for node in parsed.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]


def test_every_row_of_the_specification_is_there():
    assert list(TESTS) == list(range(1, 31))


@pytest.mark.parametrize("row", TESTS)
def test_every_row_has_tests_that_exist(row):
    assert TESTS[row]
    for file, beginning in TESTS[row]:
        found = [name for name in names_in(file) if name.startswith(f"test_{beginning}")]
        assert len(found) == 1, f"{file}: {found} begin with test_{beginning}"


def test_the_documentation_says_of_every_row_what_happens():
    text = (ROOT / "docs" / "jobs.md").read_text("utf-8")
    numbered = re.findall(r"^\| ([\d, ]+) \| [^|]+ \| [^|]+ \|$", text, flags=re.MULTILINE)
    assert sorted(int(number) for row in numbered for number in row.split(",")) == list(TESTS)
