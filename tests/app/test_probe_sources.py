"""What the Probe page may run: known checkpoints, published models that are here, models of a hub; never a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.families import tiny
from workbench.app.probe_sources import (
    checkpoint_folder,
    checkpoint_source,
    foreign_tokenizer,
    missing_folder,
    named_model,
    note_on,
    reads_text,
)
from workbench.checkpoints.fetched_models import obtain_checkpoint
from workbench.heads import WorkbenchError
from workbench.hub import HubReference


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "step1"
    tiny("llama").save_pretrained(folder)
    return folder


def test_only_checkpoints_of_the_series_have_a_folder():
    series = [{"ckpt": "step1", "path": "/runs/step1"}, {"ckpt": "step2"}]
    assert checkpoint_folder(series, "step1") == Path("/runs/step1")
    for name in ("step2", "/etc", "../step1"):
        with pytest.raises(WorkbenchError, match="choose one of the list"):
            checkpoint_folder(series, name)


def test_a_reader_names_models_and_no_folder(tmp_path, monkeypatch):
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert named_model(" org/name ") == HubReference("org/name")
    for bad in ("/etc", "../name", "a/b/c", "org/*", "", "~"):
        with pytest.raises(WorkbenchError, match="is no id of a model; write org/name"):
            named_model(bad)


def test_a_published_model_is_run_from_where_it_is_on_this_machine(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_MODELS", str(tmp_path))
    series = [{"ckpt": "smollm2", "path": "elsewhere/smollm2"}]
    with pytest.raises(WorkbenchError, match="fetch it with `workbench get smollm2`"):
        named_model("smollm2")
    assert "or `workbench get smollm2` and write its name as the model's id" in note_on(
        checkpoint_source(series, "smollm2")
    )
    assert missing_folder(checkpoint) == ""
    assert foreign_tokenizer(series, "elsewhere/smollm2") is None  # it is with the model, wherever that is
    assert foreign_tokenizer(series, "another/tokenizer") == "another/tokenizer"
    (tmp_path / "smollm2").symlink_to(checkpoint)
    assert named_model(" smollm2 ") == checkpoint_source(series, "smollm2") == tmp_path / "smollm2"


def test_a_checkpoint_reads_text_where_a_tokenizer_is_with_it_above_it_or_named_by_its_run(checkpoint, tmp_path):
    assert not reads_text(checkpoint, None)
    assert reads_text(checkpoint, "a/tokenizer")
    assert not reads_text(tmp_path / "gone", "a/tokenizer")
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "tokenizer.json").write_text("{}")
    assert reads_text(tmp_path / "checkpoint-1", None)
    assert not reads_text(HubReference("org/name"), None)


def test_the_page_says_what_run_would_fetch_and_asks_no_hub(hub, checkpoint, monkeypatch):
    hub.put("org/name", "main", checkpoint)
    reference = HubReference("org/name")
    fetches = f"org/name is not in the Hugging Face cache: Run fetches it from {hub.url}, and says its size"
    assert note_on(reference) == fetches
    assert hub.requests == []
    obtain_checkpoint(reference)
    assert note_on(reference) == "org/name is in the Hugging Face cache; nothing is fetched"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert note_on(HubReference("org/other")).endswith("HF_HUB_OFFLINE is set: it cannot be fetched")
