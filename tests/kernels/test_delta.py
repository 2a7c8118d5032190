"""The gated delta rule, chunked in torch and interpreted Triton, against the recurrence in float64."""

from itertools import pairwise

import pytest
import torch

from tests.kernels.on_device import on_device
from workbench.heads import WorkbenchError
from workbench.kernels.dialect import HAS_TRITON
from workbench.kernels.linear import delta as delta_rule
from workbench.kernels.linear.delta import DeltaInputs, DeltaOutput, chunked_delta, fla_delta, triton_delta

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed on this platform")
BACKENDS = [
    pytest.param(on_device(triton_delta), id="triton", marks=needs_triton),
    pytest.param(chunked_delta, id="torch"),
]
CASES = {
    "odd length": dict(n=(2, 2, 75), d=(32, 32)),
    "wide": dict(n=(1, 1, 40), d=(128, 128)),
    "odd widths": dict(n=(1, 2, 35), d=(24, 40)),
    "packed": dict(n=(1, 2, 77), d=(64, 32), cu_seqlens=[0, 1, 33, 33, 77]),
    "repeated keys": dict(n=(1, 2, 66), d=(32, 32), repeated=True),
    "one key for long": dict(n=(1, 1, 190), d=(32, 32), repeated=True),
    "one token": dict(n=(1, 2, 1), d=(32, 32)),
}


def problem(case, generator, dtype=torch.float32):
    spec = CASES[case]
    (b, h, t), (d, d_v) = spec["n"], spec["d"]
    cu = spec.get("cu_seqlens")

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    k = normal(b, h, 1 if spec.get("repeated") else t, d).expand(b, h, t, d)
    inputs = [normal(b, h, t, d), torch.nn.functional.normalize(k, dim=-1), normal(b, h, t, d_v)]
    gates = [-0.1 * torch.nn.functional.softplus(normal(b, h, t)), torch.sigmoid(normal(b, h, t))]
    initial = normal(b if cu is None else len(cu) - 1, h, d, d_v)
    return [x.to(dtype) for x in inputs] + gates, dict(scale=d**-0.5, initial_state=initial, cu_seqlens=cu)


def recurrence(q, k, v, g, beta, *, scale, initial_state, cu_seqlens=None):
    bounds = [(i, 0, q.shape[2]) for i in range(len(q))]
    if cu_seqlens is not None:
        bounds = [(0, *x) for x in pairwise(cu_seqlens)]
    outs, finals = {}, []
    for n, (row, t0, t1) in enumerate(bounds):
        state = initial_state[n]
        for i in range(t0, t1):
            state = state * torch.exp(g[row, :, i])[:, None, None]
            held = torch.einsum("hd,hde->he", k[row, :, i], state)
            delta = beta[row, :, i, None] * (v[row, :, i] - held)
            state = state + k[row, :, i, :, None] * delta[:, None]
            outs[row, i] = scale * torch.einsum("hd,hde->he", q[row, :, i], state)
        finals.append(state)
    out = torch.stack([torch.stack([outs[row, i] for i in range(q.shape[2])], 1) for row in range(len(q))])
    return DeltaOutput(out, torch.stack(finals))


def exactly(inputs, options):
    return recurrence(*(x.double() for x in inputs), **{**options, "initial_state": options["initial_state"].double()})


def rms(found, exact):
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("run", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_rows_and_state_equal_the_recurrence(case, run, generator, poisoned):
    inputs, options = problem(case, generator)
    found, exact = run(DeltaInputs(*inputs, **options)), exactly(inputs, options)
    assert rms(found.out, exact.out) <= 2e-6
    assert rms(found.state, exact.state) <= 2e-6


@pytest.mark.parametrize("run", BACKENDS)
@pytest.mark.parametrize("case", ["odd length", "repeated keys", "one key for long"])
def test_bfloat16_inputs_keep_a_float32_state(case, run, generator, poisoned):
    """With one key throughout, each write corrects the rounding of the one before: a bfloat16 write would add up."""
    inputs, options = problem(case, generator, torch.bfloat16)
    found, exact = run(DeltaInputs(*inputs, **options)), exactly(inputs, options)
    assert found.state.dtype == torch.float32
    assert rms(found.out, exact.out) <= 5e-3
    assert rms(found.state, exact.state) <= 5e-3


def test_torch_chunks_are_differentiable_in_float64(generator):
    inputs, _ = problem("odd widths", generator)
    inputs = [x[:, :1, :5, :3].double().requires_grad_() for x in inputs[:3]] + [
        x[:, :1, :5].double().requires_grad_() for x in inputs[3:]
    ]
    assert torch.autograd.gradcheck(lambda *a: tuple(chunked_delta(DeltaInputs(*a, scale=0.5), chunk=2)), inputs)


@pytest.mark.parametrize("run", BACKENDS)
def test_two_calls_with_the_state_between_them_equal_one(run, generator, poisoned):
    inputs, options = problem("odd length", generator)
    whole = run(DeltaInputs(*inputs, **options))
    one = run(DeltaInputs(*(x[:, :, :31] for x in inputs), **options))
    two = run(DeltaInputs(*(x[:, :, 31:] for x in inputs), **{**options, "initial_state": one.state}))
    assert rms(torch.cat([one.out, two.out], 2), whole.out.double()) <= 4e-6
    assert rms(two.state, whole.state.double()) <= 4e-6


@pytest.mark.parametrize(
    ("arch", "version", "is_refused"),
    [(90, "3.6.0", True), (90, "3.4.0", True), (90, "3.7.0", True), (90, "3.7.1", False), (90, "3.3.1", False),
     (80, "3.6.0", False), (100, "3.6.0", False), (0, "3.9.0", True)],
)  # fmt: skip
def test_fla_is_refused_where_its_kernels_are_miscompiled(arch, version, is_refused, monkeypatch):
    monkeypatch.setattr(delta_rule, "find_spec", lambda name: object())
    assert (delta_rule.fla_refusal(arch, version) is not None) == is_refused


@needs_triton
def test_asking_for_fla_without_it_says_so(generator):
    inputs, options = problem("one token", generator)
    with pytest.raises(WorkbenchError, match="backend='fla' was asked for, but flash-linear-attention"):
        fla_delta(DeltaInputs(*inputs, **options))
