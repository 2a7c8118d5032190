"""A model under a plan as a folder: plain transformers loads it, and computes what the plan makes of the model."""

from __future__ import annotations

import ast
import json

import pytest
import torch
from transformers.cache_utils import DynamicSlidingWindowLayer
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

import workbench as wb
from tests.families import random_tokens, tiny
from tests.loading.word_tokenizers import word_tokenizer
from tests.planning.plans import layers_of, plan_of
from workbench.heads import WorkbenchError
from workbench.hooks.saved import planned_folders

TOKENS = random_tokens(2, 40)
MASK = torch.ones_like(TOKENS)
MASK[1, :9] = 0


@pytest.fixture(autouse=True)
def code_of_folders(tmp_path, monkeypatch):
    """Where transformers keeps the code that folders bring."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS, attention_mask=MASK, use_cache=False).logits[MASK.bool()]


def generated(model):
    return model.generate(
        TOKENS, attention_mask=MASK, max_new_tokens=5, do_sample=False, pad_token_id=2, return_dict_in_generate=True
    )


def assert_same(m, plan, folder, **options):
    loaded = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    with m.apply(plan):
        expected, tokens = logits(m.model), generated(m.model).sequences
    torch.testing.assert_close(logits(loaded), expected, atol=1e-5, rtol=1e-5)
    assert (expected - logits(m.model)).abs().max() > 1e-2
    after = generated(loaded)
    assert torch.equal(after.sequences, tokens)
    return loaded, after.past_key_values


def test_whole_layers_of_a_llama_become_a_ministral_whose_cache_slides(tmp_path):
    m = wb.open_model(tiny("llama"))
    plan = plan_of(m.layers, [(0, 0), (0, 1)], window=6, unit="layer")
    loaded, cache = assert_same(m, plan, plan.save_model(m, tmp_path / "folder"))
    assert loaded.config.model_type == "ministral"
    assert isinstance(cache.layers[1], DynamicSlidingWindowLayer)
    assert cache.layers[1].keys.shape[2] == 5
    reopened = wb.open_model(tmp_path / "folder")
    assert [(info.kind, info.window) for info in reopened.layers] == [("full", None), ("sliding", 6)]


LINEAR = {wb.KVHead(1, 0): wb.LinearAttention("taylor", 0.7, 0.9), wb.KVHead(1, 1): wb.LinearAttention("elu", 2.0)}


@pytest.mark.parametrize(("family", "conversions"), [("llama", LINEAR), ("gpt_oss", {}), ("gemma2", {})])
def test_every_other_plan_goes_with_code_of_torch_and_transformers_alone(tmp_path, family, conversions):
    m = wb.open_model(tiny(family))
    plan = plan_of(m.layers, [(0, 1)], window=6, sink=2, conversions=conversions)
    assert plan.windowed
    folder = plan.save_model(m, tmp_path / "folder")
    loaded, _ = assert_same(m, plan, folder, trust_remote_code=True)
    assert loaded.config.model_type == f"planned_{family}"
    tree = ast.parse((folder / "modeling_planned.py").read_text())
    modules = {n.module if isinstance(n, ast.ImportFrom) else n.names[0].name for n in ast.walk(tree) if is_import(n)}
    assert {name.split(".")[0] for name in modules} == {"torch", "transformers"}
    assert wb.Plan.load(folder / "plan.json").choices == plan.choices
    with pytest.raises(WorkbenchError, match="code"):  # and never the model without its plan
        wb.open_model(folder)


def is_import(node):
    return isinstance(node, ast.Import | ast.ImportFrom)


def test_licence_and_tokenizer_files_go_along(tmp_path):
    tiny("llama").save_pretrained(tmp_path / "own")
    (tmp_path / "own" / "LICENSE.txt").write_text("Apache 2.0")
    m = wb.open_model(tmp_path / "own", tokenizer=word_tokenizer())
    folder = plan_of(m.layers, [(0, 0)], window=6, sink=1).save_model(m, tmp_path / "folder")
    assert (folder / "LICENSE.txt").read_text() == "Apache 2.0"
    assert (folder / "tokenizer.json").is_file()


def test_a_folder_that_computes_something_else_is_not_left_behind(tmp_path, monkeypatch):
    m = wb.open_model(tiny("llama"))
    plan = plan_of(m.layers, [(0, 0)], window=6, sink=1)
    right = planned_folders.planned_heads(plan)
    monkeypatch.setattr(planned_folders, "planned_heads", lambda _: {"0": right["0"]})
    with pytest.raises(WorkbenchError, match=r"its logits differ by .*Apply the plan with m\.apply\(plan\)"):
        plan.save_model(m, tmp_path / "folder")
    assert list(tmp_path.iterdir()) == [tmp_path / "modules"]


def test_what_cannot_be_saved_is_refused(tmp_path):
    m = wb.open_model(tiny("llama"))
    plan = plan_of(m.layers, [(0, 0)], window=6)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(WorkbenchError, match="exists; expected a new folder"):
        plan.save_model(m, tmp_path / "full")
    with pytest.raises(WorkbenchError, match="parent folder does not exist"):
        plan.save_model(m, tmp_path / "none" / "folder")
    with pytest.raises(WorkbenchError, match="make a plan for it"):
        plan_of(layers_of(m.layers[0]), []).save_model(m, tmp_path / "folder")
    with pytest.raises(WorkbenchError, match="keeps every head full"):
        plan_of(m.layers, [(0, 0), (0, 1), (1, 0), (1, 1)]).save_model(m, tmp_path / "folder")
    older = wb.open_model(tiny("gptj"))
    with pytest.raises(WorkbenchError, match="calls no attention function"):
        plan_of(older.layers, [(0, 0)], window=6).save_model(older, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_the_written_configuration_has_the_plans_own_window(tmp_path):
    m = wb.open_model(tiny("llama"))
    folder = plan_of(m.layers, [(0, 0)], window=300, sink=7).save_model(m, tmp_path / "folder")
    heads = json.loads((folder / "config.json").read_text())["planned_heads"]
    assert heads["1"] == [{"kind": "window", "window": 300, "sink": 7}] * 2
