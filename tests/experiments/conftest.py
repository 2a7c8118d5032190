"""One small study, run once for all tests that only read it."""

from __future__ import annotations

import pytest

from tests.experiments.small import STUDY
from workbench.experiments import read_results, run_conversion


@pytest.fixture(scope="session")
def study_folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("conversion") / "study"
    run_conversion(STUDY, out, seeds=2)
    return out


@pytest.fixture(scope="session")
def results(study_folder):
    return read_results(STUDY, study_folder, seeds=2)
