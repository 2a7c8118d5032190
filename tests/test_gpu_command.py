"""The command that proves and times the kernels on a GPU: its steps, apart from each other, and dry on this CPU."""

import importlib
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("gpu")
    for name in ("gpu", "machine"):
        sys.modules.pop(name, None)


def outcomes(folder):
    return {x["step"]: x["outcome"] for x in map(json.loads, (folder / "gpu.jsonl").read_text().splitlines())}


def test_a_step_that_fails_or_never_ends_does_not_stop_the_others(gpu, tmp_path, monkeypatch):
    programs = {
        "fails": "print('half of it', flush=True); raise SystemExit(3)",
        "never_ends": "import time; print('begun', flush=True); time.sleep(600)",
        "works": "print('- T 64: 1.0 ms')",
    }
    monkeypatch.setattr(gpu.Step, "command", lambda step, dry: [sys.executable, "-c", programs[step.name]])
    monkeypatch.setattr(gpu, "STEPS", tuple(gpu.Step(name, 1, table="Cost") for name in programs))
    assert gpu.main(["--dry", "--out", str(tmp_path)]) == 1
    assert outcomes(tmp_path) == {"fails": "failed with 3", "never_ends": "out of time after 1 s", "works": "done"}
    assert "begun" in (tmp_path / "never_ends.cuda.md").read_text()
    table = (tmp_path / "works.cuda.md").read_text()
    assert "- T 64: 1.0 ms" in table
    assert "a dry run on a CPU, its times mean nothing" in table
    assert [x.partition(":")[0] for x in (tmp_path / "gpu.log").read_text().split("\n===== ")[1:]] == [*programs]


def test_all_steps_together_take_less_than_eight_minutes_and_each_has_its_program(gpu):
    assert sum(step.limit for step in gpu.STEPS) <= 480
    for step in gpu.STEPS:
        assert all((BENCHMARKS.parent / "tests" / "kernels" / name).exists() for name in step.tests)


def test_without_a_gpu_only_a_dry_run_is_taken(gpu, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main(["--out", str(tmp_path)])
    assert "--dry tries every step on the CPU" in capsys.readouterr().err


@pytest.mark.slow
def test_every_step_runs_dry(gpu, tmp_path):
    assert gpu.main(["--dry", "--out", str(tmp_path)]) == 0
    assert outcomes(tmp_path) == {step.name: "done" for step in gpu.STEPS}
