"""Linear and recurrent layers against their own outputs and against the recurrence token by token in float64."""

import math
import warnings

import pytest
import torch
from transformers import Lfm2Config, MiniMaxConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from tests import causal_types
from tests.brute import _sequence
from tests.families import random_tokens
from tests.linear_families import CONFIGS, tiny
from tests.recurrences import channel_patterns_and_values, inputs_of, pattern_and_values, row_statistics
from workbench.detectors import score
from workbench.heads import RoundedDecayWarning, WorkbenchError
from workbench.hooks import open_model
from workbench.hooks.taps.linear import decay_reach, head_outputs, linear_layers, measured_reach, reading_linear
from workbench.hooks.taps.linear.lightning import lightning_modules, never_forgetting
from workbench.hooks.taps.linear.linear_selfcheck import implied_output
from workbench.kernels import Cells, Far, Request

# One family of every mechanism; the others share its adapter and are tested in the claims about adapters.
MECHANISMS = ["minimax", "qwen3_next", "olmo_hybrid", "kimi_linear", "falcon_h1", "lfm2", "xlstm"]
MIXERS = {"minimax": "lightning", "qwen3_next": "gdn", "olmo_hybrid": "gdn", "kimi_linear": "kda"}
MIXERS |= {"bailing_hybrid": "kda", "qwen3_5": "gdn", "qwen3_5_moe": "gdn"}
CONVOLUTIONS = ["lfm2", "lfm3"]
MIXERS |= dict.fromkeys(CONVOLUTIONS, "conv") | {"xlstm": "mlstm"}
READS_PADDING = ["xlstm"]
LENGTHS = [1, 37, 101]


BRUTE = dict(
    is_linear=True, has_sinks=False, far_window=5, sees_first=41, is_sliding=False, is_sparse=False, targets=None
)


def padded(n_tokens, *left):
    """A mask [b, t] with some tokens of padding on the left of each sequence."""
    return torch.arange(n_tokens) >= torch.tensor([min(p, n_tokens - 1) for p in left])[:, None]


def mask_for(family, n_tokens, *left):
    """A mask with padding on the left, where the family has a mask at all."""
    return padded(n_tokens, *(0 if family in READS_PADDING else p for p in left))


def run(model, tokens, mask):
    with torch.no_grad():
        return model(input_ids=tokens, attention_mask=mask.long(), use_cache=False).logits


def calls_of(model, tokens, mask, read):
    """What `read` makes of every linear layer's call, by layer."""
    found = {}
    with reading_linear(model, mask, lambda call: found.__setitem__(call.layer, read(call))):
        run(model, tokens, mask)
    return found


# What the layers are


@pytest.mark.parametrize("family", CONFIGS)
def test_every_linear_layer_is_listed_with_its_mixer(family):
    model = tiny(family)
    layers = linear_layers(model)
    softmax = {
        "nemotron_h": [2],
        "mamba2": [],
        "xlstm": [],
        "falcon_h1": [0, 1],
        "falcon_h1_plain": [0, 1],
        "lfm3": [1, 2],
    } | {"zamba2": [1, 2, 3]}
    expected = {
        "falcon_h1": [0, 1],
        "falcon_h1_plain": [0, 1],
        "mamba2": [0, 1],
        "xlstm": [0, 1],
        "zamba2": [0, 1, 2, 3],
    }.get(family, [0])
    assert sorted(layers) == expected
    for layer in layers.values():
        assert layer.mixer == MIXERS.get(family, "ssm")
        one_for_each = ("xlstm", "minimax", "kimi_linear", "bailing_hybrid", "olmo_hybrid")
        assert layer.n_heads == (1 if family in CONVOLUTIONS else 4)
        assert layer.n_kv_heads == (1 if family in CONVOLUTIONS else 4 if family in one_for_each else 2)
        assert layer.has_conv == (family not in ("minimax", "xlstm", *CONVOLUTIONS))
        assert (layer.slopes is not None) == (family == "minimax")
    infos = open_model(model).layers
    assert [i.index for i in infos if i.kind == "linear"] == expected
    assert [i.index for i in infos if i.mixer == "softmax"] == softmax.get(family, [1])


def test_two_mixers_of_one_layer_are_two_layers_of_a_recording():
    m = open_model(tiny("falcon_h1"))
    assert [(i.index, i.mixer) for i in m.layers] == [(0, "softmax"), (0, "ssm"), (1, "softmax"), (1, "ssm")]
    table = score(m, ["previous_token"], random_tokens(2, 20))
    by_kind = table[table["layer"] == 0].groupby("kind")["score"].apply(list)
    assert len(by_kind["full"]) == len(by_kind["linear"]) == 4
    assert by_kind["full"] != by_kind["linear"]


def test_layers_that_mix_no_tokens_are_left_out():
    assert [i.index for i in open_model(tiny("nemotron_h")).layers] == [0, 2]


# What they compute


@pytest.mark.parametrize("n_tokens", LENGTHS)
@pytest.mark.parametrize("family", CONFIGS)
def test_the_implied_pattern_times_v_is_what_the_heads_hand_on(family, n_tokens):
    model, tokens, mask = tiny(family), random_tokens(2, n_tokens), mask_for(family, n_tokens, 0, 7)
    handed = {}
    with head_outputs(model, 0, lambda out: handed.setdefault("out", out)):
        implied = calls_of(model, tokens, mask, implied_output)[0]
    assert (implied - handed["out"])[mask].abs().max() <= 1e-5 * handed["out"][mask].abs().max()


@pytest.mark.parametrize("model_type", [*CONVOLUTIONS, "lfm2_moe"])
def test_every_channel_of_a_short_convolution_hands_on_its_own_pattern_times_v(model_type):
    model, tokens, mask = causal_types.tiny(model_type), random_tokens(2, 37), padded(37, 0, 7)
    handed = {}
    with inputs_of(model) as seen, head_outputs(model, 0, lambda out: handed.setdefault("out", out)):
        implied = calls_of(model, tokens, mask, implied_output)[0]
    patterns, v = channel_patterns_and_values(*seen[0], mask)
    exact = torch.einsum("bcij,bjc->bic", patterns, v)
    for found in (handed["out"], implied):
        assert (found[:, :, 0].double() - exact)[mask].abs().max() <= 1e-5 * exact[mask].abs().max()


@pytest.mark.parametrize("n_tokens", LENGTHS)
@pytest.mark.parametrize("family", CONFIGS)
def test_row_statistics_equal_the_recurrence_token_by_token(family, n_tokens):
    model, tokens, mask = tiny(family), random_tokens(2, n_tokens), mask_for(family, n_tokens, 0, 7)
    first = mask.int().argmax(-1)
    sequence, row = mask.nonzero(as_tuple=True)
    key = torch.maximum(first[sequence], row - (sequence + row) % 5)
    request = Request(
        entropy=True,
        distance=True,
        far=Far(5),
        first=first,
        cells=Cells(sequence, row, key),
        top_rows=torch.stack([sequence, row], -1),
    )
    with inputs_of(model) as seen:
        found = calls_of(model, tokens, mask, lambda call: call.statistics(request))
    assert found.keys() == seen.keys()
    for layer, statistics in found.items():
        pattern, _ = pattern_and_values(*seen[layer], mask)
        for name, exact in row_statistics(pattern, first, far_window=5).items():
            measured = getattr(statistics, name)
            assert measured.dtype == torch.float32
            there = ~exact.isnan()
            a, b = measured.double()[there], exact[there]
            assert ((a - b).abs() <= 1e-5 * b.abs().clamp_min(1)).all(), (layer, name)
        norm = pattern.abs().sum(-1)[sequence, :, row]
        signed = pattern[sequence, :, row, key] / norm
        assert (statistics.cells.double() - signed).abs().max() <= 1e-5
        top = pattern.abs()[sequence, :, row].gather(-1, statistics.top_key[..., None])[..., 0]
        assert (top >= pattern.abs()[sequence, :, row].amax(-1) * (1 - 1e-5)).all()
        assert torch.allclose(statistics.mass[there].double(), torch.ones(1).double())


@pytest.mark.parametrize("family", MECHANISMS)
def test_scores_equal_brute_force_over_the_recurrence(family):
    model, tokens, mask = tiny(family), random_tokens(3, 41), mask_for(family, 41, 0, 7, 23)
    table = score(open_model(model), tokens=tokens, attention_mask=mask, far=Far(5))
    table = table[table["kind"] == "linear"]
    with inputs_of(model) as seen:
        run(model, tokens, mask)
    for layer, (module, hidden) in seen.items():
        pattern, _ = pattern_and_values(module, hidden, mask)
        for head in range(pattern.shape[1]):
            rows = [
                _sequence(x[keep].numpy(), p[head][keep][:, keep].numpy(), **BRUTE)
                for x, p, keep in zip(tokens, pattern, mask, strict=True)
            ]
            for name in (
                "previous_token",
                "current_token",
                "induction",
                "sink",
                "entropy",
                "mean_distance",
                "far_mass",
            ):
                expected = sum(sum(r[name]) / len(r[name]) for r in rows) / len(rows)
                is_this = (table["layer"] == layer) & (table["head"] == head) & (table["detector"] == name)
                measured = table.loc[is_this, "score"].item()
                assert abs(measured - expected) <= 1e-5 * max(1, abs(expected)), (layer, head, name)


@pytest.mark.parametrize("family", MECHANISMS)
def test_a_pattern_equals_the_recurrence_on_any_crop(family):
    model, tokens = tiny(family), random_tokens(1, 70)
    m = open_model(model)
    with inputs_of(model) as seen:
        run(model, tokens, torch.ones_like(tokens))
    exact, _ = pattern_and_values(*seen[0], torch.ones(1, 70, dtype=torch.bool))
    mixer = linear_layers(model)[0].mixer
    queries, keys = torch.tensor([69, 7, 31]), slice(3, 40)
    for head in range(exact.shape[1]):
        expected, scale = exact[0, head], float(exact[0, head].abs().max())
        assert (m.pattern(tokens[0], 0, head, mixer=mixer).double() - expected).abs().max() <= 1e-5 * scale
        crop = m.pattern(tokens[0], 0, head, queries, keys, mixer=mixer).double()
        assert (crop - expected[queries][:, keys]).abs().max() <= 1e-5 * scale


def test_a_layer_with_two_mixers_shows_the_softmax_one_unless_told():
    m, tokens = open_model(tiny("falcon_h1")), random_tokens(1, 20)[0]
    rows = m.pattern(tokens, 0, 1).sum(-1)
    assert torch.allclose(rows, torch.ones(20))
    assert (m.pattern(tokens, 0, 1, mixer="ssm") < 0).any()
    with pytest.raises(WorkbenchError, match="there is no head L0H1"):
        m.pattern(tokens, 0, 1, mixer="kda")


@pytest.mark.parametrize("family", MECHANISMS)
def test_sampled_rows_equal_the_same_rows_of_the_full_pass(family):
    m, tokens, rows = open_model(tiny(family)), random_tokens(2, 90), torch.tensor([3, 40, 41, 88])
    needs = {"entropy_per_row", "mean_distance_per_row", "lse_per_row"}
    full, sampled = m.record(tokens, needs), m.record(tokens, needs, rows=rows)
    for need in needs:
        for slot, layer in enumerate(m.layers):
            whole, some = (x.per_row[need][:, slot, : layer.n_heads, rows] for x in (full, sampled))
            torch.testing.assert_close(whole, some, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", CONFIGS)
def test_recording_leaves_logits_and_model_as_they_were(family):
    model, tokens, mask = tiny(family), random_tokens(2, 45), mask_for(family, 45, 0, 9)
    before = run(model, tokens, mask)
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    m = open_model(model)
    seen = []
    handle = model.register_forward_hook(lambda _, __, out: seen.append(out.logits))
    m.record(tokens, {"entropy", "previous_token"}, mask)
    handle.remove()
    last = before[:, -1] if seen[0].shape[1] == 1 else before
    assert (seen[0].squeeze(1) - last).abs().max() < 5e-5
    assert torch.equal(run(model, tokens, mask), before)
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == hooks


@pytest.mark.parametrize("family", [f for f in MECHANISMS if f != "xlstm"])
def test_a_low_precision_model_is_recorded_in_float32(family):
    model = AutoModelForCausalLM.from_config(CONFIGS[family]())
    model.load_state_dict(tiny(family).state_dict())
    low = model.to(torch.bfloat16).eval()
    tokens, mask = random_tokens(1, 30), padded(30, 0)
    exact = calls_of(tiny(family), tokens, mask, lambda call: call.statistics(Request(entropy=True)))[0]
    rough = calls_of(low, tokens, mask, lambda call: call.statistics(Request(entropy=True)))[0]
    assert rough.entropy.dtype == torch.float32
    assert (rough.entropy - exact.entropy).abs().mean() < 0.1
    assert open_model(low).layers


# Changing what heads hand on


@pytest.mark.parametrize("family", CONFIGS)
def test_a_layer_without_its_heads_gives_what_a_zero_mixer_gives(family):
    model, tokens, mask = tiny(family), random_tokens(2, 33), mask_for(family, 33, 0, 5)
    before = run(model, tokens, mask)
    with head_outputs(model, 0, torch.zeros_like):
        without_heads = run(model, tokens, mask)
    with inputs_of(model) as seen:
        run(model, tokens, mask)
    handle = seen[0][0].register_forward_hook(lambda _, __, out: _zeroed(out))
    without_mixer = run(model, tokens, mask)
    handle.remove()
    assert (without_heads - without_mixer).abs().max() < 1e-5
    assert (without_heads - before)[mask].abs().max() > 1e-2
    assert torch.equal(run(model, tokens, mask), before)


def _zeroed(out):
    """The mixer's output in what it returns: lightning attention returns its state, too."""
    return (torch.zeros_like(out[0]), *out[1:]) if isinstance(out, tuple) else torch.zeros_like(out)


@pytest.mark.parametrize("family", CONFIGS)
def test_heads_come_apart_by_head_and_an_unchanged_output_changes_nothing(family):
    model, tokens, mask = tiny(family), random_tokens(2, 33), mask_for(family, 33, 0, 5)
    before = run(model, tokens, mask)
    shapes = []
    with head_outputs(model, 0, lambda out: shapes.append(out.shape) or out):
        assert torch.equal(run(model, tokens, mask), before)
    n_heads = linear_layers(model)[0].n_heads
    chosen = n_heads // 2
    assert shapes[0][:3] == (2, 33, n_heads)

    def without_one(out):
        return torch.where(torch.arange(n_heads)[:, None] == chosen, 0, out)

    expected = calls_of(model, tokens, mask, implied_output)[0]
    seen = {}
    with head_outputs(model, 0, without_one), head_outputs(model, 0, lambda out: seen.setdefault("out", out)):
        changed = run(model, tokens, mask)
    others = torch.arange(n_heads) != chosen
    assert (seen["out"][:, :, chosen] == 0).all()
    assert torch.allclose(seen["out"][mask][:, others], expected[mask][:, others], atol=1e-4)
    assert (changed - before)[mask].abs().max() > 1e-4


def test_a_softmax_layer_has_no_linear_heads_to_change():
    with (
        pytest.raises(WorkbenchError, match=r"layer 1 of Qwen3NextForCausalLM is no linear layer; .* \[0\]"),
        head_outputs(tiny("qwen3_next"), 1, torch.zeros_like),
    ):
        pass


# How far back they see


@pytest.fixture(scope="module")
def text_01():
    """The decays of MiniMax-Text-01 on tiny weights: 80 layers of 64 heads, every eighth of them softmax."""
    kinds = ["full_attention" if i % 8 == 7 else "linear_attention" for i in range(80)]
    config = MiniMaxConfig(
        vocab_size=5,
        hidden_size=64,
        intermediate_size=8,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=64,
        head_dim=2,
        num_local_experts=1,
        num_experts_per_tok=1,
        block_size=2,
        layer_types=kinds,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
    )
    return AutoModelForCausalLM.from_config(config)


def test_only_a_few_heads_of_minimax_text_01_see_far(text_01):
    reach = {i: decay_reach(layer) for i, layer in linear_layers(text_01).items()}
    longest = {i: float(r.half_life.max()) for i, r in reach.items()}
    assert [round(longest[i]) for i in (0, 40, 60)] == [177, 359, 738]
    assert round(longest[78], -2) == 14000
    half_lives = torch.cat([r.half_life for r in reach.values()])
    assert half_lives.numel() == 4480
    assert int((half_lives > 4096).sum()) == 24
    assert int((half_lives > 32768).sum()) == 0
    assert torch.allclose(reach[40].reach_99 / reach[40].half_life, torch.tensor(math.log2(100)).double())


def test_rates_rounded_to_bfloat16_are_named(text_01):
    assert not any(never_forgetting(m) for m in lightning_modules(text_01).values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_model(text_01)
    text_01.to(torch.bfloat16)
    frozen = sum(len(never_forgetting(m)) for m in lightning_modules(text_01).values())
    assert frozen / 4480 == pytest.approx(0.0906, abs=5e-5)
    with pytest.warns(RoundedDecayWarning, match=r"406 heads never forget .*: L\d+H\d+, .* and 398 more"):
        open_model(text_01)


def test_a_model_tells_the_reach_of_its_linear_layers():
    lightning = open_model(tiny("minimax")).reach()
    assert [(r.layer, r.mixer, r.is_measured) for r in lightning] == [(0, "lightning", False)]
    assert torch.equal(lightning[0].half_life, decay_reach(linear_layers(tiny("minimax"))[0]).half_life)
    m, tokens = open_model(tiny("kimi_linear")), random_tokens(2, 60)
    assert m.reach() == ()
    (measured,) = m.reach(tokens)
    valid = torch.ones(2, 60, dtype=torch.bool)
    layer = linear_layers(m.model)[0]
    expected = calls_of(m.model, tokens, valid, lambda call: measured_reach(call, layer, valid))[0]
    assert torch.equal(measured.reach_99, expected.reach_99)
    assert measured.is_measured


def test_a_measured_reach_is_the_closed_form_where_there_is_one():
    model = tiny("minimax")
    layer = linear_layers(model)[0]
    tokens, mask = random_tokens(2, 300), padded(300, 0, 20)
    reach = calls_of(model, tokens, mask, lambda call: measured_reach(call, layer, mask))[0]
    closed = decay_reach(layer)
    seen = closed.half_life < 140  # the last half of the tokens cannot see a longer one go
    assert torch.equal(reach.half_life[seen], closed.half_life[seen].ceil())
    assert reach.is_measured
    assert not closed.is_measured


@pytest.mark.parametrize(("family", "n_taps"), [("lfm2", 3), ("lfm3", 7)])
def test_a_short_convolution_reaches_as_far_as_its_kernel_and_no_further(family, n_taps):
    m, tokens = open_model(tiny(family)), random_tokens(1, 20)
    (reach,) = m.reach(tokens)
    assert (reach.half_life.tolist(), reach.reach_99.tolist()) == ([[n_taps]], [[n_taps]])
    assert not reach.is_measured
    pattern = m.pattern(tokens[0], 0, 0)
    back = torch.arange(20)[:, None] - torch.arange(20)
    is_seen = (back >= 0) & (back < n_taps)
    assert (pattern[~is_seen] == 0).all()
    assert (pattern[is_seen] != 0).all()


@pytest.mark.parametrize("family", ["qwen3_next", "kimi_linear", "bamba"])
def test_a_measured_reach_counts_tokens_until_the_decay_has_halved(family):
    model = tiny(family)
    layer = linear_layers(model)[0]
    tokens, mask = random_tokens(2, 120), padded(120, 0, 11)

    def both(call):
        return measured_reach(call, layer, mask), call.log_decay

    reach, log_decay = calls_of(model, tokens, mask, both)[0]
    assert decay_reach(layer) is None
    assert reach.half_life.shape == (4, 8 if family == "kimi_linear" else 1)
    left = torch.exp(log_decay.double())
    for head in range(4):
        for rate in range(left.shape[-1]):
            steps = []
            for b, s in mask.nonzero().tolist():
                kept, n = 1.0, 0
                while kept > 0.5 and s + n + 1 < 120:
                    n += 1
                    kept *= float(left[b, head, s + n, rate])
                steps.append(n if kept <= 0.5 else math.inf)
            assert float(reach.half_life[head, rate]) == sorted(steps)[len(steps) // 2]


# What is refused

SMALL = dict(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=2,
)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            lambda: Lfm2Config(**SMALL, layer_types=["conv", "full_attention"], conv_bias=True),
            r"Lfm2ShortConv of layer 0 adds a bias behind its convolution \(conv_bias\), .* Leave this model out",
        ),
    ],
    ids=["short convolution with a bias"],
)
def test_other_mixers_are_refused_by_name(config, told):
    with pytest.raises(WorkbenchError, match=told):
        open_model(AutoModelForCausalLM.from_config(config()))


@pytest.mark.parametrize("family", MECHANISMS)
def test_a_layer_that_does_something_else_than_its_pattern_says_is_refused(family):
    model = tiny(family)
    with inputs_of(model) as seen:
        run(model, random_tokens(1, 3), padded(3, 0))
    norm = next(
        getattr(seen[0][0], name)
        for name in ("o_norm", "norm", "multihead_norm", "out_proj")
        if hasattr(seen[0][0], name)
    )
    handle = norm.register_forward_pre_hook(lambda _, args: (1.1 * args[0], *args[1:]))
    with pytest.raises(WorkbenchError, match=r"the output of layer 0 \(\w+\) is not its implied pattern times v"):
        open_model(model)
    handle.remove()
