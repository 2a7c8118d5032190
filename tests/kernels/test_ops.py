"""The public operations: backends are chosen openly, gradients are right, and torch.compile takes them."""

import os
import sys

import pytest
import torch

from tests.children import run_child
from workbench.heads import WorkbenchError
from workbench.kernels import SoftmaxLayer, dispatch, ops
from workbench.kernels.dialect import HAS_TRITON
from workbench.kernels.key_intervals import intervals
from workbench.kernels.launch_shapes import WIDEST
from workbench.kernels.linear import decay, linear_ops
from workbench.kernels.softmax import softmax_ops
from workbench.kernels.softmax.reference import reference_profile
from workbench.kernels.softmax.statistics_request import Request

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed on this platform")


def attention_inputs(generator, dtype=torch.float32):
    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return normal(1, 4, 21, 16), normal(1, 2, 33, 16), normal(1, 2, 33, 16), normal(4)


def linear_inputs(generator):
    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return normal(1, 2, 19, 8), normal(1, 2, 19, 8), normal(1, 2, 19, 8), -torch.rand(1, 2, 19, generator=generator)


def test_attention_gradients_through_output_and_lse_equal_autograds(generator):
    q, k, v, sinks = (x.requires_grad_() for x in attention_inputs(generator))
    layer = SoftmaxLayer(q, k, intervals(21, 33, window=9), scale=0.3, softcap=5.0, sinks=sinks)
    fast = ops.attention_profile(layer, v, Request(entropy=True))
    exact = reference_profile(layer, v, Request())
    weights = torch.randn(fast.out.shape, generator=generator), torch.randn(fast.lse.shape, generator=generator)
    found = torch.autograd.grad([fast.out, fast.lse], [q, k, v, sinks], weights)
    wanted = torch.autograd.grad([exact.out, exact.lse], [q, k, v, sinks], [w.double() for w in weights])
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).norm() <= 2e-6 * b.norm()


def test_statistics_pass_no_gradient_and_say_so(generator):
    q, k, v, _ = (x.requires_grad_() for x in attention_inputs(generator))
    layer = SoftmaxLayer(q, k, intervals(21, 33), scale=0.25)
    profile = ops.attention_profile(layer, v, Request(entropy=True, distance=True))
    assert profile.out.requires_grad
    assert not profile.entropy.requires_grad
    assert not profile.mean_distance.requires_grad


def test_linear_attention_gradients_flow_into_every_input(generator):
    inputs = [x.requires_grad_() for x in linear_inputs(generator)]
    out, state, _ = ops.linear_attention(*inputs[:3], log_decay=inputs[3])
    found = torch.autograd.grad(out.sum() + state.square().sum(), inputs)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    out, state, _ = decay.chunked_linear(decay.LinearInputs(*wide))
    wanted = torch.autograd.grad(out.sum() + state.square().sum(), wide)
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


def test_one_slope_per_head_is_a_gate_that_never_changes(generator):
    q, k, v, _ = linear_inputs(generator)
    slopes = torch.tensor([0.5, 0.1])
    one = ops.linear_attention(q, k, v, log_decay=-slopes)
    two = ops.linear_attention(q, k, v, log_decay=-slopes[None, :, None].expand(1, 2, 19))
    torch.testing.assert_close(one.out, two.out)
    torch.testing.assert_close(one.state, two.state)


def profile_calls(generator):
    q, k, v, sinks = (x.requires_grad_() for x in attention_inputs(generator))
    seen = intervals(21, 33)
    bounds = (seen.position, seen.low, seen.high, True)
    tags = torch.zeros(1, 21, dtype=torch.int32), torch.zeros(1, 33, dtype=torch.int32)
    yield q, k, v, *bounds, sinks, 0.25, None, [4, 8], *tags, True, True, True, "torch"
    selected = torch.randint(0, 9, (1, 21, 3), generator=generator, dtype=torch.int32)
    yield q, k, None, *bounds, None, 0.25, 30.0, [], None, None, False, False, False, "torch", selected, 4


def profile_backward_calls(generator):
    q, k, v, sinks = attention_inputs(generator)
    seen = intervals(21, 33)
    bounds = (seen.position, seen.low, seen.high, True)
    out, lse, d_lse = torch.zeros_like(q), torch.zeros(1, 4, 21), torch.ones(1, 4, 21)
    yield torch.ones_like(out), d_lse, q, k, v, *bounds, sinks, out, lse, 0.25, None
    selected = torch.randint(0, 9, (1, 21, 3), generator=generator, dtype=torch.int32)
    yield torch.ones_like(out), d_lse, q, k, None, *bounds, None, out, lse, 0.25, 30.0, selected, 4


def column_calls(generator):
    q, k, _, _ = attention_inputs(generator)
    seen = intervals(21, 33)
    yield q, k, torch.zeros(1, 4, 21), seen.position, seen.low, seen.high, True, 0.25, None, "torch"


def linear_calls(generator):
    x = [x.requires_grad_() for x in linear_inputs(generator)]
    state = torch.randn(1, 2, 8, 8, generator=generator).requires_grad_()
    yield *x, 0.5, state, None, [3, 19], "torch"
    yield *x, 0.5, None, [0, 7, 19], [], "torch"


def linear_backward_calls(generator):
    x = linear_inputs(generator)
    yield torch.ones(1, 2, 19, 8), torch.ones(1, 2, 8, 8), *x, 0.5, torch.ones(1, 2, 8, 8), None, True, "torch"
    yield torch.ones(1, 2, 19, 8), torch.ones(2, 2, 8, 8), *x, 0.5, None, [0, 7, 19], False, "torch"


def step_calls(generator):
    q, k, v, g = (x[:, :, 0] for x in linear_inputs(generator))
    yield q, k, v, torch.randn(1, 2, 8, 8, generator=generator), g, 0.5, "torch"


def delta_calls(generator):
    q, k, v, g = linear_inputs(generator)
    beta, state = torch.rand(1, 2, 19, generator=generator), torch.randn(1, 2, 8, 8, generator=generator)
    k = torch.nn.functional.normalize(k, dim=-1)
    yield q, k, v, g, beta, 0.5, state, None
    yield q, k, v, g, beta, 0.5, None, [0, 7, 19]


CALLS = {
    "profile_op": (softmax_ops, profile_calls),
    "profile_backward_op": (softmax_ops, profile_backward_calls),
    "column_sums_op": (softmax_ops, column_calls),
    "linear_attention_op": (linear_ops, linear_calls),
    "linear_attention_backward_op": (linear_ops, linear_backward_calls),
    "linear_attention_step_op": (linear_ops, step_calls),
    "gated_delta_rule_op": (linear_ops, delta_calls),
}


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=needs_triton) if x == "gated_delta_rule_op" else x for x in CALLS]
)
def test_opcheck_passes(name, generator):
    module, calls = CALLS[name]
    for call in calls(generator):
        torch.library.opcheck(getattr(module, name), call)


def test_every_registered_op_is_checked():
    names = {x for module in (softmax_ops, linear_ops) for x, y in vars(module).items() if hasattr(y, "register_fake")}
    assert names == set(CALLS)


COMPILED = """
import torch
torch.set_num_threads(1)
from workbench.kernels import Request, SoftmaxLayer, ops
from workbench.kernels.key_intervals import intervals
q, k, v = (torch.randn(1, 2, 16, 8, requires_grad=True) for _ in range(3))
seen = intervals(16, 16)

def attend(q, k, v):
    profile = ops.attention_profile(SoftmaxLayer(q, k, seen, 0.35), v, Request(entropy=True, windows=(4,)))
    return profile.out.sum() + profile.lse.sum(), profile.entropy, profile.beyond

def mix(q, k, v):
    out, state, _ = ops.linear_attention(q, k, v, log_decay=torch.tensor([-0.1, -0.2]))
    return out.sum() + state.sum(), out

def erase(q, k, v):
    gate = -torch.ones(1, 2, 16)
    out, state = ops.gated_delta_rule(q, torch.nn.functional.normalize(k, dim=-1), v, g=gate, beta=-gate)
    return out.sum() + state.sum(), out

for function in (attend, mix, erase):
    eager = function(q, k, v)
    wanted = torch.autograd.grad(eager[0], [q, k, v])
    compiled = torch.compile(function, backend="BACKEND", fullgraph=True)(q, k, v)
    found = torch.autograd.grad(compiled[0], [q, k, v])
    for a, b in zip((*eager, *wanted), (*compiled, *found)):
        torch.testing.assert_close(a, b)
print("compiled")
"""


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_torch_compile_takes_whole_graphs_forward_and_backward(backend):
    environment = {x: y for x, y in os.environ.items() if x != "TRITON_INTERPRET"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", COMPILED.replace("BACKEND", backend)]
    ran = run_child(command, env=environment, capture_output=True, text=True)
    assert ran.stdout == "compiled\n", ran.stderr[-2000:]


def test_a_cpu_takes_torch_and_says_why():
    found = ops.explain("cpu")
    assert found["attention_profile"].startswith("row-blocked torch (cpu: exact")
    assert set(found) >= {"attention_profile", "linear_attention", "linear_attention_step", "gated_delta_rule"}


def test_the_delta_rules_limits_are_told(monkeypatch):
    monkeypatch.setattr(dispatch, "HAS_TRITON", True)
    assert "forward only; heads of 32 to 128 channels in" in ops.explain("cuda")["gated_delta_rule"]
    assert "forward only" not in ops.explain("cuda")["linear_attention"]
    assert "forward only" not in ops.explain("cpu")["gated_delta_rule"]


def test_the_widest_heads_that_take_triton_are_told_for_each_type(monkeypatch):
    monkeypatch.setattr(dispatch, "HAS_TRITON", True)
    told = ops.explain("cuda")["linear_attention"]
    assert "heads of 32 to 256 channels in bfloat16 and float16, 128 channels in float32; else chunked torch" in told
    assert "channels" not in ops.explain("cpu")["linear_attention"]


@needs_triton
@pytest.mark.parametrize("operation", dispatch.TORCH_NAMES)
def test_auto_leaves_heads_without_a_sound_kernel_to_torch(operation, monkeypatch):
    monkeypatch.setenv(dispatch.SETTING, "triton")
    for dtype, widest in WIDEST[operation].items():
        fits, exceeds = (torch.empty(1, 1, 0, d, dtype=dtype) for d in (widest, widest + 1))
        assert ops.choose_for(operation, (fits, fits)).backend == "triton"
        choice = ops.choose_for(operation, (fits, exceeds))
        assert choice.backend == "torch"
        assert f"heads of {widest + 1} channels in {str(dtype)[6:]}" in choice.why
        assert ops.choose_for(operation, (exceeds,), "triton").backend == "triton"
    assert ops.choose_for(operation, (fits.double(),)) == ("torch", "float64 has no kernel")


@needs_triton
def test_wide_float32_heads_run_in_torch_and_the_rest_in_triton(monkeypatch):
    monkeypatch.setenv(dispatch.SETTING, "triton")
    launches = []

    def launched(inputs, **options):
        launches.append(inputs.q.shape[-1])
        return decay.chunked_linear(inputs, **options)

    monkeypatch.setattr(decay, "triton_linear", launched)
    for d in (128, 136):
        x = torch.ones(1, 1, 3, d)
        ops.linear_attention(x, x, x, log_decay=torch.zeros(1))
    assert launches == [128]


@needs_triton
def test_heads_narrower_than_any_that_was_compiled_are_left_to_torch(monkeypatch):
    monkeypatch.setenv(dispatch.SETTING, "triton")
    monkeypatch.setattr(dispatch, "is_interpreted", lambda: False)
    monkeypatch.setattr(dispatch, "choose", lambda *_: dispatch.Choice("triton", "cuda"))
    narrow, fits = (torch.empty(1, 1, 0, d) for d in (31, 32))
    assert ops.choose_for("attention_profile", (fits,)).backend == "triton"
    assert ops.choose_for("attention_profile", (narrow,)).why.startswith("heads of 31 channels")
    assert ops.choose_for("attention_profile", (narrow, fits)).backend == "triton"  # tiles are as wide as the widest


@pytest.mark.parametrize(
    ("capability", "backend"), [((8, 0), "triton"), ((8, 6), "torch"), ((9, 0), "triton"), ((12, 0), "torch")]
)
def test_auto_takes_triton_on_gpus_whose_compiled_kernels_were_checked(capability, backend, monkeypatch):
    monkeypatch.setattr(dispatch, "HAS_TRITON", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: capability)
    choice = ops.choose("attention_profile", "cuda")
    assert choice.backend == backend
    assert backend == "triton" or "kernels are compiled and checked for 8.0, 9.0, 10.0" in choice.why
    assert ops.choose("attention_profile", "cuda", "triton").backend == "triton"


def test_a_gpu_takes_triton_unless_it_is_missing(monkeypatch):
    monkeypatch.setattr(dispatch, "HAS_TRITON", True)
    assert ops.choose("linear_attention", "cuda").backend == "triton"
    monkeypatch.setattr(dispatch, "HAS_TRITON", False)
    choice = ops.choose("linear_attention", "cuda")
    assert choice.backend == "torch"
    assert "triton is not installed" in choice.why
    with pytest.raises(WorkbenchError, match="backend='triton' was asked for, but triton is not installed"):
        ops.choose("linear_attention", "cuda", "triton")


def test_a_backend_that_cannot_run_is_refused_not_replaced(monkeypatch):
    monkeypatch.setattr(dispatch, "is_interpreted", lambda: False)
    monkeypatch.setattr(dispatch, "HAS_TRITON", True)
    with pytest.raises(WorkbenchError, match="backend='triton' was asked for on cpu; expected cuda"):
        ops.choose("attention_profile", "cpu", "triton")
    with pytest.raises(WorkbenchError, match="serves gated_delta_rule only"):
        ops.choose("attention_profile", "cpu", "fla")
    with pytest.raises(WorkbenchError, match="no operation 'softmax'"):
        ops.choose("softmax", "cpu")


def test_uneven_groups_are_refused_with_both_numbers():
    q, k = torch.zeros(1, 3, 4, 16), torch.zeros(1, 2, 4, 16)
    with pytest.raises(WorkbenchError, match="3 query heads cannot share 2"):
        ops.attention_profile(SoftmaxLayer(q, k, intervals(4, 4), scale=0.25), k, Request())
