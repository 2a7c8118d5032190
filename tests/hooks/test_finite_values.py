"""Activations that overflow their dtype are an error that names the layer, never scores that are NaN."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import GPTJConfig, GPTJForCausalLM, LlamaConfig, LlamaForCausalLM

import workbench as wb
from workbench.detectors.scoring import ScoreLabel, score_rows
from workbench.heads import WorkbenchError
from workbench.hooks import PerSequence
from workbench.hooks.recording.greedy_decoding import greedy
from workbench.hooks.recording.pattern_maps import record_maps

IN_FLOAT16 = (
    r"NaN or infinite in float16, first in {place}; float16 ends at 65504: open the model in bfloat16 or float32"
)


def llama(dtype: torch.dtype = torch.float16):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval().to(dtype)


def scaled(name: str, factor: float, dtype: torch.dtype = torch.float16):
    model = llama(dtype)
    with torch.no_grad():
        model.get_parameter(name).mul_(factor)
    return wb.open_model(model)


TOKENS = torch.randint(0, 64, (2, 24), generator=torch.Generator().manual_seed(1))
PROBE = wb.probes.token_sequences(TOKENS)


@pytest.fixture(scope="module")
def overflowing():
    """Layer 1 hands on more than float16 can hold."""
    return scaled("model.layers.1.mlp.down_proj.weight", 3e4)


@pytest.mark.parametrize(
    ("weights", "place"),
    [
        ("model.layers.1.mlp.down_proj.weight", "layer 1"),
        ("model.layers.2.mlp.down_proj.weight", "layer 2"),
        ("model.layers.1.self_attn.k_proj.weight", "the attention of layer 1"),
        ("model.layers.1.self_attn.v_proj.weight", "the attention of layer 1"),
        ("model.layers.0.self_attn.o_proj.weight", "layer 0"),
        ("lm_head.weight", "the logits"),
    ],
)
def test_the_first_place_that_overflows_is_named_with_its_dtype_and_the_remedy(weights, place):
    with pytest.raises(WorkbenchError, match=IN_FLOAT16.format(place=place)):
        wb.score(scaled(weights, 3e4), ["sink"], probes=PROBE)


@pytest.mark.parametrize(
    "use",
    [
        lambda m: m.record(TOKENS, ["entropy"]),
        lambda m: m.record(TOKENS, ["entropy"], prefill=8),
        lambda m: m.record(TOKENS, ["entropy"], rows=3),
        lambda m: m.pattern(TOKENS[0], 2, 0),
        lambda m: m.answers(wb.probes.repeats(m, n=8)),
        lambda m: m.head_outputs([wb.Head(2, 0)], TOKENS),
        lambda m: wb.score(m, ["retrieval_wu"], probes=wb.probes.key_value(m, n_pairs=4)),
        lambda m: wb.plan(m, window=8, keep=0.5),
        lambda m: wb.window_gates(m, wb.probes.repeats(m, n=8), window=8),
        lambda m: wb.fit_linear_attention(m, TOKENS),
        lambda m: record_maps(m, TOKENS[0], far=8),
        lambda m: greedy(m, TOKENS, 2),
        lambda m: restricted(m).record(TOKENS, ["entropy"]),
    ],
)
def test_whatever_runs_the_model_says_the_same(overflowing, use):
    with pytest.raises(WorkbenchError, match=IN_FLOAT16.format(place="layer 1")):
        use(overflowing)


def restricted(m):
    class Restricted:
        def record(self, *args):
            with m.restrict([wb.KVHead(0, 0)], window=4):
                return m.record(*args)

    return Restricted()


def test_a_pattern_of_a_layer_before_the_overflow_is_given(overflowing):
    pattern = overflowing.pattern(TOKENS[0], 1, 0)
    torch.testing.assert_close(pattern.sum(-1), torch.ones(24), atol=1e-3, rtol=0)


def test_scores_are_read_where_nothing_overflows():
    table = wb.score(wb.open_model(llama()), ["sink", "entropy"], probes=PROBE)
    assert table.score.notna().all()


@pytest.mark.parametrize(("dtype", "factor"), [(torch.bfloat16, 1e38), (torch.float32, 1e38)])
def test_where_no_wider_dtype_exists_the_weights_are_what_to_look_at(dtype, factor):
    m = scaled("model.layers.1.mlp.down_proj.weight", factor, dtype)
    with pytest.raises(WorkbenchError, match=r"no other dtype is the remedy: .*largest weight .*layers\.1\.mlp\.down"):
        m.record(TOKENS, ["entropy"])


def test_weights_that_are_no_numbers_are_named_instead():
    m = scaled("model.layers.1.mlp.down_proj.weight", torch.nan, torch.float32)
    for read in (lambda: m.record(TOKENS, ["entropy"]), lambda: wb.score(m, ["copying"])):
        with pytest.raises(WorkbenchError, match=r"layers\.1\.mlp\.down_proj\.weight holds NaN or infinity"):
            read()


def test_a_family_without_an_interface_says_the_same():
    torch.manual_seed(0)
    model = GPTJForCausalLM(GPTJConfig(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=4, rotary_dim=4))
    model = model.eval().half()
    with torch.no_grad():
        model.transformer.h[0].mlp.fc_out.weight.mul_(1e7)
        model.transformer.h[0].mlp.fc_out.weight.clamp_(-6e4, 6e4)
        model.transformer.h[0].mlp.fc_in.weight.mul_(100)
    with pytest.raises(WorkbenchError, match=IN_FLOAT16.format(place="layer 0")):
        wb.score(wb.open_model(model), ["sink"], probes=PROBE)


def test_a_scan_stores_the_overflow_as_a_failure_and_no_row(tmp_path):
    model = llama(torch.float32)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(3e4)
    model.save_pretrained(tmp_path / "series" / "step1")
    options = {"detectors": ["sink"], "probes": [PROBE], "maps": False, "on_progress": lambda *_: None}
    run = wb.scan(tmp_path / "series", out=tmp_path / "run", dtype="float16", **options)
    assert set(run.failures().kind) == {"NonFiniteValues"}
    assert run.failures().message.str.contains("float16, first in layer 1;").all()
    assert len(run.scores()) == 0
    again = wb.scan(tmp_path / "series", out=tmp_path / "wide", dtype="bfloat16", **options)
    assert len(again.failures()) == 0
    assert again.scores().score.notna().all()


def test_sequences_whose_value_is_no_number_count_nowhere_and_are_flagged():
    m = wb.open_model(llama(torch.float32))
    total = torch.ones(3, 3, 4)
    total[0, 1], total[:, 2, 0] = torch.nan, torch.inf
    measured = PerSequence(total, torch.full((3, 3, 4), 5))
    rows = {(r.layer, r.head): r for r in score_rows(measured, m.layers, ScoreLabel("sink", 1, "p"), seed=0)}
    assert [(rows[at].n, rows[at].n_seq, rows[at].flags) for at in ((0, 0), (1, 0), (2, 0))] == [
        (15, 3, ""),
        (10, 2, "not_finite=1/3"),
        (0, 0, ""),
    ]
    assert rows[1, 0].score == pytest.approx(0.2)
    assert np.isnan(rows[2, 0].score)


def test_a_score_without_rows_is_nan_with_n_0_and_no_overflow():
    table = wb.score(wb.open_model(llama()), ["induction"], tokens=torch.arange(20))
    assert table.score.isna().all()
    assert (table.n == 0).all()
