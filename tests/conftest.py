"""What several test folders share: one thread, and a real demo."""

from __future__ import annotations

import os

import pytest

# Read once, when Triton is imported, and transformers imports it while other folders' tests are collected.
os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The quick demo, really pretrained and scanned: its folder, with checkpoints/ and runs/."""
    from workbench.demo import run_demo

    out = tmp_path_factory.mktemp("demo")
    run_demo(out, quick=True)
    return out


@pytest.fixture(scope="session")
def demo_runs(demo):
    """The run folders of the quick demo."""
    return sorted((demo / "runs").iterdir())
