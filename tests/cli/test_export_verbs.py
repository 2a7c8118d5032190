"""`workbench export-plan` and `workbench evaluate`: files for others, and mistakes without a traceback."""

from __future__ import annotations

import json

import pytest

from tests.families import tiny
from tests.planning.plans import plan_of
from workbench import open_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, and plans for it: of heads, and of whole layers."""
    folder = tmp_path_factory.mktemp("exports")
    tiny("llama").save_pretrained(folder / "model")
    layers = open_model(folder / "model").layers
    plan_of(layers, [(0, 1)], window=6, sink=2).save(folder / "heads.json")
    plan_of(layers, [(0, 0), (0, 1)], window=6, unit="layer").save(folder / "layers.json")
    return folder


def test_files_of_others_are_written_and_listed(folder, command, tmp_path):
    places = ["--duo", tmp_path / "heads.tsv", "--spec", tmp_path / "spec.json"]
    code, out, err = command("export-plan", folder / "heads.json", *places, "--json")
    assert code == 0
    assert json.loads(out) == {"duo": str(tmp_path / "heads.tsv"), "spec": str(tmp_path / "spec.json")}
    assert "spec.json" in err
    assert json.loads((tmp_path / "config.json").read_text())["recent_size"] == 6
    assert json.loads((tmp_path / "spec.json").read_text())["schema"] == "attention-plan"


def test_layer_types_are_printed_and_refused_where_they_would_be_ignored(folder, command):
    code, out, err = command("export-plan", folder / "layers.json", "--layer-types")
    assert code == 0
    assert json.loads(out)["layer_types"] == ["full_attention", "sliding_attention"]
    assert "not every family reads layer_types" in err
    code, _, err = command("export-plan", folder / "layers.json", "--layer-types", "--model", folder / "model")
    assert code == 2
    assert "as ministral" in err


def test_a_model_under_a_plan_is_saved(folder, command, tmp_path):
    arguments = ["--model", folder / "model", "--save-model", tmp_path / "planned", "--json"]
    code, out, _ = command("export-plan", folder / "layers.json", *arguments)
    assert code == 0
    assert json.loads(out) == {"folder": str(tmp_path / "planned")}
    assert open_model(tmp_path / "planned").layers[1].window == 6


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["export-plan", "heads.json"], "nothing to write was named"),
        (["export-plan", "heads.json", "--save-model", "new"], "name it with --model"),
        (["export-plan", "heads.json", "--layer-types"], "keep some heads and not others"),
        (["export-plan", "none.json", "--spec", "spec.json"], "no plan can be read"),
        (["evaluate", "model", "--tasks", "t", "--only-included"], "pass it"),
        (["evaluate", "model", "--tasks", "t", "--include-path", "nowhere"], "is no folder"),
    ],
)
def test_mistakes_are_sentences(folder, command, monkeypatch, arguments, sentence):
    monkeypatch.chdir(folder)
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert sentence in err


def test_a_plan_is_not_computed_where_its_duo_file_could_not_be_written(folder, command):
    (folder / "model" / "heads.tsv").unlink(missing_ok=True)
    code, _, err = command("plan", folder / "model", "--window", 6, "--duo", folder / "model" / "heads.tsv")
    assert code == 2
    assert "to a folder of its own" in err
