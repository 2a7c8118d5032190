"""Linear attention, chunked torch and interpreted Triton, forward and backward, against the recurrence in float64."""

import re
from itertools import pairwise

import pytest
import torch

from tests.kernels.on_device import on_device
from workbench.heads import WorkbenchError
from workbench.kernels import ops
from workbench.kernels.dialect import HAS_TRITON
from workbench.kernels.linear.decay import (
    LinearInputs,
    LinearOutput,
    chunked_linear,
    chunked_linear_backward,
    linear_step,
    triton_linear,
    triton_linear_backward,
    triton_linear_step,
)

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed on this platform")
CASES = {
    "per head": dict(n=(1, 2, 131), d=(32, 32)),
    "per head, wide": dict(n=(1, 1, 37), d=(128, 128)),
    "per head, values narrower than keys": dict(n=(1, 2, 45), d=(64, 32)),
    "per token": dict(n=(2, 1, 101), d=(32, 32), gated=True),
    "per token, odd widths": dict(n=(1, 2, 45), d=(24, 40), gated=True),
    "packed": dict(n=(1, 2, 113), d=(32, 32), cu_seqlens=[0, 1, 40, 40, 113]),
    "packed and gated": dict(n=(1, 2, 97), d=(32, 32), gated=True, cu_seqlens=[0, 64, 97]),
    "one token": dict(n=(2, 2, 1), d=(32, 32)),
}
BACKENDS = {"triton": pytest.param("triton", marks=needs_triton), "torch": "torch"}


def forward(backend):
    def run(*tensors, snapshots=(), **options):
        inputs = LinearInputs(*tensors, **options)
        if backend == "torch":
            return chunked_linear(inputs, snapshots=snapshots, chunk=16)
        return on_device(triton_linear)(inputs, snapshots=snapshots, segment=64)

    return run


def backward(backend):
    def run(d_out, d_state, *tensors, **options):
        inputs = LinearInputs(*tensors, **options)
        if backend == "torch":
            return chunked_linear_backward(inputs, d_out, d_state)
        return on_device(triton_linear_backward)(inputs, d_out, d_state, segment=64)

    return run


def problem(case, generator, dtype=torch.float32):
    spec = CASES[case]
    (b, h, t), (d, d_v) = spec["n"], spec["d"]
    cu = spec.get("cu_seqlens")
    n = b if cu is None else len(cu) - 1

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    if spec.get("gated"):
        log_decay = torch.nn.functional.logsigmoid(2 + 2 * normal(b, h, t))
    else:
        log_decay = -torch.logspace(0, -2.5, h)[None, :, None]
    silu = torch.nn.functional.silu
    return dict(
        q=silu(normal(b, h, t, d)).to(dtype),
        k=silu(normal(b, h, t, d)).to(dtype),
        v=normal(b, h, t, d_v).to(dtype),
        log_decay=log_decay,
        options=dict(scale=d**-0.5, initial_state=normal(n, h, d, d_v), cu_seqlens=cu),
        d_out=normal(b, h, t, d_v).to(dtype),
        d_state=normal(n, h, d, d_v),
    )


def recurrence(q, k, v, log_decay, *, scale, initial_state=None, cu_seqlens=None, snapshots=()):
    """Token by token, as defined; differentiable."""
    b, h, t, _ = q.shape
    bounds = [(i, 0, t) for i in range(b)] if cu_seqlens is None else [(0, *x) for x in pairwise(cu_seqlens)]
    gate = log_decay.expand(b, h, t)
    outs, finals, taken = {}, [], []
    for n, (row, t0, t1) in enumerate(bounds):
        state = initial_state[n]
        kept = []
        for i in range(t0, t1):
            state = torch.exp(gate[row, :, i])[:, None, None] * state + k[row, :, i, :, None] * v[row, :, i, None, :]
            outs[row, i] = scale * torch.einsum("hd,hde->he", q[row, :, i], state)
            if i + 1 - t0 in snapshots:
                kept.append(state)
        finals.append(state)
        taken.append(torch.stack(kept) if kept else state.new_empty(0, *state.shape))
    out = torch.stack([torch.stack([outs[row, i] for i in range(t)], 1) for row in range(b)])
    return LinearOutput(out, torch.stack(finals), torch.stack(taken))


def exactly(p):
    """Inputs in float64 that ask for gradients, and the recurrence's results on them."""
    leaves = [p[x].double().requires_grad_() for x in ("q", "k", "v", "log_decay")]
    initial = p["options"]["initial_state"].double().requires_grad_()
    options = {**p["options"], "initial_state": initial}
    return [*leaves, initial], recurrence(*leaves, **options)


def gate_terms(p, wanted, *, per_token):
    """Sizes of the terms of the gate's gradient, summed: they are of both signs, and little may be left of them."""
    flow = (p["q"].double() * wanted[0]).sum(-1).abs() + (p["k"].double() * wanted[1]).sum(-1).abs()
    return flow.sum(-1) if per_token else flow.flip(-1).cumsum(-1).sum(-1)


def rms(found, exact):
    return float((found.double() - exact.detach()).norm() / exact.detach().norm().clamp_min(1e-30))


@pytest.mark.parametrize("backend", BACKENDS.values())
@pytest.mark.parametrize("case", CASES)
def test_rows_and_state_equal_the_recurrence(case, backend, generator, poisoned):
    p = problem(case, generator)
    found = forward(backend)(p["q"], p["k"], p["v"], p["log_decay"], **p["options"])
    _, exact = exactly(p)
    assert rms(found.out, exact.out) <= 2e-6
    assert rms(found.state, exact.state) <= 2e-6
    assert found.state.dtype == torch.float32


@pytest.mark.parametrize("backend", BACKENDS.values())
@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_the_recurrences(case, backend, generator, poisoned):
    p = problem(case, generator)
    leaves, exact = exactly(p)
    wanted = torch.autograd.grad([exact.out, exact.state], leaves, [p["d_out"].double(), p["d_state"].double()])
    found = backward(backend)(p["d_out"], p["d_state"], p["q"], p["k"], p["v"], p["log_decay"], **p["options"])
    for name, a, b in zip(("q", "k", "v", "log_decay", "state"), found, wanted, strict=True):
        assert a.shape == b.shape
        if name != "log_decay":
            assert rms(a, b) <= 2e-6, name
        else:
            assert (a.double() - b).abs().max() <= 1e-5 * gate_terms(p, wanted, per_token=True).max(), name


@pytest.mark.parametrize("backend", BACKENDS.values())
@pytest.mark.parametrize("case", ["per head", "per token"])
def test_bfloat16_inputs_keep_a_float32_state(case, backend, generator, poisoned):
    p = problem(case, generator, torch.bfloat16)
    leaves, exact = exactly(p)
    found = forward(backend)(p["q"], p["k"], p["v"], p["log_decay"], **p["options"])
    assert found.out.dtype == torch.bfloat16
    assert found.state.dtype == torch.float32
    assert rms(found.out, exact.out) <= 5e-3
    assert rms(found.state, exact.state) <= 5e-3
    wanted = torch.autograd.grad([exact.out, exact.state], leaves, [p["d_out"].double(), p["d_state"].double()])
    got = backward(backend)(p["d_out"], p["d_state"], p["q"], p["k"], p["v"], p["log_decay"], **p["options"])
    for name, a, b in zip(("q", "k", "v"), got, wanted, strict=False):
        assert a.dtype == torch.bfloat16
        assert rms(a, b) <= 1e-2, name
    assert rms(got.state, wanted[4]) <= 1e-2
    if case == "per token":
        assert rms(got.log_decay, wanted[3]) <= 1e-2
    else:  # one number per head, of which cancellation may leave as little as it likes
        assert (
            (got.log_decay.double() - wanted[3])[0, :, 0].abs() <= 1e-3 * gate_terms(p, wanted, per_token=False)[0]
        ).all()


@pytest.mark.parametrize("backend", BACKENDS.values())
@pytest.mark.parametrize("case", ["per head", "per token"])
def test_two_calls_with_the_state_between_them_equal_one(case, backend, generator, poisoned):
    p = problem(case, generator)
    call, at, options = forward(backend), 37, p["options"]
    whole = call(p["q"], p["k"], p["v"], p["log_decay"], **options)
    gates = (p["log_decay"],) * 2 if case == "per head" else (p["log_decay"][..., :at], p["log_decay"][..., at:])
    one = call(*(p[x][:, :, :at] for x in "qkv"), gates[0], **options)
    two = call(*(p[x][:, :, at:] for x in "qkv"), gates[1], **{**options, "initial_state": one.state})
    assert rms(torch.cat([one.out, two.out], 2), whole.out.double()) <= 4e-6
    assert rms(two.state, whole.state.double()) <= 4e-6


@pytest.mark.parametrize("backend", BACKENDS.values())
@pytest.mark.parametrize(("case", "at"), [("per head", (1, 64, 100, 131)), ("packed and gated", (7, 33))])
def test_snapshots_are_the_states_on_the_way(case, at, backend, generator, poisoned):
    p = problem(case, generator)
    found = forward(backend)(p["q"], p["k"], p["v"], p["log_decay"], snapshots=at, **p["options"])
    inputs = [p[x].double() for x in ("q", "k", "v", "log_decay")]
    options = {**p["options"], "initial_state": p["options"]["initial_state"].double()}
    exact = recurrence(*inputs, snapshots=at, **options)
    assert found.snapshots.shape == exact.snapshots.shape
    assert rms(found.snapshots, exact.snapshots) <= 2e-6
    assert rms(found.out, exact.out) <= 2e-6


@pytest.mark.parametrize("through", ["the function", "the op"])
@pytest.mark.parametrize("at", [(40, 20), (20, 20), (1, 38), (-1,), (0,), (0, 5), (57,), (64,)])
@pytest.mark.parametrize("backend", BACKENDS.values())
def test_snapshots_that_do_not_rise_inside_every_sequence_are_refused(backend, at, through, generator):
    p = problem("packed and gated", generator)
    q, k, v, log_decay, options = *(p[x] for x in ("q", "k", "v", "log_decay")), p["options"]
    run = {
        "the function": lambda: forward(backend)(q, k, v, log_decay, snapshots=at, **options),
        "the op": lambda: ops.linear_attention(q, k, v, log_decay=log_decay, snapshots=at, backend=backend, **options),
    }[through]
    given = re.escape(str(list(at)))
    with pytest.raises(WorkbenchError, match=rf"snapshots {given} were given; .* counts from 1 to 33, .*: sort them"):
        run()


@pytest.mark.parametrize("backend", BACKENDS.values())
def test_snapshots_of_a_batch_end_with_its_length(backend, generator):
    p = problem("one token", generator)
    call = forward(backend)
    found = call(p["q"], p["k"], p["v"], p["log_decay"], snapshots=(1,), **p["options"])
    assert torch.equal(found.snapshots[:, 0], found.state)
    with pytest.raises(WorkbenchError, match=r"snapshots \[2\] were given; expected rising token counts from 1 to 1"):
        call(p["q"], p["k"], p["v"], p["log_decay"], snapshots=(2,), **p["options"])


@pytest.mark.parametrize("backend", BACKENDS.values())
def test_steps_equal_the_recurrence(backend, generator, poisoned):
    p = problem("per head", generator)
    step = linear_step if backend == "torch" else on_device(triton_linear_step)
    state, scale = p["options"]["initial_state"], p["options"]["scale"]
    for i in range(3):
        out, state = step(*(p[x][:, :, i] for x in "qkv"), state, p["log_decay"][..., 0], scale=scale)
    exact = recurrence(*(p[x][:, :, :3].double() for x in "qkv"), p["log_decay"].double(), scale=scale,
                       initial_state=p["options"]["initial_state"].double())  # fmt: skip
    assert rms(out, exact.out[:, :, -1]) <= 2e-6
    assert rms(state, exact.state) <= 2e-6


@pytest.mark.parametrize("backend", BACKENDS.values())
def test_the_steepest_decay_neither_overflows_nor_underflows_to_nan(backend, poisoned):
    q = k = v = torch.ones(1, 1, 130, 32)
    found = forward(backend)(q, k, v, torch.full((1, 1, 1), -50.0))
    torch.testing.assert_close(found.out, torch.full_like(found.out, 32.0))


def test_torch_chunks_are_differentiable_in_float64(generator):
    inputs = [torch.randn(1, 1, 7, 3, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]
    gate = -torch.rand(1, 1, 7, generator=generator, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda *x: tuple(chunked_linear(LinearInputs(*x), chunk=3)[:2]), (*inputs, gate))


@needs_triton
def test_a_second_launch_gives_the_same_bits(generator, poisoned):
    p = problem("per token", generator)
    runs = [forward("triton")(p["q"], p["k"], p["v"], p["log_decay"], **p["options"]) for _ in range(2)]
    assert torch.equal(runs[0].out, runs[1].out)
    assert torch.equal(runs[0].state, runs[1].state)


def test_bounds_that_do_not_cover_the_tokens_are_refused():
    x = torch.zeros(1, 1, 8, 4)
    with pytest.raises(WorkbenchError, match=r"cu_seqlens \[0, 5\] do not cut a batch of 1 × 8 tokens"):
        chunked_linear(LinearInputs(x, x, x, torch.zeros(1, 1, 1), cu_seqlens=[0, 5]))
