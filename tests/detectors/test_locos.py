"""What heads write to the logit of the answer: the authors' formula over patterns, values and weights."""

from dataclasses import replace

import pytest
import torch

from tests.brute import eager_patterns
from tests.families import tiny
from workbench import probes
from workbench.detectors import Decoding, decoded, score
from workbench.detectors.builtin.locos import from_needle, spelling_rows
from workbench.detectors.builtin.retrieval_decoded import answer_rows
from workbench.hooks import RowReading, open_model
from workbench.probes import Vocabulary

WORDS = Vocabulary(torch.arange(3, 90), bos=1)


def values_and_weights(model, layer):
    """v [b, h, k, d] before attention and W_O [h, d, d_model] of a layer, from its own modules."""
    kind = model.config.model_type
    if kind == "llama":
        attention = model.model.layers[layer].self_attn
        group = attention.num_key_value_groups
        return (
            attention.v_proj,
            lambda out: out.unflatten(-1, (-1, 16)).transpose(1, 2).repeat_interleave(group, 1),
            (attention.o_proj.weight.T.unflatten(0, (4, -1))),
        )
    if kind == "gpt2":
        attention = model.transformer.h[layer].attn
        return (
            attention.c_attn,
            lambda out: out[..., 64:].unflatten(-1, (4, 8)).transpose(1, 2),
            (attention.c_proj.weight.unflatten(0, (4, -1))),
        )
    attention = model.gpt_neox.layers[layer].attention
    return (
        attention.query_key_value,
        lambda out: out.unflatten(-1, (4, 3, 8))[..., 2, :].transpose(1, 2),
        (attention.dense.weight.T.unflatten(0, (4, -1))),
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_what_heads_write_from_the_needle_equals_the_authors_formula(family):
    model = tiny(family, "eager")
    probe = decoded(open_model(tiny(family)), probes.repeats(WORDS, n=12, n_sequences=2), Decoding("none"))
    need = RowReading("written", answer_rows, from_needle, of="logit")
    reading = open_model(tiny(family)).record(probe, {need}).readings["written"]
    outputs = {}
    hooked = [values_and_weights(model, layer) for layer in range(2)]
    handles = [
        module.register_forward_hook(lambda _, __, out, layer=layer: outputs.__setitem__(layer, out))
        for layer, (module, _, _) in enumerate(hooked)
    ]
    patterns, _, _ = eager_patterns(model, probe.tokens)
    for handle in handles:
        handle.remove()
    unembed = model.get_output_embeddings().weight.detach()
    for layer, (_, split, w_o) in enumerate(hooked):
        v = split(outputs[layer].detach())
        for b in range(2):
            in_sequence = probe.answer_rows[:, 0] == b
            start, stop = probe.needles[in_sequence][0].tolist()
            for head in range(4):
                total = 0.0
                for row in probe.answer_rows[in_sequence][:, 1].tolist():
                    phi = patterns[layer][b, head, row, : row + 1].float()
                    phi = phi * (v[b, head, : row + 1] @ w_o[head].detach() @ unembed[probe.tokens[b, row + 1]])
                    on, n = phi[start:stop].sum(), stop - start
                    total += float(on - (phi.sum() - on) * n / (row + 1 - n))
                assert float(reading.values[b, layer, head, 0]) == pytest.approx(total, abs=1e-4, rel=1e-4)


def test_the_steps_that_say_the_needle_are_its_first_saying_in_one_piece():
    from workbench.hooks.recording.cells import sequences

    tokens = torch.tensor([[5, 6, 7, 1, 9, 6, 7, 6, 7, 2], [5, 6, 7, 1, 6, 9, 7, 9, 9, 2]])
    rows = torch.tensor([(b, row) for b in range(2) for row in range(3, 9)])
    batch = replace(sequences(tokens), answers=rows, needles=torch.tensor([[1, 3]] * 12))
    assert spelling_rows(batch).tolist() == [[0, 4], [0, 5]]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_locos_scores_no_head_where_nothing_was_told_right():
    table = score(open_model(tiny("llama")), ["locos"], probes=probes.repeats(WORDS, n=12, n_sequences=2))
    assert table.score.isna().all()
    assert table["flags"].eq("counted=0/2").all()
