"""Every shipped kernel compiles for three architectures with no GPU: pipelined, on tensor cores, without atomics."""

import json
import os
import sys

import pytest
import torch

from tests.children import run_child
from workbench.heads import WorkbenchError
from workbench.kernels import aot
from workbench.kernels.dialect import HAS_TRITON
from workbench.kernels.launch_shapes import WIDEST

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed on this platform")

# The interpreter is chosen for a whole process: compile in another one.
GATE = """
import json
from workbench.kernels import aot
found = []
for case in aot.shipped(ARCH, everything=EVERYTHING):
    if not case.name.endswith("DTYPE"):
        continue
    resources = aot.compile_case(case, ARCH)
    found.append([case.name, resources.complaints(case, ARCH), resources.mma, resources.pipelined_loads])
print(json.dumps(found))
"""


def gate(arch, everything, dtype=""):
    environment = {x: y for x, y in os.environ.items() if x != "TRITON_INTERPRET"}
    program = GATE.replace("ARCH", str(arch)).replace("EVERYTHING", str(everything)).replace("DTYPE", dtype)
    command = [sys.executable, "-c", program]
    ran = run_child(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout)


@pytest.mark.parametrize("dtype", ["bf16", pytest.param("fp32", marks=pytest.mark.slow)])
@pytest.mark.parametrize("arch", [90, *(pytest.param(x, marks=pytest.mark.slow) for x in (80, 100))])
def test_one_shape_of_each_kernel_may_be_shipped(arch, dtype):
    found = gate(arch, everything=False, dtype=dtype)
    kernels = {name.partition(":")[0] for name, *_ in found}
    assert kernels == {
        "profile_forward", "window_edges", "column_sums", "segment_state", "segment_rows", "recurrent_step",
        "delta_chunks", "delta_rows",
    }  # fmt: skip
    assert {name: complaints for name, complaints, *_ in found if complaints} == {}


@pytest.mark.slow
@pytest.mark.parametrize("arch", aot.ARCHITECTURES)
def test_every_shape_of_each_kernel_may_be_shipped(arch):
    assert {name: complaints for name, complaints, *_ in gate(arch, everything=True) if complaints} == {}


@pytest.mark.parametrize("arch", aot.ARCHITECTURES)
def test_the_matrix_reaches_the_widest_heads_that_auto_gives_to_triton(arch):
    kernels = {
        "attention_profile": ("profile_forward", "window_edges"),
        "attention_column_sums": ("column_sums",),
        "linear_attention": ("segment_state", "segment_rows"),
        "linear_attention_step": ("recurrent_step",),
        "gated_delta_rule": ("delta_chunks", "delta_rows"),
    }
    compiled = {}
    for case in aot.shipped(arch, everything=True):
        at = case.name.partition(":")[0], case.name.rpartition(" ")[2]
        compiled[at] = max(compiled.get(at, 0), case.constants["D"])
    names = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
    wanted = {
        (kernel, names[dtype]): widest
        for operation, by_type in WIDEST.items()
        for dtype, widest in by_type.items()
        for kernel in kernels[operation]
    }
    assert compiled == wanted


def test_a_kernel_without_its_pipeline_or_with_atomics_is_complained_of():
    case = next(iter(aot.shipped(90)))
    bad = aot.Resources(255, 1 << 20, 900, 9, 0, 0, 0, 2)
    found = " ".join(bad.complaints(case, 90))
    for words in ("spilled in a loop", "shared memory", "atomics", "tensor-core", "warp-group", "load pipeline is off"):
        assert words in found


def test_warp_groups_are_asked_for_on_hopper_where_a_product_has_the_rows_for_them():
    plain = aot.Resources(100, 1 << 10, 0, 0, 0, 8, 8, 0)
    short = [case for case in aot.shipped(90, everything=True) if not case.uses_warp_groups]
    assert {case.name.partition(":")[0] for case in short} == {"segment_state", "segment_rows"}
    assert all(case.constants["DP"] == 32 or case.constants["C"] == 32 or case.constants["C"] == 16 for case in short)
    assert plain.complaints(short[0], 90) == []
    tall = next(case for case in aot.shipped(90) if case.uses_tensor_cores)
    assert plain.complaints(tall, 90) == ["no warp-group matrix instruction"]
    assert plain.complaints(tall, 80) == []


def test_compiling_under_the_interpreter_is_refused():
    with pytest.raises(WorkbenchError, match="TRITON_INTERPRET=1 is set"):
        aot.compile_case(next(iter(aot.shipped(90))), 90)
