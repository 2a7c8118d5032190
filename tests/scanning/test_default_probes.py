"""One model gets probes that it can do; a series, and a run that began as one, keep theirs."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.loading.word_tokenizers import SIZES
from tests.probes.models import bpe_model
from workbench import open_run, scan
from workbench.cli.run_verbs import emergence
from workbench.cli.run_verbs import top as top_command
from workbench.cli.scan_verbs import scan as scan_command
from workbench.cli.score_verbs import score as score_command
from workbench.heads import WorkbenchError
from workbench.report import contents_of, write_page
from workbench.scanning import look_ahead, make_job

CLASSES = ("induction", "previous_token", "retrieval_top1", "sink_gu", "sink")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder of one model with a tokenizer of 1500 tokens."""
    torch.manual_seed(0)
    source = bpe_model()
    sizes = {**SIZES, "vocab_size": source.config.vocab_size, "max_position_embeddings": 1024}
    config = LlamaConfig(**sizes, bos_token_id=source.config.bos_token_id)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    LlamaForCausalLM(config).save_pretrained(folder)
    source.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    return scan(model, tmp_path_factory.mktemp("runs") / "tiny", detectors=CLASSES, maps=False)


def job(model, out, **fields):
    return make_job({"checkpoints": model, "out": out, "detectors": CLASSES, "maps": False, **fields})


def test_one_model_is_scanned_on_text_and_measured_on_the_controls(run):
    assert set(run.scores()["probe"]) == {"repeats", "niah_single_2", "repeated_ngrams"}
    assert set(run.metrics()["probe"]) - set(run.scores()["probe"]) == {
        "repeats_without_answers",
        "niah_single_2_without_answers",
    }
    assert run.is_one_model
    assert run.last_job().probes[0] == "repeats:n=50"


def test_a_model_that_cannot_find_the_needle_has_no_retrieval_heads(run):
    summary = run.model_summary()
    assert "retrieval" not in set(summary.heads["class"])
    assert set(summary.abilities["verdict"]) == {"cannot"}
    assert any(remark.startswith("Retrieval heads are not named: the model cannot do") for remark in summary.remarks)
    assert {row["probe"] for row in run.cannot()} == {"niah_single_2", "repeats", "repeated_ngrams"}


def test_the_same_command_again_computes_nothing(run, model):
    outlook = look_ahead(job(model, run.path))
    assert outlook.units_to_do == 0
    assert outlook.tokens == sum((20 * 101, 5 * 101, 6 * 512, 5 * 512, 5 * 384))
    before = run.status().done
    assert scan(model, run.path, detectors=CLASSES, maps=False).status().done == before


def test_a_run_that_has_the_probes_of_a_series_keeps_them_and_says_so(model, tmp_path):
    old = tmp_path / "old"
    written = ("repeats:n=50", "copy_needle:distance=16+32+64,length=96")
    scan(model, old, detectors=["induction"], probes=list(written), maps=False)
    (request,) = (old / "requests").glob("*.json")
    document = json.loads(request.read_text())
    for probe in document["probes"].values():
        probe["written"] = "default"  # as a scan without --probe wrote them
    request.write_text(json.dumps(document))
    outlook = look_ahead(job(model, old, detectors=("induction",)))
    assert outlook.units_to_do == 0
    assert any("keeps the default probes of its first scan" in remark for remark in outlook.remarks)


def test_a_series_has_probes_that_need_no_tokenizer(model, tmp_path):
    series = tmp_path / "series"
    series.mkdir()
    (series / "step10").symlink_to(model)  # one so far, and its name says that others follow
    probes = {unit["probe"] for unit in look_ahead(job(series, tmp_path / "run")).units}
    assert probes == {"repeats", "copy_needle"}


@pytest.mark.slow
def test_the_scan_says_its_cost_first_and_ends_with_what_the_model_is(run, model, capsys):
    scan_command(str(model), out=run.path, detector=list(CLASSES), maps=False)
    printed = capsys.readouterr()
    assert "tokens in all" in printed.err
    assert "What the model gets right" in printed.out
    assert "previous_token > 0.4 on repeats" in printed.out
    scan_command(str(model), out=run.path, detector=list(CLASSES), maps=False, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert {row["probe"] for row in document["model"]["abilities"]} == set(run.scores()["probe"])


def test_emergence_of_one_model_is_refused_with_the_next_step(run):
    with pytest.raises(WorkbenchError, match=r"takes two checkpoints or more.*workbench top") as error:
        emergence([run.path])
    assert error.value.exit_code == 2


def test_the_best_heads_on_a_probe_that_cannot_be_done_come_with_a_sentence(run, capsys):
    top_command(run.path, detector="retrieval_top1")
    assert "the model cannot do" in capsys.readouterr().err
    top_command(run.path, detector="retrieval_top1", as_json=True)
    assert any("cannot do" in remark for remark in json.loads(capsys.readouterr().out)[0]["remarks"])


def test_the_report_of_one_model_says_what_it_gets_right_and_nothing_of_onsets(run, tmp_path):
    contents = contents_of([open_run(run.path)])
    assert any("cannot do niah_single_2" in claim for claim in contents.claims)
    assert not any("lock-in" in claim or "at first" in claim for claim in contents.claims)
    assert contents.facts["tiny"]["steps"] is None
    page = write_page(contents, tmp_path / "report.html").read_text()
    assert "what the model gets right" in page
    assert "Phase changes" not in page


def test_a_model_is_scored_without_a_run(model, tmp_path, capsys):
    score_command(str(model), detector=["retrieval_top1"], probe=["repeats:n=8,n_sequences=5"], out=tmp_path / "s.csv")
    printed = capsys.readouterr()
    assert "cannot" in printed.out
    assert "repeats_without_answers: 85/170 tokens" in printed.err
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 1 + 2  # a row per head
    score_command(str(model), detector=["induction"], probe=["repeats:n=8,n_sequences=5"], as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert {"abilities", "classes", "heads", "remarks", "scores", "metrics"} < document.keys()
    with pytest.raises(WorkbenchError, match=r"ends in \.csv or \.parquet"):
        score_command(str(model), out=tmp_path / "scores.xls")
