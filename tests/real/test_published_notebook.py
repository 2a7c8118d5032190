"""The notebook of a published model runs as it stands, on SmolLM2, within ten minutes of two cores."""

import nbformat
import pytest
from nbclient import NotebookClient

from tests.preloaded import Preloaded
from tests.real.models import folder_of
from tests.test_examples import PUBLISHED

pytestmark = [pytest.mark.real, pytest.mark.slow]


def printed(notebook):
    return "\n".join(
        output.get("text", "") or "".join(str(text) for text in output.get("data", {}).values())
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_researchers_day_on_smollm2(monkeypatch):
    folder = folder_of("smollm2")
    monkeypatch.setenv("WORKBENCH_MODELS", str(folder.parent))
    monkeypatch.setattr("jupyter_client.launcher.Popen", Preloaded)
    notebook = nbformat.read(PUBLISHED, as_version=4)
    NotebookClient(notebook, timeout=900, kernel_name="python3").execute()
    text = printed(notebook)
    assert "L18H6" in text
    assert "of the answers of repeats right" in text
    assert text.count("nats per answer more") == 4
    assert text.count("MB of cache") == 2
    assert "duo/full_attention_heads.tsv" in text
    figures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "application/vnd.plotly.v1+json" in output.get("data", {})
    ]
    assert len(figures) == 5
