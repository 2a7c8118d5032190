"""The two backends of recording give the same numbers, and the choice between them has a reason."""

from dataclasses import replace

import pytest
import torch

from tests.families import GROUPS, HEADS, WINDOW, random_tokens, tiny
from workbench import KVHead, WorkbenchError, open_model
from workbench.hooks.recording.needs import NEEDS
from workbench.kernels import CausalMask, Far, Request, SelectedMask, SoftmaxLayer, dispatch
from workbench.kernels.dialect import HAS_TRITON
from workbench.kernels.dispatch import SETTING
from workbench.kernels.key_intervals import intervals
from workbench.kernels.softmax import blockwise, recorder_statistics
from workbench.probes import copy_needle

# Statistics that a profile of a row holds.
_VALUE_NORMS = ("output_norm", "value_norm", "value_norm_seeing_first", "first_value_norm")
_ROW_BLOCKED_ALONE = ("effective_support", "window_saturation", *_VALUE_NORMS)
HELD = tuple(n for n in NEEDS if n not in (*_ROW_BLOCKED_ALONE, "column_mass_per_key"))

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed on this platform")


@pytest.fixture
def taken(monkeypatch):
    """The number of calls of each backend."""
    calls = {"triton": 0, "torch": 0}

    def counting(name, function):
        def count(*args, **options):
            calls[name] += 1
            return function(*args, **options)

        return count

    monkeypatch.setattr(
        recorder_statistics, "profile_statistics", counting("triton", recorder_statistics.profile_statistics)
    )
    monkeypatch.setattr(blockwise, "blockwise_statistics", counting("torch", blockwise.blockwise_statistics))
    return calls


def noise(found, wanted):
    """Error in the mean square, relative where values are above 1; what one of them does not have, neither has."""
    assert torch.equal(found.isnan(), wanted.isnan())
    found, wanted = found.double().nan_to_num(), wanted.double().nan_to_num()
    return float((found - wanted).square().mean().sqrt() / wanted.square().mean().sqrt().clamp_min(1))


def assert_equal_recordings(one, two, tolerance=5e-6):
    """To the noise of float32 after two layers, of which the second sees the first one's."""
    for need, expected in two.sums.items():
        assert torch.equal(one[need].rows, expected.rows), need
        found, wanted = (x.total / x.rows.clamp_min(1) for x in (one[need], expected))
        assert noise(found, wanted) <= tolerance, need
    for need, wanted in two.per_row.items():
        assert noise(one.per_row[need], wanted) <= tolerance, need


@needs_triton
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt_oss", "gemma2"])
def test_a_recording_by_the_kernels_equals_the_row_blocked_one(family, monkeypatch, taken):
    m = open_model(tiny(family))
    probe = copy_needle(97, 16, length=40, n_sequences=2)
    before = dict(taken)
    monkeypatch.setenv(SETTING, "torch")
    expected = m.record(probe, HELD, far=Far(5, 1))
    assert (taken["torch"] - before["torch"], taken["triton"]) == (2, 0)
    monkeypatch.setenv(SETTING, "triton")
    found = m.record(probe, HELD, far=Far(5, 1))
    assert (taken["torch"] - before["torch"], taken["triton"]) == (2, 2)
    assert_equal_recordings(found, expected)
    assert noise(found.answers.loss_nats, expected.answers.loss_nats) <= 5e-6


@needs_triton
@pytest.mark.parametrize("how", ["padding", "sampled rows", "pieces"])
def test_padding_sampled_rows_and_pieces_take_the_kernels_too(how, monkeypatch, taken):
    m = open_model(tiny("mistral"))
    tokens = random_tokens(2, 33)
    options = {
        "padding": dict(attention_mask=(torch.arange(33) >= torch.tensor([0, 7])[:, None]).long()),
        "sampled rows": dict(rows=9),
        "pieces": dict(prefill=12),
    }[how]
    monkeypatch.setenv(SETTING, "torch")
    expected = m.record(tokens, HELD[:-5], far=Far(5), **options)
    monkeypatch.setenv(SETTING, "triton")
    before = dict(taken)
    found = m.record(tokens, HELD[:-5], far=Far(5), **options)
    assert taken["triton"] > before["triton"]
    assert taken["torch"] == before["torch"]
    assert_equal_recordings(found, expected)


@needs_triton
@pytest.mark.parametrize("family", ["deepseek_v32", "minimax_m3"])
def test_layers_that_select_their_keys_are_recorded_by_the_kernels_with_the_same_numbers(family, monkeypatch, taken):
    m, tokens = open_model(tiny(family)), random_tokens(1, 23)
    needs = ("entropy", "mean_distance", "far_mass", "sink_mass", "induction")
    monkeypatch.setenv(SETTING, "torch")
    expected = m.record(tokens, needs, far=Far(5))
    before = dict(taken)
    monkeypatch.setenv(SETTING, "triton")
    found = m.record(tokens, needs, far=Far(5))
    n_calls = {"deepseek_v32": 2, "minimax_m3": 1 + 2 * GROUPS}[family]  # one for each group that selects for itself
    assert (taken["torch"], taken["triton"]) == (before["torch"], before["triton"] + n_calls)
    assert_equal_recordings(found, expected)


@needs_triton
def test_windowed_heads_are_recorded_row_by_row_whatever_is_set(monkeypatch, taken):
    m = open_model(tiny("llama"))
    monkeypatch.setenv(SETTING, "triton")
    with m.restrict([KVHead(0, 0)], window=4, sink=1):
        m.record(random_tokens(1, 20), {"entropy"})
    assert taken["torch"] >= 1


def call(**changes):
    q = torch.zeros(1, HEADS, 6, 16)
    given = dict(q=q, v=q, mask=CausalMask(6), request=Request(entropy=True, far=Far(3))) | changes
    layer = SoftmaxLayer(given["q"], torch.zeros_like(given["q"]), given["mask"], scale=0.25)
    return dispatch.choose_route(layer, given["v"], given["request"])


def test_a_cpu_takes_the_row_blocked_form_and_says_why(monkeypatch):
    monkeypatch.delenv(SETTING, raising=False)
    assert call() == ("torch", "cpu: exact, and Triton's kernels need a GPU")


@needs_triton
@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"mask": CausalMask(6, window=2)}, None),
        ({"mask": CausalMask(6, valid=torch.tensor([[False, True, True, True, True, True]]))}, None),
        ({"mask": CausalMask(6, valid=torch.tensor([[True, False, True, True, True, True]]))}, "padding between"),
        ({"mask": SelectedMask(CausalMask(6), torch.zeros(1, 6, 1, dtype=torch.int32), 2)}, None),
        ({"mask": SelectedMask(intervals(6, 6), torch.zeros(1, 6, 1, dtype=torch.int32))}, "Intervals is not one run"),
        ({"mask": open}, "not one run of keys per row"),
        ({"request": Request(windows=(2,), squares=True)}, "hold a ladder of windows, squares"),
        ({"request": Request(value_norms=True)}, "value norms"),
        (
            {"v": torch.zeros(1, HEADS, 6, 160)},
            "heads of 160 channels in float32: compiled kernels are sound up to 128",
        ),
        ({"q": torch.zeros(1, HEADS, 6, 160, dtype=torch.bfloat16)}, None),
        ({"q": torch.zeros(1, HEADS, 6, 512, dtype=torch.bfloat16)}, "512 channels in bfloat16"),
        ({"q": torch.zeros(1, HEADS, 6, 16, dtype=torch.float64)}, "float64 has no kernel"),
    ],
)
def test_what_the_kernels_do_not_hold_goes_row_by_row_with_the_reason(changes, why, monkeypatch):
    monkeypatch.setenv(SETTING, "triton")
    if changes.get("mask") is open:
        mask = m_mask("llama4")
        changes = {"mask": mask}
    choice = call(**changes)
    if why is None:
        assert choice == ("triton", "asked for by WORKBENCH_KERNELS=triton, interpreted")
    else:
        assert choice.backend == "torch"
        assert why in choice.why


def masks_of(family, n_tokens=30, attention_mask=None):
    """The masks that a model's layers bring."""
    from workbench.hooks.taps.eager import handling

    seen = []

    def keep(call):
        seen.append(call.mask)
        return call.output()

    model = tiny(family)
    tokens = random_tokens(2, n_tokens)
    with torch.no_grad(), handling(model, keep):
        model(tokens, attention_mask=attention_mask, use_cache=False)
    return seen


def m_mask(family):
    return next(mask.simplest() for mask in masks_of(family) if not isinstance(mask.simplest(), CausalMask))


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3", "gpt_oss", "cwm", "cohere2"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_sliding_window_is_recognised_and_hides_the_same_keys(family, padded):
    from workbench.kernels.masks import visible_tile

    given = (torch.arange(30) >= torch.tensor([0, 7])[:, None]).long() if padded else None
    n_sliding = 0
    for mask in masks_of(family, attention_mask=given):
        simple = mask.simplest()
        assert isinstance(simple, CausalMask)
        n_sliding += simple.window is not None
        assert simple.window in (None, WINDOW)
        rows = torch.arange(30)
        both = (visible_tile(x, slice(0, 2), rows, 30).expand(2, -1, -1) for x in (mask, simple))
        assert torch.equal(*both)
    assert n_sliding


def test_sliding_rows_after_a_cache_hide_the_same_keys():
    from workbench.kernels.masks import visible_tile

    mask = replace(masks_of("mistral")[0], n_queries=9, n_keys=20, query_offset=17, key_offset=6)
    rows = torch.arange(9)
    both = (visible_tile(x, slice(0, 1), rows, 20) for x in (mask, mask.simplest()))
    assert torch.equal(*both)


def test_lookalikes_of_a_sliding_window_are_not_taken_for_one():
    from transformers import masking_utils as hf

    from workbench.hooks.taps.standard_masks import sliding_window_of

    sliding = hf.sliding_window_causal_mask_function(8)
    ids = torch.zeros(1, 9, dtype=torch.long)
    assert sliding_window_of(sliding) == 8
    for other in (
        hf.causal_mask_function,
        hf.sliding_window_overlay(8),
        hf.chunked_causal_mask_function(8, torch.zeros(1, dtype=torch.long)),
        hf.sliding_window_bidirectional_mask_function(8),
        hf.and_masks(sliding, hf.packed_sequence_mask_function(ids)),
        hf.and_masks(sliding, hf.causal_mask_function),
        hf.or_masks(hf.sliding_window_overlay(8), hf.causal_mask_function),
        hf.and_masks(hf.causal_mask_function, hf.sliding_window_overlay(8)),
        hf.packed_sequence_compatibility_function(sliding, ids, ids),
        hf.add_offsets_to_mask_function(sliding, 1, 0),
        hf.and_masks(hf.sliding_window_overlay(8), hf.sliding_window_overlay(4)),
        lambda b, h, q, k: (k <= q) & (k > q - 8),
    ):
        assert sliding_window_of(other) is None


def test_a_setting_that_does_not_exist_is_refused(monkeypatch):
    monkeypatch.setenv(SETTING, "cuda")
    with pytest.raises(WorkbenchError, match="WORKBENCH_KERNELS=cuda is set; expected auto, torch or triton"):
        call()


@needs_triton
def test_asking_for_the_kernels_on_a_cpu_without_the_interpreter_is_refused(monkeypatch):
    monkeypatch.setenv(SETTING, "triton")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(WorkbenchError, match=r"WORKBENCH_KERNELS=triton was asked for on cpu; expected cuda"):
        call()
