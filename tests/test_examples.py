"""Every notebook in examples/ runs to its end on a real demo with its figures drawn; so does every script."""

import ast
import runpy
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.preloaded import Preloaded

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(FOLDER.glob("*.ipynb"))
# Of a real model: `tests/real/test_published_notebook.py`.
PUBLISHED = FOLDER / "06_published_model.ipynb"
EXTENSIONS = FOLDER / "extensions"


def test_there_are_examples():
    assert [p.name for p in EXAMPLES] == [
        "01_one_model.ipynb",
        "02_checkpoints.ipynb",
        "03_from_transformerlens.ipynb",
        "04_which_heads_may_go_local.ipynb",
        "05_own_detector.ipynb",
        "06_published_model.ipynb",
    ]


def test_a_detector_of_ones_own_is_scored_beside_ours(capsys):
    from workbench.detectors.registry import DETECTORS

    try:
        runpy.run_path(str(EXTENSIONS / "own_detector.py"), run_name="__main__")
    finally:
        DETECTORS.remove("sentence_start")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["detector", "sentence_start", "sink"]
    assert len(printed) == 2 + 8


def test_a_model_is_scored_on_a_probe_of_ones_own(capsys):
    from workbench.probes.registry import PROBES

    try:
        runpy.run_path(str(EXTENSIONS / "own_probe.py"), run_name="__main__")
    finally:
        PROBES.remove("reversal")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["detector", "induction", "retrieval"]
    assert len(printed) == 2 + 8


def test_the_notebook_of_a_published_model_needs_the_model_alone():
    """It runs with the published models; here its cells are read."""
    notebook = nbformat.read(PUBLISHED, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    nodes = [node for source in code for node in ast.walk(ast.parse(source))]
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module).partition(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}
    assert imported == {"workbench", "torch", "tempfile", "pathlib"}
    assert "environ" not in "".join(code)
    assert [cell.cell_type for cell in notebook.cells].count("markdown") >= 12  # each says what is answered


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("path", [path for path in EXAMPLES if path != PUBLISHED], ids=lambda p: p.stem)
def test_a_notebook_runs_as_it_stands(path, demo, monkeypatch):
    monkeypatch.setenv("WORKBENCH_DEMO", str(demo))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("jupyter_client.launcher.Popen", Preloaded)
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "notebooks are kept without outputs"
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    kinds = {kind for cell in notebook.cells for output in cell.get("outputs", []) for kind in output.get("data", {})}
    assert "application/vnd.plotly.v1+json" in kinds
