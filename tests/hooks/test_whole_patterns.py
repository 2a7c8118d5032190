"""`m.patterns`: all heads of the chosen layers in one pass, the numbers of `m.pattern` head by head."""

from functools import cache

import pytest
import torch

from tests.brute import eager_patterns
from tests.families import SOFTMAX, random_tokens, tiny
from workbench import Head, KVHead, LinearAttention, WorkbenchError, open_model

TOKENS = random_tokens(1, 37, seed=2)
N_LAYERS, N_HEADS = 2, 4


@cache
def opened(family):
    return open_model(tiny(family))


def assert_same(pattern, other):
    """Equal but for rounding: a product of all heads at once and one of a single head need not add in one order.

    A score of 30 is rounded to 4e-6, and its exponential by as much of itself.
    """
    assert torch.equal(pattern == 0, other == 0)
    torch.testing.assert_close(pattern, other, rtol=1e-5, atol=0)


def assert_equals_pattern(m, **options):
    patterns = m.patterns(TOKENS[0], **options)
    for layer, pattern in patterns.items():
        assert pattern.dtype == torch.float32
        assert len(pattern) == N_HEADS
        for head in range(N_HEADS):
            assert_same(pattern[head], m.pattern(TOKENS[0], layer, head, **options))
    return patterns


@pytest.mark.parametrize("family", [*SOFTMAX, "minimax", "llama4", "gpt_neo", "inkling"])
def test_patterns_equal_those_of_single_heads_but_for_rounding(family):
    assert list(assert_equals_pattern(opened(family))) == list(range(N_LAYERS))
    assert_equals_pattern(opened(family), queries=[30, 3, -1], keys=slice(2, 9))


@pytest.mark.parametrize("family", SOFTMAX)
def test_patterns_equal_eager_attention(family):
    expected, _, _ = eager_patterns(tiny(family, "eager"), TOKENS)
    for layer, pattern in opened(family).patterns(TOKENS).items():
        assert (pattern - expected[layer][0]).abs().max() < 1e-5


def test_interventions_are_in_force_in_all_patterns():
    m = opened("llama")
    plain = m.patterns(TOKENS[0])
    with (
        m.restrict([KVHead(0, 1)], window=5, sink=1),
        m.linearize({KVHead(1, 0): LinearAttention("elu", 2.0, 0.9)}),
        m.ablate([Head(1, 2)], how="uniform"),
    ):
        changed = assert_equals_pattern(m)
    assert torch.equal(changed[0][:2], plain[0][:2])
    assert changed[0][2:, 20, 1:15].eq(0).all()
    assert changed[1][2, 9, :10] == pytest.approx(torch.full((10,), 0.1), abs=1e-6)


def test_layers_are_chosen_by_number_from_the_end_and_by_slice():
    m = opened("mistral")
    every = m.patterns(TOKENS)
    for layers, numbers in ((1, [1]), (-1, [1]), ([1, 0], [1, 0]), (slice(1, None), [1]), (range(2), [0, 1])):
        chosen = m.patterns(TOKENS, layers)
        assert list(chosen) == numbers
        assert all(torch.equal(chosen[layer], every[layer]) for layer in numbers)


@pytest.mark.parametrize("layers", [2, -3, [0, 5], [], slice(7, 9), "all", [True], [0.5]])
def test_what_is_no_layer_is_refused(layers):
    with pytest.raises(WorkbenchError, match="layers"):
        opened("llama").patterns(TOKENS, layers)


def test_patterns_larger_than_the_limit_are_refused_before_the_pass_with_their_size():
    m, ran = opened("llama"), []
    handle = m.model.register_forward_pre_hook(lambda *_: ran.append(True))
    try:
        with pytest.raises(WorkbenchError, match=r"8 heads in 2 layers, 37 queries by 37 keys .* queries= and keys="):
            m.patterns(TOKENS, most_bytes=4 * 8 * 37 * 37 - 1)
        assert not ran
    finally:
        handle.remove()
    assert m.patterns(TOKENS, most_bytes=4 * 8 * 37 * 37)[0].shape == (4, 37, 37)
    assert m.patterns(TOKENS, queries=slice(-2, None), most_bytes=4 * 8 * 2 * 37)[1].shape == (4, 2, 37)


def test_patterns_of_several_sequences_are_refused():
    with pytest.raises(WorkbenchError, match="a pattern is of one sequence, and 2 were given"):
        opened("llama").patterns(random_tokens(2, 9))


def test_the_pass_ends_behind_the_last_layer_that_is_read():
    m, ran = opened("llama"), []
    handle = m.model.model.layers[1].register_forward_pre_hook(lambda *_: ran.append(True))
    try:
        m.patterns(TOKENS, 0)
    finally:
        handle.remove()
    assert not ran


def test_patterns_and_outputs_print_sizes_and_not_numbers():
    m = opened("llama")
    assert repr(m.patterns(TOKENS)) == "{0: 4 × 37 × 37, 1: 4 × 37 × 37}"
    heads = ["L0H0", "L0H1", "L1H2", "L1H3"]
    assert repr(m.head_outputs(heads, TOKENS)) == (
        "{L0H0: 1 × 37 × 16, L0H1: 1 × 37 × 16, L1H2: 1 × 37 × 16, … 4 in all}"
    )
    assert isinstance(m.patterns(TOKENS), dict)
