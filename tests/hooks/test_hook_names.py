"""The names a TransformerLens user knows: each layer's hook is in the bridge, and the documented ones exist."""

import re
from pathlib import Path

import pytest
import torch

from tests import linear_families, more_families, planted
from tests.families import CONFIGS, random_tokens, tiny
from workbench import Head, LayerInfo, WorkbenchError, open_model, probes, score
from workbench.detectors import all_detectors
from workbench.hooks import NEEDS

DOCUMENT = (Path(__file__).parents[2] / "docs" / "transformerlens.md").read_text()
# TransformerLens opens these without any attention hook.
WITHOUT_PATTERNS = {"nemotron_h", "zamba2"}
NOT_OPENED = {"cwm", "minimax", "granite_swa", "inkling", "inkling2", "mimo_v2_flash", "kimi_linear"}
NOT_OPENED |= {"bailing_hybrid", "lfm3", "xlstm"}
FAMILIES = [
    *((name, tiny) for name in {**CONFIGS, **more_families.MORE_CONFIGS}),
    *((name, linear_families.tiny) for name in linear_families.CONFIGS if name != "minimax"),
]
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.mark.parametrize(("family", "make"), FAMILIES, ids=[name for name, _ in FAMILIES])
def test_a_layers_hook_is_there_in_every_bridge_that_opens(family, make):
    m = open_model(make(family))
    assert all((info.hook_name is None) == (info.mixer != "softmax") for info in m.layers)
    if family in NOT_OPENED:
        with pytest.raises(WorkbenchError, match="TransformerLens cannot open"):
            _ = m.bridge
        return
    named = {info.hook_name for info in m.layers} - {None}
    there = {name for name in m.bridge.hook_dict if name.endswith("attn.hook_pattern")}
    assert there == (set() if family in WITHOUT_PATTERNS else named)


def test_the_hook_of_a_layer_holds_the_pattern_that_the_workbench_crops():
    m = open_model(tiny("mistral"))
    tokens = random_tokens(1, 21)
    names = [info.hook_name for info in m.layers]
    with torch.no_grad():
        _, cache = m.bridge.run_with_cache(tokens, names_filter=names)
    for info in m.layers:
        for head in range(info.n_heads):
            cached = cache[info.hook_name][0, head]
            assert torch.allclose(cached, m.pattern(tokens[0], info.index, head), atol=1e-5)


def test_a_head_prints_as_transformerlens_labels_it():
    m = open_model(tiny("llama"))
    labels = [str(Head(info.index, head)) for info in m.layers for head in range(info.n_heads)]
    assert labels == m.bridge.all_head_labels


def test_every_documented_hook_exists():
    hooks = open_model(tiny("llama")).bridge.hook_dict
    named = set(re.findall(r"`((?:blocks\.\{i\}|unembed)\.[\w.]+)`", DOCUMENT))
    assert len(named) >= 12
    assert {name.replace("{i}", "1") for name in named} <= hooks.keys()


def test_every_need_and_every_detector_that_transformerlens_has_too_is_in_the_table():
    cells = set(re.findall(r"`(\w+)`", DOCUMENT))
    assert set(NEEDS) <= cells
    assert {"previous_token", "duplicate_token", "induction", "copying", "k_composition"} <= cells & set(
        all_detectors()
    )


def test_a_hook_name_needs_no_model():
    info = LayerInfo(3, "full", "softmax", None, False, 4, 2, 16)
    assert info.hook_name == "blocks.3.attn.hook_pattern"


def test_python_in_the_document_is_python():
    for block in re.findall(r"```python\n(.*?)```", DOCUMENT, re.S):
        compile(block, "docs/transformerlens.md", "exec")


def test_a_perfect_induction_head_has_the_two_scores_that_the_document_says():
    from transformer_lens import head_detector

    n = 24
    probe = probes.repeats(probes.Vocabulary(torch.arange(1, planted.VOCABULARY), bos=planted.BOS), n=n, n_sequences=1)
    m = open_model(planted.PlantedModel([[planted.previous_token_head()], [planted.induction_head()]]))
    here = score(m, ["induction"], probes=probe).set_index("layer").score[1]
    there = head_detector.compute_head_attention_similarity_score(
        m.pattern(probe.tokens[0], 1, 0),
        head_detector.get_induction_head_detection_pattern(probe.tokens),
        exclude_bos=False,
        exclude_current_token=False,
        error_measure="mul",
    )
    assert here == pytest.approx(1, abs=1e-6)
    assert there == pytest.approx(n / (2 * n + 1), abs=1e-4)
