"""A plan as the files of others: DuoAttention's folder, and the JSON for engines."""

from __future__ import annotations

import hashlib
import json

import pytest

from tests.planning.plans import FULL, LINEAR, SLIDING, layers_of, plan_of
from workbench import KVHead, LinearAttention
from workbench.heads import WorkbenchError
from workbench.store.plan_exports import check_duo

PLAN = plan_of(layers_of(FULL, LINEAR, SLIDING), [(0, 0)], window=6, sink=2)


def test_duo_attention_finds_sink_and_window_beside_its_head_file(tmp_path):
    PLAN.to_duo_attention(tmp_path / "full_attention_heads.tsv")
    assert json.loads((tmp_path / "config.json").read_text()) == {"sink_size": 2, "recent_size": 6}


def test_a_configuration_of_duo_attention_keeps_what_else_it_says(tmp_path):
    (tmp_path / "config.json").write_text('{"sink_size": 64, "recent_size": 256, "num_steps": 2000}')
    PLAN.to_duo_attention(tmp_path / "full_attention_heads.tsv")
    assert json.loads((tmp_path / "config.json").read_text()) == {"sink_size": 2, "recent_size": 6, "num_steps": 2000}


@pytest.mark.parametrize("foreign", ['{"model_type": "llama"}', "not JSON", "[]"])
def test_a_configuration_of_something_else_is_left_alone(tmp_path, foreign):
    (tmp_path / "config.json").write_text(foreign)
    with pytest.raises(WorkbenchError, match="to a folder of its own"):
        PLAN.to_duo_attention(tmp_path / "heads.tsv")
    assert (tmp_path / "config.json").read_text() == foreign
    assert not (tmp_path / "heads.tsv").exists()


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(WorkbenchError, match="its folder does not exist; make it first"):
        check_duo(tmp_path / "none" / "heads.tsv")


def test_the_json_for_engines_says_what_every_head_sees(tmp_path):
    form = LinearAttention("elu", 2.0, 0.9)
    plan = plan_of(layers_of(FULL, LINEAR, SLIDING), [(0, 0)], window=6, sink=2, conversions={KVHead(0, 1): form})
    plan.to_json_spec(tmp_path / "spec.json")
    spec = json.loads((tmp_path / "spec.json").read_text())
    assert (spec["schema"], spec["schema_version"]) == ("attention-plan", 1)
    assert (spec["context"], spec["kv_bytes"]) == (plan.context, plan.kv_bytes)
    assert spec["layers"][0]["kv_heads"] == [
        {"kind": "full"},
        {"kind": "linear", "features": "elu", "sharpness": 2.0, "decay": 0.9},
    ]
    assert spec["layers"][1]["kv_heads"] == []
    assert spec["layers"][2]["kv_heads"] == [{"kind": "window", "window": 6, "sink": 2}] * 2
    bare = [{name: value for name, value in layer.items() if name != "kv_heads"} for layer in spec["layers"]]
    text = json.dumps(bare, sort_keys=True, separators=(",", ":"))
    assert spec["model"] == {"name": "small", "fingerprint": hashlib.sha256(text.encode()).hexdigest()}
