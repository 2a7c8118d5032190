"""Everything that needs a GPU, in one command: exactness first, then times. A step has a limit and its own process.

A step's output is written as it comes, to <out>/gpu.log; its outcome, a JSON line, to <out>/gpu.jsonl; its table to
<out>/<name>.cuda.md. A step that fails or runs out of time does not stop the others. With --dry every step runs on
this CPU, in Triton's interpreter, at tiny sizes; its tables say so and are worth nothing as times.

    python benchmarks/gpu.py --out runs/gpu [--dry] [--only NAME ...] [--keep]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from machine import describe

HERE = Path(__file__).parent
# Without the suite's own conftest and plugins, which need more packages than a GPU machine may have.
_PYTEST = ("-m", "pytest", "-q", "-rA", "--tb=short", "-p", "no:cacheprovider", "-o", "addopts=")
_PYTEST += ("-o", "filterwarnings=default", f"--confcutdir={HERE.parent / 'tests' / 'kernels'}")
# Of each file of tests, those that a dry run takes.
_FEW = "triton and (gqa or (per and head) or odd or (causal and float32)) and not wide and not packed"


@dataclass(frozen=True, slots=True)
class Step:
    """A step: its limit in seconds, and what it runs: files of tests, or `gpu_steps.py` with a name.

    `table`: the title of the table it writes, where it has one.
    """

    name: str
    limit: int
    tests: tuple[str, ...] = ()
    table: str = ""

    def command(self, *, dry: bool) -> list[str]:
        if not self.tests:
            return [sys.executable, "-u", str(HERE / "gpu_steps.py"), self.name, *(["--dry"] if dry else [])]
        files = [str(HERE.parent / "tests" / "kernels" / name) for name in self.tests]
        return [sys.executable, "-u", *_PYTEST, *files, "-k", _FEW if dry else "triton or same_bits"]


STEPS = (
    Step("environment", 20),
    Step("exact_statistics", 90, ("test_attention_stats.py", "test_recorder_statistics.py")),
    Step("exact_linear_attention", 60, ("test_decay.py",)),
    Step("exact_delta_rule", 40, ("test_delta.py",)),
    Step("exact_recording", 40),
    Step("attention_stats", 60, table="Cost of attention statistics"),
    Step("linear_attention", 45, table="Cost of linear attention"),
    Step("record", 80, table="Cost of recording every detector"),
    Step("window_gates", 40, table="Cost of a gated pass"),
)


def environment(*, dry: bool) -> dict[str, str]:
    """Of a step's process: kernels on the GPU, or in Triton's interpreter on this CPU."""
    own = {
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "WORKBENCH_TEST_DEVICE": "cpu" if dry else "cuda",
        # cuBLAS needs it for the poisoned memory of the tests.
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }
    dropped = {} if dry else {"TRITON_INTERPRET": None, "WORKBENCH_KERNELS": None}
    interpreted = {"TRITON_INTERPRET": "1", "WORKBENCH_KERNELS": "triton", "OMP_NUM_THREADS": "1"} if dry else {}
    return {**{k: v for k, v in os.environ.items() if k not in dropped}, **own, **interpreted}


def run(step: Step, out: Path, *, dry: bool) -> dict[str, object]:
    """Run a step within its limit; what it prints is in gpu.log at once, and in its table if it has one."""
    started, log, lines = time.monotonic(), out / "gpu.log", out / f"{step.name}.part"
    with lines.open("w", encoding="utf-8") as written:
        process = subprocess.Popen(
            step.command(dry=dry),
            env=environment(dry=dry),
            cwd=HERE.parent,
            stdout=written,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=step.limit)
            outcome = "done" if code == 0 else f"failed with {code}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=30)
            outcome = f"out of time after {step.limit} s"
    printed = lines.read_text(encoding="utf-8", errors="replace")
    lines.unlink()
    with log.open("a", encoding="utf-8") as whole:
        whole.write(f"\n===== {step.name}: {outcome}, {time.monotonic() - started:.0f} s\n{printed}")
    if step.table:
        made = f"{describe()}{'; a dry run on a CPU, its times mean nothing' if dry else ''}; {outcome}"
        (out / f"{step.name}.cuda.md").write_text(f"# {step.table}, on a GPU\n\n{made}\n\n{printed}", encoding="utf-8")
    result = {"step": step.name, "outcome": outcome, "seconds": round(time.monotonic() - started, 1)}
    with (out / "gpu.jsonl").open("a", encoding="utf-8") as results:
        results.write(json.dumps({**result, "last": printed.strip().splitlines()[-3:]}) + "\n")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="a folder for the log, the outcomes and the tables")
    parser.add_argument("--dry", action="store_true", help="on this CPU, at tiny sizes: does every step run?")
    parser.add_argument("--only", nargs="+", choices=[step.name for step in STEPS], help="these steps alone")
    parser.add_argument("--keep", action="store_true", help="copy tables of a GPU to benchmarks/results")
    options = parser.parse_args(arguments)
    if not options.dry and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --dry tries every step on the CPU")
    options.out.mkdir(parents=True, exist_ok=True)
    steps = [step for step in STEPS if not options.only or step.name in options.only]
    print(f"{len(steps)} steps, at most {sum(step.limit for step in steps)} s", flush=True)
    outcomes: list[str] = []
    for step in steps:
        result = run(step, options.out, dry=options.dry)
        print(f"{step.name:24} {result['outcome']:28} {result['seconds']:6} s", flush=True)
        outcomes.append(str(result["outcome"]))
    if options.keep and not options.dry:
        for step in steps:
            if step.table:
                table = options.out / f"{step.name}.cuda.md"
                (HERE / "results" / table.name).write_text(table.read_text(encoding="utf-8"), encoding="utf-8")
    return int(any(outcome != "done" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
