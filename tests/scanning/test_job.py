"""A job: the same from a file, the environment, --set, flags and Python; what is wrong with one is said by key."""

import tomllib
from pathlib import Path

import pytest

import workbench as wb
from tests.checkpoints.folders import checkpoint
from workbench.heads import WorkbenchError
from workbench.hub import HubReference
from workbench.scanning.job import Job, make_job, overrides, read_job

FIELDS = {"checkpoints": "series", "out": "run"}


def test_a_job_file_is_the_same_job_with_paths_that_count_from_its_folder(tmp_path):
    (tmp_path / "job.toml").write_text(
        'checkpoints = "series"\nout = "run"\ndetectors = ["sink"]\nprobes = ["repeats:n=9"]\n'
    )
    job = read_job(tmp_path / "job.toml", seed=3, rows=None)
    assert job == make_job(
        {
            "checkpoints": tmp_path / "series",
            "out": tmp_path / "run",
            "detectors": ("sink",),
            "probes": ("repeats:n=9",),
            "seed": 3,
        }
    )
    assert wb.Job is Job


def test_flags_win_over_settings_over_the_environment_over_the_file(tmp_path):
    (tmp_path / "job.toml").write_text(
        'checkpoints = "s"\nout = "r"\nseed = 1\nrows = 1\nfar_window = 1\nfar_sink = 1\n'
    )
    environment = {"WB_ROWS": "2", "WB_FAR_WINDOW": "2", "WB_FAR_SINK": "2", "WB_OTHER": "x"}
    job = read_job(
        tmp_path / "job.toml", environment=environment, settings=["far_window=3", "far_sink = 3"], far_sink=4
    )
    assert (job.seed, job.rows, job.far_window, job.far_sink) == (1, 2, 3, 4)


def test_settings_are_toml_values_or_bare_words():
    given = overrides(settings=['detectors=["sink", "entropy"]', "device=cpu", "retry=true", 'dtype="float32"'])
    assert given == {"detectors": ["sink", "entropy"], "device": "cpu", "retry": True, "dtype": "float32"}
    with pytest.raises(WorkbenchError, match=r"'seed' has no '='; expected key=value"):
        overrides(settings=["seed"])


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"seeed": 3}, ["seeed", "given 3", "did you mean 'seed'"]),
        ({"tokens": 3}, ["tokens", "given 3", "expected one of checkpoints, out"]),
        ({"seed": "3"}, ["seed", "given '3'", "expected a whole number"]),
        ({"seed": True}, ["seed", "given True", "expected a whole number"]),
        ({"rows": 0}, ["rows", "given 0", "at least 1"]),
        ({"workers": 0}, ["workers", "given 0", "at least 1"]),
        ({"engine": "slurm"}, ["engine", "given 'slurm'", "'inline' or 'local' or 'ray'"]),
        ({"detectors": "sink"}, ["detectors", "given 'sink'", "a list of names"]),
        ({"detectors": [1]}, ["detectors.0", "given 1", "a list of names"]),
        ({"shard": "3/3"}, ["shard", "given '3/3'", "0 <= i < n", "SLURM_ARRAY_TASK_ID"]),
        ({"retry": "yes"}, ["retry", "given 'yes'", "true or false"]),
        ({"out": None}, ["out", "expected the path of the run folder"]),
        ({"workers": 2}, ["2 workers", "--engine local"]),
        ({"address": "auto"}, ["--engine ray"]),
    ],
)
def test_what_is_wrong_with_a_job_is_said_by_key_with_what_was_given_and_expected(wrong, told):
    with pytest.raises(WorkbenchError) as refused:
        make_job({**FIELDS, **wrong})
    for word in told:
        assert word in str(refused.value)


def test_every_wrong_key_is_named_at_once():
    with pytest.raises(WorkbenchError, match=r"out: missing.*seed: given 'x'.*nonsense: unknown key"):
        make_job({"checkpoints": "s", "seed": "x", "nonsense": 1})


@pytest.mark.parametrize("text", ["checkpoints = ", "\xff", None])
def test_a_job_file_that_cannot_be_read_is_named(tmp_path, text):
    path = tmp_path / "job.toml"
    if text is not None:
        path.write_text(text, encoding="latin-1")
    with pytest.raises(WorkbenchError, match="cannot read the job file"):
        read_job(path)


def test_the_kept_file_makes_the_same_job_without_what_was_of_the_call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = {"detectors": ['a "quoted" name\\', "µ"], "shard": "1/2", "join": True, "retry": True, "rows": 7}
    job = make_job({**FIELDS, **asked})
    (tmp_path / "elsewhere").mkdir()
    kept = tmp_path / "elsewhere" / "job.toml"
    kept.write_text(job.to_toml())
    assert "shard" not in tomllib.loads(job.to_toml())
    again = read_job(kept)
    assert again.kept() == job.kept()
    assert again.checkpoints == Path(tmp_path / "series")


def test_the_id_of_a_cached_model_is_kept_as_its_folder(tmp_path, monkeypatch):
    cached = tmp_path / "hub" / "models--org--name"
    checkpoint(cached / "snapshots" / "c0ffee1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "job.toml").write_text('checkpoints = "org/name"\nout = "run"\n')
    for job in (read_job(tmp_path / "job.toml"), make_job({"checkpoints": "org/name", "out": "run"})):
        assert job.checkpoints == cached


def test_references_to_a_hub_are_kept_as_they_are_and_a_folder_goes_before_them(tmp_path, monkeypatch):
    (tmp_path / "job.toml").write_text('checkpoints = "org/name"\nout = "run"\nrevisions = "step*"\n')
    elsewhere = checkpoint(tmp_path / "elsewhere" / "org" / "name").parent.parent
    monkeypatch.chdir(elsewhere)  # a folder beside the job file counts, not one where the process runs
    job = read_job(tmp_path / "job.toml")
    assert (job.checkpoints, job.revisions, job.source) == ("org/name", "step*", (HubReference("org/name"),))
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "job.toml").write_text(job.to_toml())
    assert read_job(tmp_path / "kept" / "job.toml").kept() == job.kept() == job.absolute().kept()
    checkpoint(tmp_path / "org" / "name")
    (tmp_path / "job.toml").write_text('checkpoints = "org/name"\nout = "run"\n')
    assert read_job(tmp_path / "job.toml").checkpoints == tmp_path / "org" / "name"


def test_several_references_are_one_job_in_a_list_or_with_commas(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parts = (HubReference("org/a"), HubReference("org/b", "v1"))
    for written in ('["org/a", "org/b@v1"]', '"org/a, org/b@v1"', '"org/a,org/b@v1"'):
        (tmp_path / "job.toml").write_text(f'checkpoints = {written}\nout = "run"\n')
        job = read_job(tmp_path / "job.toml")
        assert (job.checkpoints, job.source) == ("org/a,org/b@v1", parts)
    assert make_job({"checkpoints": ["org/a", "org/b@v1"], "out": "run"}).source == parts
    (tmp_path / "cwd" / "org" / "a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "cwd")  # a folder beside the job file counts, not one where the process runs
    (tmp_path / "job.toml").write_text('checkpoints = ["org/a", "org/b@v1"]\nout = "run"\n')
    assert read_job(tmp_path / "job.toml").source == parts
    (tmp_path / "org" / "a").mkdir(parents=True)
    with pytest.raises(WorkbenchError, match="is on this disk; several checkpoints are named by the ids of models"):
        read_job(tmp_path / "job.toml")
    assert make_job({"checkpoints": "org/name-step-*", "out": "run"}).checkpoints == "org/name-step-*"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"checkpoints": ["org/a", "./b"]}, r"'\./b' is no id of a model; several checkpoints are named by the ids"),
        ({"checkpoints": []}, r"checkpoints: given \[\], expected the path of a directory of checkpoints, or ids of"),
        (
            {"checkpoints": 3},
            r"checkpoints: given 3, expected the path of a directory of checkpoints, or ids of",
        ),
        ({"checkpoints": "org/a", "revisions": 3}, r"revisions: given 3, expected a glob of branches and tags"),
        ({"checkpoints": "org/a", "revisions": "/(/"}, r"revisions '/\(/': is no regular expression"),
    ],
)
def test_wrong_references_are_said(fields, message):
    with pytest.raises(WorkbenchError, match=message):
        make_job({"out": "run", **fields})


def test_revisions_of_a_folder_are_refused(tmp_path):
    checkpoint(tmp_path / "series" / "step1")
    with pytest.raises(WorkbenchError, match=r"series: is a folder, and revisions 'step\*' are those of a model"):
        make_job({"checkpoints": tmp_path / "series", "out": "run", "revisions": "step*"})
