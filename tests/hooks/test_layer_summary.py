"""What objects print: names, numbers and shapes in a line, never a tensor."""

import pandas as pd
import pytest

from tests.families import random_tokens, tiny
from workbench import open_model, probes
from workbench.planning import fit_linear_attention


@pytest.fixture(scope="module")
def m():
    return open_model(tiny("gpt_oss"))


def test_a_model_prints_its_layers_heads_windows_context_and_dtype(m):
    assert repr(m).endswith(": 2 layers SF, 4 heads, 2 KV heads, window 8, context 8192, float32)")
    assert "window" not in repr(open_model(tiny("llama")))


def test_the_summary_of_a_model_has_a_row_per_layer(m):
    table = m.summary()
    assert table.layer.tolist() == [0, 1]
    assert table.kind.tolist() == ["sliding", "full"]
    assert table.window.tolist() == [8, pd.NA]
    assert table[["n_heads", "n_kv_heads", "d_head"]].drop_duplicates().to_numpy().tolist() == [[4, 2, 16]]
    assert table.has_sinks.all()


def test_what_holds_tensors_prints_names_and_shapes_in_a_line(m):
    probe = probes.copy_needle(97, [9, 12], length=24, n_sequences=3)
    recording = m.record(probe, ["sink_mass", "entropy"])
    fit = fit_linear_attention(open_model(tiny("llama")), random_tokens(1, 20), heads=["L0KV1"])
    shown = [repr(each) for each in (probe, recording, recording["entropy"], recording.answers, fit)]
    assert all("tensor" not in text and "\n" not in text and len(text) < 200 for text in shown)
    assert shown[0].startswith("Probe('copy_needle': 6 × 24 tokens, 24 answers in 2 classes by distance")
    assert "sums entropy, sink_mass" in shown[1]
    assert shown[2] == "PerSequence(6 sequences × 2 layers × 4 heads; .total, .rows)"
    assert shown[3].startswith(f"Answers({len(probe.answer_rows)}: ")
    assert shown[4].startswith("LinearFit(1 heads, unexplained ")
