"""Real text: a tokenizer trained on the spot, windows with `<bos>` first, runs that resume to the same bytes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from workbench.cli.main import app
from workbench.heads import WorkbenchError
from workbench.pretrain import Shape, prepare_corpus, pretrain_run, python_sources, text_recipe
from workbench.pretrain.corpus import CorpusSettings
from workbench.pretrain.training_batches import TrainingBatches

SMALL = CorpusSettings("text", vocabulary=300, max_bytes=60_000)
SHAPE = Shape(n_layers=2, d_model=32, n_heads=2, d_head=16, d_ff=32, window=8, vocabulary=300)


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Sixty documents about numbers, of 20 to 79 lines."""
    folder = tmp_path_factory.mktemp("text")
    for i in range(60):
        lines = [f"The number {i * j} is {i} times {j}, and naïve people agree." for j in range(20 + i)]
        (folder / f"{i:02d}.txt").write_text("\n".join(lines), encoding="utf-8")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def corpus(files, tmp_path_factory):
    return prepare_corpus(files, tmp_path_factory.mktemp("corpus") / "corpus", SMALL)


def small_recipe(corpus, variant="full", **changes):
    chosen = text_recipe(variant, corpus.digest, steps=20, shape=SHAPE)
    return replace(chosen, batch=2, length=32, n_checkpoints=6, **changes)


def test_the_corpus_is_the_documents_each_after_bos_and_held_out_ones_are_not_in_it(files, corpus):
    tokenizer = corpus.tokenizer(32)
    ends = [*corpus.starts[1:], len(corpus.tokens)]
    documents = [corpus.tokens[s:e].tolist() for s, e in zip(corpus.starts, ends, strict=True)]
    assert all(d[0] == 0 and 0 not in d[1:] for d in documents)
    texts = {tokenizer.decode(d[1:]) for d in documents}
    assert texts <= {f.read_text() for f in files}
    held_out = corpus.held_out.read_text()
    assert not any(t in held_out for t in texts)
    assert corpus.tokens.max() < corpus.vocabulary == len(tokenizer) == 300


def test_the_same_files_and_seed_give_the_same_digest_and_another_seed_does_not(files, corpus, tmp_path):
    assert prepare_corpus(files, tmp_path / "again", SMALL).digest == corpus.digest
    assert prepare_corpus(files, tmp_path / "other", replace(SMALL, seed=1)).digest != corpus.digest


def test_a_corpus_that_is_there_is_opened_without_its_files_and_not_under_other_settings(corpus):
    assert prepare_corpus([], corpus.folder, SMALL).digest == corpus.digest
    with pytest.raises(WorkbenchError, match="vocabulary 300, asked for 310"):
        prepare_corpus([], corpus.folder, replace(SMALL, vocabulary=310))


@pytest.mark.parametrize("windows", ["packed", "plain"])
def test_windows_begin_with_bos_and_go_on_as_the_corpus_does(corpus, windows):
    material = TrainingBatches(small_recipe(corpus, windows=windows), corpus)
    text = np.asarray(corpus.tokens).tobytes()
    crosses = 0
    for batch in material.batches(0):
        for row in batch.numpy():
            assert row[0] == 0
            assert row[1:].astype(np.uint16).tobytes() in text
            crosses += (row[1:] == 0).any()
    assert (crosses > 0) == (windows == "packed")


def test_a_step_trains_on_the_same_tokens_wherever_the_run_went_on(corpus):
    material = TrainingBatches(small_recipe(corpus), corpus)
    whole = list(material.batches(0))
    assert len(whole) == 20
    for later, same in zip(material.batches(13), whole[13:], strict=True):
        assert later.equal(same)


@pytest.mark.parametrize("variant", ["full", "linear"])
def test_an_interrupted_run_on_text_ends_in_the_same_bytes(corpus, variant, tmp_path):
    chosen = small_recipe(corpus, variant)
    pretrain_run(chosen, tmp_path / "whole", corpus)

    def stop(progress):
        if progress.step == 13:
            raise Killed

    with pytest.raises(Killed):
        pretrain_run(chosen, tmp_path / "cut", corpus, on_step=stop)
    pretrain_run(chosen, tmp_path / "cut", corpus)
    files = {p.relative_to(tmp_path / "whole"): p for p in (tmp_path / "whole").glob("checkpoint-*/*")}
    assert files
    assert all((tmp_path / "cut" / name).read_bytes() == path.read_bytes() for name, path in files.items())


def test_a_checkpoint_loads_with_a_tokenizer_that_says_the_text_back(corpus, tmp_path):
    last = pretrain_run(small_recipe(corpus, "hybrid"), tmp_path, corpus)[-1]
    tokenizer = AutoTokenizer.from_pretrained(last)
    said = "The number 7\n\tis naïve: def f(x):"
    ids = tokenizer(said)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == 0
    assert tokenizer.decode(ids[1:]) == said
    model = AutoModelForCausalLM.from_pretrained(last)
    assert (model.config.vocab_size, model.config.sliding_window) == (300, 8)
    state = json.loads((last / "trainer_state.json").read_text())
    assert state["num_input_tokens_seen"] == 20 * 2 * 32


@pytest.mark.parametrize("optimiser", ["muon", "adamw"])
def test_a_few_steps_lower_the_loss(corpus, optimiser, tmp_path):
    losses = []
    chosen = replace(small_recipe(corpus), steps=60, warmup=5, optimiser=optimiser, lr_matrices=5e-3)
    pretrain_run(chosen, tmp_path, corpus, on_step=lambda p: losses.append(p.loss))
    assert losses[0] == pytest.approx(np.log(300), abs=1e-4)
    assert np.mean(losses[-5:]) < 3.5


def test_bfloat16_products_train_as_float32_ones_do_with_weights_in_float32(corpus, tmp_path):
    losses = {}
    for precision in ("float32", "bfloat16"):
        chosen = replace(small_recipe(corpus), steps=60, warmup=5, precision=precision)
        said = losses.setdefault(precision, [])
        last = pretrain_run(chosen, tmp_path / precision, corpus, on_step=lambda p, said=said: said.append(p.loss))[-1]
        assert {x.dtype for x in load_file(last / "model.safetensors").values()} == {torch.float32}
    rounded, exact = np.array(losses["bfloat16"]), np.array(losses["float32"])
    assert not np.array_equal(rounded, exact)
    assert np.abs(rounded - exact).max() < 0.1


def test_a_gpu_that_is_not_there_is_refused_before_anything_is_written(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(WorkbenchError, match="device cuda was asked for, and torch sees no GPU; expected cpu"):
        pretrain_run(small_recipe(corpus), tmp_path / "run", corpus, device="cuda")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("variant", ["full", "linear"])
def test_a_run_on_a_gpu_goes_on_on_the_cpu_with_the_same_losses(corpus, variant, tmp_path):
    losses = {}
    for name, device in {"cpu": "cpu", "gpu": "cuda"}.items():
        said = losses.setdefault(name, [])
        pretrain_run(
            small_recipe(corpus, variant),
            tmp_path / name,
            corpus,
            device=device,
            on_step=lambda p, s=said: s.append(p.loss),
        )
    assert np.abs(np.array(losses["cpu"]) - losses["gpu"]).max() < 0.02


@pytest.mark.parametrize(
    ("variant", "layers", "ratio", "kinds"),
    [
        ("full", 2, 1, "ff"),
        ("sliding", 3, 1, "sss"),
        ("hybrid", 4, 1, "sfsf"),
        ("hybrid", 4, 3, "sssf"),
        ("linear", 3, 1, "flf"),
        ("linear", 4, 1, "flfl"),
        ("linear", 8, 7, "flllllll"),
    ],
)
def test_the_ratio_says_which_layers_are_full(variant, layers, ratio, kinds):
    shape = Shape(n_layers=layers, local_per_full=ratio)
    assert "".join(kind[0] for kind in shape.layer_kinds(variant)) == kinds


def test_python_sources_are_python_files_of_the_stated_sizes():
    found = python_sources()
    assert len(found) > 1000
    assert {p.suffix for p in found} == {".py"}
    assert all(500 <= p.stat().st_size <= 200_000 for p in found[:50])
    assert any(p.name == "argparse.py" for p in found)


def test_what_cannot_be_trained_on_is_refused_with_what_to_do(files, corpus, tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(WorkbenchError, match="no text was found in 1 files"):
        prepare_corpus([tmp_path / "binary"], tmp_path / "c")
    with pytest.raises(WorkbenchError, match=r"too small for a vocabulary of 5000.*supports \d+ tokens"):
        prepare_corpus(files, tmp_path / "c", replace(SMALL, vocabulary=5000))
    with pytest.raises(WorkbenchError, match="vocabulary 100000: expected 257 to 65536"):
        prepare_corpus(files, tmp_path / "c", replace(SMALL, vocabulary=100_000))
    assert not (tmp_path / "c").exists()
    with pytest.raises(WorkbenchError, match=r"the text is too small.*hold no packed window of 1000000 tokens"):
        TrainingBatches(replace(small_recipe(corpus), length=1_000_000), corpus)
    with pytest.raises(WorkbenchError, match="no plain window of 20000 tokens"):
        TrainingBatches(replace(small_recipe(corpus, windows="plain"), length=20_000), corpus)
    with pytest.raises(WorkbenchError, match="300 different tokens and the model 40"):
        TrainingBatches(replace(small_recipe(corpus), shape=Shape()), corpus)
    with pytest.raises(WorkbenchError, match=r"trains on the corpus .* and was given the synthetic language"):
        pretrain_run(small_recipe(corpus), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def invoke(*words):
    return CliRunner().invoke(app, ["pretrain", *map(str, words)])


def test_the_command_trains_on_text_files_and_goes_on_from_where_it_stands(files, tmp_path):
    words = ["full", "hybrid", "--data", "text", "--text", files[0].parent, "--out", tmp_path, "--vocabulary", 300]
    words += ["--steps", 6, "--batch", 2, "--length", 32, "--checkpoints", 4, "--layers", 2, "--width", 32, "--json"]
    done = invoke(*words)
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)["checkpoints"]
    assert set(made) == {"full", "hybrid"}
    config = json.loads((tmp_path / "checkpoints/hybrid/checkpoint-6/config.json").read_text())
    assert (config["hidden_size"], config["intermediate_size"], config["head_dim"]) == (32, 128, 8)
    before = (tmp_path / "checkpoints/full/checkpoint-6/model.safetensors").stat().st_mtime_ns
    assert invoke(*words).exit_code == 0
    assert (tmp_path / "checkpoints/full/checkpoint-6/model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fll"], "unknown variant 'fll'; expected one of full"),
        (["--text", "x.txt"], "--text was given with --data language"),
        (["--data", "text"], "pass --text FILE"),
        (["--data", "text", "--text", "nowhere.txt"], "nowhere.txt does not exist"),
        (["full", "--heads", "5"], "--heads 5 does not divide the 128 channels"),
    ],
)
def test_the_command_refuses_what_makes_no_sense(words, said, tmp_path):
    done = invoke(*words, "--out", tmp_path)
    assert isinstance(done.exception, WorkbenchError)
    assert said in str(done.exception)
