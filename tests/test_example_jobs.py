"""Every job file in examples/jobs runs as it stands, but for lengths: on a tiny model of its architecture."""

import json
import re
import shutil
import tomllib
from functools import cache
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from tests.families import CONFIGS, WINDOW
from tests.more_families import MORE_CONFIGS
from tests.probes.models import bare_model, bpe_model
from workbench import open_run, probes
from workbench.cli.main import app
from workbench.detectors import all_detectors

JOBS = sorted((Path(__file__).parent.parent / "examples" / "jobs").glob("*.toml"))
FAMILIES = {"cwm": "cwm", "gemma": "gemma3", "gpt_oss": "gpt_oss"}
# What a probe of this many tokens has room for.
SHORT = {"length": 448, "n": 12, "depth": 50, "n_sequences": 1}


def shortened(written):
    """The same probe, written as it is, with its sizes cut."""
    name, _, arguments = written.partition(":")
    given = dict(piece.split("=") for piece in arguments.split(","))
    cut = {key: SHORT[key] for key in given if key in SHORT}
    cut |= {"n_common": 2} if name == "common_words" else {}
    return f"{name}:" + ",".join(f"{k}={v}" for k, v in {**given, **cut}.items())


def tiny_checkpoint(family, folder):
    """A random model of an architecture, with a tokenizer."""
    words = bpe_model()
    config = {**CONFIGS, **MORE_CONFIGS}[family]()
    config.vocab_size = words.config.vocab_size
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words.tokenizer.save_pretrained(folder)


def test_there_is_a_job_for_each_architecture():
    assert [path.stem for path in JOBS] == sorted(FAMILIES)


@pytest.mark.parametrize("path", JOBS, ids=lambda p: p.stem)
def test_a_job_runs_on_a_tiny_model_of_its_architecture(path, tmp_path):
    job = tomllib.loads(path.read_text())
    tiny_checkpoint(FAMILIES[path.stem], tmp_path / job["checkpoints"] / "step-1")
    copy = shutil.copy(path, tmp_path)
    options = [piece for written in job["probes"] for piece in ("--probe", shortened(written))]
    done = CliRunner().invoke(
        app, ["scan", str(copy), "--rows", "16", "--device", "cpu", "--dtype", "float32", "--json", *options]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["failures"] == []
    scores = open_run(tmp_path / job["out"]).scores()
    assert set(scores.detector) == set(job["detectors"])
    assert set(scores.probe) == {re.search("name=([^,]+)", written)[1] for written in job["probes"]}
    assert set(scores.window.dropna()) == {WINDOW}
    assert all(f.startswith(f"far_window={WINDOW};") for f in scores[scores.detector == "far_mass"]["flags"])
    learned = scores[scores.detector == "learned_sink"]
    assert (learned.n > 0).all() == (path.stem == "gpt_oss")


@cache
def length_of(written):
    """The length of a probe in full, of which the jobs share most."""
    needs_text = written.startswith("repeated_ngrams")
    return probes.build(bpe_model() if needs_text else bare_model(128_000), written).tokens.shape[1]


@pytest.mark.parametrize("path", JOBS, ids=lambda p: p.stem)
def test_a_jobs_probes_exist_in_their_full_length(path):
    job = tomllib.loads(path.read_text())
    assert set(job["detectors"]) <= all_detectors().keys()
    read = [written for written in job["probes"] if written.startswith("repeated_ngrams")]
    assert max(length_of(written) for written in job["probes"] if written not in read) == 131_072
    assert [length_of(written) for written in read] == [32_768]
