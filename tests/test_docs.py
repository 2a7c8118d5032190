"""What the documents say exists, and what exists is in them."""

import re
from pathlib import Path

import pytest

from workbench.detectors import all_detectors

ROOT = Path(__file__).parent.parent
TREE = re.search(r"## The tree\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


def test_the_documentation_lists_every_registered_detector_and_its_units():
    table = (ROOT / "docs" / "detectors.md").read_text()
    rows = {m[1]: m[2] for m in re.finditer(r"^\| `(\w+)` \|(.*)\|$", table, re.M)}
    for name, found in all_detectors().items():
        if found.function.__module__.startswith("workbench."):
            assert name in rows
            assert f"| {found.units} |" in f"|{rows[name]}|"


def test_every_module_of_the_package_stands_in_the_readmes_tree():
    assert TREE is not None
    listed = set(re.findall(r"[\w]+(?:\.py|/)", TREE[1]))
    package = ROOT / "workbench"
    there = {p.name for p in package.glob("*.py")}
    there |= {f"{p.name}/" for p in package.iterdir() if (p / "__init__.py").exists()}
    assert there <= listed, there - listed
    nested = {f"{p.parent.name}/" for p in package.glob("*/**/__init__.py")}
    assert listed - {"tests/", "benchmarks/", "docs/", "examples/", "workbench/"} <= there | nested


DOCUMENTS = [
    "README.md",
    *(
        f"docs/{name}.md"
        for name in ("detectors", "emergence", "jobs", "kernels", "patterns", "planning", "pretraining")
    ),
]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_blocks_are_python(document):
    for block in re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.S):
        compile(block, document, "exec")


def test_every_link_to_a_file_leads_to_one():
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")]
    links = [(page, link) for page in documents for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())]
    assert len(links) > 20
    assert [f"{page.name}: {link}" for page, link in links if not (page.parent / link).exists()] == []


def test_a_detector_written_as_the_documentation_shows_can_be_scored():
    from tests.families import random_tokens, tiny
    from workbench import open_model, score
    from workbench.detectors.registry import DETECTORS

    block = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "detectors.md").read_text(), re.S)[0]
    try:
        exec(compile(block, "docs/detectors.md", "exec"), {"__name__": "mine"})
        table = score(open_model(tiny("llama")), ["two_back"], random_tokens(2, 12))
        assert table.score.between(0, 1).all()
        assert table.n.eq(20).all()
    finally:
        DETECTORS.remove("two_back")
