"""Families that read `layer_types`: the list is what tiny models do, and others are refused with the way out."""

from __future__ import annotations

import pytest

from tests.layer_type_families import effect_of_layer_types
from tests.planning.plans import FULL, layers_of, plan_of
from workbench.heads import WorkbenchError
from workbench.store.layer_type_families import CHANGING_MORE, EQUIVALENT, HONOURING, why_ignored

PLAN = plan_of(layers_of(FULL, FULL), [(0, 0), (0, 1)], unit="layer")


@pytest.mark.parametrize("model_type", ["qwen2", "ministral", "gemma3_text", "cohere2", "llama", "gpt_neox"])
def test_the_list_says_what_a_tiny_model_of_the_type_does(model_type):
    listed = "windows" if model_type in HONOURING else "more" if model_type in CHANGING_MORE else "nothing"
    assert effect_of_layer_types(model_type) == listed


def test_no_type_is_in_two_lists_and_equivalents_read_layer_types():
    assert not HONOURING & CHANGING_MORE
    assert set(EQUIVALENT.values()) <= HONOURING


def test_layer_types_are_given_to_families_that_read_them_and_refused_to_others():
    settings = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 16}
    assert PLAN.to_layer_types() == PLAN.to_layer_types("qwen3") == settings
    for model_type in ("llama", "gemma3_text", "gpt_neox"):
        with pytest.raises(WorkbenchError, match=r"plan\.save_model\(m, folder\) writes a folder"):
            PLAN.to_layer_types(model_type)
    assert "as ministral" in (why_ignored("llama") or "")
