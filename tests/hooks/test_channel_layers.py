"""Layers with a decay per channel against every channel's response to impulses, token by token in float64."""

import copy

import pytest
import torch

from tests.brute import _sequence
from tests.channel_families import CONFIGS, HEADS, MIXER, tiny
from tests.channel_recurrences import channel_patterns, head_patterns, inputs_by_layer
from tests.families import random_tokens
from tests.recurrences import row_statistics
from workbench.detectors import score
from workbench.heads import WorkbenchError
from workbench.hooks import open_model
from workbench.hooks.taps.linear import head_outputs, linear_layers, measured_reach, reading_linear
from workbench.hooks.taps.linear.linear_selfcheck import implied_output
from workbench.kernels import Cells, Far, Request, signed_pattern

# Falcon-Mamba shares its reader with Jamba: what is not of the reader is tried on it in the slow tests alone.
FAMILIES = [pytest.param(f, marks=[pytest.mark.slow] if f == "falcon_mamba" else []) for f in CONFIGS]
HIDES_PADDING = ["mamba", "falcon_mamba", "jamba"]
BRUTE = dict(
    is_linear=True, has_sinks=False, far_window=5, sees_first=23, is_sliding=False, is_sparse=False, targets=None
)


def padded(family, n_tokens, *left):
    """A mask [b, t] with padding on the left; on the right where the family does not hide padding."""
    counts = torch.tensor([min(p, n_tokens - 1) for p in left])[:, None]
    mask = torch.arange(n_tokens) >= counts
    return mask if family in HIDES_PADDING else mask.flip(-1)


def run(model, tokens, mask):
    with torch.no_grad():
        return model(input_ids=tokens, attention_mask=mask.long(), use_cache=False).logits


def calls_of(model, tokens, mask, read):
    """What `read` makes of every linear layer's call, by layer."""
    found = {}
    with reading_linear(model, mask, lambda call: found.__setitem__(call.layer, read(call))):
        run(model, tokens, mask)
    return found


@pytest.mark.parametrize("family", CONFIGS)
def test_the_layers_are_listed_with_their_heads(family):
    model, (n_heads, _) = tiny(family), HEADS[family]
    infos = [i for i in open_model(model).layers if i.kind == "linear"]
    assert [i.index for i in infos] == sorted(linear_layers(model))
    assert {(i.mixer, i.n_heads) for i in infos} == {(MIXER[family], n_heads)}


@pytest.mark.parametrize("n_tokens", [1, 37])
@pytest.mark.parametrize("family", CONFIGS)
def test_every_channels_own_pattern_gives_what_its_head_hands_on(family, n_tokens):
    model, tokens, mask = tiny(family), random_tokens(2, n_tokens), padded(family, n_tokens, 0, 7)
    handed = {}
    with inputs_by_layer(model) as seen, head_outputs(model, 0, lambda out: handed.setdefault("out", out)):
        call = calls_of(model, tokens, mask, lambda call: call)[0]
    exact, values, _ = channel_patterns(*seen[0], mask)
    found = signed_pattern(call.rows.by_channel()).double()
    assert (found - exact).abs().max() <= 1e-5 * exact.abs().max()
    out = torch.einsum("bcij,bcj->bic", exact, values) * call.gate.flatten(2).double()
    out = out.reshape(handed["out"].shape)
    assert (out - handed["out"])[mask].abs().max() <= 1e-5 * out[mask].abs().max()
    assert (implied_output(call) - handed["out"])[mask].abs().max() <= 1e-5 * out[mask].abs().max()


@pytest.mark.parametrize("n_tokens", [1, 37])
@pytest.mark.parametrize("family", CONFIGS)
def test_row_statistics_equal_those_of_the_mean_over_channels(family, n_tokens):
    model, tokens, mask = tiny(family), random_tokens(2, n_tokens), padded(family, n_tokens, 0, 7)
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
    with inputs_by_layer(model) as seen:
        found = calls_of(model, tokens, mask, lambda call: call.statistics(request))
    assert found.keys() == seen.keys()
    for layer, statistics in found.items():
        pattern = head_patterns(*seen[layer], mask)
        for name, exact in row_statistics(pattern, first, far_window=5).items():
            measured = getattr(statistics, name)
            assert measured.dtype == torch.float32
            there = ~exact.isnan() & mask[:, None]
            a, b = measured.double()[there], exact[there]
            assert ((a - b).abs() <= 1e-5 * b.abs().clamp_min(1)).all(), (layer, name)
        signed = pattern[sequence, :, row, key] / pattern.abs().sum(-1)[sequence, :, row]
        assert (statistics.cells.double() - signed).abs().max() <= 1e-5
        top = pattern.abs()[sequence, :, row].gather(-1, statistics.top_key[..., None])[..., 0]
        assert (top >= pattern.abs()[sequence, :, row].amax(-1) * (1 - 1e-5)).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_brute_force_over_the_mean_pattern(family):
    model, tokens, mask = tiny(family), random_tokens(2, 23), padded(family, 23, 0, 7)
    names = ["previous_token", "current_token", "induction", "sink", "entropy", "mean_distance", "far_mass"]
    table = score(open_model(model), names, tokens=tokens, attention_mask=mask, far=Far(5))
    table = table[table["kind"] == "linear"]
    with inputs_by_layer(model) as seen:
        run(model, tokens, mask)
    for layer, (module, hidden) in seen.items():
        pattern = head_patterns(module, hidden, mask)
        for head in range(pattern.shape[1]):
            rows = [
                _sequence(x[keep].numpy(), p[head][keep][:, keep].numpy(), **BRUTE)
                for x, p, keep in zip(tokens, pattern, mask, strict=True)
            ]
            for name in names:
                expected = sum(sum(r[name]) / len(r[name]) for r in rows) / len(rows)
                is_this = (table["layer"] == layer) & (table["head"] == head) & (table["detector"] == name)
                measured = table.loc[is_this, "score"].item()
                assert abs(measured - expected) <= 1e-5 * max(1, abs(expected)), (layer, head, name)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pattern_equals_the_mean_over_channels_on_any_crop(family):
    model, tokens = tiny(family), random_tokens(1, 41)
    m = open_model(model)
    with inputs_by_layer(model) as seen:
        run(model, tokens, torch.ones_like(tokens))
    exact = head_patterns(*seen[0], torch.ones(1, 41, dtype=torch.bool))[0]
    queries, keys = torch.tensor([40, 7, 31, 7]), slice(3, 20)
    for head in range(len(exact)):
        scale = float(exact[head].abs().max())
        crop = m.pattern(tokens[0], 0, head, queries, keys, mixer=MIXER[family]).double()
        assert (crop - exact[head][queries][:, keys]).abs().max() <= 1e-5 * scale


@pytest.mark.parametrize("family", FAMILIES)
def test_recording_leaves_logits_gradients_and_model_as_they_were(family):
    model, tokens, mask = copy.deepcopy(tiny(family)), random_tokens(2, 19), padded(family, 19, 0, 5)

    def gradients():
        model.zero_grad()
        model(input_ids=tokens, attention_mask=mask.long(), use_cache=False).logits.square().mean().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    before, slopes = run(model, tokens, mask), gradients()
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    open_model(model).record(tokens, {"entropy", "previous_token"}, mask)
    assert torch.equal(run(model, tokens, mask), before)
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == hooks
    with reading_linear(model, mask, lambda call: call.statistics(Request(entropy=True))):
        assert all(torch.equal(a, b) for a, b in zip(gradients(), slopes, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_ablated_head_hands_on_zeros_and_its_neighbours_what_they_did(family):
    model, tokens, (n_heads, width) = tiny(family), random_tokens(2, 19), HEADS[family]
    m, mask, seen = open_model(model), torch.ones(2, 19, dtype=torch.bool), {}
    handed = calls_of(model, tokens, mask, implied_output)[0]
    before = run(model, tokens, mask)
    with m.ablate([(0, n_heads - 1)], mixer=MIXER[family]):
        module = dict(model.named_modules())[_projection(model)]
        handle = module.register_forward_pre_hook(lambda _, args: seen.update(out=args[0]))
        ablated = run(model, tokens, mask)
        handle.remove()
    out = seen["out"].unflatten(-1, (n_heads, width))
    assert (out[:, :, -1] == 0).all()
    assert torch.allclose(out[:, :, :-1], handed[:, :, :-1], atol=1e-4)
    assert (ablated - before).abs().max() > 1e-3


def _projection(model):
    """The path of the output projection of layer 0."""
    ends = ("mixer.out_proj", "mamba.out_proj", "temporal_block.linear_out", "attention.output")
    return next(path for path, _ in model.named_modules() if ".0." in path and path.endswith(ends))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_wrong_gate_is_refused_when_the_model_is_opened(family):
    model = copy.deepcopy(tiny(family))
    module = dict(model.named_modules())[_projection(model)]
    module.register_forward_pre_hook(lambda _, args: (1.1 * args[0],), prepend=True)
    with pytest.raises(WorkbenchError, match=r"the output of layer 0 \(\w+\) is not its implied pattern times v"):
        open_model(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reach_has_a_rate_for_every_channel(family):
    model, tokens, mask = tiny(family), random_tokens(2, 60), torch.ones(2, 60, dtype=torch.bool)
    layer = linear_layers(model)[0]
    reach, left = calls_of(model, tokens, mask, lambda c: (measured_reach(c, layer, mask), c.log_decay.exp()))[0]
    assert reach.half_life.shape == HEADS[family]
    for channel in (0, HEADS[family][1] - 1):
        rates = left.expand(2, -1, -1, -1)[:, 0, :, channel].double()
        steps = []
        for b, s in mask.nonzero().tolist():
            kept, n = 1.0, 0
            while kept > 0.5 and s + n + 1 < 60:
                n += 1
                kept *= float(rates[b, s + n])
            steps.append(n if kept <= 0.5 else float("inf"))
        assert float(reach.half_life[0, channel]) == sorted(steps)[len(steps) // 2]


@pytest.mark.parametrize("family", FAMILIES)
def test_left_padding_is_refused_where_the_model_takes_it_in_and_changes_nothing_where_it_does_not(family):
    m, tokens = open_model(tiny(family)), random_tokens(1, 23)
    padded_tokens = torch.cat([torch.full((1, 6), 5), tokens], -1)
    mask = torch.arange(29)[None] >= 6
    if family not in HIDES_PADDING:
        with pytest.raises(
            WorkbenchError, match=r"have no mask and read padding as tokens; expected padding on the ri"
        ):
            m.record(padded_tokens, {"entropy"}, mask)
        return
    alone, behind = m.record(tokens, {"entropy"}), m.record(padded_tokens, {"entropy"}, mask)
    torch.testing.assert_close(alone["entropy"].total, behind["entropy"].total, atol=1e-4, rtol=1e-5, equal_nan=True)


def test_rows_of_rwkv_4_are_positive_and_sum_to_1():
    call = calls_of(tiny("rwkv"), random_tokens(2, 70), torch.ones(2, 70, dtype=torch.bool), lambda call: call)[0]
    pattern = signed_pattern(call.rows.by_channel())
    assert (pattern >= 0).all()
    assert (pattern.sum(-1) - 1).abs().max() < 1e-5
