"""run.json as a typed description: what a scan writes is what readers are given."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from workbench.runs import open_run
from workbench.scanning.job import Job
from workbench.store import JobDescription, RunDescription, Store, Versions
from workbench.store.run_description import JOB_DEFAULTS

KEPT = sorted(Path("examples/python_source").glob("*/run.json"))


def test_a_job_is_described_by_its_own_fields_in_their_order(tmp_path):
    job = Job(checkpoints=tmp_path, out=tmp_path / "run", rows=128, probes=("repeats:n=64",)).kept()
    described = JobDescription.from_json(job)
    assert described.as_dict() == job
    assert list(described.as_dict()) == list(job)
    assert not described.others
    names = [name for name in Job.model_fields if name not in {"shard", "join", "retry", "same_series"}]
    assert [f.name for f in fields(JobDescription)] == [*names, "others"]
    assert {name: Job.model_fields[name].default for name in JOB_DEFAULTS} == JOB_DEFAULTS


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.parent.name)
def test_kept_runs_read_as_they_were_written(path):
    document = json.loads(path.read_text())
    description = open_run(path.parent).description()
    assert description == document
    assert description.as_dict() == document
    assert description["job"]["probes"] == list(description.job.probes)
    assert description.versions.workbench == "0.1.0"


def test_a_description_keeps_keys_that_it_does_not_know_and_leaves_out_what_is_not_said(tmp_path):
    job = {"detectors": ["sink"], "of_a_later_version": 3}
    store = Store.create(tmp_path / "run", job=job, versions={"workbench": "0.0.9"})
    description = store.description()
    assert isinstance(description, RunDescription)
    assert description["job"] == job
    assert description.job.others == {"of_a_later_version": 3}
    assert description.job.seed is None
    assert description.versions == Versions({"workbench": "0.0.9"})
    assert description.versions.workbench == "0.0.9"
    assert "job" in description
    assert description.get("stage") is None
