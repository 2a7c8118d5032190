"""Open models: their layers as they are, exact crops, models left as they came, refusals that say why."""

import pickle
from contextlib import nullcontext

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.brute import eager_patterns
from tests.families import CONFIGS, SOFTMAX, WINDOW, random_tokens, tiny
from workbench import probes
from workbench.heads import WorkbenchError
from workbench.hooks import CellSum, open_model
from workbench.hooks.recording.unreadable_needs import UnreadableNeed
from workbench.probes.token_ids import BeyondContext

KINDS = {
    "llama": ["full", "full"],
    "gpt2": ["full", "full"],
    "gpt_neox": ["full", "full"],
    "mistral": ["sliding", "sliding"],
    "gemma2": ["sliding", "full"],
    "gpt_oss": ["sliding", "full"],
    "cwm": ["sliding", "full"],
    "minimax": ["linear", "full"],
}


@pytest.mark.parametrize("family", CONFIGS)
def test_layers_are_what_the_model_does(family):
    layers = open_model(tiny(family)).layers
    assert [info.kind for info in layers] == KINDS[family]
    assert [info.window for info in layers] == [WINDOW if k == "sliding" else None for k in KINDS[family]]
    assert all(info.has_sinks == (family == "gpt_oss") for info in layers)
    assert [info.mixer for info in layers] == ["lightning" if k == "linear" else "softmax" for k in KINDS[family]]
    assert all(info.n_heads == 4 for info in layers)


def test_more_tokens_than_a_table_of_positions_has_are_refused():
    with pytest.raises(WorkbenchError, match="600 tokens exceed the 512 positions"):
        open_model(tiny("gpt2")).record(random_tokens(1, 600), {"entropy"})


@pytest.mark.parametrize("rope", [{}, {"rope_type": "dynamic", "factor": 4.0}], ids=["plain", "dynamic"])
def test_a_pattern_beyond_the_context_is_the_models_own_and_warned_of_where_frequencies_stay(rope):
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, **rope},
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    tokens = random_tokens(1, 90)
    with torch.no_grad():
        expected = model(tokens, output_attentions=True, use_cache=False).attentions[0][0, 1]
    warned = pytest.warns(BeyondContext, match="90 tokens are longer than the 32 positions")
    with nullcontext() if rope else warned:  # dynamic frequencies are made to follow; warnings are errors here
        pattern = open_model(model).pattern(tokens[0], 0, 1)
    torch.testing.assert_close(pattern, expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_pattern_equals_the_models_own_on_any_crop(family):
    tokens = random_tokens(1, 53)
    m = open_model(tiny(family))
    expected, _, _ = eager_patterns(tiny(family, "eager"), tokens)
    queries, keys = torch.tensor([52, 7, 31]), slice(3, 40)
    for layer, head in ((0, 1), (1, 3)):
        whole = m.pattern(tokens[0], layer, head)
        crop = m.pattern(tokens[0], layer, head, queries, keys)
        exact = expected[layer][0, head]
        assert (whole.double() - exact).abs().max() <= 1e-5 * max(1.0, float(exact.abs().max()))
        assert torch.equal(crop, whole[queries][:, keys]) or torch.allclose(crop, whole[queries][:, keys], atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt_oss", "minimax"])
def test_a_model_is_left_as_it_came(family):
    model = tiny(family)
    model.train()
    before = model.config._attn_implementation
    hooks = sum(len(m._forward_hooks) for m in model.modules())
    m = open_model(model)
    m.record(random_tokens(2, 20), {"entropy"})
    m.pattern(random_tokens(1, 20)[0], 1, 0)
    with pytest.raises(WorkbenchError):
        m.record(random_tokens(2, 20), {"entropie"})
    assert model.config._attn_implementation == before
    assert sum(len(module._forward_hooks) for module in model.modules()) == hooks
    assert model.training
    model.eval()


def test_an_error_inside_the_pass_leaves_no_trace():
    model = tiny("llama")
    m = open_model(model)

    def broken(_):
        raise RuntimeError("a detector's own mistake")

    with pytest.raises(UnreadableNeed, match="RuntimeError in the need 'broken': a detector's own mistake") as raised:
        m.record(random_tokens(1, 9), {CellSum("broken", broken)})
    assert isinstance(raised.value.__cause__, RuntimeError)
    assert model.config._attn_implementation == "sdpa"


def test_a_tensor_that_may_select_keys_is_refused():
    model = tiny("llama")
    attention = model.model.layers[1].self_attn
    m = open_model(model)
    handle = attention.register_forward_pre_hook(
        lambda _, args, kwargs: (args, {**kwargs, "indices": torch.zeros(1)}), with_kwargs=True
    )
    with pytest.raises(WorkbenchError, match=r"LlamaAttention of layer 1 .*\['indices'\]"):
        m.record(random_tokens(1, 9), {"entropy"})
    handle.remove()


def test_a_need_of_ones_own_sums_the_cells_it_lists():
    m = open_model(tiny("llama"))
    tokens = random_tokens(2, 30)

    def two_back(batch):
        i = torch.arange(2, batch.tokens.shape[1])
        return torch.cat([torch.stack([torch.full_like(i, b), i, i - 2], -1) for b in range(len(batch.tokens))])

    recording = m.record(tokens, {CellSum("two_back", two_back)})
    expected, _, _ = eager_patterns(tiny("llama", "eager"), tokens)
    diagonal = torch.stack([p.diagonal(-2, dim1=2, dim2=3).sum(-1) for p in expected], 1)
    assert torch.allclose(recording["two_back"].total.double(), diagonal, atol=1e-5)
    assert recording["two_back"].rows.eq(28).all()


def test_rows_are_kept_only_when_asked_for_by_name():
    m = open_model(tiny("mistral"))
    tokens = random_tokens(2, 26)
    assert not m.record(tokens, {"entropy"}).per_row
    kept = m.record(tokens, {"entropy", "entropy_per_row"})
    assert kept.per_row["entropy_per_row"].shape == (2, 2, 4, 26)
    assert torch.allclose(kept.per_row["entropy_per_row"].sum(-1), kept["entropy"].total, atol=1e-4)


@pytest.mark.parametrize("family", SOFTMAX)
def test_a_batch_scores_as_its_sequences_do_alone(family):
    m = open_model(tiny(family))
    tokens = random_tokens(3, 33)
    needs = {"entropy", "induction", "mean_distance", "sink_mass"}
    together = m.record(tokens, needs)
    for b in range(3):
        alone = m.record(tokens[b], needs)
        for need in needs:
            assert torch.allclose(alone[need].total[0], together[need].total[b], atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "cwm", "minimax"])
def test_sampled_rows_leave_the_answers_whole(family):
    m = open_model(tiny(family))
    probe = probes.copy_needle(97, 16, length=48, n_sequences=2)
    needs = {"answer_mass", "answer_top1", "entropy"}
    full, sampled = m.record(probe, needs), m.record(probe, needs, rows=10)
    assert sampled["entropy"].rows.eq(10).all()
    assert torch.allclose(full["answer_mass"].total, sampled["answer_mass"].total, atol=1e-6)
    assert torch.equal(full["answer_top1"].total, sampled["answer_top1"].total)
    assert torch.allclose(full.answers.loss_nats, sampled.answers.loss_nats, atol=1e-4)


def test_answers_are_the_models_own_loss_on_the_answer_rows():
    model = tiny("gpt2")
    probe = probes.copy_needle(97, 16, length=48, n_sequences=3)
    answers = open_model(model).record(probe, {"answer_mass"}).answers
    with torch.no_grad():
        logits = model(input_ids=probe.tokens, use_cache=False).logits
    sequence, row = probe.answer_rows.unbind(-1)
    expected = torch.nn.functional.cross_entropy(
        logits[sequence, row], probe.tokens[sequence, row + 1], reduction="none"
    )
    assert torch.allclose(answers.loss_nats, expected, atol=1e-4)
    assert torch.equal(answers.is_right, logits[sequence, row].argmax(-1) == probe.tokens[sequence, row + 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.record(torch.tensor([[1, 500]]), {"entropy"}), "token ids run from 1 to 500; .* 0 … 96"),
        (
            lambda m: m.record(random_tokens(1, 9), {"entropie"}),
            "unknown need 'entropie'; expected a CellSum, FarSum, FeatureSum, RowReading or one of",
        ),
        (lambda m: m.record(random_tokens(1, 9), {"entropy"})["sink_mass"], "'sink_mass' was not recorded"),
        (
            lambda m: m.record(random_tokens(2, 9), {"entropy"}, torch.ones(2, 8)),
            r"\(2, 8\); expected .* \(2, 9\)",
        ),
        (
            lambda m: m.record(random_tokens(1, 4), {"entropy"}, torch.tensor([[1, 0, 1, 1]])),
            "2 runs of valid tokens",
        ),
        (lambda m: m.record(random_tokens(1, 9), {"entropy"}, rows=0), "rows is 0; expected 'all'"),
        (lambda m: m.pattern(random_tokens(1, 9)[0], 0, 4), "there is no head L0H4"),
    ],
)
def test_what_cannot_be_recorded_is_refused_with_what_was_given(call, message):
    with pytest.raises(WorkbenchError, match=message):
        call(open_model(tiny("gpt2")))


def test_a_statistic_read_as_an_attribute_says_how_it_is_read():
    recording = open_model(tiny("llama")).record(random_tokens(1, 9), {"entropy"})
    with pytest.raises(AttributeError, match=r"read by name: recording\['entropy'\]"):
        _ = recording.entropy
    assert torch.equal(pickle.loads(pickle.dumps(recording))["entropy"].total, recording["entropy"].total)


def test_device_and_dtype_are_for_checkpoints():
    with pytest.raises(WorkbenchError, match="a model in memory keeps its own"):
        open_model(tiny("llama"), dtype=torch.bfloat16)
