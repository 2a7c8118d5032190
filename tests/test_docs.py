"""What the documents say exists, and what exists is in them."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

from workbench.app.registry import PAGES
from workbench.cli.command_reference import command_line_reference
from workbench.detectors import all_detectors
from workbench.hooks.taps.linear import MIXERS
from workbench.planning import METHODS

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


DOORS = {
    "detector": "workbench.detectors",
    "probe": "workbench.probes",
    "ranking": "workbench.planning",
    "mixer": "workbench.hooks",
    "page": "workbench.app",
}
REFERENCES = ("", "app", "detectors", "emergence", "experiments", "figures", "hooks", "planning", "pretrain", "probes")


def document(name):
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("package", REFERENCES)
def test_the_python_reference_has_every_public_name(package):
    module = importlib.import_module(f"workbench.{package}".rstrip("."))
    written = set(re.findall(r"^::: (\S+)$", document("python"), re.M))
    names = {name for name in module.__all__ if not (package == "" and name in REFERENCES)}
    assert {f"{module.__name__}.{name}" for name in names} <= written


def test_the_python_reference_has_no_name_that_does_not_exist():
    for path in re.findall(r"^::: (\S+)$", document("python"), re.M):
        package, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(package), name), path


def test_the_page_of_the_command_line_is_what_the_commands_say():
    assert document("command-line") == command_line_reference()
    for flag in ("--far-window", "--state-precision", "--medium", "--json"):
        assert f"`{flag}" in document("command-line")


@pytest.mark.parametrize("noun", DOORS)
def test_an_extension_point_is_documented_with_its_arguments_its_group_and_an_example(noun):
    text = document("extending")
    decorator = getattr(importlib.import_module(DOORS[noun]), noun)
    row = next(line for line in text.splitlines() if line.startswith(f"| {noun} | "))
    group = "workbench.rankings" if noun == "ranking" else f"workbench.{noun}s"
    assert f"`{DOORS[noun]}.{noun}`" in row
    assert f"`{group}`" in row
    assert f"own_{noun}.py" in row
    section = text.partition(f"## {noun.capitalize()}\n")[2].partition("\n## ")[0]
    for argument in inspect.signature(decorator).parameters:
        assert re.search(rf"\b{argument}\b", section), argument
    assert noun in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_every_registered_ranking_mixer_and_page_has_a_row():
    for name in METHODS:
        assert re.search(rf"^\|.*`{name}`", document("planning"), re.M), name
    for name, mixer in MIXERS.all().items():
        if mixer.read.__module__.startswith("workbench."):
            assert re.search(rf"^\|.*`{name}`", document("extending"), re.M), name
    for name, page in PAGES.all().items():
        if page.layout.__module__.startswith("workbench."):
            assert f"| {name.capitalize().replace('_', ' ')} |" in document("app"), name


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
        table = score(open_model(tiny("llama")), ["my_two_back"], random_tokens(2, 12))
        assert table.score.between(0, 1).all()
        assert table.n.eq(20).all()
    finally:
        DETECTORS.remove("my_two_back")
