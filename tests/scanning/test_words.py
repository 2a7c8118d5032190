"""The words of a scan's probes: the same at every checkpoint, and what is not as it should be is said."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.loading.word_tokenizers import SIZES, word_tokenizer
from workbench import open_run, scan
from workbench.cli.scan_verbs import scan as scan_command
from workbench.heads import WorkbenchError
from workbench.scanning import look_ahead, make_job

FEW = {"detectors": ["induction"], "probes": ["repeats:n=6,n_sequences=2"], "maps": False}


@pytest.fixture
def series(tmp_path):
    """Two checkpoints without a tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=40, bos_token_id=0, eos_token_id=1, max_position_embeddings=64, **SIZES)
    model = LlamaForCausalLM(config)
    for step in (10, 20):
        model.lm_head.weight.data += 1
        model.save_pretrained(tmp_path / "series" / f"checkpoint-{step}")
    return tmp_path / "series"


def digests(run):
    return run.scores().groupby("probe_digest")["step"].unique().map(list).tolist()


def test_a_tokenizer_beside_one_checkpoint_is_that_of_all_and_the_scan_says_so(series, tmp_path, capsys):
    word_tokenizer().save_pretrained(series / "checkpoint-20")
    scan_command(str(series), out=tmp_path / "run", detector=["induction"], probe=["repeats:n=6,n_sequences=2"])
    said = capsys.readouterr().err
    assert "checkpoint-10: no tokenizer files; the tokenizer of checkpoint-20 is used for all" in said
    run = open_run(tmp_path / "run")
    assert digests(run) == [[10, 20]]
    assert all(file.pieces[1].startswith("w") for file in run.maps.files())
    assert run.tokenizer == str(series / "checkpoint-20")


def test_bare_token_ids_are_said_in_the_output_in_json_and_ahead(series, tmp_path, capsys):
    job = make_job({"checkpoints": series, "out": tmp_path / "run", "detectors": ("induction",), "maps": False})
    (remark,) = look_ahead(job).remarks
    assert "there are no tokenizer files" in remark
    assert "probes are token ids of the whole vocabulary, drawn without words" in remark
    scan_command(str(series), out=tmp_path / "run", detector=["induction"], maps=False)
    assert remark in capsys.readouterr().err
    scan_command(str(series), out=tmp_path / "run", detector=["induction"], maps=False, as_json=True)
    assert json.loads(capsys.readouterr().out)["remarks"] == [remark]


def test_a_series_that_shares_no_words_is_refused_before_anything_is_written(series, tmp_path):
    word_tokenizer().save_pretrained(series / "checkpoint-10")
    word_tokenizer(prefix="v").save_pretrained(series / "checkpoint-20")
    with pytest.raises(WorkbenchError, match=r"different tokenizers: checkpoint-10 .* and checkpoint-20"):
        scan(series, tmp_path / "run", **FEW)
    assert not (tmp_path / "run").exists()
    run = scan(series, tmp_path / "run", tokenizer=series / "checkpoint-10", **FEW)
    assert digests(run) == [[10, 20]]


def test_a_run_whose_tokenizer_is_gone_does_not_go_on_with_bare_ids(series, tmp_path):
    word_tokenizer().save_pretrained(series)
    scan(series, tmp_path / "run", **FEW)
    for path in series.glob("*.json"):
        path.unlink()
    with pytest.raises(WorkbenchError, match=r"were made with the tokenizer of .*series, and there is none now"):
        scan(series, tmp_path / "run", **FEW)
    word_tokenizer().save_pretrained(tmp_path / "elsewhere")
    assert digests(scan(series, tmp_path / "run", tokenizer=str(tmp_path / "elsewhere"), **FEW)) == [[10, 20]]


def test_a_job_file_names_a_tokenizer_beside_it(series, tmp_path, capsys):
    word_tokenizer().save_pretrained(tmp_path / "words")
    fields = {"checkpoints": "series", "out": "run", "detectors": ["induction"], "tokenizer": "words", "maps": False}
    (tmp_path / "job.toml").write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in fields.items()))
    scan_command(str(tmp_path / "job.toml"))
    assert f"the tokenizer of {tmp_path / 'words'} is used for all checkpoints" in capsys.readouterr().err
    run = open_run(tmp_path / "run")
    assert run.description().job.tokenizer == str(tmp_path / "words")
    assert f'tokenizer = "{tmp_path / "words"}"' in (tmp_path / "run" / "job.toml").read_text()


def test_what_warnings_say_of_probes_is_said_once(series, tmp_path, capsys):
    word_tokenizer(bos="w0").save_pretrained(series)
    scan_command(
        str(series), out=tmp_path / "run", detector=["induction"], probe=["repeats:n=36,n_sequences=2"], maps=False
    )
    said = capsys.readouterr().err
    assert said.count("sequences of 73 tokens are longer than the 64 positions") == 1
    assert said.count("bos_token_id of the configuration is 0, the tokenizer's is 3") == 1


def test_what_names_leave_in_doubt_is_said_by_a_scan_as_by_series(series, tmp_path, capsys):
    (series / "checkpoint-20").rename(series / "best7")
    scan_command(
        str(series), out=tmp_path / "run", detector=["induction"], probe=["repeats:n=6,n_sequences=2"], maps=False
    )
    assert "best7" in capsys.readouterr().err


def test_a_tokenizer_in_memory_is_refused_for_a_job_which_names_places(series, tmp_path):
    with pytest.raises(WorkbenchError, match=r"(?s)tokenizer: given .*, expected the folder of a tokenizer"):
        scan(series, tmp_path / "run", tokenizer=word_tokenizer(), **FEW)
