"""Implied attention by vector-Jacobian products against the recurrence unrolled in float64."""

import pytest
import torch
from transformers.models.kimi_linear.modeling_kimi_linear import chunk_kimi_delta_attention
from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

from workbench.analysis.implicit_attention import implicit_column_sums, implicit_feature_mass, implicit_rows
from workbench.kernels import DeltaRows, signed_crop
from workbench.kernels.softmax import reference

N_TOKENS, N_HEADS, D, D_V = 90, 2, 8, 6


def unrolled(q, k, decay, strength):
    """The rows of a gated delta net [b, h, t, t], from a state that is fed one-hot values."""
    b, t, h, d = q.shape
    state = torch.zeros(b, h, d, t, dtype=torch.float64)
    rows = []
    for i in range(t):
        state = state * decay[:, i, :, :, None]
        value = torch.nn.functional.one_hot(torch.tensor(i), t) - torch.einsum("bhd,bhdt->bht", k[:, i], state)
        state = state + strength[:, i, :, None, None] * k[:, i, :, :, None] * value[:, :, None]
        rows.append(torch.einsum("bhd,bhdt->bht", q[:, i], state))
    return torch.stack(rows, 2)


def unit(x):
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) + 1e-6)


@pytest.fixture(scope="module", params=["one decay per head", "one decay per channel"])
def delta(request):
    """A mixer of transformers as a function of v, its exact pattern, and the rows that the workbench makes."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, N_TOKENS, N_HEADS, D, generator=generator) for _ in range(2))
    rates = D if request.param == "one decay per channel" else 1
    g = -0.2 * torch.rand(2, N_TOKENS, N_HEADS, rates, generator=generator)
    beta = torch.rand(2, N_TOKENS, N_HEADS, generator=generator)

    def mixer(v):
        function = torch_chunk_gated_delta_rule if rates == 1 else chunk_kimi_delta_attention
        return function(q, k, v, g=g[..., 0] if rates == 1 else g, beta=beta, use_qk_l2norm_in_kernel=True)[0]

    qn, kn = unit(q.double()) / D**0.5, unit(k.double())
    exact = unrolled(qn, kn, torch.exp(g.double()), beta.double())
    by_head = [x.float().transpose(1, 2) for x in (qn, kn, g)]
    return mixer, exact, DeltaRows(*by_head, beta.transpose(1, 2))


def like():
    return torch.zeros(2, N_TOKENS, N_HEADS, D_V)


def test_rows_are_those_of_the_recurrence(delta):
    mixer, exact, _ = delta
    rows = torch.tensor([0, 1, 17, 63, 64, 65, 80, 89])  # more of them than v has channels
    found = implicit_rows(mixer, like(), rows)
    assert (found.double() - exact[:, :, rows]).abs().max() <= 1e-6 * exact.abs().max()
    assert (found < 0).any()


def test_column_sums_are_those_of_the_recurrence(delta):
    mixer, exact, _ = delta
    weights = torch.rand(2, N_TOKENS, N_HEADS, generator=torch.Generator().manual_seed(1))
    plain, weighted = implicit_column_sums(mixer, like()), implicit_column_sums(mixer, like(), weights)
    assert (plain.double() - exact.sum(2)).abs().max() <= 1e-6 * exact.sum(2).abs().max()
    expected = torch.einsum("bhij,bih->bhj", exact, weights.double())
    assert (weighted.double() - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_the_mass_on_keys_with_a_feature_is_that_of_the_recurrence(delta):
    mixer, exact, _ = delta
    features = torch.randint(2, (2, N_TOKENS, N_HEADS, 2 * D_V + 1), generator=torch.Generator().manual_seed(2)).float()
    found = implicit_feature_mass(mixer, features, D_V)
    expected = torch.einsum("bhij,bjhf->bhif", exact, features.double())
    assert (found.double() - expected).abs().max() <= 2e-6 * expected.abs().max()


def test_rows_made_chunk_by_chunk_are_the_same(delta):
    mixer, exact, source = delta
    every = torch.arange(N_TOKENS)
    made = torch.stack(
        [torch.stack([signed_crop(source, b, h, queries=every, keys=every) for h in (0, 1)]) for b in (0, 1)]
    )
    assert (made.double() - exact).abs().max() <= 1e-6 * exact.abs().max()
    assert (made - implicit_rows(mixer, like(), every)).abs().max() <= 2e-6


def test_any_function_linear_in_v_will_do():
    pattern = torch.randn(3, 12, 12, dtype=torch.float64).tril()

    def mixer(v):
        return torch.einsum("hij,bjhd->bihd", pattern, v)

    some = torch.zeros(1, 12, 3, 2, dtype=torch.float64)
    assert torch.allclose(implicit_rows(mixer, some, torch.arange(12))[0], pattern)
    assert torch.allclose(implicit_column_sums(mixer, some)[0], pattern.sum(1))
    ones = torch.ones(1, 12, 3, 1, dtype=torch.float64)
    assert torch.allclose(implicit_feature_mass(mixer, ones, 2)[0, ..., 0], pattern.sum(2))


def test_the_reference_reads_the_same_pattern_by_carrying_queries_back():
    generator = torch.Generator().manual_seed(3)
    q, k = (torch.randn(1, 20, 2, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    g = -torch.rand(1, 20, 2, 4, dtype=torch.float64, generator=generator)
    beta = torch.rand(1, 20, 2, dtype=torch.float64, generator=generator)
    by_head = [x.transpose(1, 2) for x in (q, unit(k), g, beta)]
    found = reference.linear_pattern(*by_head, erases=True)
    torch.testing.assert_close(found, unrolled(q, unit(k), torch.exp(g), beta))
