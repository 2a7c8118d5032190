"""A sliding layer without its window, against the same model with a window of its own that holds the whole text."""

from copy import deepcopy

import pytest
import torch

from tests.families import tiny
from workbench import WorkbenchError, open_model
from workbench.experiments.published_study.published_settings import PublishedStudy
from workbench.experiments.published_study.study_arms import as_arm, wider_arms
from workbench.experiments.published_study.wider_layers import sliding_layers, without_own_window
from workbench.heads import KVHead

LENGTH = 23


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 60, (2, LENGTH), generator=torch.Generator().manual_seed(0))


def logits(m, tokens):
    with torch.no_grad():
        return m.model(input_ids=tokens, use_cache=False).logits


@pytest.mark.parametrize("family", ["gemma3", "mistral"])
def test_sliding_layers_without_their_window_are_those_of_a_model_with_a_long_one(family, tokens):
    m = open_model(deepcopy(tiny(family)))
    long = deepcopy(tiny(family))
    for module in [long, *long.modules()]:
        if getattr(module, "config", None) is not None:
            module.config.get_text_config().sliding_window = 10 * LENGTH
        if getattr(module, "sliding_window", None) is not None:
            module.sliding_window = 10 * LENGTH
    sliding = sliding_layers(m.layers)
    own = logits(m, tokens)
    with without_own_window(m, sliding):
        wide = logits(m, tokens)
    assert (wide - own).abs().max() > 1e-4
    assert (wide - logits(open_model(long), tokens)).abs().max() < 1e-5
    assert torch.equal(logits(m, tokens), own)


def test_an_arm_widens_the_layer_of_its_name_alone(tokens):
    m = open_model(deepcopy(tiny("mistral")))
    study = PublishedStudy("", "", (4,))
    heads = (KVHead(0, 0), KVHead(0, 1))
    arms = {arm.name: arm for arm in wider_arms(study, m.layers, heads)}
    assert list(arms) == [*(f"wider L{i}" for i in sliding_layers(m.layers)), "wider all"]
    last = sliding_layers(m.layers)[-1]
    with as_arm(m, arms[f"wider L{last}"], heads, window=4, forms={}):
        by_arm = logits(m, tokens)
    with without_own_window(m, [last]):
        assert torch.equal(by_arm, logits(m, tokens))
    with without_own_window(m, sliding_layers(m.layers)):
        assert not torch.equal(by_arm, logits(m, tokens))


def test_a_model_without_sliding_layers_has_no_such_arm_and_a_full_layer_cannot_be_widened():
    m = open_model(deepcopy(tiny("llama")))
    assert wider_arms(PublishedStudy("", "", (4,)), m.layers, (KVHead(0, 0),)) == []
    with pytest.raises(WorkbenchError, match="have no sliding window"), without_own_window(m, [0]):
        pass
