"""GGUF files are checkpoints as any: ordered by their names, resumed by their digests, refused one by one."""

import json
import shutil

import pandas as pd
import pytest

import workbench as wb
from tests.command_process import workbench
from tests.gguf_files import words, write_llama
from workbench.scanning.dry_run import look_ahead

PROBES = ["repeats:n=16,n_sequences=2"]


@pytest.fixture(scope="module")
def scanned(tmp_path_factory):
    root = tmp_path_factory.mktemp("gguf")
    for step in (200, 1000):
        write_llama(root / "series" / f"step{step}-Q4_1.gguf", settings=words(), seed=step)
    cut = write_llama(root / "series" / "step3000-Q4_1.gguf", settings=words(), seed=3)
    cut.write_bytes(cut.read_bytes()[:-100])
    run = wb.scan(root / "series", root / "run", detectors=["induction"], probes=PROBES)
    return root, run


def test_files_are_scored_in_the_order_of_their_steps_and_a_truncated_one_is_a_failure(scanned):
    _, run = scanned
    assert list(dict.fromkeys(run.scores()["step"])) == [200, 1000]
    (failure,) = run.failures().to_dict("records")
    assert failure["ckpt"] == "step3000-Q4_1.gguf"
    assert "truncated, fetch the file again" in failure["message"]


def test_rows_are_those_of_the_opened_file_and_flagged(scanned):
    root, run = scanned
    m = wb.open_model(root / "series" / "step1000-Q4_1.gguf")
    direct = wb.score(m, ["induction"], probes=PROBES).sort_values(["layer", "head"])
    stored = run.scores(step=1000).sort_values(["layer", "head"])
    pd.testing.assert_series_equal(stored["score"], direct["score"], check_index=False, check_dtype=False)
    assert set(stored["flags"]) == {"quantised=Q4_1"}


def test_the_run_says_that_weights_were_quantised_and_keeps_it_beside_the_shapes(scanned):
    _, run = scanned
    assert any("the weights were quantised (Q4_1)" in remark for remark in run.remarks)
    shapes = json.loads((run.path / "architectures.json").read_text())
    assert {shape["quantisation"] for shape in shapes} == {'"Q4_1"'}


def test_a_second_scan_computes_nothing_and_a_dry_run_counts_the_bytes_of_what_is_left(scanned):
    root, run = scanned
    outlook = look_ahead(wb.Job(checkpoints=root / "series", out=run.path, detectors=["induction"], probes=PROBES))
    assert {c.checkpoint: c.units - c.done for c in outlook.checkpoints if c.done} == {
        "step200-Q4_1.gguf": 0,
        "step1000-Q4_1.gguf": 0,
    }
    assert outlook.bytes_to_read == (root / "series" / "step3000-Q4_1.gguf").stat().st_size


def test_an_overwritten_file_is_scored_anew(scanned, tmp_path):
    root, _ = scanned
    shutil.copy(root / "series" / "step200-Q4_1.gguf", tmp_path / "step200.gguf")
    options = {"detectors": ["induction"], "probes": PROBES}
    before = wb.scan(tmp_path, tmp_path / "run", **options).scores()["score"].tolist()
    write_llama(tmp_path / "step200.gguf", settings=words(), seed=7)
    after = wb.scan(tmp_path, tmp_path / "run", same_series=True, **options).scores()["score"].tolist()
    assert before != after


def test_the_verbs_take_a_file_and_print_its_quantisation(scanned, tmp_path):
    root, _ = scanned
    file = root / "series" / "step200-Q4_1.gguf"
    listed = json.loads(workbench("series", str(file), "--json").stdout)
    assert [c["name"] for c in listed["checkpoints"]] == ["step200-Q4_1.gguf"]
    chosen = ("--detector", "induction", "--probe", PROBES[0], "--no-maps")
    done = workbench("scan", str(file), "--out", str(tmp_path / "run"), *chosen)
    assert done.returncode == 0, done.stderr
    assert "the weights were quantised (Q4_1)" in done.stderr + done.stdout


def test_several_models_in_a_folder_are_refused_with_how_to_choose(tmp_path):
    for name in ("a-Q4_1.gguf", "a-Q8_0.gguf"):
        write_llama(tmp_path / "models" / name)
    refused = workbench("scan", str(tmp_path / "models"), "--out", str(tmp_path / "run"))
    assert refused.returncode == 3
    assert "holds 2 GGUF models" in refused.stderr
    assert "pass the file of one" in refused.stderr
