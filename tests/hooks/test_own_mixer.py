"""A mixer of another package: the reader of a linear layer family that the workbench does not know."""

import runpy
from pathlib import Path

import pytest
import torch

from workbench.heads import WorkbenchError
from workbench.hooks import LinearCall, mixer, open_model
from workbench.hooks.taps.linear import MIXERS, head_outputs
from workbench.kernels import DecayRows

EXAMPLE = Path(__file__).parents[2] / "examples" / "extensions" / "own_mixer.py"


@pytest.fixture
def example():
    """The example's names, its mixer being registered for the length of a test."""
    try:
        yield runpy.run_path(str(EXAMPLE), run_name="own_mixer")
    finally:
        MIXERS.remove("Retention")


def retention_model(example):
    torch.manual_seed(1)
    model = example["RetentionForCausalLM"](example["RetentionConfig"]()).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def inputs_of(model, tokens, mask):
    """What each retention layer takes."""
    inputs = []
    handles = [x.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for x in model.layers]
    with torch.no_grad():
        model(tokens, mask)
    for handle in handles:
        handle.remove()
    return inputs


def rows_and_outputs(module, x, mask):
    """The rows γ^(i − j) (q_i · k_j) and the heads' outputs of a layer in float64, from its own weights."""
    weights = (module.q_proj, module.k_proj, module.v_proj)
    q, k, v = ((x.double() @ w.weight.double().T).unflatten(-1, (4, 8)).transpose(1, 2) for w in weights)
    back = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
    decay = torch.exp(module.log_decay.double()[:, None, None] * back.clamp_min(0)) * (back >= 0)
    rows = q @ k.transpose(-1, -2) / 8**0.5 * decay * mask[:, None, None]
    return rows, rows @ v


def test_the_rows_of_an_own_mixer_are_those_of_its_recurrence(example):
    model, tokens = retention_model(example), torch.arange(2 * 37).reshape(2, 37) * 7 % 64
    m = open_model(model)
    assert [(layer.kind, layer.mixer) for layer in m.layers] == [("linear", "retention")] * 2
    everywhere = torch.ones_like(tokens)
    for layer, x in enumerate(inputs_of(model, tokens, everywhere)):
        rows, outputs = rows_and_outputs(model.layers[layer], x, everywhere)
        for head in range(4):
            pattern = m.pattern(tokens[1], layer, head).double()
            assert (pattern - rows[1, head]).abs().max() <= 1e-5 * rows[1, head].abs().max()
        handed_on = {}
        with head_outputs(model, layer, lambda out, kept=handed_on: kept.setdefault("out", out)), torch.no_grad():
            model(tokens)
        assert (handed_on["out"].transpose(1, 2) - outputs).abs().max() <= 1e-5 * outputs.abs().max()


def test_statistics_and_reach_of_an_own_mixer_are_exact_under_padding(example):
    model, tokens = retention_model(example), torch.arange(2 * 30).reshape(2, 30) * 5 % 64
    mask = (torch.arange(30) >= torch.tensor([0, 11])[:, None]).long()
    m = open_model(model)
    recorded = m.record(tokens, {"mean_distance"}, mask)["mean_distance"]
    back = (torch.arange(30)[:, None] - torch.arange(30)).clamp_min(0)
    for layer, x in enumerate(inputs_of(model, tokens, mask)):
        rows, _ = rows_and_outputs(model.layers[layer], x, mask)
        size = rows.abs().sum(-1)
        distance = (rows.abs() * back).sum(-1) / torch.where(size > 0, size, 1) * mask[:, None]
        torch.testing.assert_close(recorded.total[:, layer].double(), distance.sum(-1), atol=1e-3, rtol=1e-5)
    half_life = m.reach()[0].half_life[:, 0]
    torch.testing.assert_close(half_life, torch.log(torch.tensor(2.0)).double() / -model.layers[0].log_decay.double())


def test_heads_of_an_own_mixer_can_be_ablated(example):
    from workbench import Head

    model, tokens = retention_model(example), torch.arange(20)[None]
    m = open_model(model)
    with torch.no_grad():
        before = model(tokens).logits
        with m.ablate([Head(0, h) for h in range(4)]):
            ablated = model(tokens).logits
        layer = model.layers[0]
        layer.o_proj.weight.zero_()
        assert torch.allclose(ablated, model(tokens).logits, atol=1e-5)
    assert (ablated - before).abs().max() > 1e-3


def test_the_example_runs_as_it_stands(capsys):
    try:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    finally:
        MIXERS.remove("Retention")
    printed = capsys.readouterr().out
    assert "['retention', 'retention']" in printed
    assert len(printed.split("mean_distance")[1].splitlines()) == 2 + 8


def test_a_layer_without_a_reader_is_refused_and_the_way_in_is_named(example):
    MIXERS.remove("Retention")
    with pytest.raises(
        WorkbenchError,
        match=r"no attention call reached the recorder from layer 0 \(Retention\), layer 1 .*workbench\.hooks\.mixer",
    ):
        open_model(retention_model(example))


def test_a_reader_that_reads_a_layer_wrongly_is_refused(example):
    MIXERS.remove("Retention")

    @mixer(
        "Retention",
        describe=example["describe"],
        taps=("q_proj", "k_proj", "v_proj"),
        norm="norm",
        projection="o_proj",
    )
    def without_decay(module, outputs, valid):
        """Retention as if it never forgot."""
        call = example["read_retention"](module, outputs, valid)
        rows = DecayRows(call.q, call.k, torch.zeros_like(call.rows.log_decay), valid=valid)
        return LinearCall(call.layer, call.q, call.k, call.v, torch.zeros_like(call.log_decay), rows)

    with pytest.raises(WorkbenchError, match=r"the output of layer 0 \(Retention\).* is not its implied pattern"):
        open_model(retention_model(example))


def test_two_readers_of_one_class_are_refused_by_name(example):
    register = mixer("Retention", describe=example["describe"], taps=("q_proj",), norm="norm", projection="o_proj")

    def another(module, outputs, valid):
        """Another reader."""

    with pytest.raises(WorkbenchError, match=r"mixer 'Retention' of .* is already registered by own_mixer"):
        register(another)
