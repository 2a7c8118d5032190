"""The app on a model without a run: the Probe page alone, at the head that was found before, and nothing of runs."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest

from tests.children import child, first_line
from tests.families import tiny
from workbench.app.document import document
from workbench.app.pages import probe
from workbench.app.server.serving import Access, app_of
from workbench.app.state.address import settled, view_of
from workbench.app.state.content import Content
from workbench.app.state.opened_model import OpenedModel
from workbench.heads import Head


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    tiny("llama").save_pretrained(folder)
    return folder


@pytest.fixture
def content(checkpoint):
    model = OpenedModel("small", checkpoint, None, "repeats:n=8", Head(1, 2), "full", "small: L1H2 is the strongest")
    content = Content({}, model=model, first_job="a-job")
    yield content
    content.probings.close()


def drawn(component):
    return json.dumps(
        component.to_plotly_json(), default=lambda x: x.to_plotly_json() if hasattr(x, "children") else ""
    )


@pytest.mark.parametrize("page", ["", "overview", "head?run=full&head=L0H1", "compare", "plan", "jobs", "probe"])
def test_every_address_leads_to_the_probe_page(page):
    path, _, search = page.partition("?")
    view, _ = view_of({"pathname": f"/{path}", "search": f"?{search}"})
    assert settled(view, {}).page == "probe"


def test_the_header_has_no_page_of_runs_and_the_page_follows_the_first_probe_to_the_head(content):
    whole = drawn(document(content, laid_out=["overview", "probe"]))
    assert "nav-probe" in whole
    assert "nav-overview" not in whole
    parts = probe.layout(content)
    attributes = parts[-1].to_plotly_json()["props"]
    assert (attributes["data-job"], attributes["data-layer"], attributes["data-head"]) == ("a-job", "1", "2")
    assert "data-job" not in probe.layout(Content({}))[-1].to_plotly_json()["props"]


def test_the_model_is_run_on_other_texts_by_its_name_and_there_is_nothing_to_export(content, checkpoint):
    started = []
    content.probings.start = lambda source, **rest: started.append((source, rest)) or "job"
    client = app_of(content, Access()).server.test_client()
    own = {"base_url": "http://127.0.0.1", "headers": {"Origin": "http://127.0.0.1"}}
    answer = client.post("/probing/start", json={"checkpoint": "small", "text": "5 6 7", "standard": "my text"}, **own)
    assert answer.json == {"job": "job"}
    assert started == [(checkpoint, {"text": "5 6 7", "probe": "", "tokenizer": None})]
    refused = client.post("/probing/start", json={"checkpoint": "other", "text": "5 6 7"}, **own)
    assert "no checkpoint is chosen" in refused.json["error"]
    export = client.get("/export/scores.csv", **own)
    assert (export.status_code, "a model alone" in export.text) == (404, True)


def test_a_gguf_file_is_a_source_as_a_folder_is(content, tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    job = replace(content).probings.start(file, text="1 2")
    content.probings.cancel(job)


@pytest.mark.slow
def test_the_command_opens_the_page_of_a_model(checkpoint):
    """One document on stdout while the app answers; Ctrl-C ends it and its model run."""
    import signal
    import subprocess
    import urllib.request

    command = [sys.executable, "-m", "workbench.cli", "app", checkpoint, "--port", 0, "--no-browser", "--json"]
    command += ["--detector", "previous_token", "--probe", "repeats:n=8,n_sequences=5"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with child([str(word) for word in command], **pipes) as app:
        lines = [first_line(app, app.stdout)]
        while not lines[-1].startswith("}"):
            lines.append(app.stdout.readline())
        document_of_app = json.loads("".join(lines))
        assert (document_of_app["runs"], document_of_app["model"]) == ([], str(checkpoint))
        assert Head.parse(document_of_app["head"]).layer in (0, 1)
        assert f"{document_of_app['head']} has the highest previous_token of 8 heads" in document_of_app["about"]
        assert b"attention workbench" in urllib.request.urlopen(document_of_app["address"]).read()
        app.send_signal(signal.SIGINT)
        assert app.wait(timeout=60) == 0
