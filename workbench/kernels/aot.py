"""Compile every shipped kernel for a GPU, present or not, and check the compiled code.

A kernel can become slow without becoming wrong: registers spill, the load pipeline switches off, tensor cores go
unused. Triton's wheel has the assembler and the disassembler, so all of that shows on any Linux machine:

    python -m workbench.kernels.aot [--arch 80 90 100] [--all]
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from workbench.heads import WorkbenchError
from workbench.kernels.dialect import HAS_TRITON, is_interpreted, precision_of
from workbench.kernels.launch_shapes import (
    ARCHITECTURES,
    NARROWEST,
    WIDEST,
    Launch,
    attention_config,
    column_config,
    delta_config,
    edge_config,
    linear_config,
    step_config,
)
from workbench.kernels.linear import decay_triton, delta_triton
from workbench.kernels.softmax import triton_kernels

# Head widths of the matrix; tiles are padded to powers of two.
_WIDTHS = (NARROWEST, 64, 80, 128, 192, 256)
# Bytes of shared memory that one program may have.
_SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
# Spills outside loops, once per program: a bound against the absurd.
_SPILLS_LIMIT = 128
# One store per tile among thousands of instructions: the reversed linear rows of 256 channels on Hopper, nothing else.
_LOOP_SPILLS_LIMIT = 1
# Rows of a product that Hopper's warp-group instruction takes at least; shorter ones are multiplied warp by warp.
_WARP_GROUP_ROWS = 64
_SASS = {
    "hgmma": r"\bHGMMA\b",
    "mma": r"\b(?:HGMMA|HMMA|UTC\w*MMA)\b",
    "pipelined_loads": r"\bLDGSTS\b",
    # Tensor memory is allocated by bit operations on shared memory; sums never are.
    "atomics": r"\b(?:RED|REDG|ATOM|ATOMG|ATOMS(?!\.(?:OR|AND)\b))\b",
}
_TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel as it is launched: run-time argument types, compile-time arguments, and the launch shape.

    `uses_tensor_cores`, `uses_warp_groups` (on Hopper), `is_pipelined`: what the compiled code must show.
    """

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    launch: Launch
    uses_tensor_cores: bool = True
    uses_warp_groups: bool = True
    is_pipelined: bool = True


@dataclass(frozen=True, slots=True)
class Resources:
    """The resources of one compiled kernel: registers per thread, bytes of shared memory, and counts of instructions.

    A register spilled once before a loop costs nothing; spilled in it, it costs every tile: `loop_spills`.
    """

    registers: int
    shared: int
    spills: int
    loop_spills: int
    hgmma: int
    mma: int
    pipelined_loads: int
    atomics: int

    def complaints(self, case: Case, arch: int) -> list[str]:
        """The reasons not to ship this kernel; empty if it may be shipped."""
        reasons: list[str] = []
        if self.loop_spills > _LOOP_SPILLS_LIMIT:
            reasons.append(f"{self.loop_spills} registers spilled in a loop, {_LOOP_SPILLS_LIMIT} at most")
        if self.spills > _SPILLS_LIMIT:
            reasons.append(f"{self.spills} spilling stores, {_SPILLS_LIMIT} at most")
        if self.shared > _SHARED_LIMIT[arch]:
            reasons.append(f"{self.shared} bytes of shared memory, {_SHARED_LIMIT[arch]} at most")
        if self.atomics:
            reasons.append(f"{self.atomics} memory atomics: sums would depend on their order")
        if case.uses_tensor_cores and not self.mma:
            reasons.append("no tensor-core instruction")
        if case.uses_tensor_cores and case.uses_warp_groups and arch == 90 and not self.hgmma:
            reasons.append("no warp-group matrix instruction")
        if case.is_pipelined and not self.pipelined_loads:
            reasons.append("no asynchronous load: the load pipeline is off")
        return reasons


def compile_case(case: Case, arch: int) -> Resources:
    """Compile one case for one architecture and disassemble it.

    Raises:
        WorkbenchError: if Triton is missing or interprets its kernels in this process.
    """
    if not HAS_TRITON:
        raise WorkbenchError("triton is not installed; expected it for compiling kernels: pip install triton")
    if is_interpreted():
        raise WorkbenchError("TRITON_INTERPRET=1 is set, so kernels cannot be compiled here; unset it in this process")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = case.kernel.arg_names
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in case.types if _is_aligned(name, case.types)}
    signature = {name: "constexpr" if name in case.constants else case.types[name] for name in names}
    source = ASTSource(fn=case.kernel, signature=signature, constexprs=case.constants, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=case.launch.options())
    usage, sass = _disassemble(compiled.asm["cubin"], Path(triton.__file__).parent / "backends/nvidia/bin")
    registers = re.search(r"REG:(\d+)", usage)
    counts = {name: len(re.findall(pattern, sass)) for name, pattern in _SASS.items()}
    assert registers is not None
    spills, loop_spills = _spills(sass)
    return Resources(int(registers[1]), compiled.metadata.shared, spills, loop_spills, **counts)


def shipped(arch: int, *, everything: bool = False) -> Iterator[Case]:
    """The kernels in the shapes that "auto" launches: heads of 128 channels in two types, or the whole matrix.

    The matrix has all types and sets of statistics, and heads up to `launch_shapes.WIDEST`, among them widths of no
    power of two.
    """
    yield from _attention_cases(arch, everything=everything)
    yield from _linear_cases(arch, everything=everything)
    yield from _delta_cases(arch, everything=everything)


_ROWS = {"ENTROPY": True, "TOP": True, "DISTANCE": True}
_MASKED = {"HAS_LOW": True, "HAS_SINK": True, "HAS_CAP": True}
_EVERY = _ROWS | {"N_EDGES": 16, "HAS_TAGS": True}
_STATISTICS: dict[str, dict[str, Any]] = {
    "output": {},
    "entropy": {"ENTROPY": True},
    "entropy, distance": {"ENTROPY": True, "DISTANCE": True},
    "entropy, top, distance": _ROWS,
    "recorded": _ROWS | {"N_EDGES": 1},
    "recorded, window, sink, cap": _ROWS | _MASKED | {"N_EDGES": 1},
    "all": _EVERY,
    "all, window, sink, cap": _EVERY | _MASKED,
    "all, no output": _EVERY | {"HAS_OUT": False},
    "recorded, selected blocks": _ROWS | {"N_EDGES": 1, "BLOCK": 128},
    "all, selected keys, window, sink, cap": _EVERY | _MASKED | {"BLOCK": 1},
}
# Keys in the blocks that rows select, where they do.
_BLOCKS = (0, 1, 128)
_OFF = {
    **dict.fromkeys((*_ROWS, *_MASKED, "HAS_TAGS"), False),
    "N_EDGES": 0,
    "BLOCK": 0,
    "HAS_OUT": True,
}


def _heads(operation: str, *, everything: bool) -> Iterator[tuple[torch.dtype, int, int]]:
    """Element types and head widths, as they are and as a power of two."""
    for dtype, widest in WIDEST[operation].items():
        if everything:
            yield from ((dtype, d, 1 << (d - 1).bit_length()) for d in _WIDTHS if d <= widest)
        elif dtype != torch.float16:
            yield dtype, 128, 128


def _attention_cases(arch: int, *, everything: bool) -> Iterator[Case]:
    for dtype, d, padded in _heads("attention_profile", everything=everything):
        heads = {"HEADS": 32, "GROUP": 4, "PRECISION": precision_of(dtype), "D": d, "DP": padded}
        for name in _STATISTICS if everything else ("output", "all", "recorded, selected blocks"):
            flags = _OFF | _STATISTICS[name]
            n_statistics = sum(bool(flags[x]) for x in ("ENTROPY", "TOP", "DISTANCE", "N_EDGES", "HAS_TAGS"))
            launch = attention_config(arch, d, dtype, n_statistics=n_statistics)
            tile = {"BM": launch.rows, "BN": launch.columns, "DV": d, "DVP": padded}
            kernel = triton_kernels.profile_forward
            yield _case(f"profile_forward: {name}, d {d}", kernel, dtype, heads | tile | flags, launch)
        shapes = dict.fromkeys(edge_config(arch, d, dtype, n_statistics=n) for n in range(1, 6 if everything else 2))
        for launch, block in product(shapes, _BLOCKS if everything else (0,)):
            tile = {"BM": launch.rows, "BN": launch.columns, "HAS_CAP": False, "N_EDGES": 16, "BLOCK": block}
            name = f"window_edges: {launch.rows} rows, {f'blocks of {block}, ' * (block > 0)}d {d}"
            yield _case(name, triton_kernels.window_edges, dtype, heads | tile, launch)
        launch = column_config(arch, d, dtype)
        tile = {"BM": launch.columns, "BN": launch.rows, "HAS_CAP": False}
        yield _case(f"column_sums: d {d}", triton_kernels.column_sums, dtype, heads | tile, launch)


def _linear_cases(arch: int, *, everything: bool) -> Iterator[Case]:
    for dtype, d, padded in _heads("linear_attention", everything=everything):
        both = (False, True) if everything else (False,)
        for is_wide, per_token, is_reversed in product(both, both, (False, True)):
            if is_wide and dtype == torch.float32:  # the same products
                continue
            launch = linear_config(arch, d, dtype, is_wide=is_wide)
            tile = {"D": d, "DV": d, "DP": padded, "BV": min(launch.columns, padded), "C": launch.rows}
            flags = {"PER_TOKEN": per_token, "REVERSE": is_reversed, "WIDE": is_wide, "PRECISION": precision_of(dtype)}
            name = f"d {d}{', wide' * is_wide}{', per token' * per_token}{', reversed' * is_reversed}"
            # A state has a row per key channel, rows one per token of a chunk.
            for kernel, rows in ((decay_triton.segment_state, padded), (decay_triton.segment_rows, launch.rows)):
                is_tall = rows >= _WARP_GROUP_ROWS
                yield _case(f"{kernel.__name__}: {name}", kernel, dtype, tile | flags, launch, uses_warp_groups=is_tall)
    for dtype, d, padded in _heads("linear_attention_step", everything=everything):
        step = step_config(arch)
        tile = {"HEADS": 64, "D": d, "DV": d, "DP": padded, "BV": step.columns}
        plain = {"uses_tensor_cores": False, "is_pipelined": False}
        yield _case(f"recurrent_step: d {d}", decay_triton.recurrent_step, dtype, tile, step, **plain)


def _delta_cases(arch: int, *, everything: bool) -> Iterator[Case]:
    for dtype, d, padded in _heads("gated_delta_rule", everything=everything):
        launch = delta_config(arch, d, dtype)
        tile = {"HEADS": 32, "D": d, "DV": d, "DP": padded, "BV": min(launch.columns, padded), "C": launch.rows}
        tile |= {"PRECISION": precision_of(dtype)}
        # Chunks are prepared one per program, without a loop over memory: there is nothing to pipeline.
        yield _case(f"delta_chunks: d {d}", delta_triton.delta_chunks, dtype, tile, launch, is_pipelined=False)
        is_pipelined = launch.num_stages > 1
        yield _case(f"delta_rows: d {d}", delta_triton.delta_rows, dtype, tile, launch, is_pipelined=is_pipelined)


def _case(
    name: str, kernel: Any, dtype: torch.dtype, constants: dict[str, Any], launch: Launch, **expected: bool
) -> Case:
    types = {x: _type_of(x, _TYPES[dtype]) for x in kernel.arg_names if x not in constants}
    if dtype == torch.float32:  # exact products have no tensor cores
        expected["uses_tensor_cores"] = False
    return Case(f"{name}, {_TYPES[dtype]}", kernel, types, constants, launch, **expected)


def _spills(sass: str) -> tuple[int, int]:
    """Spilling stores in all, and those between a label and a branch back to it."""
    lines = sass.splitlines()
    labels = {m[1]: n for n, line in enumerate(lines) if (m := re.match(r"\s*\.(L_x_\d+):", line))}
    stores = [n for n, line in enumerate(lines) if re.search(r"\bSTL\b", line)]
    jumps = ((n, m[1]) for n, line in enumerate(lines) if (m := re.search(r"\bBRA\b.*`\(\.(L_x_\d+)\)", line)))
    loops = [(labels[label], n) for n, label in jumps if label in labels and labels[label] < n]
    return len(stores), sum(any(first < n < last for first, last in loops) for n in stores)


# Types of arguments by their names: pointers are in capitals, and element types follow the model's.
_MODEL_POINTERS = {"Q", "K", "V", "OUT", "ERASED"}
_INTEGER_POINTERS = {
    "POSITION", "LOW", "HIGH", "EDGES", "QUERY_TAG", "KEY_TAG", "TOP_KEY", "FIRST_ROW", "LAST_ROW",
    "SEGMENTS", "BOUNDS", "WORDS", "TILES", "N_TILES",
}  # fmt: skip
_WHOLE_STRIDES = {"stride_q", "stride_k", "stride_v", "stride_o"}
_FLOATS = {"scale", "softcap", "state_scale", "update_scale"}


def _type_of(name: str, element: str) -> str:
    if name in _MODEL_POINTERS:
        return f"*{element}"
    if name in _INTEGER_POINTERS:
        return "*i32"
    if name.isupper():
        return "*fp32"
    return "fp32" if name in _FLOATS else "i32"


def _is_aligned(name: str, types: dict[str, str]) -> bool:
    """True for arguments divisible by 16 at run time: pointers, and the strides of whole heads and tokens."""
    return types[name].startswith("*") or name[:-1] in _WHOLE_STRIDES


def _disassemble(cubin: bytes, tools: Path) -> tuple[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "kernel.cubin")
        Path(path).write_bytes(cubin)
        commands = [[tools / "cuobjdump", "--dump-resource-usage", path], [tools / "nvdisasm", "-c", path]]
        usage, sass = (subprocess.run(c, check=True, capture_output=True, text=True).stdout for c in commands)
    return usage, sass


def main() -> None:
    """Print one line per kernel and architecture; exit with 1 if any may not be shipped."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--arch", type=int, nargs="+", default=list(ARCHITECTURES))
    parser.add_argument("--all", action="store_true", help="the full matrix instead of one shape per kernel")
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    arguments = parser.parse_args()
    is_good = True
    for arch in arguments.arch:
        for case in shipped(arch, everything=arguments.all):
            if arguments.only not in case.name:
                continue
            resources = compile_case(case, arch)
            complaints = resources.complaints(case, arch)
            is_good &= not complaints
            counts = f"regs {resources.registers} smem {resources.shared >> 10} KiB "
            counts += f"spills {resources.spills}, in loops {resources.loop_spills} "
            counts += f"mma {resources.mma} hgmma {resources.hgmma} loads {resources.pipelined_loads}"
            print(f"sm_{arch} {case.name}: {counts} {'; '.join(complaints) or 'ok'}", flush=True)
    raise SystemExit(0 if is_good else 1)


if __name__ == "__main__":
    main()
