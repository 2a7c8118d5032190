"""The layout: names that lead to one place, and nothing that reaches into another room's private names."""

from __future__ import annotations

import ast
from collections import Counter
from functools import cache
from pathlib import Path

from workbench.probes.registry import PROBES

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "workbench"
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
# Each of these folders has a registry of its own; the folder says of what.
SAME_NAME_ALLOWED = {"registry": {"app", "detectors", "linear", "probes", "rankings"}}
# Names that users of `wb.Job` and of `on_progress` rely on.
PUBLIC = {("job.py", "kept"), ("progress.py", "found")}
# Words that say what happened to a value or who has it, and not what it is.
NO_NAMES = {"asked", "found", "given", "kept", "mine", "said", "theirs", "told", "wanted"}


def rooms():
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    return folders | {path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__"}


@cache
def trees():
    return {path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def test_the_top_of_the_package_has_at_most_24_rooms_none_alike_in_name():
    assert len(rooms()) <= 24
    beginnings = Counter(name[:4] for name in rooms())
    assert [beginning for beginning, count in beginnings.items() if count > 1] == []


def test_no_two_modules_have_the_same_name_unless_their_folder_says_which():
    homes = {}
    for path in FILES:
        if path.stem not in ("__init__", "__main__"):
            homes.setdefault(path.stem, set()).add(path.parent.name)
    repeated = {name: folders for name, folders in homes.items() if len(folders) > 1}
    assert {name: folders for name, folders in repeated.items() if folders != SAME_NAME_ALLOWED.get(name)} == {}


def test_no_module_is_named_as_a_folder_of_another_place():
    folders = Counter(path.parent.name for path in PACKAGE.rglob("__init__.py"))
    assert [name for name, count in folders.items() if count > 1 and name != "linear"] == []
    modules = {path.stem for path in FILES if path.name != "__init__.py" and path.parent != PACKAGE}
    assert sorted(modules & set(folders)) == []


def test_no_probe_has_the_name_of_a_module_beside_it():
    """Importing such a module would put it in the place of the function `wb.probes.<name>`."""
    modules = {path.stem for path in (PACKAGE / "probes").glob("*.py")}
    assert modules & set(PROBES.all()) == set()


def test_every_module_says_in_its_first_line_what_it_holds():
    for path, tree in trees().items():
        head = (ast.get_docstring(tree) or "").partition("\n")[0]
        assert head.rstrip().endswith((".", "?")), path
        assert len(head) > 20, path


def test_no_file_imports_a_private_name_of_another_package():
    strangers = [
        f"{path}: {node.module}.{alias.name}"
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("workbench")
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
    ]
    assert strangers == []


def test_names_say_what_a_value_is():
    bad = []
    for path, tree in trees().items():
        for node in ast.walk(tree):
            is_stored = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            name = node.id if is_stored else node.arg if isinstance(node, ast.arg) else None
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                name = node.name.strip("_").lower()
            if name in NO_NAMES and (path.name, name) not in PUBLIC:
                bad.append(f"{path}:{node.lineno} {name}")
    assert bad == []


def test_every_folder_of_the_package_is_in_the_import_contract():
    contract = (ROOT / ".importlinter").read_text(encoding="utf-8")
    layers = contract.partition("layers =\n")[2].partition("\n\n")[0]
    assert {name for line in layers.splitlines() for name in line.replace("|", " ").split()} == rooms()
    assert "exhaustive = True" in contract
