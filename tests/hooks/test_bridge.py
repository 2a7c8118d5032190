"""TransformerLens both ways: a bridge beside the recorder, and a recorder beside somebody's bridge."""

import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from tests.families import VOCABULARY, random_tokens, tiny
from workbench import HookedModel, WorkbenchError, open_model, score
from workbench.pretrain.checkpoint_writer import word_tokenizer

KNOWN = ["llama", "gpt2", "gpt_neox", "mistral", "gemma2", "gpt_oss"]
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.mark.parametrize("family", KNOWN)
def test_the_bridge_computes_what_the_model_does_with_the_same_weights(family):
    model = tiny(family)
    m = open_model(model)
    tokens = random_tokens(2, 25)
    with torch.no_grad():
        assert (m.bridge(tokens) - model(input_ids=tokens, use_cache=False).logits).abs().max() < 5e-5
    # A fused query-key-value projection is split by TransformerLens into copies beside it; all else is shared.
    split = ("c_attn", "query_key_value")
    mine = {p.data_ptr() for name, p in model.named_parameters() if not any(part in name for part in split)}
    assert mine <= {p.data_ptr() for p in m.bridge.original_model.parameters()}


@pytest.mark.parametrize("family", KNOWN)
def test_recording_is_the_same_before_and_after_touching_the_bridge(family):
    m = open_model(tiny(family))
    tokens = random_tokens(2, 25)
    before = score(m, tokens=tokens)
    with torch.no_grad():
        m.bridge(tokens)
    pd.testing.assert_frame_equal(score(m, tokens=tokens), before)


@pytest.mark.parametrize("family", KNOWN)
def test_a_bridge_alone_scores_as_the_plain_model(family):
    model = tiny(family)
    tokens = random_tokens(2, 25)
    bridge = open_model(model).bridge
    with torch.no_grad():
        logits = bridge(tokens)
    table = score(bridge, tokens=tokens)
    pd.testing.assert_frame_equal(table, score(open_model(model), tokens=tokens), rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(bridge(tokens), logits)


def test_a_bridge_is_refused_while_interventions_are_in_force_on_an_opening_of_it():
    bridge, tokens = open_model(tiny("llama")).bridge, random_tokens(1, 9)
    m = open_model(bridge)
    with m.ablate(["L0H0"]), pytest.raises(WorkbenchError, match="pass the opened model instead of the bridge"):
        score(bridge, "sink", tokens=tokens)
    pd.testing.assert_frame_equal(score(bridge, "sink", tokens=tokens), score(m, "sink", tokens=tokens))


def test_the_bridges_own_patterns_are_those_the_workbench_crops():
    m = open_model(tiny("llama"))
    tokens = random_tokens(1, 25)
    with torch.no_grad():
        _, cache = m.bridge.run_with_cache(tokens)
    for layer in (0, 1):
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"]
        for head in range(4):
            assert torch.allclose(pattern[0, head], m.pattern(tokens[0], layer, head), atol=1e-5)


def test_a_tokenizer_that_refuses_unknown_words_does_not_keep_a_model_from_its_bridge():
    m = HookedModel(tiny("llama"), tokenizer=word_tokenizer(64))
    assert m.bridge.to_tokens("w00 w03 w31").tolist() == [[0, 8, 11, 39]]
    with pytest.raises(Exception, match="Missing"):
        m.tokenizer.encode("elsewhere")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_bridge_booted_from_a_folder_scores_as_the_folder_opened_plainly(family, tmp_path):
    from transformer_lens.model_bridge import TransformerBridge

    tiny(family).save_pretrained(tmp_path)
    words = Tokenizer(WordLevel({str(i): i for i in range(VOCABULARY)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="0", bos_token="1").save_pretrained(tmp_path)
    bridge = TransformerBridge.boot_transformers(str(tmp_path))
    pd.testing.assert_frame_equal(score(bridge), score(open_model(tmp_path)), rtol=1e-4, atol=1e-6)
    names = ["copying", "k_composition"]
    pd.testing.assert_frame_equal(score(bridge, names), score(open_model(tmp_path), names), rtol=1e-4, atol=1e-6)


def test_an_architecture_transformerlens_does_not_know_is_refused_with_what_still_works():
    m = open_model(tiny("cwm"))
    with pytest.raises(WorkbenchError, match=r"TransformerLens cannot open a CwmForCausalLM.*do not need it"):
        _ = m.bridge
    assert len(score(m, ["sink"], random_tokens(1, 9))) == 8


def test_what_is_no_model_of_transformers_is_refused():
    with pytest.raises(WorkbenchError, match="cannot record a Linear; expected a transformers PreTrainedModel"):
        open_model(torch.nn.Linear(2, 2))
