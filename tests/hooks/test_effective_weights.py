"""Scores of weights are of the weights that the model computes with: adapters merged, other wrappers refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import workbench as wb
from workbench.heads import WorkbenchError
from workbench.hooks import RowReading
from workbench.hooks.effective_weights import effective_weight
from workbench.planning import Game, rank

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
MAPS = ("q_proj", "k_proj", "v_proj", "o_proj")


class Adapted(nn.Module):
    """An unmerged low-rank adapter, with the methods and names of PEFT's."""

    def __init__(self, base: nn.Linear, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.base_layer, self.merged_adapters, self.disable_adapters = base, [], False
        self.a = nn.Parameter(0.3 * torch.randn(4, base.in_features, generator=generator))
        self.b = nn.Parameter(0.3 * torch.randn(base.out_features, 4, generator=generator))

    @property
    def weight(self):
        return self.base_layer.weight

    def forward(self, x):
        out = self.base_layer(x)
        return out if self.merged_adapters or self.disable_adapters else out + x @ self.a.T @ self.b.T

    def merge(self, safe_merge=False):
        if not self.merged_adapters:
            self.base_layer.weight.data = self.base_layer.weight.data + self.b @ self.a
            self.merged_adapters.append("default")

    def get_base_layer(self):
        return self.base_layer


def plain():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def adapted(model=None):
    model = plain() if model is None else model
    for layer in model.model.layers:
        for i, name in enumerate(MAPS):
            setattr(layer.self_attn, name, Adapted(getattr(layer.self_attn, name), i))
    return model


def merged(model):
    model = copy.deepcopy(model)
    for layer in model.model.layers:
        for name in MAPS:
            adapter = getattr(layer.self_attn, name)
            adapter.merge()
            setattr(layer.self_attn, name, adapter.get_base_layer())
    return model


def weight_scores(m):
    return torch.tensor(wb.score(m, ["copying", "k_composition"]).score.to_numpy()).nan_to_num(0)


def test_scores_of_weights_with_unmerged_adapters_are_those_of_the_merged_model():
    model = adapted()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    m, expected = wb.open_model(model), weight_scores(wb.open_model(merged(model)))
    torch.testing.assert_close(weight_scores(m), expected)
    assert (expected - weight_scores(wb.open_model(plain()))).abs().max() > 0.01
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(m.bridge(tokens), model(tokens).logits, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_rows_read_as_logits_are_of_the_output_weights_of_the_merged_model():
    model = adapted()
    rows = torch.tensor([[0, 4], [0, 11]])
    need = RowReading("written", lambda _: rows, lambda pattern, *_: pattern.flatten(), of="logit")
    written = [
        wb.open_model(x).record(torch.arange(20), [need]).readings["written"].values for x in (model, merged(model))
    ]
    torch.testing.assert_close(*written, atol=1e-4, rtol=1e-3)


def test_a_bridge_follows_adapters_that_are_trained_disabled_or_added_after_it_was_made():
    base = plain()
    m = wb.open_model(base)
    assert m.bridge is m.bridge
    weight_scores(m)
    model = adapted(base)
    torch.testing.assert_close(weight_scores(m), weight_scores(wb.open_model(merged(model))))
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.b.mul_(-2)
    torch.testing.assert_close(weight_scores(m), weight_scores(wb.open_model(merged(model))))
    for layer in model.model.layers:
        for name in MAPS:
            getattr(layer.self_attn, name).disable_adapters = True
    torch.testing.assert_close(weight_scores(m), weight_scores(wb.open_model(plain())))


def test_a_bridge_follows_a_fused_projection_that_is_trained_after_it_was_made():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32)).eval()
    m = wb.open_model(model)
    first = weight_scores(m)
    with torch.no_grad():
        model.transformer.h[0].attn.c_attn.weight[:, 64:].normal_()
    second = weight_scores(m)
    assert (second - first).abs().max() > 0.01
    torch.testing.assert_close(second, weight_scores(wb.open_model(copy.deepcopy(model))))


class Scaled(nn.Linear):
    def forward(self, x):
        return 1.5 * super().forward(x)


class Beside(nn.Module):
    """A wrapper of one's own that passes the base's weight on."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base, self.more = base, nn.Linear(base.in_features, base.out_features, bias=False)

    @property
    def weight(self):
        return self.base.weight

    def forward(self, x):
        return self.base(x) + self.more(x)


def scaled(base):
    map_ = Scaled(base.in_features, base.out_features, bias=False)
    map_.weight = base.weight
    return map_


def hooked(base):
    base.register_forward_hook(lambda _, __, out: 2 * out)
    return base


@pytest.mark.parametrize("wrap", [scaled, Beside, hooked])
def test_a_map_whose_output_is_not_its_weights_is_refused_by_name_and_still_recorded(wrap):
    model = plain()
    attention = model.model.layers[1].self_attn
    attention.q_proj = wrap(attention.q_proj)
    m = wb.open_model(model)
    with pytest.raises(WorkbenchError, match=r"layers\.1\.self_attn\.q_proj is a .* merge_and_unload\(\)"):
        wb.score(m, ["copying"])
    assert wb.score(m, ["sink"], tokens=torch.arange(20)).score.notna().all()


def test_a_weight_that_is_parametrised_is_read_as_it_is_computed():
    model = plain()
    projection = weight_norm(model.model.layers[1].self_attn.v_proj)
    with torch.no_grad():
        projection.parametrizations.weight.original0.mul_(torch.rand(16, 1) + 0.5)
    expected = plain()
    with torch.no_grad():
        expected.model.layers[1].self_attn.v_proj.weight.copy_(projection.weight)
    torch.testing.assert_close(weight_scores(wb.open_model(model)), weight_scores(wb.open_model(expected)))


def test_the_output_error_of_a_conversion_is_that_of_the_merged_output_projection():
    model = adapted()
    errors = [
        torch.tensor(rank(Game(m, wb.probes.repeats(m, n=8), 4), "output_error").scores)
        for m in (wb.open_model(model), wb.open_model(merged(model)), wb.open_model(plain()))
    ]
    torch.testing.assert_close(errors[0], errors[1], atol=1e-4, rtol=1e-4)
    assert (errors[0] - errors[2]).abs().max() > 0.01


def test_the_matrix_of_a_map_is_found_by_running_it_and_none_where_it_is_not_affine():
    base = nn.Linear(6, 5)
    torch.testing.assert_close(effective_weight(base, 6, torch.zeros(1)), base.weight.T.detach())
    assert effective_weight(nn.Sequential(base, nn.ReLU()), 6, torch.zeros(1)) is None


def test_adapters_of_peft_are_merged():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, lora_alpha=32, target_modules=list(MAPS), init_lora_weights=False, use_dora=True)
    torch.manual_seed(1)
    model = peft.get_peft_model(plain(), config).eval()
    unmerged = weight_scores(wb.open_model(model.base_model.model))
    torch.testing.assert_close(unmerged, weight_scores(wb.open_model(model.merge_and_unload())))


@pytest.mark.parametrize(("row", "mask"), [(19, None), (11, torch.arange(20) < 12)])
def test_a_row_without_a_next_token_has_no_logits_to_read_and_is_named(row, mask):
    need = RowReading("written", lambda _: torch.tensor([[0, row]]), lambda pattern, *_: pattern.flatten(), of="logit")
    with pytest.raises(WorkbenchError, match=rf"'written' reads logits .* row \(0, {row}\) is the last token"):
        wb.open_model(plain()).record(torch.arange(20), [need], None if mask is None else mask.long())
