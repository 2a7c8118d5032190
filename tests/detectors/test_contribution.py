"""Contribution scores against eager patterns, values, gates and weights in float64, and heads that say nothing."""

import copy
from dataclasses import replace

import pytest
import torch

from tests.families import tiny
from tests.linear_families import tiny as tiny_linear
from workbench import probes
from workbench.detectors import score
from workbench.detectors.registry import find_detectors
from workbench.heads import WorkbenchError
from workbench.hooks import open_model
from workbench.hooks.recording.cells import induction, previous_token, sequences, sink_token
from workbench.hooks.recording.contributions import Projection, shares
from workbench.probes import Vocabulary

WORDS = Vocabulary(torch.arange(3, 60), bos=1)
RULES = {"induction": induction, "previous_token": previous_token, "sink": sink_token}


@pytest.fixture(scope="module")
def probe():
    return probes.repeats(WORDS, n=12, n_sequences=6)


def attention_of(model, layer):
    return model.model.layers[layer].self_attn


def brute_scores(model, tokens, layer, *, is_gated):
    """The score of each rule and head: every ‖W_O (g_i ⊙ v_j)‖ from the modules' own outputs, one by one."""
    attention, heads = attention_of(model, layer), model.config.num_attention_heads
    width = attention.head_dim
    inputs = {}
    hooks = [
        getattr(attention, name).register_forward_hook(lambda _, __, out, name=name: inputs.update({name: out}))
        for name in ("q_proj", "v_proj")
    ]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        patterns = model(tokens, output_attentions=True).attentions
    for hook in hooks:
        hook.remove()
    pattern = [p for p in patterns if p is not None][layer if len(patterns) > layer else -1].double()
    v = inputs["v_proj"].double().unflatten(-1, (-1, width)).repeat_interleave(attention.num_key_value_groups, 2)
    gate = torch.ones_like(v)
    if is_gated:
        gate = torch.sigmoid(inputs["q_proj"].double().unflatten(-1, (heads, 2 * width))[..., width:])
    w = attention.o_proj.weight.double().unflatten(-1, (heads, width))
    added = torch.einsum("bihd,bjhd,mhd->bhijm", gate, v, w).norm(dim=-1) * pattern
    share = added / added.sum(-1, keepdim=True)
    scores = {}
    for name, rule in RULES.items():
        cells = rule(sequences(tokens))
        rows = torch.unique(cells[:, :2], dim=0)
        scores[name] = torch.stack([share[b, :, i, j] for b, i, j in cells.tolist()]).sum(0) / len(rows)
    return scores


@pytest.mark.parametrize(("family", "layer"), [("llama", 1), ("qwen3_next", 1)])
def test_scores_are_those_of_every_cell_in_float64(family, layer, probe):
    model = copy.deepcopy(tiny("llama") if family == "llama" else tiny_linear(family))
    table = score(open_model(model), [f"contribution_{name}" for name in RULES], probes=probe)
    expected = brute_scores(model, probe.tokens, layer, is_gated=family == "qwen3_next")
    for name, values in expected.items():
        rows = table[(table.detector == f"contribution_{name}") & (table.layer == layer)].sort_values("head")
        assert torch.tensor(rows.score.to_numpy()).double().sub(values).abs().max() < 1e-5
        assert (rows.ci_lo <= rows.score).all()


def answer_is_first(probe):
    """The probe with the first token as the answer of all its rows."""
    cells = probe.target_cells.clone()
    cells[:, 2] = 0
    return replace(probe, target_cells=cells)


def look_at_first(model, layer):
    """Plant heads that attend to the first token alone, by its embedding: dimension 0; dimension 1 is every token's."""
    attention, width = attention_of(model, layer), attention_of(model, layer).head_dim
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding[:, 0], embedding[:, 1], embedding[1, 0] = 0, 4, 40
        attention.q_proj.weight.zero_()
        attention.k_proj.weight.zero_()
        attention.q_proj.weight[width // 2 - 1 :: width, 1] = 40  # the slowest rotary pair: no position
        attention.k_proj.weight[width // 2 - 1 :: width, 0] = 40
        attention.v_proj.weight[:, 0] = 0
    return attention


def test_a_retrieval_head_whose_answer_has_no_value_says_nothing(probe):
    model = copy.deepcopy(tiny("llama"))
    attention = look_at_first(model, 0)
    with torch.no_grad():
        model.get_input_embeddings().weight[1, 1:] = 0
        model.get_input_embeddings().weight[1, 1] = 4
        attention.v_proj.weight[:, 1] = 0
    table = score(open_model(model), ["retrieval", "contribution_retrieval"], probes=answer_is_first(probe))
    table = table[table.layer == 0]
    assert (table[table.detector == "retrieval"].score > 0.99).all()
    assert (table[table.detector == "contribution_retrieval"].score < 1e-6).all()


def test_a_gate_that_shuts_the_channels_of_a_value_silences_it():
    o, values = torch.eye(4).double(), torch.tensor([[5.0, 0, 0, 0], [0, 1, 0, 0]])
    pattern, rows = torch.tensor([[0.99, 0.01]]), torch.tensor([[0, 0]])
    gate = torch.tensor([0.0, 1, 1, 1]).expand(1, 1, 1, 4)
    assert shares(pattern, Projection(o[None], None).norms(0, values, rows))[0, 0] > 0.99
    assert shares(pattern, Projection(o[None], gate).norms(0, values, rows)).tolist() == [[0, 1]]


def test_a_row_that_adds_nothing_has_no_share():
    assert shares(torch.ones(1, 2) / 2, torch.zeros(1, 2)).tolist() == [[0, 0]]


def test_contributions_run_only_where_they_are_named():
    assert not [d.name for d in find_detectors(None) if d.name.startswith("contribution_")]


def test_a_layer_whose_projection_cannot_be_read_is_refused(probe):
    model = copy.deepcopy(tiny("llama"))
    attention_of(model, 0).o_proj.register_forward_hook(lambda *_: None)
    with pytest.raises(WorkbenchError, match="no W_O per head can be read for layer 0"):
        score(open_model(model), ["contribution_sink"], probes=probe)
